"""What an object consists of, by path: how replicates are told apart, and tensors of one found in another.

For replicates.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

_OF_GUIDES = {"prototype_trace", "_rate", "_make_rest", "_snapshots", "master"}  # the first call's, or no step reads it
_OF_MODULES = {"_pyro_context", "_pyro_name", "_local", "_forward_hooks_always_called"}
_VALUES: tuple[type, ...] = (bool, int, float, complex, str, bytes, set, frozenset, slice, range, Enum, np.generic)
_VALUES += (Tensor, torch.dtype, torch.device, types.BuiltinFunctionType)
_LIBRARIES = {"builtins", "torch", "pyro", "pyro_dropout", "numpy", "functools", "collections", "abc", "typing"}


def parts(root: Any) -> dict[str, Any]:
    """Tensors, numbers and whatever else can only be compared that an object refers to, by the path to them."""
    return dict(_walk(root, "", {}))


def _walk(value: Any, path: str, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.ndarray):
        yield path, (str(value.dtype), value.tolist())
    elif value is None or isinstance(value, _VALUES):
        yield path, value
    elif id(value) not in seen and not isinstance(value, types.ModuleType):
        seen[id(value)] = value  # kept, or another object could get its id
        for name, part in _members(value):
            yield from _walk(part, f"{path}.{name}" if path else name, seen)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | deque):
        yield from ((str(i), part) for i, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (("self", value.__self__), ("func", value.__func__))
    elif inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells if cell != types.CellType())
        yield from ((f"default {i}", part) for i, part in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
    elif isinstance(value, type):
        if value.__module__.split(".")[0] not in _LIBRARIES:  # perhaps made with the replicate, around its numbers
            yield from (
                (name, part) for name, part in vars(value).items() if not name.startswith("__") or callable(part)
            )
    else:
        skipped = (_OF_GUIDES if isinstance(value, AutoGuide) else set()) | (
            _OF_MODULES if isinstance(value, nn.Module) else set()
        )
        for name, part in getattr(value, "__dict__", {}).items():
            if name not in skipped:  # hooks stand under numbers that count all there are
                yield name, list(part.values()) if name.endswith("_hooks") and isinstance(part, dict) else part
        for kind in type(value).__mro__:
            yield kind.__name__, kind
            slots = kind.__dict__.get("__slots__", ())
            names = [slots] if isinstance(slots, str) else slots
            yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
