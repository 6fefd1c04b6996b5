"""The command line."""

import pytest

from pd_control.cli.options import parser
from pd_control.main import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])

    assert end.value.code == 0
    assert f"usage: pdctl {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["up", "all", "prefill", "combined", "proxy", "doctor", "logs", "smoke", "demo", "compare"]
)
def test_help_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])

    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    # An example ends where its explanation begins, two spaces on.
    entries = [line.strip().split("  ")[0].split() for line in examples.splitlines()]
    lines = [words[words.index("pdctl") :] for words in entries if "pdctl" in words[:2]]
    assert lines
    for words in lines:
        assert parser().parse_args(words[1:]).command == command


@pytest.mark.parametrize(
    "words",
    [
        ["up", "both"],
        ["up", "--decode", "0"],
        ["demo", "--duration", "0"],
        ["demo", "--duration", "inf"],
        ["compare", "--attainment", "2"],
    ],
)
def test_what_makes_no_sense_is_refused_by_the_parser(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words)

    assert end.value.code == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["up", "--engnie", "sim"], "there is no option --engnie (did you mean --engine?)"),
        (["uo"], "there is no command 'uo'"),
        (["up", "--rate", "3"], "there is no option --rate\n"),
        (["stauts"], "did you mean status?"),
        (["up", "--engine", "vlm"], "did you mean vllm?"),
        (["up", "diagg"], "'diagg' is not a topology"),
        (["compare", "--duration", "abc"], "'abc' is not a number above 0"),
        (["up", "--prefill", "two"], "'two' is not a whole number of at least 1"),
    ],
)
def test_a_mistyped_word_is_answered_with_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)

    told = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in told
    assert len(told.splitlines()) == 2


def test_alone_it_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0

    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)
