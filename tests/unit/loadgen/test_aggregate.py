"""Tables of many runs: columns whose kinds differ from run to run, and what is missing."""

import sys
from pathlib import Path

import pytest

from pd_contracts.records import RecordError
from pd_loadgen.results import aggregate

TABLE: list[aggregate.Row] = [{"path": "a", "rate": 1, "note": None}, {"path": "b", "rate": 2.5, "valid": True}]


def test_a_column_has_one_kind_and_what_a_run_does_not_have_is_null(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    assert aggregate.write_parquet(TABLE, tmp_path / "t.parquet") == 2
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"path": "a", "rate": 1.0, "note": None, "valid": None},
        {"path": "b", "rate": 2.5, "note": None, "valid": True},
    ]


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(RecordError, match=r"install pd-loadgen\[parquet\]"):
        aggregate.write_parquet(TABLE, tmp_path / "t.parquet")
