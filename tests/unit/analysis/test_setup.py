"""The report's section on how the runs were set up."""

from support.analysis import group, manifest, request, run

from pd_analysis.tables.setup import commands


def test_a_password_in_a_command_of_old_records_is_not_shown() -> None:
    words = ["pd-loadgen", "run", "--url=http://me:s3cret@host:8000", "--monitor", "http://me:s3cret/x@host:1"]
    shown = commands(group(run([request(0)], manifest(command=words))))

    assert list(shown.values()) == ["pd-loadgen run --url=http://host:8000 --monitor http://host:1"]
