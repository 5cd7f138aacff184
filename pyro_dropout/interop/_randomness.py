"""What in a network draws random numbers, found by running it rather than by the names of operations.

An operation is random if PyTorch tags it so *and* a generator has moved while it ran: some are tagged that draw only on
request, such as attention at rate 0. What draws outside PyTorch moves the generators of Python or NumPy.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_dropout._modes import forked_rng


class Draws(TorchDispatchMode):
    """Inside, the operations that draw random numbers leave their names here."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        before = _states(kwargs.get("generator"))
        out = func(*args, **kwargs)
        if any(not torch.equal(a, b) for a, b in zip(before, _states(kwargs.get("generator")), strict=True)):
            self.names.append(func.overloadpacket.__name__)
        return out


@contextmanager
def watched() -> Iterator[list[str]]:
    """Names of what draws random numbers inside; afterwards all generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with forked_rng(), Draws() as draws:
        try:
            yield draws.names
            if random.getstate() != python:
                draws.names.append("Python's random")
            if not all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True)):  # noqa: NPY002
                draws.names.append("numpy.random")
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def random_nodes(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[dict[fx.Node, str], Any]:
    """The steps of a graph that draw random numbers, each with the operation that does, and the graph's output.

    :raises ValueError: a step that fails.
    """
    run = _Watched(graph)
    with torch.no_grad():
        return run.found, run.run(*(x.clone() for x in inputs))


class _Watched(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.found: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        with watched() as names:
            out = super().run_node(n)
        if names:
            self.found[n] = names[0]
        return out


def _states(generator: torch.Generator | None) -> list[Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda, *([] if generator is None else [generator.get_state()])]
