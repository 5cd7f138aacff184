"""What an object consists of, by path: how replicates are told apart, and tensors of one found in another.

For replicates.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

# Of guides and modules: what their first call was made with, and what no step reads.
_SKIPPED = {"prototype_trace", "_rate", "_make_rest", "_snapshots", "master", "_pyro_context", "_pyro_name"}


def parts(root: Any) -> dict[str, Any]:
    """Tensors and numbers (and names) that an object refers to, however deep, by the path to them."""
    return dict(_walk(root, "", set()))


def _walk(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Tensor):
        yield path, value
    elif id(value) not in seen and not isinstance(value, type | types.ModuleType):
        seen.add(id(value))
        for name, part in _members(value):
            yield from _walk(part, f"{path}.{name}" if path else name, seen)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(i), part) for i, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield "self", value.__self__
    elif inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells)
        yield from ((f"default {i}", part) for i, part in enumerate(value.__defaults__ or ()))
    else:
        yield from ((name, part) for name, part in getattr(value, "__dict__", {}).items() if name not in _SKIPPED)
