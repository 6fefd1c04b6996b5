"""`.env` as pdctl reads it, and which of several values wins."""

from pathlib import Path

from pd_control.settings import environment, find_root, parse_dotenv


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

    assert parse_dotenv(text) == {
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
