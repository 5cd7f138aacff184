"""The compiler and its tracing, which PyTorch does not promise to keep: for the tested versions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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


def compilers_folder() -> Path:
    """Where PyTorch's compiler keeps what it has compiled."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # loads it, which few processes need

    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir())


def load_library(path: Path) -> Callable[..., list[Tensor]]:
    """A compiled graph as a function of its inputs."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    return lambda *inputs: runner.run(list(inputs))


def compile_graph(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph by the compiler of ``torch.compile``."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # a quarter of a second, which only compiling needs

    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))  # which the cache of compiled graphs asks for
    with torch.no_grad(), tracing(context), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        return torch._inductor.compile(module, list(inputs))
