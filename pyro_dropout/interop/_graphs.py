"""A network's operations in training and in evaluation mode, which must be the same but for dropout."""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_dropout._modes import forked_rng
from pyro_dropout.interop._operations import DROPOUTS, argument, drop_path_rate, hidden_dropout
from pyro_dropout.interop._randomness import random_nodes, watched

OF_ATTENTION = "dropout of attention's probabilities is no mask of a weight"


def draws_of(net: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Names of the operations that draw random numbers in a pass in training mode, of a network without a graph.

    :raises ValueError: a network that fails.
    """
    try:
        with watched() as names, torch.no_grad():
            twin(net, training=True)(*(x.clone() for x in inputs))
    except Exception as error:
        raise _failure(net, training=True, error=error) from error
    return names


def twin(net: nn.Module, training: bool) -> nn.Module:
    """A copy in another mode, with buffers of its own and the same parameters."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters()}).train(training)


def without_hidden(net: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The network without dropout that no graph shows, which is inside of PyTorch's own layers; what it was, by layer.

    It shares the network's parameters.
    """
    bare = twin(net, net.training)
    modes = {path: layer.training for path, layer in net.named_modules()}
    found: dict[str, str] = {}
    for path, layer in bare.named_modules():
        layer.training = modes[path]
        inside = any(path.startswith(f"{outer}.") if outer else path for outer in found)
        if type(layer) in DROPOUTS or inside or not fx.Tracer().is_leaf_module(layer, path):
            continue
        if hidden := hidden_dropout(layer):
            why = f"; {OF_ATTENTION}" if isinstance(layer, nn.MultiheadAttention) else ""
            found[path] = f"{type(layer).__name__} {path!r} has dropout inside it ({hidden}){why}"
            for inner in layer.modules():
                if isinstance(inner, nn.modules.dropout._DropoutNd):
                    inner.p = 0.0
                elif isinstance(getattr(inner, "dropout", None), float):
                    inner.dropout = 0.0
    return bare, found


def say(graph: fx.GraphModule, node: fx.Node) -> str:
    """A step of a graph as its user knows it."""
    if node.op == "call_module":
        return f"{type(graph.get_submodule(str(node.target))).__name__} {str(node.target)!r}"
    if node.op == "output":
        return "the network's output"
    path, kind = _caller(node)
    return f"{getattr(node.target, '__name__', node.target)} ({node.name})" + (f" in {kind} {path!r}" if path else "")


class Graphs:
    """A network's graphs in both modes.

    :param net: the network; it is not changed.
    :param inputs: for the passes that tell what is random.
    :param leave_out: whether functions of attention lose their dropout; else they are refused.
    :raises ValueError: a network that cannot be followed; random numbers in it that are not of its dropouts.
    """

    def __init__(self, net: nn.Module, inputs: tuple[Tensor, ...], leave_out: bool = False) -> None:
        self.training, self.evaluation = (_trace(twin(net, mode), inputs) for mode in (True, False))
        drawn, out = _run(self.evaluation, inputs)
        for node, name in drawn.items():
            if is_dropout(self.evaluation, node):
                raise ValueError(
                    f"{say(self.evaluation, node)} drops units in evaluation mode too, where a dropout posterior has "
                    "its mean: call it with training=self.training"
                )
            raise ValueError(
                f"{say(self.evaluation, node)} draws random numbers ({name}), which are not a mask of a weight"
            )
        self._check_twin(net, inputs, out)
        statistics = {buffer: buffer.clone() for buffer in self.training.buffers()}
        self.drawn, _ = _run(self.training, inputs)
        for buffer, before in statistics.items():
            buffer.copy_(before)
        self.left_out: dict[fx.Node, str] = {}
        for node, name in self.drawn.items():
            if leave_out and node.target is F.scaled_dot_product_attention:
                self.left_out[node] = self._say_random(node, name)
            elif not is_dropout(self.training, node):
                raise ValueError(self._say_random(node, name))
        self._check_again(net, inputs)
        for node in self.left_out:
            if len(node.args) > 4:
                node.update_arg(4, 0.0)
            else:
                node.update_kwarg("dropout_p", 0.0)
        self.same = self._pair()

    def _check_twin(self, net: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
        """A pass of the network itself, at another seed, must be what its graph computes."""
        with forked_rng(), torch.no_grad():
            torch.manual_seed(torch.initial_seed() % 2**31 + 1)
            again = twin(net, training=False)(*(x.clone() for x in inputs))
        pairs = zip(_tensors(out), _tensors(again), strict=True)
        if any(a.shape != b.shape or not torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True) for a, b in pairs):
            raise ValueError(
                f"two passes of {type(net).__name__} in evaluation mode differ, though nothing in it draws random "
                "numbers of PyTorch, Python or NumPy: its forward has a generator of its own, or depends on its "
                "earlier calls"
            )

    def _check_again(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Numbers that stand in the graph must be the same when it is made anew."""
        again, same = _trace(twin(net, training=True), inputs), dict[fx.Node, fx.Node]()
        for node, other in zip_longest(self.training.graph.nodes, again.graph.nodes):
            if not (node and other and _same_step(self.training, node, again, other, same)) or (
                not _same_arguments(node, other)
            ):
                raise ValueError(
                    f"{say(self.training, node or other)} is another at each call: the forward of {type(net).__name__} "
                    "has a generator of its own, or depends on its earlier calls"
                )
            same[node] = other

    def _say_random(self, node: fx.Node, name: str) -> str:
        layer = self.training.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.target is F.scaled_dot_product_attention:
            return f"{say(self.training, node)} differs between training and evaluation: {OF_ATTENTION}"
        if layer is not None and (hidden := hidden_dropout(layer)):
            why = f"; {OF_ATTENTION}" if isinstance(layer, nn.MultiheadAttention) else ""
            return (
                f"{say(self.training, node)} has dropout inside it ({hidden}), which masks no weight's input units{why}"
                ": set it to 0, and put nn.Dropout before weight layers"
            )
        return (
            f"{say(self.training, node)} differs between training and evaluation: it draws random numbers ({name}), "
            "and is no dropout layer, so that they are not a mask of a weight: take it out, or set its rate to 0"
        )

    def _pair(self) -> dict[fx.Node, fx.Node]:
        """For each step in training the same in evaluation mode; for a dropout that is not called there its input."""
        same: dict[fx.Node, fx.Node] = {}
        rest = list(self.evaluation.graph.nodes)
        self.by_mode = []  # steps with arguments of their own in training
        for node in self.training.graph.nodes:
            if rest and _same_step(self.training, node, self.evaluation, rest[0], same):
                same[node] = rest.pop(0)
                if not is_dropout(self.training, node) and not _same_arguments(node, same[node]):
                    self.by_mode.append(node)
            elif node.target in DROPOUTS:
                same[node] = same[argument(node, 0, "input", None)]
            else:
                raise ValueError(
                    f"{say(self.training, node)} differs between training and evaluation, and is not random: the "
                    "network computes something else in training (an auxiliary head, another branch of "
                    "self.training), but draws of a posterior are of one network: take auxiliary heads out, or give a "
                    "module that returns the main output alone"
                )
        return same

    def of_both(self, dropped: set[fx.Node]) -> fx.GraphModule:
        """One graph for both modes, without these dropouts: where arguments differ, the module's own mode chooses."""
        graph = self.training.graph
        for node in self.by_mode:
            path, _ = _caller(node)
            path = path if path in dict(self.training.named_modules()) else ""
            with graph.inserting_before(node):
                mode = graph.create_node("get_attr", f"{path}.training".lstrip("."))
                node.args, node.kwargs = self._by_mode(node, mode)
        for node in dropped:
            node.replace_all_uses_with(argument(node, 0, "input", None))
            graph.erase_node(node)
        self.training.recompile()
        return self.training

    def _by_mode(self, node: fx.Node, mode: fx.Node) -> Any:
        """The arguments of a step, of which each that differs is a choice by the mode."""
        own, spec = tree_flatten((tuple(node.args), dict(node.kwargs)))
        other, other_spec = tree_flatten((tuple(self.same[node].args), dict(self.same[node].kwargs)))
        if spec != other_spec:
            raise ValueError(
                f"{say(self.training, node)} differs between training and evaluation by the number of its arguments: "
                "give it the same in both modes, or take nn.Dropout layers instead of functions"
            )
        chosen = [
            a
            if isinstance(a, fx.Node) or repr(a) == repr(b)
            else mode.graph.call_function(operator.getitem, ((b, a), mode))
            for a, b in zip(own, other, strict=True)
        ]
        return tree_unflatten(chosen, spec)


def is_dropout(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step is a dropout whose mask can be followed."""
    layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return (node.target if layer is None else type(layer)) in DROPOUTS or drop_path_rate(layer) is not None


def attribute(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The parameter, buffer or constant that a step reads."""
    path, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(path), name)


def _caller(node: fx.Node) -> tuple[str, str]:
    """Path and type of the module whose forward calls a step; the network's own path is empty."""
    path, kind = [("", ""), *node.meta.get("nn_module_stack", {}).values()][-1]
    return path, getattr(kind, "__name__", str(kind))


def _same_step(
    a_graph: fx.GraphModule, a: fx.Node, b_graph: fx.GraphModule, b: fx.Node, same: dict[fx.Node, fx.Node]
) -> bool:
    if a.op != b.op or (a.target != b.target and a.op != "output"):
        return False
    if a.op == "get_attr" and isinstance(attribute(a_graph, a), Tensor):
        own, other = attribute(a_graph, a), attribute(b_graph, b)
        if own is not other and not (own.shape == other.shape and torch.equal(own, other)):
            return False
    if a.op == "output" and not _same_arguments(a, b):
        return False
    return [same[n] for n in a.all_input_nodes] == b.all_input_nodes


def _same_arguments(a: fx.Node, b: fx.Node) -> bool:
    return repr(_numbered(a)) == repr(_numbered(b))


def _numbered(node: fx.Node) -> Any:
    """The arguments of a step, with numbers for the steps before it."""
    number = count()
    return map_arg((node.args, node.kwargs), lambda _: next(number))


def _run(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[dict[fx.Node, str], Any]:
    try:
        return random_nodes(graph, inputs)
    except Exception as error:
        raise _failure(graph, graph.training, error) from error


def _failure(net: nn.Module, training: bool, error: Exception) -> ValueError:
    mode = "training" if training else "evaluation"
    return ValueError(f"{type(net).__name__} fails in {mode} mode for the example: {error}")


class _Tracer(fx.Tracer):
    """Inputs that are not given have their defaults; stochastic depth is one step."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._inputs = inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return drop_path_rate(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> Any:
        bound = inspect.signature(root_fn).bind(self.root, *self._inputs)
        _, *names = bound.arguments
        variable = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
        if variable and variable[0] in names:
            names.remove(variable[0])
            names += [f"{variable[0]}_{i}" for i in range(len(self._inputs) - len(names))]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


def _trace(net: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    tracer = _Tracer(inputs)
    try:
        with watched() as names:
            graph = tracer.trace(net)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(net).__name__} cannot be followed{_where(error)} (control flow that depends on data "
            "or shapes? an assertion?), so it is not known which weight a dropout masks: give a module without it, or "
            f"with it in a function that torch.fx.wrap names: {error}"
        ) from error
    if names:
        raise ValueError(
            f"the forward of {type(net).__name__} draws random numbers ({names[0]}), which are not a mask of a weight"
        )
    module = fx.GraphModule(net, graph, class_name=type(net).__name__)
    for node in graph.nodes:  # whose layer a parameter is, it has to know: a graph has but what it reads and calls
        path = str(node.target).rpartition(".")[0]
        if node.op == "get_attr" and path:
            module.set_submodule(path, net.get_submodule(path))
    return module


def _where(error: Exception) -> str:
    """The line of the network at which following it ended."""
    library = Path(torch.__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if library not in Path(f.filename).parents]
    line = frames[-1].line if len(frames) > 1 else ""
    return f" at {line!r}" if line else ""


def _tensors(out: Any) -> list[Tensor]:
    return [t for t in tree_leaves(out) if isinstance(t, Tensor)]
