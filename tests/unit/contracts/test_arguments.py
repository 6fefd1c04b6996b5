"""A mistyped word on any command line is answered with a sentence, not with the usage of all options."""

from collections.abc import Callable, Sequence

import pytest

from pd_analysis.main import main as analysis
from pd_control.main import main as control
from pd_loadgen.main import main as loadgen

Command = Callable[[Sequence[str]], int]


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        (loadgen, ["run", "--rtae", "4"], "pd-loadgen run: there is no option --rtae (did you mean --rate?)"),
        (loadgen, ["runs"], "pd-loadgen: there is no command 'runs' (did you mean run?); there are: run, sweep"),
        (loadgen, ["sweep", "points.yaml"], "pd-loadgen sweep: the following arguments are required: --out"),
        (analysis, ["reports"], "pd-analysis: there is no command 'reports' (did you mean report?)"),
        (analysis, ["report", "--lang", "fr"], "pd-analysis report: there is no --lang value 'fr'; there are: en, zh"),
        (analysis, ["compare", "--tolerence", "3"], "there is no option --tolerence (did you mean --tolerance?)"),
        (control, ["up", "--engine", "smi"], "pdctl up: there is no --engine value 'smi'"),
    ],
)
def test_a_mistyped_word_is_answered_with_a_sentence_and_the_way_to_help(
    command: Command, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(words)

    told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert sentence in told[0]
    assert len(told) == 2
    assert told[1].endswith("--help lists the options")
