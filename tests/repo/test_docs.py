"""What the documentation says about settings, files and commands is true."""

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from support.cluster import page as kubernetes
from support.cluster import page_zh as kubernetes_zh
from support.cluster.changes import CHANGES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "results" for part in path.relative_to(ROOT).parts)
)


# What says how the current version works: not the changelog, nor records of past measurements.
REFERENCE = [page for page in PAGES if page.name != "CHANGELOG.md"]


@cache
def _tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def _module(path: Path) -> ModuleType:
    """A script, imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_services_read() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_configuration.py", "--check"], check=False)

    assert check.returncode == 0, (
        "translate what is new in docs/settings_zh.py, and run python docs/write_configuration.py"
    )


def test_the_chinese_page_on_reliability_says_what_the_english_one_does() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_reliability_zh.py", "--check"], check=False)

    assert check.returncode == 0, "translate what is new in docs/write_reliability_zh.py, and run it"


def test_the_chinese_page_on_routings_results_says_what_the_english_one_does() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_routing_zh.py", "--check"], check=False)

    assert check.returncode == 0, "translate what is new in docs/write_routing_zh.py, and run it"


def test_every_setting_says_what_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)

    assert rows
    assert [name for name, meaning in rows if not meaning] == []


def test_the_page_on_kubernetes_tells_of_every_change_and_none_lost_a_request() -> None:
    written = kubernetes.PAGE.read_text()
    head, rows, tail = kubernetes.HEAD, written.removeprefix(kubernetes.HEAD).partition("\n\n")[0], kubernetes.TAIL
    cells = [row.strip("| ").split(" | ") for row in rows.splitlines()]

    assert written.startswith(head)
    assert written.endswith(tail)
    assert [cell[0] for cell in cells] == list(CHANGES)
    assert {(lost, left) for *_, lost, left in cells} == {("0", "0")}
    assert kubernetes_zh.PAGE.read_text() == kubernetes_zh.page(rows.splitlines()), (
        "run python docs/write_kubernetes.py"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_has_a_place_in_the_site() -> None:
    order = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]

    assert [page for page in pages if not page.endswith(".zh.md") and f": {page}\n" not in order] == []


def test_every_translation_is_of_a_page() -> None:
    translated = list((ROOT / "docs").rglob("*.zh.md"))

    assert translated
    assert [path for path in translated if not path.with_name(path.name.replace(".zh.md", ".md")).exists()] == []


@pytest.mark.timeout(400)  # half a minute of CPU, and machines differ
def test_the_typical_values_are_those_of_the_records() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_typical.py", "--check"], check=False)

    assert check.returncode == 0, "run python docs/write_typical.py"


def test_no_setting_is_translated_that_does_not_exist() -> None:
    used = (ROOT / "docs/configuration.zh.md").read_text(encoding="utf-8")
    settings_zh = _module(ROOT / "docs/settings_zh.py")

    assert [english for english, chinese in settings_zh.MEANINGS.items() if chinese not in used] == []


# Variables and functions of others, which pages name, too.
FOREIGN = re.compile(
    r"(CUDA|NCCL|UCX_CUDA|VLLM|HF|PCI)_\w+|CAP_SYS_ADMIN|IPC_LOCK|SO_\w+|RLIMIT_MEMLOCK|FULL_DECODE_ONLY"
)
# Ours that no service reads as a setting: of pdctl's shell script, the load generator's options and tests, and names for arguments.
OTHER = {"PDCTL_PYTHON", "LOADGEN_API_KEY", "LOADGEN_BASIC_AUTH", "LOADGEN_RATE", "KUBEBUILDER_ASSETS", "RUN_OR_TREE"}


@pytest.mark.parametrize("page", REFERENCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_variable_that_a_page_names_exists(page: Path) -> None:
    settings = set(
        re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/configuration.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    settings |= set(re.findall(r"^(\w+)=", (ROOT / ".env").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?<![\w$/{.-])[A-Z][A-Z0-9]*_[A-Z0-9_]+(?![\w-])", page.read_text(encoding="utf-8")))

    assert sorted(name for name in named - settings - OTHER if not FOREIGN.fullmatch(name)) == []


@pytest.mark.parametrize("page", REFERENCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|sh|toml))`", page.read_text(encoding="utf-8"))) - {"mine.toml"}

    assert sorted(name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in _tracked())) == []


def test_a_page_of_proxy_or_monitor_that_an_alert_or_a_report_names_exists() -> None:
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("proxy.md", "monitor.md"))
    files = ("monitor/prometheus/rules.yml", "k8s/chart/templates/prometheusrule.yaml")
    says = [(ROOT / file).read_text(encoding="utf-8") for file in files]
    words = (ROOT / "analysis/src/pd_analysis/words/zh.po").read_text(encoding="utf-8")
    says += re.findall(r"^msgid .*$", words, re.MULTILINE)
    named = {path for text in says for path in re.findall(r"(?<=[ (\"'])/[a-z]+", text)}

    assert named
    assert named <= set(re.findall(r"(?:GET|POST|DELETE) (/[a-z]+)", pages))


@pytest.mark.timeout(400)  # half a minute of CPU, and machines differ
def test_the_pages_on_routing_say_what_the_records_and_the_simulation_say() -> None:
    check = subprocess.run([sys.executable, ROOT / "benchmarks/routing/measured.py", "--check"], check=False)

    assert check.returncode == 0, "run python benchmarks/routing/measured.py, and mend the text below the tables"


def test_the_readme_maps_every_top_level_folder() -> None:
    folders = {name.split("/")[0] for name in _tracked() if "/" in name and not name.startswith(".")}
    readme = (ROOT / "README.md").read_text()

    assert [folder for folder in sorted(folders) if f"`{folder}/`" not in readme] == []


def test_the_readmes_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"^\$ make ([a-z0-9-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))

    assert used
    assert used <= targets


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_page_on_p2p_says_what_its_data_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks/connector")
    page = ROOT / "docs/results/h200-p2p" / name

    made = _module(ROOT / "benchmarks/connector/page.py").written(page)
    assert made == page.read_text(encoding="utf-8"), "python benchmarks/connector page docs/results/h200-p2p"


def test_the_chinese_pages_on_calibration_say_what_the_english_ones_do() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_calibration_zh.py", "--check"], check=False)

    assert check.returncode == 0, "translate what is new in docs/write_calibration_zh.py, and run it"
