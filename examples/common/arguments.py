"""What the examples take on their command lines."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A number of things, at least one.

    :raises argparse.ArgumentTypeError: what the parser shows.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, but found {text}")
    return int(text)


def positive(text: str) -> float:
    """A number above zero.

    :raises argparse.ArgumentTypeError: what the parser shows.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, but found {text}")
    return value
