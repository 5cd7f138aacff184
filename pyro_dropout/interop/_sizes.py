"""Sizes that tell a network's dimensions apart, so that what is found out does not depend on the example's.

With one place or one time, a mask for each place looks like one for all of them; with as many times as rows of data,
one for each time like one for each row. So the graph is run, on tensors without memory, for more places wherever it
takes them, and for a number of rows that no other dimension has. What the network itself fixes, such as the places
behind an adaptive pool, stays.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

Shapes = list[list[int]]
_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class Values(NamedTuple):
    """What a graph's steps compute: of tensors, shapes and types alone.

    :param of: by step.
    :param given: the same at the example's own sizes, for messages.
    :param rows: of data.
    :param told_apart: whether sizes tell dimensions apart; not where a graph runs only on data.
    """

    of: dict[fx.Node, Any]
    given: dict[fx.Node, Any]
    rows: int
    told_apart: bool


def values_of(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Values:
    """Values of a graph's steps for inputs like these, at sizes that tell dimensions apart."""
    shapes = [list(x.shape) for x in inputs]
    values = _run(graph, inputs, shapes)
    if values is None:
        interpreter = fx.Interpreter(graph, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(*(x.clone() for x in inputs))
        return Values(interpreter.env, interpreter.env, len(inputs[0]), told_apart=False)
    given = values
    for group in _groups(shapes):
        larger = [[s * 2 if (i, d) in group else s for d, s in enumerate(shape)] for i, shape in enumerate(shapes)]
        if larger != shapes and (found := _run(graph, inputs, larger)):
            shapes, values = larger, found
    rows = _unused(values, len(inputs[0]))
    other = [[rows if d == 0 and s == len(inputs[0]) else s for d, s in enumerate(shape)] for shape in shapes]
    if other != shapes and (found := _run(graph, inputs, other)):
        return Values(found, given, rows, told_apart=True)
    return Values(values, given, len(inputs[0]), told_apart=True)


def _run(graph: fx.GraphModule, inputs: tuple[Tensor, ...], shapes: Shapes) -> dict[fx.Node, Any] | None:
    """Values at these shapes of the inputs; None where the graph does not take them."""
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    interpreter.extra_traceback = False
    _LOG.disabled = True  # a size that the graph does not take is no error
    try:
        with warnings.catch_warnings(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            pairs = zip(inputs, shapes, strict=True)
            interpreter.run(*(torch.empty(shape, dtype=x.dtype, device=x.device) for x, shape in pairs))
    except Exception:
        return None
    finally:
        _LOG.disabled = False
    return interpreter.env


def _groups(shapes: Shapes) -> list[set[tuple[int, int]]]:
    """Dimensions that may only grow together, as they are equal, then each by itself; never the rows."""
    dims = [(i, d) for i, shape in enumerate(shapes) for d in range(1, len(shape))]
    equal: dict[int, set[tuple[int, int]]] = {}
    for i, d in dims:
        equal.setdefault(shapes[i][d], set()).add((i, d))
    alone = [{dim} for dim in dims]
    return [*(group for group in equal.values() if len(group) > 1), *alone]


def _unused(values: dict[fx.Node, Any], rows: int) -> int:
    """The smallest number of rows that no other dimension has."""
    used = {s for value in values.values() if isinstance(value, Tensor) for s in value.shape[1:]}
    used |= {value.shape[0] for value in values.values() if isinstance(value, Tensor) and value.dim()} - {rows}
    return next(n for n in range(2, len(used) + 3) if n not in used)
