"""What a function does to tensors, traced once into a graph that is compiled: no Python is left in it.

After randomness in the chain randomness → graph → update → svi → replicates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
_BROADCAST = 32  # entries that a number must be shared by for it to be worth a place in memory
_CHEAP = {aten.expand.default, aten.full.default, aten.as_strided.default, aten.detach.default, aten.t.default}


class Traced(NamedTuple):
    """A graph of ``function(*inputs)``, and the tensors it uses beside them: parameters, buffers, constants.

    They are inputs of the graph too, after the function's own. What the function changes in place, the graph changes.
    """

    module: GraphModule
    tensors: list[Tensor]


def trace(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Traced:
    """Runs the function once. Whatever it does that is no operation on tensors happens now and never again."""
    module = make_fx(function)(*inputs)
    graph = module.graph
    tensors: dict[int, tuple[Node, Tensor]] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "get_attr":
            tensor = getattr(module, node.target)
            if id(tensor) not in tensors:
                with graph.inserting_after(last):
                    last = graph.placeholder(f"tensor_{len(tensors)}")
                last.meta["val"] = tensor
                tensors[id(tensor)] = (last, tensor)
            node.replace_all_uses_with(tensors[id(tensor)][0])
            graph.erase_node(node)
        elif str(node.target).startswith("profiler."):
            graph.erase_node(node) if not node.users else None
    graph.eliminate_dead_code()
    return Traced(GraphModule(torch.nn.Module(), graph), [tensor for _, tensor in tensors.values()])


def compiled(traced: Traced, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph as a function of its inputs and tensors, by the compiler of ``torch.compile``."""
    module = GraphModule(torch.nn.Module(), _with_shared_numbers(traced.module.graph))
    on_cpu = all(t.device.type == "cpu" for t in (*inputs, *traced.tensors))
    options = {"cpp_wrapper": True} if on_cpu else {}  # what calls the kernels is C++ too
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        function = torch._inductor.compile(module, [*inputs, *traced.tensors], options=options)
    return torch.no_grad()(function)


def _with_shared_numbers(graph: Graph) -> Graph:
    """Puts what many entries share, a bias correction say, into memory: fused, each entry would compute it anew."""
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and node.target not in _CHEAP:
            users = [user for user in node.users if _entries(user) >= _BROADCAST * max(1, value.numel())]
            users = [user for user in users if _entries(user) and "mm" not in str(user.target)]
            if users:
                with graph.inserting_after(node):
                    kept = graph.call_function(aten.as_strided.default, (node, value.shape, value.stride()))
                for user in users:
                    user.replace_input_with(node, kept)
    for node in graph.nodes:
        node.meta.clear()  # tensors of the trace, which the compiler would take for its own
    return graph


def _entries(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
