"""`.env` as pdctl reads it, and which of several values wins."""

from pathlib import Path

import pytest

from pd_contracts.settings import SettingsError
from pd_control import env_files
from pd_control.env_files import complaints, environment
from pd_control.settings import find_root


def test_dotenv_is_read_as_compose_reads_it() -> None:
    text = """\
# a comment
PLAIN=1
EMPTY=
BEHIND=2   # a comment behind a value
HASH=a#b
QUOTED="a # b"
SINGLE='${PLAIN}'
export EXPORTED=3
FROM_OTHER=http://host:${PLAIN}
WITH_DEFAULT=${NOWHERE:-d}
not a setting
"""

    assert {line.name: line.value for line in env_files.read(text) if line.name} == {
        "PLAIN": "1",
        "EMPTY": "",
        "BEHIND": "2",
        "HASH": "a#b",
        "QUOTED": "a # b",
        "SINGLE": "${PLAIN}",
        "EXPORTED": "3",
        "FROM_OTHER": "http://host:1",
        "WITH_DEFAULT": "d",
    }


def test_the_environment_wins_over_the_local_file_and_that_over_the_shared_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=shared\nB=shared\nC=shared\n")
    (tmp_path / ".env.local").write_text("B=local\nC=local\n")

    merged = environment(tmp_path, {"C": "own"})

    assert merged == {"A": "shared", "B": "local", "C": "own"}


def test_the_repository_is_found_from_a_folder_inside_it(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").touch()
    (tmp_path / "services" / "proxy").mkdir(parents=True)

    assert find_root(tmp_path / "services" / "proxy") == tmp_path


ROOT = Path(__file__).parents[3]


def told(tmp_path: Path, text: str, **own: str) -> list[str]:
    (tmp_path / ".env.local").write_text(text)
    return complaints(tmp_path, own)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("PREFIL_GPUS=0", "no setting is called PREFIL_GPUS; did you mean PREFILL_GPUS?"),
        ("CANARI=off", "no setting is called CANARI; did you mean CANARY?"),
        ("prefill_gpu=1", "no setting is called prefill_gpu; did you mean PREFILL_GPU?"),
        ("LOADGEN_RAET=4", "no setting is called LOADGEN_RAET; did you mean LOADGEN_RATE?"),
        ("PUBLISH_HOSTS=::", "no setting is called PUBLISH_HOSTS"),
        ("WHAT_IS_THIS=1", "no setting is called WHAT_IS_THIS"),
        ("this is no setting", "'this is no setting' is not NAME=value and sets nothing"),
        ("=3", "'=3' is not NAME=value and sets nothing"),
        ('MODEL="a', """'MODEL="a' is not NAME=value and sets nothing"""),
    ],
)
def test_a_line_that_sets_nothing_known_is_told_with_its_place_and_the_nearest_name(
    tmp_path: Path, line: str, sentence: str
) -> None:
    assert told(tmp_path, f"MODEL=m\n\n# a comment\n{line}\n") == [f".env.local:4: {sentence}"]


def test_variables_of_others_and_empty_lines_are_no_mistake(tmp_path: Path) -> None:
    assert (
        told(tmp_path, "NCCL_DEBUG=INFO\nHF_TOKEN=x\nVLLM_LOGGING_LEVEL=DEBUG\nhttps_proxy=\n\nFOO\n#PREFIL_GPUS=1\n")
        == []
    )


def test_every_name_of_the_repositorys_own_file_is_known() -> None:
    assert complaints(ROOT, {}) == []


def test_a_name_of_the_environment_is_told_only_if_it_is_nearly_a_setting(tmp_path: Path) -> None:
    own = {"PREFIL_GPUS": "0", "MODELS": "x", "SOME_THING": "y", "HTTP_PROXY": "http://p", "HTTP_PROXY_PORT": "1"}

    assert told(tmp_path, "", **own) == ["environment: no setting is called PREFIL_GPUS; did you mean PREFILL_GPUS?"]


def test_a_file_that_is_no_text_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MODEL=\xff\xfe")

    with pytest.raises(SettingsError, match=r"\.env cannot be read: this is not UTF-8, from byte"):
        environment(tmp_path, {})


def test_a_file_in_utf_16_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_bytes("# ports\nMODEL=m\n".encode("utf-16-le"))

    with pytest.raises(SettingsError, match=r"\.env\.local cannot be read: line 1 holds a NUL byte, as in UTF-16"):
        environment(tmp_path, {})
