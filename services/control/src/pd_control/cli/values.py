"""Values of options: each reads a word of the command line, or refuses it with what is expected."""

import argparse

from pd_contracts.names import Topology


def topology(text: str) -> Topology:
    try:
        return Topology(text)
    except ValueError:
        msg = f"{text!r} is not a topology: write {' or '.join(Topology)}"
        raise argparse.ArgumentTypeError(msg) from None


def count(text: str) -> int:
    return _whole(text, least=1)


def natural(text: str) -> int:
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least:
        msg = f"{text!r} is not a whole number of at least {least}"
        raise argparse.ArgumentTypeError(msg)
    return value


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        msg = f"{text!r} is not a number above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def share(text: str) -> float:
    value = positive(text)
    if value > 1:
        msg = f"{text!r} is more than 1: write a share such as 0.9"
        raise argparse.ArgumentTypeError(msg)
    return value
