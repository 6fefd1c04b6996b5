"""Which profile a command works with: a measured one, or one that is computed from a model's shape and a board's data sheet."""

import argparse

from pd_analysis.words.language import told, tr
from pd_contracts.profiles import ProfileError
from pd_planner.cli.failure import CommandError
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import BOARDS, board_of
from pd_planner.profile.shape import ShapeError, known_shapes, read_shape
from pd_simulator.profile import Profile, load_profile, shipped

DEFAULT = "h200-llama3-8b"


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """`--profile`, or `--model` with `--gpu`."""
    group = parser.add_argument_group(what)
    group.add_argument(
        "--profile",
        metavar="NAME",
        help=tr(
            "{names}, or a TOML file of `pd-plan calibrate` (default {default})",
            names=", ".join(shipped()),
            default=DEFAULT,
        ),
    )
    group.add_argument(
        "--model",
        metavar="CONFIG",
        help=tr(
            "instead of a profile: a model's config.json or its folder, or one of {names}; ANALYTIC, not measured",
            names=", ".join(known_shapes()),
        ),
    )
    group.add_argument("--gpu", metavar="NAME", help=tr("with --model: the GPU, such as H200, H100 80GB HBM3, L40S"))


def chosen(options: argparse.Namespace) -> Profile:
    """The profile that was asked for.

    Raises:
        CommandError: if there is none.
    """
    boards = getattr(options, "tensor_parallel", 1)
    if options.model is None:
        if boards > 1:
            raise CommandError(
                tr(
                    "--tensor-parallel {count}: this profile is of one GPU per engine; --model with --gpu computes one of {count}",
                    count=boards,
                )
            )
        if options.gpu is not None and options.gpu.isdecimal():
            raise CommandError(
                tr("--gpu {name} names no GPU; how many there may be is --gpus {name}", name=options.gpu)
            )
        if options.gpu is not None:
            raise CommandError(tr("--gpu needs --model, whose shape determines the work"))
        try:
            return load_profile(options.profile or DEFAULT)
        except ProfileError as error:
            raise CommandError(told(error)) from error
    if options.profile is not None:
        raise CommandError(tr("--profile and --model exclude each other: a profile is already for one model"))
    board = board_of(options.gpu or "")
    if board is None:
        names = ", ".join(known.name.removeprefix("NVIDIA ") for known in BOARDS)
        raise CommandError(
            tr("--gpu {name}: expected one of {names}", name=options.gpu, names=names)
            if options.gpu
            else tr("--model needs --gpu, one of {names}", names=names)
        )
    try:
        return analytic(read_shape(options.model), board, boards)
    except ShapeError as error:
        raise CommandError(str(error)) from error
