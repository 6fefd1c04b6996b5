"""Values of options, refused with a sentence."""

import argparse

from pd_analysis.words.language import tr


def count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        msg = tr("expected a whole number of at least 1, got {text}", text=repr(text))
        raise argparse.ArgumentTypeError(msg)
    return value


def positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        msg = tr("expected a number above 0, got {text}", text=repr(text))
        raise argparse.ArgumentTypeError(msg)
    return value


def share(text: str) -> float:
    """A number above 0, at most 1."""
    value = positive(text)
    if value > 1:
        msg = tr("{text} is more than 1: write a share such as 0.9", text=repr(text))
        raise argparse.ArgumentTypeError(msg)
    return value


def percent(text: str) -> float:
    """A percentage below 100, as a share."""
    value = _number(text)
    if not 0 <= value < 100:
        msg = tr("expected a percentage from 0 to below 100, got {text}", text=repr(text))
        raise argparse.ArgumentTypeError(msg)
    return value / 100


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
