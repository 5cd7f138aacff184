"""Runs of a user's functions that fail: undone, and said of their arguments."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_dropout._checks import said

_LIBRARIES = tuple(Path(module.__file__).parent for module in (pyro, torch) if module.__file__)
_KEPT = (TypeError, ValueError, NotImplementedError)  # others become a ValueError
_OF_ARGUMENTS = (*_KEPT, RuntimeError, IndexError, KeyError, AttributeError, AssertionError, ZeroDivisionError)
_LONG = 600  # characters of an error that is told again


class undone_if_it_fails:
    """Around what draws random numbers: if it raises, they are given back, and the next run is as if it had not been.

    A class, and no generator, as it is in the way of every step.

    Example::

        >>> state = torch.get_rng_state()
        >>> try:
        ...     with undone_if_it_fails():
        ...         raise ValueError(torch.rand(2))
        ... except ValueError:
        ...     print(torch.equal(state, torch.get_rng_state()))
        True
    """

    __slots__ = ("_random",)

    def __enter__(self) -> None:
        self._random = [(generator, generator.get_state()) for generator in _generators()]

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        if error is not None:
            for generator, state in self._random:
                generator.set_state(state)


class said_of_arguments(undone_if_it_fails):
    """Around a run: if PyTorch or Pyro refuse a value inside, the error says what the run's arguments were.

    Shapes, dtypes and devices that do not match show deep inside of a network, where nothing tells which argument they
    came from. The error of the library is the new one's cause. What this package or the user's own code raises, and
    what is no error of arguments (memory, interruption), is passed on as it is.

    :param what: that runs, for the message.
    :param args, kwargs: its arguments.

    Example::

        >>> with said_of_arguments("the sum", (torch.ones(2), torch.ones(3)), {}):
        ...     torch.ones(2) + torch.ones(3)
        Traceback (most recent call last):
        ValueError: the sum fails on argument 0, float32 tensor of shape (2,): [1.0, 1.0]; argument 1, ...
    """

    __slots__ = ("_args", "_kwargs", "_what")

    def __init__(self, what: str, args: Any, kwargs: Any) -> None:
        self._what, self._args, self._kwargs = what, args, kwargs

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        if error is None:
            return
        super().__exit__(kind, error, where)
        if type(error) in _OF_ARGUMENTS and _of_library(error):
            new = type(error) if isinstance(error, _KEPT) else ValueError
            text, _, _ = str(error).partition("Trace Shapes:")  # of all sites, which Pyro appends
            lines = (line.strip() for line in text[:_LONG].splitlines())
            said_there = " ".join(line for line in lines if line)
            raise new(f"{self._what} fails on {listed(self._args, self._kwargs)}: {said_there}") from error


def listed(args: Any, kwargs: Any) -> str:
    """Arguments by place or name, with what they are."""
    named = [(f"argument {i}", value) for i, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    return "; ".join(f"{name}, {said(value)}" for name, value in named) or "no arguments"


def _generators() -> list[torch.Generator]:
    """Of the CPU and of the current GPU; while a CUDA graph is captured a GPU's may not be asked."""
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]
    return [torch.default_generator]


def _of_library(error: BaseException) -> bool:
    """Whether PyTorch or Pyro raised it of arguments: in their own files, or in C++, which shows as a caller's line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if any(library in Path(last.filename).parents for library in _LIBRARIES):
        return "allocate memory" not in str(error)
    return type(error) is RuntimeError and not (last.line or "").startswith("raise")
