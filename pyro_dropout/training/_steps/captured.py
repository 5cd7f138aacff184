"""A graph that a GPU runs by itself: a CUDA graph, whose operations no Python launches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_arg

from pyro_dropout.training._steps.graph import Traced, written_by
from pyro_dropout.training._steps.messages import first_line

_FIRST = 3  # calls one operation at a time: libraries choose their algorithms and take their memory


class Captured:
    """A traced graph as a CUDA graph, from its fourth call on.

    What depends on numbers of the CPU alone, a prior's scale say, is computed when the graph is captured, and the graph
    is captured anew where one of them has changed; arguments of steps go to the GPU. What cannot be captured runs
    operation by operation, with a warning.

    :param traced: the graph.
    :param inputs: number of its inputs beside the tensors of the trace.
    :raises ValueError: a graph that changes tensors of the CPU, or has none on a GPU.
    """

    def __init__(self, traced: Traced, inputs: int) -> None:
        self._module, self._tensors, self._number = traced.module, traced.tensors, inputs
        self._of_cpu = [tensor for tensor in traced.tensors if not _on_gpu(tensor)]
        changed = traced.changed()
        if len(self._of_cpu) == len(traced.tensors) or any(id(tensor) in changed for tensor in self._of_cpu):
            found = ", ".join(sorted({str(tensor.device) for tensor in traced.tensors}))
            raise ValueError(
                f'backend "cudagraphs" runs on a GPU, but found tensors on {found}: move model, guide and data to it, '
                'or take "inductor" or "eager"'
            )
        self._device = next(tensor.device for tensor in traced.tensors if _on_gpu(tensor))
        self._calls, self._failed = 0, False
        self._versions: list[int] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._results: Sequence[Tensor] = []

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        with torch.cuda.device(self._device):
            return self._called([t if _on_gpu(t) else t.to(self._device) for t in tensors[: self._number]])

    def _called(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self._calls += 1
        if self._calls <= _FIRST or self._failed:
            return self._beside(inputs)
        versions = [tensor._version for tensor in self._of_cpu]
        if self._graph is None or versions != self._versions:
            self._versions = versions
            try:
                self._capture(inputs)
            except RuntimeError as error:
                self._failed = True
                warnings.warn(
                    f"a step runs operation by operation: it is no CUDA graph ({first_line(error)})", stacklevel=2
                )
                return self._beside(inputs)
        assert self._graph is not None
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return [result.clone() for result in self._results]  # the graph's own are written at the next call

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        constants = self._constants()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"), torch.no_grad():
            self._results = Interpreter(self._module).run(*self._inputs, *self._tensors, initial_env=constants)
        self._graph = graph

    def _constants(self) -> dict[Node, Any]:
        """Results that depend on tensors of the CPU, and on nothing else."""
        graph = self._module.graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"][self._number :]
        known: dict[Node, Any] = {n: t for n, t in zip(placeholders, self._tensors, strict=True) if not _on_gpu(t)}
        written = {argument for node in graph.nodes for argument in written_by(node)}
        for node in graph.nodes:
            given = node.all_input_nodes
            computed = node.op == "call_function" and node not in written and not written_by(node)
            if computed and given and all(one in known for one in given):
                args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
        return {node: value for node, value in known.items() if node.op == "call_function"}

    def _beside(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """On another stream, as captures are."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            results = self._module(*inputs, *self._tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return results


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda
