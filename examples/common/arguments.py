"""What the examples take on their command lines, and what a run starts from."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pyro
import torch


def script(name: str, doc: str) -> argparse.ArgumentParser:
    """The parser of ``python -m examples.name``, which says of it what the first line of its docstring does."""
    return argparse.ArgumentParser(prog=f"python -m examples.{name}", description=doc.splitlines()[0])


def add_seed(parser: argparse.ArgumentParser, of: str = "") -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{of} (default: %(default)s)".strip())


def add_outputs(parser: argparse.ArgumentParser, flag: str = "--outputs", default: str = "outputs") -> None:
    parser.add_argument(flag, type=Path, default=Path(default), help="folder (default: %(default)s)")


def add_backend(parser: argparse.ArgumentParser, *more: str) -> None:
    choices = ("inductor", "eager", *more)
    parser.add_argument("--backend", choices=choices, default="inductor", help="of the steps (default: %(default)s)")


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None, quick: dict[str, Any]) -> argparse.Namespace:
    """Arguments, with other defaults where ``--quick`` is among them, and a folder of their own for what is written."""
    parser.add_argument("--quick", action="store_true", help="cut down to a minute or two, to see that it runs")
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(**quick, outputs=parser.get_default("outputs") / "quick")
    return parser.parse_args(arguments)


def settle(seed: int) -> None:
    """For scripts of small networks."""
    pyro.settings.set(module_local_params=True)  # parameters live in the guide, not in a global store
    torch.set_num_threads(1)  # more only get in each other's way
    pyro.set_rng_seed(seed)


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
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, but found {text}")
    return value


def below_one(text: str) -> float:
    """A rate: at least 0, below 1.

    :raises argparse.ArgumentTypeError: what the parser shows.
    """
    if not 0 <= (value := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be a rate of at least 0 and below 1, but found {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
