"""The report as files: self-contained, complete, and the same in HTML and Markdown."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.analysis import deployment, failed, manifest, request, write_pair, write_realistic, write_run

from pd_analysis.main import main
from pd_analysis.records.reader import load_tree
from pd_analysis.report.writer import Written, write_report
from pd_contracts.names import Topology


class Page(HTMLParser):
    """Collects what a page would load, its anchors, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loads += [values[name] for name in ("src", "srcset", "data", "poster", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values and tag == "section" else []
        (self.links if tag == "a" else self.loads).extend([values["href"]] if "href" in values and tag != "use" else [])
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data if not self.open or self.open[-1] not in {"style", "script"} else ""


@pytest.fixture(name="written", scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("results")
    write_pair(root, requests=120, tokens=16, simulated=True)
    return write_report(load_tree([root]), root / "report")


@pytest.fixture(name="html", scope="module")
def _html(written: Written) -> str:
    return written.html.read_text(encoding="utf-8")


@pytest.fixture(name="text", scope="module")
def _text(written: Written) -> str:
    return written.markdown.read_text(encoding="utf-8")


def test_the_page_loads_nothing(html: str) -> None:
    loads = [address for address in Page(html).loads if not address.startswith("#")]

    assert loads == []
    assert re.findall(r"https?://(?!127\.0\.0\.1)", html) == []  # the command of the run names its own host
    assert re.findall(r"url\((?!#)|@import|<script[^>]* src|<iframe|<link", html) == []


def test_the_pages_own_links_lead_somewhere(html: str) -> None:
    page = Page(html)

    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_markdown_shows_the_plots_by_relative_paths_that_exist(written: Written, text: str) -> None:
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)

    assert images == [
        f"plots/{name}.png"
        for name in (
            *("ttft", "tpot", "gaps", "slo_scale_attainment", "interference_timeline", "latency_breakdown"),
            *("ttft_breakdown", "kv_handoff_cdf", "energy", "power_timeline"),
        )
    ]
    assert all((written.markdown.parent / image).is_file() for image in images)


def test_both_say_simulated_from_the_title_on(html: str, text: str) -> None:
    assert "<title>SIMULATED: disagg against combined</title>" in html
    assert text.startswith("# SIMULATED: disagg against combined")
    assert text.count("SIMULATED") >= 3


@pytest.mark.parametrize(
    "part",
    [
        "Doubts",
        "Verdict",
        "Key numbers",
        "combined: latency",
        "disagg: latency",
        "Throughput and goodput",
        "Stages of a request",
        "Energy by role",
        "Energy by GPU",
        "Failures",
        "Set-up",
        "Which wins for which limits",
        "Steady state",
        "Definitions",
        "first token chunk − scheduled send",
        "(last token − first token) / (output tokens − those of the first chunk)",
        "Schedule hash",
        "P2pNcclConnector",
        "2 × NVIDIA H200, limit 700 W, driver 580.65.06",
        "--seed 7",
    ],
)
def test_every_part_is_in_both(html: str, text: str, part: str) -> None:
    assert part in text
    assert part in Page(html).text


def test_both_hold_the_same_numbers(html: str, text: str) -> None:
    page = " ".join(Page(html).text.split())
    rows = [line for line in text.splitlines() if line.startswith("| ") and " :--- |" not in line]

    cells = [cell.strip() for row in rows for cell in row.replace("\\|", "¦").strip("|").split("|")]

    assert len(rows) > 60
    assert [cell for cell in cells if cell.replace("¦", "|") not in page] == []


def test_tables_in_markdown_have_one_width(text: str) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)

    assert len(blocks) >= 10
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_doubts_come_before_any_number(text: str) -> None:
    assert text.index("## Doubts") < text.index("## Verdict") < text.index("## Comparison") < text.index("| TTFT p50 |")


def test_the_same_runs_give_the_same_report(written: Written, tmp_path: Path, html: str) -> None:
    again = write_report(load_tree([written.html.parents[1]]), tmp_path)

    assert again.html.read_text(encoding="utf-8") == html


def test_one_run_without_power_is_a_whole_report(tmp_path: Path) -> None:
    write_run(
        tmp_path / "only",
        [*(request(n, n / 10) for n in range(8)), failed(8, kind="timeout", message="no byte | for 30 s")],
    )

    text = write_report(load_tree([tmp_path]), tmp_path / "report").markdown.read_text(encoding="utf-8")

    assert "nothing to compare" in text
    assert "No power was recorded." in text
    assert "| combined | timeout | 1 | 11% | no byte \\| for 30 s |" in text
    assert "| Energy per output token | J | – |" in text
    assert "SIMULATED" not in text


def test_runs_of_several_workloads_have_a_section_each(tmp_path: Path) -> None:
    for rate in (8.0, 16.0):
        for topology in (Topology.DISAGG, Topology.COMBINED):
            write_realistic(tmp_path / f"{rate:g}" / topology.value, topology, rate=rate, requests=30, tokens=4)

    written = write_report(load_tree([tmp_path]), tmp_path / "report")

    text = written.markdown.read_text(encoding="utf-8")
    assert re.findall(r"^# (\d+) requests/s", text, flags=re.MULTILINE) == ["8", "16"]
    assert {path.parent.name for path in written.plots} == {"1", "2", "plots"}
    assert "## Every run" in text
    assert text.index("## Over rates") < text.index("# 8 requests/s")
    assert "plots/slo_attainment_rps_per_gpu_comparison.png" in text


def test_names_and_messages_cannot_inject(tmp_path: Path) -> None:
    about = manifest(deployment=deployment(label="<img src=x onerror=alert(1)>"), command=["x", "<script>"])
    write_run(tmp_path / "run", [request(0), failed(1, message="<script>alert(1)</script>")], about)

    written = write_report(load_tree([tmp_path]), tmp_path / "report", title="<b>mine</b>")

    html = written.html.read_text(encoding="utf-8")
    assert html.count("<script") == 3  # our own
    assert "<img" not in html
    assert "alert(1)</script>" not in html
    assert "&lt;b&gt;mine&lt;/b&gt;" in html


def test_report_reads_results_and_writes_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path / "results" / "demo", requests=20, tokens=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESULTS_DIR", raising=False)

    assert main(["report"]) == 0
    assert (tmp_path / "results" / "report" / "report.html").is_file()
    assert "results/report/report.html" in capsys.readouterr().out


def test_results_dir_title_and_out_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "runs", requests=20, tokens=4)
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "runs"))

    assert main(["report", "--out", str(tmp_path / "out"), "--title", "Tuesday"]) == 0
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").startswith("# Tuesday\n")


def test_the_title_that_all_runs_were_given_is_the_reports(tmp_path: Path) -> None:
    for number, topology in enumerate(Topology):
        write_run(tmp_path / str(number), [request(0)], manifest(topology, title="H200 in April"))

    text = write_report(load_tree([tmp_path]), tmp_path / "report").markdown.read_text(encoding="utf-8")

    assert text.startswith("# H200 in April\n")


def test_without_runs_it_says_in_one_sentence_what_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("report", "compare"):
        assert main([command, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "make demo" in error


def test_compare_prints_the_table_the_verdict_and_the_doubts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path, requests=20, tokens=4, simulated=True)

    assert main(["compare", str(tmp_path / "disagg"), str(tmp_path / "combined")]) == 0

    shown = capsys.readouterr().out
    assert "÷ combined" in shown
    assert "SIMULATED" in shown
    assert "do not decide on this" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_compare_says_why_deployments_of_different_loads_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_realistic(tmp_path / "a", Topology.DISAGG, requests=20, tokens=4, rate=5)
    write_realistic(tmp_path / "b", Topology.COMBINED, requests=20, tokens=4, rate=10)

    assert main(["compare", str(tmp_path)]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "No two deployments were offered the same load, so none is compared with another" in shown
    assert "÷" not in shown


def test_a_bad_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["report", "--log-level", "LOUD"])

    assert refused.value.code == 2
    assert "LOUD" in capsys.readouterr().err
