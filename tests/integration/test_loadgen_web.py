"""Locust's web page and Locust's own command: the same run, started over HTTP."""

import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.loadgen import REPOSITORY, StampedServer, environment
from support.waiting import until

from pd_contracts import latency
from pd_contracts.free_ports import free_port
from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines
from pd_contracts.settings import fields, shown
from pd_loadgen.workload.options import Options, load

LOCUST = [sys.executable, "-m", "locust", "-f", str(REPOSITORY / "loadgen" / "locustfile.py")]
FORM = {
    "user_count": "1",
    "spawn_rate": "1",
    "rate": "20",
    "duration": "1",
    "input_tokens": "16",
    "output_tokens": "8",
    "model": "steady",
}


class Page:
    """Locust's page, as a browser uses it."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.base + path, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def swarm(self, **form: str) -> dict[str, Any]:
        data = urllib.parse.urlencode({**FORM, **form}).encode()
        with urllib.request.urlopen(self.base + "/swarm", data=data, timeout=10) as answer:
            answered: dict[str, Any] = json.loads(answer.read())
            return answered

    def stop(self) -> None:
        with urllib.request.urlopen(self.base + "/stop", data=b"", timeout=20):
            pass

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = json.loads(self.get("/stats/requests"))
        return stats

    def wait_for_end(self, out: Path) -> dict[str, Any]:
        """Wait until the run is on disk and Locust shows all of it; its statistics may be two seconds old."""
        until(lambda: ended(out))
        requests = read_json(out / "manifest.json", Manifest).workload.requests
        until(
            lambda: rows(self.stats())["Aggregated"]["num_requests"] == requests and self.stats()["state"] == "stopped"
        )
        return self.stats()


def ended(out: Path) -> bool:
    path = out / "manifest.json"
    return path.exists() and read_json(path, Manifest).window is not None


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.2, tpot=0.02).running() as server:
        yield server


@pytest.fixture(name="page", scope="module")
def _page(server: StampedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with locust(server.url, tmp_path_factory.mktemp("locust")) as page:
        yield page


@contextmanager
def locust(url: str, folder: Path, *more: str) -> Iterator[Page]:
    port = free_port()
    command = [
        *LOCUST,
        "--web-host",
        "127.0.0.1",
        "--web-port",
        str(port),
        "--host",
        url,
        "--lag-limit-ms",
        "5000",
        *more,
    ]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        page = Page(port)
        until(lambda: answers(page))
        yield page
    finally:
        process.terminate()
        process.wait(60)


def answers(page: Page) -> bool:
    try:
        return bool(page.get("/"))
    except urllib.error.URLError:
        return False


def is_median_ms(value: float, records: list[RequestRecord]) -> bool:
    """Whether this is the records' median TTFT, rounded to a millisecond or less; of an even number, either of the two in the middle."""
    ttfts = [1e3 * (latency.ttft(record) or 0) for record in records]
    assert min(ttfts) > 195, "the server takes 200 ms"
    return statistics.median_low(ttfts) - 1 <= value <= statistics.median_high(ttfts) + 1


def rows(stats: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in stats["stats"]}


def test_the_start_form_has_the_workloads_fields(page: Page, server: StampedServer) -> None:
    html = page.get("/")

    for name in ("model", "dataset", "input_tokens", "output_tokens", "rate", "duration", "seed", "goodput", "out"):
        assert f'"{name}": {{"choices"' in html
    assert '"choices": ["random", "text", "jsonl", "sharegpt", "huggingface"]' in html
    assert server.url in html


def test_a_run_started_on_the_page_ends_by_itself_and_is_on_disk(page: Page, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert page.swarm(out=str(out))["success"]
    stats = page.wait_for_end(out)

    made = read_json(out / "manifest.json", Manifest)
    records = list(read_lines(out / "requests.jsonl", RequestRecord))
    assert made.complete
    assert (made.workload.rate, made.workload.output_tokens) == (20, 8)
    assert len(records) == made.workload.requests
    shown = rows(stats)
    # a row for each latency, and totals that count requests only
    assert {"/v1/completions", "TTFT", "TPOT", "ITL", "E2EL", "Aggregated"} == set(shown)
    assert (
        shown["TTFT"]["num_requests"]
        == shown["TPOT"]["num_requests"]
        == shown["Aggregated"]["num_requests"]
        == len(records)
    )
    assert shown["ITL"]["num_requests"] == 7 * len(records)
    assert is_median_ms(shown["TTFT"]["median_response_time"], records)
    tpots = [latency.tpot(record) or 0 for record in records]
    assert shown["TPOT"]["avg_response_time"] == pytest.approx(1e3 * statistics.mean(tpots), abs=1)


def test_the_page_of_our_own_shows_the_run_and_is_linked_from_locusts(page: Page, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert page.swarm(out=str(out), goodput="ttft:5000 tpot:1", duration="0.5")["success"]
    page.wait_for_end(out)
    shown = json.loads(page.get("/llm/figures"))

    records = list(read_lines(out / "requests.jsonl", RequestRecord))
    made = read_json(out / "manifest.json", Manifest)
    assert (shown["total"], shown["ended"], shown["figures"]["served"]) == (len(records),) * 3
    assert shown["folder"] == str(out)
    assert shown["light"]["colour"] == ("green" if made.client and made.client.valid else "red")
    assert is_median_ms(shown["figures"]["totals"]["TTFT"]["p50"], records)
    # none, unless this machine stood still and read several tokens at once
    within = [latency.meets(record, {"ttft": 5000, "tpot": 1}) for record in records]
    assert shown["figures"]["attainment"] == pytest.approx(statistics.mean(within))
    assert sum(one["served"] for one in shown["figures"]["bins"]) == len(records)
    assert 'href="/llm/"' in page.get("/")
    assert "<title>LLM load</title>" in page.get("/llm/")


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def seen(url: str, width: int) -> str:
    """A page as a browser has it after its scripts have run for some seconds."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--virtual-time-budget=9000", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *options, url], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (Debian, Ubuntu: apt-get install chromium)")
@pytest.mark.parametrize("width", [1400, 400])
def test_locusts_charts_tab_shows_ttft_and_tpot_and_our_bar_covers_nothing(
    page: Page, tmp_path: Path, width: int
) -> None:
    out = tmp_path / "run"
    assert page.swarm(out=str(out), duration="0.5")["success"]
    page.wait_for_end(out)
    charts, statistics = (seen(f"{page.base}/?tab={tab}", width) for tab in ("charts", "stats"))

    for name in ("TTFT", "TPOT"):
        assert f'aria-label="{name} over time"' in charts
        assert f'aria-label="{name}' not in statistics
    # the charts stand below the tabs and above Locust's own
    assert charts.index('role="tablist"') < charts.index('id="pd-charts"') < charts.index("_echarts_instance_")
    assert charts.index('id="pd-bar"') < charts.index('id="root"')
    assert "position:fixed" not in page.get("/")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (Debian, Ubuntu: apt-get install chromium)")
def test_our_page_in_one_column_shows_the_figures_of_a_run_before_the_fields(page: Page, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert page.swarm(out=str(out), duration="0.5")["success"]
    page.wait_for_end(out)

    after = seen(f"{page.base}/llm/", 400)

    assert '<body class="measured">' in after
    assert '<span class="whole">--requests</span>' in after


def test_a_page_about_simulated_engines_says_so(tmp_path: Path) -> None:
    for owner, simulated in (("pd-simulator", True), ("vllm", False)):
        with StampedServer(owned_by=owner).running() as server, locust(f"{server.url}/v1", tmp_path) as page:
            told = partial(says_simulated, page)
            told()
            until(lambda: server.connections >= 2)  # the server is asked beside the page
            until(told) if simulated else time.sleep(1.0)
            assert told() is simulated


def says_simulated(page: Page) -> bool:
    return bool(json.loads(page.get("/llm/figures"))["simulated"])


def test_the_page_of_our_own_has_every_field_once_and_keeps_what_was_given(page: Page) -> None:
    form = json.loads(page.get("/llm/fields"))
    names = [field["name"] for group in form["groups"] for field in group["fields"]]

    assert sorted(names) == sorted(
        {field.name for field in fields(Options)} - {"url", "overwrite", "rerun_incomplete", "processes"}
    )
    kept = {field["name"]: field["value"] for group in form["groups"] for field in group["fields"]}
    assert kept["lag_limit_ms"] == "5000"


def test_a_password_in_the_host_is_sent_and_shown_nowhere(page: Page, server: StampedServer, tmp_path: Path) -> None:
    out, before = tmp_path / "run", len(server.served)
    assert page.swarm(out=str(out), duration="0.5", host=server.url.replace("//", "//me:s3cret@"))["success"]
    page.wait_for_end(out)

    assert {one.headers["authorization"] for one in server.served[before:]} == {"Basic bWU6czNjcmV0"}
    shown = [page.get(path) for path in ("/", "/llm/figures", "/llm/fields", "/stats/report", "/stats/requests")]
    written = [path.read_text() for path in out.iterdir()]
    assert not [text for text in (*shown, *written) if "s3cret" in text]

    before = len(server.served)
    assert page.swarm(out=str(tmp_path / "same"), duration="0.5", host=server.url)["success"]
    page.wait_for_end(tmp_path / "same")
    same, before = server.served[before:], len(server.served)
    assert page.swarm(out=str(tmp_path / "other"), duration="0.5", host=f"{server.url}/")["success"]
    page.wait_for_end(tmp_path / "other")
    assert {one.headers.get("authorization", "")[:6] for one in same} == {"Basic "}
    assert not [one for one in server.served[before:] if "authorization" in one.headers]  # another address


def test_a_second_run_gets_a_folder_of_its_own_and_more_users_change_nothing(
    page: Page, server: StampedServer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sizes = []
    for users, folder in (("1", out), ("5", tmp_path / "run-2")):
        before = len(server.served)
        assert page.swarm(out=str(out), user_count=users, spawn_rate=users, duration="0.5")["success"]
        page.wait_for_end(folder)
        sizes.append(len(server.served) - before)

    manifests = [read_json(path / "manifest.json", Manifest) for path in (out, tmp_path / "run-2")]
    assert manifests[0].schedule_hash == manifests[1].schedule_hash
    assert sizes == [manifests[0].workload.requests] * 2


def test_stopping_on_the_page_keeps_the_records(page: Page, server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = len(server.served)
    assert page.swarm(out=str(out), duration="60")["success"]
    until(lambda: len(server.served) - before >= 5)
    page.stop()

    assert not read_json(out / "manifest.json", Manifest).complete
    sent = [one for one in read_lines(out / "requests.jsonl", RequestRecord) if one.sent is not None]
    # Every request that the server saw has a record; it may not have read those that were cut off as they were sent.
    assert len([one for one in sent if one.error is None]) <= len(server.served) - before <= len(sent)


def test_a_bad_form_is_answered_with_a_sentence_and_starts_nothing(page: Page, server: StampedServer) -> None:
    before = len(server.served)

    for bad, sentence in [
        ({"rate": "fast"}, "--rate='fast'"),
        ({"host": "nowhere"}, "http://host:port"),
        ({"endpoint": "chat"}, "dataset text"),
    ]:
        answer = page.swarm(**bad)
        assert not answer["success"]
        assert sentence in answer["message"]
    assert page.stats()["state"] in ("ready", "stopped")
    assert len(server.served) == before


def test_a_second_start_during_a_run_is_refused_and_changes_nothing(
    page: Page, server: StampedServer, tmp_path: Path
) -> None:
    before = len(server.served)
    assert page.swarm(out=str(tmp_path / "run"), duration="60")["success"]
    until(lambda: len(server.served) > before)

    second = page.swarm(out=str(tmp_path / "other"), host="http://127.0.0.1:1")
    page.stop()

    assert (second["success"], second["host"].rstrip("/")) == (False, server.url.rstrip("/"))
    assert "a run is still going on" in second["message"]
    assert read_json(tmp_path / "run" / "manifest.json", Manifest).window is not None
    assert not (tmp_path / "other").exists()


def test_a_taken_port_is_named_before_locust_listens(server: StampedServer, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(tmp_path, "--host", server.url, "--web-port", str(port))

    assert done.returncode == 2
    assert f"port {port} cannot serve the page: Address already in use; --web-port chooses another" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_master_without_workers_says_so_instead_of_starting(server: StampedServer, tmp_path: Path) -> None:
    listening = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(free_port()))
    with locust(server.url, tmp_path, *listening) as page:
        answer = page.swarm(out=str(tmp_path / "run"))

    assert not answer["success"]
    assert "no worker is connected" in answer["message"]


def test_a_run_that_cannot_begin_says_why_on_the_page(page: Page, tmp_path: Path) -> None:
    assert page.swarm(out=str(tmp_path / "run"), model="absent")["success"]

    until(lambda: "does not serve 'absent'" in page.get("/exceptions") and page.stats()["state"] == "stopped")


def test_failures_are_shown_with_their_reason(page: Page, tmp_path: Path) -> None:
    assert page.swarm(out=str(tmp_path / "run"), model="error500", duration="0.3")["success"]
    stats = page.wait_for_end(tmp_path / "run")

    assert "status: 500: the engine is on fire" in stats["errors"][0]["error"]
    assert rows(stats)["Aggregated"]["num_failures"] == rows(stats)["Aggregated"]["num_requests"] > 0
    assert "TTFT" not in rows(stats)


def command(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCUST, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=40, check=False
    )


def test_locusts_own_command_runs_headless_to_its_end(server: StampedServer, tmp_path: Path) -> None:
    words = [
        "--headless",
        "--only-summary",
        "--host",
        server.url,
        "--model",
        "steady",
        "--rate",
        "20",
        "--duration",
        "0.5",
    ]
    done = command(tmp_path, *words, "--output-tokens", "4", "--out", "run", "--lag-limit-ms", "5000")

    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "manifest.json", Manifest).complete


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rate", "fast"], "--rate='fast'"),
        (["--burstiness", "2"], "needs arrival gamma"),
    ],
)
def test_locusts_own_command_refuses_what_it_cannot_do(
    server: StampedServer, tmp_path: Path, words: list[str], sentence: str
) -> None:
    done = command(tmp_path, "--headless", "--host", server.url, *words)

    assert done.returncode == 2
    assert sentence in done.stderr


# What Locust has itself: the address, the processes; and its runs are never written over others.
LOCUSTS = {"url", "overwrite", "rerun_incomplete", "processes"}


def test_locust_takes_every_option_at_once_with_its_default(server: StampedServer, tmp_path: Path) -> None:
    defaults = load({}, {})
    texts = {one.name: shown(getattr(defaults, one.name)) for one in fields(Options) if one.name not in LOCUSTS}
    texts |= {
        "model": "steady",
        "duration": "0.5",
        "rate": "20",
        "input_tokens": "8",
        "output_tokens": "4",
        "idle": "0",
    }
    texts |= {
        "out": str(tmp_path / "run"),
        "engine_profile": "on",
        "lag_limit_ms": "5000",
        "goodput": "ttft:300 tpot:40",
    }
    words = [word for one in fields(Options) if one.name in texts for word in (one.option, texts[one.name])]
    done = subprocess.run(
        [*LOCUST, "--headless", "--host", server.url, *words],
        capture_output=True, text=True, timeout=60, check=False, env=environment(), cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "manifest.json", Manifest).complete
    assert [path for path, _ in server.profiles][-2:] == ["/start_profile", "/stop_profile"]


def test_our_own_way_to_start_locust_helps_with_all_options_and_runs(server: StampedServer, tmp_path: Path) -> None:
    """Locust's own help is printed before it loads a locustfile, and so without these."""
    ours = [sys.executable, "-m", "pd_loadgen", "locust"]
    told = subprocess.run([*ours, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    words = [
        "--headless",
        "--host",
        server.url,
        "--model",
        "steady",
        "--duration",
        "0.5",
        "--rate",
        "20",
        "--lag-limit-ms",
        "5000",
    ]
    run = subprocess.run([*ours, *words, "--out", "run"], timeout=60, check=False, env=environment(), cwd=tmp_path)

    listed = {word.rstrip(",") for word in told.split()}
    assert {one.option for one in fields(Options) if one.name not in LOCUSTS} <= listed
    assert {"--headless", "--web-port", "--expect-workers"} <= listed
    assert run.returncode == 0
    assert read_json(tmp_path / "run" / "manifest.json", Manifest).complete
