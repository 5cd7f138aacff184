"""What a replicate consists of, by path: how replicates are told apart, and tensors of one found in another."""

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

from pyro_dropout.training._steps.update import Update, options_of

# What only the first call reads, or no step.
_OF_GUIDES = {"prototype_trace", "_rate", "_make_rest", "_snapshots", "_at_zero", "master"}
_OF_MODULES = {"_pyro_context", "_pyro_name", "_local", "_mixing", "_trunks", "_forward_hooks_always_called"}
_VALUES: tuple[type, ...] = (bool, int, float, complex, str, bytes, set, frozenset, slice, range, Enum, np.generic)
_VALUES += (Tensor, torch.dtype, torch.device, types.BuiltinFunctionType)
_LIBRARIES = {"builtins", "torch", "pyro", "pyro_dropout", "numpy", "functools", "collections", "abc", "typing"}


def places_of(functions: tuple[Any, Any, Any], parameters: dict[str, Tensor], update: Update) -> dict[str, Any]:
    """All that a replicate consists of, by path: tensors, which may be its own, and numbers, which may not."""
    model, guide, loss = functions
    options = [options_of(group) for group in update.groups]
    numbers = {k: v for k, v in vars(loss).items() if k != "alpha"}  # stands in a tensor
    fixed = [group["lr"] for group in update.groups] if update.fixed_rates else []
    states = [state[p] for state, p in zip(update.states, update.parameters, strict=True)]
    rates = [rate for _, rate in update.rates]
    roots = {"parameters": parameters, "states": states, "rates": rates, "options": options, "fixed": fixed}
    return {
        f"{name}.{path}": value
        for name, root in {**roots, "loss": numbers, "model": model, "guide": guide}.items()
        for path, value in contents(root).items()
    }


def check_alike(first: dict[str, Any], other: dict[str, Any], replicate: int) -> None:
    """Raises where a replicate differs from the first one in what is no tensor, or in a tensor's shape."""
    for path in [*first, *(path for path in other if path not in first)]:
        if path not in first or path not in other:
            raise ValueError(f"replicates 0 and {replicate} differ: only one of them has {path}")
        a, b = first[path], other[path]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"{path} has shape {tuple(a.shape)} ({a.dtype}) in replicate 0, but {tuple(b.shape)} ({b.dtype}) "
                    f"in replicate {replicate}: replicates share one graph, and with it all shapes"
                )
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or (a != b and (a == a or b == b)):
            raise ValueError(
                f"{path} is {a!r} in replicate 0, but {b!r} in replicate {replicate}: what differs between replicates "
                "must be a tensor in all of them, as numbers are written into the graph that they share"
            )


def contents(root: Any) -> dict[str, Any]:
    """Tensors, numbers and whatever else can only be compared that an object refers to, by the path to them."""
    return dict(_walk(root, "", {}))


def _walk(value: Any, path: str, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.ndarray):
        yield path, (str(value.dtype), value.tolist())
    elif value is None or isinstance(value, _VALUES):
        yield path, value
    elif id(value) not in seen and not isinstance(value, types.ModuleType):
        seen[id(value)] = value  # kept, or another object could get its id
        for name, inner in _members(value):
            yield from _walk(inner, f"{path}.{name}" if path else name, seen)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object refers to, by name. A number that differs between replicates may hide in each of these:

    * mappings, lists, tuples, deques: entries;
    * partials and bound methods: a function, and what it was bound to;
    * functions: the variables of the scope they were made in, and defaults (a model that is a closure over its scale);
    * classes that are no library's: attributes, and methods as functions (a class that was made with the replicate);
    * anything else: attributes, slots, and its class; of guides and modules without what no step reads.
    """
    if isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | deque):
        yield from ((str(i), inner) for i, inner in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (("self", value.__self__), ("func", value.__func__))
    elif inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells if cell != types.CellType())
        yield from ((f"default {i}", inner) for i, inner in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
    elif isinstance(value, type):
        if value.__module__.split(".")[0] not in _LIBRARIES:  # perhaps made with the replicate, around its numbers
            yield from (
                (name, inner) for name, inner in vars(value).items() if not name.startswith("__") or callable(inner)
            )
    else:
        skipped = (_OF_GUIDES if isinstance(value, AutoGuide) else set()) | (
            _OF_MODULES if isinstance(value, nn.Module) else set()
        )
        for name, inner in getattr(value, "__dict__", {}).items():
            if name not in skipped:  # hooks stand under numbers that count all there are
                yield name, list(inner.values()) if name.endswith("_hooks") and isinstance(inner, dict) else inner
        for kind in type(value).__mro__:
            yield kind.__name__, kind
            slots = kind.__dict__.get("__slots__", ())
            names = [slots] if isinstance(slots, str) else slots
            yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
