"""The page in a real browser: it draws, sorts, filters and changes its theme without an error and without a network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.analysis import write_pair, write_realistic

from pd_analysis.records.reader import load_tree
from pd_analysis.report.writer import write_report
from pd_contracts.names import Topology

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path (Debian, Ubuntu: apt-get install chromium)"
)

# Goes into the page after its own script: uses what a reader uses, and writes what it saw where --dump-dom shows it.
DRIVER = """
<script>
(async () => {
  const until = async (what) => { for (let n = 0; n < 400 && !what(); n++) await new Promise((go) => setTimeout(go, 25)); return what(); };
  const seen = {};
  const chart = document.getElementById("chart");
  seen.drawn = await until(() => chart.dataset.drawn);
  seen.lines = chart.querySelectorAll(".scatterlayer .trace").length;
  const choose = (name, value) => { const pick = document.getElementById(`pick-${name}`); pick.value = value; pick.dispatchEvent(new Event("change", { bubbles: true })); };
  for (const kind of ["time", "Requests per second per GPU"]) { choose("kind", kind); seen[kind] = chart.dataset.drawn; }
  choose("metric", "goodput");
  seen.goodput = document.querySelector(".ytitle").textContent;
  choose("kind", "percentiles"); choose("load", "8 req/s");
  seen.filtered = chart.dataset.drawn;
  document.querySelector("#pick-runs input").click();
  seen.one = chart.dataset.drawn;
  const table = [...document.querySelectorAll("figure.table")].find((each) => each.querySelector("h3").textContent === "Key numbers");
  const firsts = () => [...table.querySelectorAll("tbody tr:not([hidden]) th")].map((cell) => cell.textContent);
  table.querySelector("thead button").click();
  seen.sorted = firsts().join() === [...firsts()].sort((a, b) => a.localeCompare(b)).join();
  const box = table.querySelector("input");
  box.value = "goodput"; box.dispatchEvent(new Event("input"));
  seen.rows = firsts();
  const paper = () => getComputedStyle(document.body).backgroundColor;
  const before = paper();
  document.getElementById("theme").click();
  seen.themes = before !== paper();
  const wide = document.documentElement.scrollWidth <= innerWidth;
  document.title = JSON.stringify({ ...seen, wide });
})().catch((error) => { console.error(String(error)); });
</script>
"""


@pytest.fixture(name="page", scope="module")
def _page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for rate in (8.0, 16.0):
        for topology in Topology:
            write_realistic(root / f"{rate:g}" / topology, topology, rate=rate, requests=40, tokens=8, simulated=True)
    return write_report(load_tree([root]), root / "report").html


@pytest.fixture(name="pair_page", scope="module")
def _pair_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root, requests=60, tokens=8, simulated=True)
    return write_report(load_tree([root]), root / "report").html


def browse(page: Path, *options: str) -> tuple[str, str]:
    """The page's elements after its scripts, and what the browser logged."""
    command = [
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--v=0", "--window-size=1200,900", "--virtual-time-budget=20000"),
        *(f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
    ]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, done.stderr


def test_the_page_works_in_a_browser(page: Path) -> None:
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{DRIVER}</body>"), encoding="utf-8")

    dom, log = browse(driven, "--dump-dom")

    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1] == (
        '{"drawn":"4","lines":4,"time":"4","Requests per second per GPU":"2","goodput":"Goodput per GPU, req/s","filtered":"2","one":"1",'
        '"sorted":true,"rows":["Goodput per GPU"],"themes":true,"wide":true}'
    )


# What a reader of the Chinese page sees of the interactive chart.
LOOKER = """
<script>
(async () => {
  const chart = document.getElementById("chart");
  for (let n = 0; n < 400 && !chart.dataset.drawn; n++) await new Promise((go) => setTimeout(go, 25));
  const pick = document.getElementById("pick-metric");
  pick.value = "Longest gap"; pick.dispatchEvent(new Event("change", { bubbles: true }));
  await new Promise((go) => setTimeout(go, 200));
  document.title = JSON.stringify([...document.querySelectorAll("#explore option, #explore label, #chart text")].map((each) => each.textContent.trim()));
})().catch((error) => { console.error(String(error)); });
</script>
"""


def test_the_interactive_chart_is_in_the_pages_language(page: Path, tmp_path: Path) -> None:
    written = write_report(load_tree([page.parents[1] / "8"]), tmp_path, lang="zh").html
    written.write_text(written.read_text(encoding="utf-8").replace("</body>", f"{LOOKER}</body>"), encoding="utf-8")

    dom, log = browse(written, "--dump-dom")

    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    texts = set(json.loads(title[1]))
    assert {"最长间隔", "最长间隔, ms", "模拟数据", "聚合部署", "PD 分离"} <= texts
    # Units, latencies' short names and ticks are the same in every language.
    assert [text for text in texts if re.search(r"[a-z]{4,}", text)] == []


# Boxes that a reader sees, at a width: what sticks out of the page, what is wider than its own box and does not say so, and what covers text.
MEASURE = """
<script>
(async () => {
  for (let n = 0; n < 400 && !document.getElementById("chart").dataset.drawn; n++) await new Promise((go) => setTimeout(go, 25));
  const box = (each) => each.getBoundingClientRect();
  const overlap = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const texts = [...document.querySelectorAll("figcaption h3, figcaption p, h1, .stamp")];
  const covered = [...document.querySelectorAll("input[type=search], #theme")].filter((input) => texts.some((text) => overlap(box(input), box(text))));
  const silent = [...document.querySelectorAll(".scroll")].filter((each) => each.scrollWidth > each.clientWidth + 4 && !each.parentElement.classList.contains("wider"));
  const hints = [...document.querySelectorAll("figure.wider")].filter((each) => getComputedStyle(each, "::before").content.length > 6);
  const table = [...document.querySelectorAll("figure.table")].find((each) => each.querySelector("h3").textContent === "Key numbers");
  const ratio = table.querySelector("td.better, td.worse, td.equal, td.unclear");
  const seen = { width: innerWidth, page: document.documentElement.scrollWidth, covered: covered.length, silent: silent.length,
    hints: hints.length, ratio: Math.round(box(ratio).right) };
  document.title = JSON.stringify(seen);
})().catch((error) => { console.error(String(error)); });
</script>
"""


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_cut_or_covered_at_either_width(pair_page: Path, width: int) -> None:
    measured = pair_page.with_name(f"measured-{width}.html")
    html = pair_page.read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>")
    # Chromium's own window is never narrower than 500 px; a frame is.
    measured.write_text(html, encoding="utf-8")
    frame = pair_page.with_name(f"frame-{width}.html")
    frame.write_text(
        f'<iframe src="{measured.name}" style="border:0;width:{width}px;height:900px"></iframe>'
        "<script>setInterval(() => { document.title = frames[0].document.title; }, 50);</script>",
        encoding="utf-8",
    )

    dom, log = browse(frame, "--dump-dom", "--allow-file-access-from-files", "--window-size=1500,1000")

    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    seen = json.loads(found[1])
    assert seen["width"] == width
    assert seen["page"] <= width
    assert (seen["covered"], seen["silent"]) == (0, 0)
    assert seen["ratio"] <= width  # the column that says better or worse is seen without a swipe
    assert seen["hints"] > 0 or width > 400


def test_an_error_in_the_page_would_be_seen(page: Path) -> None:
    broken = page.with_name("broken.html")
    broken.write_text("<script>console.error('seen')</script>", encoding="utf-8")

    _, log = browse(broken, "--dump-dom")

    assert [line for line in log.splitlines() if "CONSOLE" in line]


def test_the_page_prints(page: Path, tmp_path: Path) -> None:
    browse(page, f"--print-to-pdf={tmp_path / 'report.pdf'}")

    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
