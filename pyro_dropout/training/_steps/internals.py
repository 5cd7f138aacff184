"""The compiler and its tracing, which PyTorch does not promise to keep: for the tested versions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule


def decompositions_of(operations: list[Any]) -> dict[Any, Any]:
    """PyTorch's own expressions of operations by simpler ones."""
    return dict(get_decompositions(operations))


@contextmanager
def one_fake_mode() -> Iterator[None]:
    """One mode for the shapes of all operations of a trace: without it each makes its own, half of a trace's time."""
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        yield


@contextmanager
def capturable_anywhere() -> Iterator[None]:
    """Capturable optimisers run on the CPU too, which they refuse, as CUDA graphs are what they were made for."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def compile_graph(module: GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """The graph by the compiler of ``torch.compile``."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        return torch._inductor.compile(module, list(inputs), options=options)
