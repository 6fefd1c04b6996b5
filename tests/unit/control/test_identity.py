"""Names and keys that keep deployments apart."""

import stat
from pathlib import Path

import pytest

from pd_control.planning.plan import proxy_spec
from pd_control.settings import ControlSettings
from pd_control.supervision.identity import FILE, variables

HERE = ControlSettings()


def test_a_state_folder_has_one_identity_and_another_folder_another(tmp_path: Path) -> None:
    first = variables(tmp_path / "a", HERE, {})

    assert first.keys() == {"DEPLOYMENT", "PING_KEY", "UNSIGNED_PINGS"}
    assert len(first["PING_KEY"]) >= 32
    assert variables(tmp_path / "a", HERE, {}) == first
    other = variables(tmp_path / "b", HERE, {})
    assert (other["DEPLOYMENT"], other["PING_KEY"]) != (first["DEPLOYMENT"], first["PING_KEY"])


def test_nobody_else_may_read_the_key(tmp_path: Path) -> None:
    variables(tmp_path, HERE, {})

    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")

    assert variables(tmp_path, HERE, {}) == variables(tmp_path, HERE, {}) != {}


@pytest.mark.parametrize("said", ["DEPLOYMENT", "PING_KEY", "PING_KEY_FILE"])
def test_what_the_user_says_stays(said: str, tmp_path: Path) -> None:
    assert variables(tmp_path, HERE, {said: "x"}) == {}
    assert variables(tmp_path, HERE, {said: ""}) != {}


@pytest.mark.parametrize(
    "settings", [ControlSettings(proxy_host="10.0.0.1"), ControlSettings(discovery_host="0.0.0.0")], ids=str
)
def test_engines_on_other_hosts_could_not_know_a_key_that_is_made_here(
    settings: ControlSettings, tmp_path: Path
) -> None:
    assert variables(tmp_path, settings, {}) == {}


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        (HERE, "127.0.0.1"),
        (ControlSettings(proxy_host="localhost"), "127.0.0.1"),
        (ControlSettings(proxy_host="10.0.0.1"), "10.0.0.1"),
        (ControlSettings(proxy_host="head-node"), "0.0.0.0"),
        (ControlSettings(discovery_host="10.0.0.2"), "10.0.0.2"),
    ],
)
def test_the_proxy_hears_engines_on_this_machine_alone_unless_it_is_told_otherwise(
    settings: ControlSettings, address: str
) -> None:
    assert settings.heard_on == address
    assert proxy_spec(settings).env["DISCOVERY_HOST"] == address
