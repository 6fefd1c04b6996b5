"""`pd-loadgen search` and `import`, with real runs."""

import json
import subprocess
import sys
from pathlib import Path

from support.loadgen import StampedServer, environment

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pd_loadgen", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False, env=environment())


def search(server: StampedServer, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    # two at a time, 0.1 s each: 20 requests per second is all that fits; above it the queue grows past the limit
    load = ["--model", "steady", "--arrival", "constant", "--duration", "1.5", "--max-concurrency", "2", "--idle", "0"]
    load += ["--input-tokens", "16", "--output-tokens", "2", "--lag-limit-ms", "5000", "--goodput", "e2el:400"]
    bounds = ["--low", "5", "--high", "80", "--tolerance", "0.5", "--repeats", "1"]
    return command("search", "--url", server.url, "--out", out, *load, *bounds, *more)


def test_the_highest_rate_within_the_limits_is_found_and_a_second_search_asks_nothing(tmp_path: Path) -> None:
    out = tmp_path / "search"
    with StampedServer(ttft=0.095, tpot=0.005).running() as server:
        done = search(server, out)
        asked = len(server.served)
        again = search(server, out)

        assert done.returncode == 0, done.stderr
        assert len(server.served) == asked
    found = json.loads((out / "search.json").read_text())
    assert found["close"]
    assert 12 < found["rate"] < 35
    assert f"{found['rate']:g} requests/s" in done.stdout
    assert again.stdout == done.stdout
    assert len(list(out.glob("rate*-seed0/manifest.json"))) == len(found["probes"]) >= 3


def test_a_search_that_has_no_answer_says_so(tmp_path: Path) -> None:
    with StampedServer(ttft=0.5, tpot=0.005).running() as server:
        done = search(server, tmp_path / "search")

    assert done.returncode == 4
    assert "no rate meets the goal: at 5 requests/s" in done.stdout


def test_a_search_without_its_limits_is_refused(tmp_path: Path) -> None:
    done = command("search", "--out", tmp_path, "--low", "1", "--high", "2")

    assert done.returncode == 2
    assert done.stderr == "pd-loadgen: search needs --goodput: the limits to meet\n"


def test_a_detailed_summary_can_be_imported_as_a_run(tmp_path: Path) -> None:
    with StampedServer(ttft=0.05, tpot=0.005).running() as server:
        load = ["--model", "steady", "--duration", "0.5", "--rate", "20", "--idle", "0", "--lag-limit-ms", "5000"]
        load += ["--input-tokens", "16", "--output-tokens", "4", "--save-detailed", "--out", str(tmp_path / "run")]
        assert command("run", "--url", server.url, *load).returncode == 0
    done = command("import", tmp_path / "run" / "summary.json", "--out", tmp_path / "imported", "--gpus", "2")

    assert done.returncode == 0, done.stderr
    made = read_json(tmp_path / "imported" / "manifest.json", Manifest)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "imported")]
    assert made.deployment.gpus == 2
    assert len(list(read_lines(tmp_path / "imported" / "requests.jsonl", RequestRecord))) == made.workload.requests
    keys = ["completed", "total_output_tokens", "duration", "p99_ttft_ms", "p99_itl_ms", "mean_tpot_ms"]
    assert [round(summaries[1][key], 3) for key in keys] == [round(summaries[0][key], 3) for key in keys]


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    done = command("import", tmp_path / "x.json", "--out", tmp_path / "imported")

    assert done.returncode == 2
    assert "--save-detailed" in done.stderr
    assert not (tmp_path / "imported").exists()
