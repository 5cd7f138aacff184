"""Which weight each dropout of a PyTorch network masks, found by following its mask through the network.

The entries of a mask are numbered, and the numbers are sent through the network's own operations that only move
entries. A dropout on two rows of three units has entries ``[[0, 1, 2], [3, 4, 5]]``; behind ``transpose(0, 1)`` they
lie ``[[0, 3], [1, 4], [2, 5]]``. At the next weight they tell what the mask does there: along the input units they must
all differ, along time or space be the same (a mask that is tied), along the rows of data be a mask for each.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pyro_dropout.nn.slots import CONVOLUTIONS

# Dropouts, with the number of dimensions behind the channels that they mask; 0 masks entries.
_DROPOUTS: dict[Any, int] = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}
_DROPOUT_LAYERS: dict[Any, int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}

# f(z x) = z f(x) for z ≥ 0, entry by entry.
_HOMOGENEOUS = {nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, *_DROPOUT_LAYERS}
_HOMOGENEOUS |= {*_DROPOUTS, F.relu, torch.relu, F.leaky_relu, torch.neg, operator.neg, torch.abs}
_HOMOGENEOUS |= {"relu", "relu_", "abs", "neg", "contiguous", "clone", "to", "float", "double", "half"}

# Entries change their places only.
_NAMES = ("flatten", "reshape", "transpose", "permute", "movedim", "squeeze", "unsqueeze", "swapaxes", "swapdims")
_MOVES = {nn.Flatten, nn.Unflatten, *(getattr(torch, name) for name in _NAMES), *_NAMES, "view", "t", operator.getitem}

# f(z x) = z f(x) where z is one number for all places of a channel.
_POOLS = [(kind, d) for kind in ("Max", "Avg") for d in (1, 2, 3)]
_SPATIAL = {getattr(nn, f"{adaptive}{kind}Pool{d}d") for kind, d in _POOLS for adaptive in ("", "Adaptive")}
_SPATIAL |= {getattr(F, f"{adaptive}{kind.lower()}_pool{d}d") for kind, d in _POOLS for adaptive in ("", "adaptive_")}
_SPATIAL |= {nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, F.interpolate}

_CONVOLUTION_CALLS = {getattr(F, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)}
_RANDOM = {getattr(torch, name) for name in ("bernoulli", "rand", "randn", "rand_like", "randn_like")}
_RANDOM |= {"bernoulli", "bernoulli_", "uniform_", "normal_"}


class Dropout(NamedTuple):
    """A dropout in a network's graph."""

    node: fx.Node
    rate: float
    space: int  # dimensions behind the channels that it masks; 0 where it masks entries

    @property
    def layer(self) -> str | None:
        """Path of the dropout layer; a function has none."""
        return str(self.node.target) if self.node.op == "call_module" else None


class Flow(NamedTuple):
    """What is found out about a network: its graph, and the dropouts that mask each weight's input units."""

    graph: fx.GraphModule
    dropouts: dict[str, list[Dropout]]


def follow_dropouts(net: nn.Module, example: tuple[Tensor, ...]) -> Flow:
    """Follows each dropout's mask to the weight that it switches units of.

    :raises ValueError: a dropout that is not a mask of one weight's input units, naming it and what it meets.
    """
    if not example or any(len(x) < 2 for x in example):
        raise ValueError("the example needs two rows of data or more, to tell which dimension is that of the data")
    if fx.Tracer().is_leaf_module(net, ""):
        if hidden := _hidden_dropout(net):
            raise ValueError(
                f"{type(net).__name__} has dropout inside it ({hidden}), which masks no weight's input units"
            )
        return Flow(fx.GraphModule(net, fx.Graph()), {})
    network = _Network(_trace(net, training=True), _trace(net, training=False), example)
    found: dict[str, list[Dropout]] = {}
    for dropout in network.dropouts():
        found.setdefault(network.target(dropout), []).append(dropout)
    return Flow(network.graph, found)


def _trace(net: nn.Module, training: bool) -> fx.GraphModule:
    net = copy.deepcopy(net).train(training)
    try:
        graph = fx.Tracer().trace(net)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(net).__name__} cannot be followed (control flow that depends on data?), so it is "
            f"not known which weight a dropout masks: {error}"
        ) from error
    return fx.GraphModule(net, graph, class_name=type(net).__name__)


class _Network:
    """A network's graph, and the values of its nodes for an example."""

    def __init__(self, graph: fx.GraphModule, evaluation: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
        self.graph = graph
        self._check_modes(evaluation)
        interpreter = fx.Interpreter(evaluation, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(*example)
        nodes = zip(graph.graph.nodes, evaluation.graph.nodes, strict=True)
        self.values = {node: interpreter.env[same] for node, same in nodes if same in interpreter.env}
        self.rows = len(example[0])
        self.names = {id(parameter): name for name, parameter in graph.named_parameters()}

    def _check_modes(self, evaluation: fx.GraphModule) -> None:
        """Between training and evaluation, nothing may change but dropout."""
        for a, b in zip(self.graph.graph.nodes, evaluation.graph.nodes, strict=False):
            if a.target in _DROPOUTS and b.target is a.target:
                if _argument(b, 2, "training", True):
                    raise ValueError(
                        f"{self.say(a)} drops units in evaluation mode too, where a dropout posterior has its mean: "
                        "call it with training=self.training"
                    )
            elif [str(x) for x in (a.op, a.target, a.args, a.kwargs)] != [
                str(x) for x in (b.op, b.target, b.args, b.kwargs)
            ]:
                raise ValueError(
                    f"{self.say(a)} differs between training and evaluation and is no dropout layer: what is random in "
                    "it is not a mask of a weight"
                )

    def layer(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def say(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.layer(node)).__name__} {str(node.target)!r}"
        if node.op == "output":
            return "the network's output"
        return f"{getattr(node.target, '__name__', node.target)} ({node.name})"

    def weights(self, node: fx.Node) -> list[str]:
        """Names of the weights of a layer, or of a function's."""
        layer = self.layer(node)
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            return [self.names.get(id(layer.weight), f"{node.target}.weight")]
        if isinstance(layer, nn.RNNBase):
            return [self.names[id(p)] for p in layer.parameters() if p.dim() == 2]
        if node.target is F.linear or node.target in _CONVOLUTION_CALLS:
            weight = _argument(node, 1, "weight", None)
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                return [self.names.get(id(_attribute(self.graph, weight)), str(weight.target))]
        return []

    def dropouts(self) -> Iterator[Dropout]:
        for node in self.graph.graph.nodes:
            layer = self.layer(node)
            if node.target in _RANDOM:
                raise ValueError(f"{self.say(node)} draws random numbers, which are not a mask of a weight")
            if node.target in _DROPOUTS:
                rate, space = _argument(node, 1, "p", 0.5), _DROPOUTS[node.target]
            elif type(layer) in _DROPOUT_LAYERS:
                rate, space = layer.p, _DROPOUT_LAYERS[type(layer)]  # type: ignore[union-attr]
            else:
                if layer is not None and (hidden := _hidden_dropout(layer)):
                    raise ValueError(
                        f"{self.say(node)} has dropout inside it ({hidden}), which masks no weight's input units: set "
                        "it to 0, and put nn.Dropout before weight layers"
                    )
                continue
            if rate == 1:
                raise ValueError(f"{self.say(node)} drops everything; a rate must be in [0, 1)")
            if rate > 0:
                if layer.inplace if layer is not None else _argument(node, 3, "inplace", False):
                    self._check_in_place(node)
                yield Dropout(node, rate, space)

    def _check_in_place(self, node: fx.Node) -> None:
        """What a dropout overwrites must not be used by anything else."""
        source: Any = node.args[0]
        while True:
            if len(source.users) > 1:
                others = ", ".join(self.say(user) for user in source.users if user is not node)
                raise ValueError(f"{self.say(node)} drops in place what {others} uses too: give it inplace=False")
            layer = self.layer(source)
            if (source.target if layer is None else type(layer)) not in _MOVES:
                return
            source = source.args[0]

    def target(self, dropout: Dropout) -> str:
        """Name of the weight whose input units a dropout masks."""
        found = set(self._follow(dropout, dropout.node, self._entries(dropout)))
        if len(found) != 1:
            what = f"{', '.join(sorted(found))} at once, which share its mask" if found else "nothing"
            raise ValueError(
                f"{self.say(dropout.node)} feeds {what}; a dropout posterior has a mask for each weight: give each "
                "weight layer a dropout of its own"
            )
        (name,) = found
        if name not in self.names.values():
            raise ValueError(
                f"{self.say(dropout.node)} feeds {name}, which is no parameter (but computed, or a buffer)"
            )
        uses = self._uses(name)
        if uses > 1:
            raise ValueError(
                f"{self.say(dropout.node)} feeds {name}, which the network uses {uses} times, but a weight's mask is "
                "the same each time"
            )
        return name

    def _uses(self, name: str) -> int:
        """How often the network uses a parameter, by whatever layer or function."""
        uses = 0
        for node in self.graph.graph.nodes:
            layer = self.layer(node)
            if layer is not None:
                uses += any(self.names.get(id(p)) == name for p in layer.parameters())
            elif node.op == "get_attr" and self.names.get(id(_attribute(self.graph, node))) == name:
                uses += len(node.users)
        return uses

    def _entries(self, dropout: Dropout) -> Tensor:
        """Numbers the entries of a mask, and puts each number wherever its entry works."""
        shape, space = self.values[dropout.node].shape, dropout.space
        if space == 0:
            return torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
        if len(shape) != space + 2:
            raise ValueError(
                f"{self.say(dropout.node)} masks channels, but its input has shape {tuple(shape)}, not the "
                f"{space + 2} dimensions of [batch, channels, ...]"
            )
        return torch.arange(shape[:2].numel(), dtype=torch.float64).reshape(*shape[:2], *(1,) * space).expand(shape)

    def _follow(self, dropout: Dropout, node: fx.Node, entries: Tensor) -> Iterator[str]:
        """Names of the weights that a mask reaches from ``node`` on, which has these entries of it."""
        for user in node.users:
            layer = self.layer(user)
            kind = user.target if layer is None else type(layer)
            if not isinstance(self.values.get(user), Tensor) and user.op in ("call_function", "call_method"):
                continue  # a size
            if self.weights(user) and user.args[:1] == (node,):
                yield self._masked(dropout, user, entries)
            elif kind in _HOMOGENEOUS or _scales(user):
                yield from self._follow(dropout, user, entries)
            elif kind in _MOVES or (kind is getattr and user.args[1] in ("mT", "T")):
                args, kwargs = map_arg((user.args, user.kwargs), lambda n: entries if n is node else self.values[n])
                call: Any = getattr(torch.Tensor, kind) if isinstance(kind, str) else layer or kind
                moved: Any = call(*args, **kwargs)
                yield from self._follow(dropout, user, moved)
            elif kind in _SPATIAL and all(_tied(entries, d) for d in range(2, entries.dim())):
                shape = self.values[user].shape
                channels = entries.flatten(2)[..., :1] if entries.dim() > 2 else entries
                spread = channels.reshape(*entries.shape[:2], *(1,) * (len(shape) - 2)).expand(shape)
                yield from self._follow(dropout, user, spread)
            else:
                raise ValueError(
                    f"{self.say(dropout.node)} is followed by {self.say(user)}, with which its mask does not commute: "
                    "it must stand before a weight layer, or before what keeps it (ReLU, pooling of channels that are "
                    "dropped whole, flatten, transpose)"
                )

    def _masked(self, dropout: Dropout, user: fx.Node, entries: Tensor) -> str:
        """The weight of a layer whose input units are masked, if that is what the mask does."""
        layer, names, last = self.layer(user), self.weights(user), entries.dim() - 1
        unit, advice = last, "tie it over time (x.mT, nn.Dropout1d, x.mT)"
        if isinstance(layer, nn.RNNBase):
            if not layer.batch_first or layer.bidirectional:
                why = "shares it between directions" if layer.bidirectional else "has not the data first (batch_first)"
                raise ValueError(f"{self.say(dropout.node)} feeds {self.say(user)}, which {why}")
            names = [name for name in names if name.rpartition(".")[2] == "weight_ih_l0"]
        elif isinstance(layer, CONVOLUTIONS) or user.target in _CONVOLUTION_CALLS:
            unit, advice = 1, "drop whole channels (nn.Dropout2d)"
        others = [d for d in range(1, entries.dim()) if d != unit]
        if entries.shape[0] != self.rows or not all(_tied(entries, d) for d in others):
            raise ValueError(
                f"{self.say(dropout.node)} draws a mask for each place or time, but {self.say(user)} has one weight "
                f"for all of them: {advice}"
            )
        if entries.unique().numel() != entries.shape[0] * entries.shape[unit]:
            raise ValueError(
                f"{self.say(dropout.node)} switches several input units of {self.say(user)} together, but a weight's "
                "mask has an entry for each"
            )
        return names[0]


def _tied(entries: Tensor, dim: int) -> bool:
    """Whether a mask is the same along a dimension."""
    return bool((entries == entries.narrow(dim, 0, 1)).all())


def _scales(node: fx.Node) -> bool:
    """A product with, or a quotient by, a number."""
    numbers = [isinstance(a, int | float) for a in node.args]
    if node.target in (operator.mul, torch.mul, "mul"):
        return any(numbers)
    return node.target in (operator.truediv, torch.div, "div") and numbers[1:] == [True]


def _hidden_dropout(layer: nn.Module) -> str:
    """Dropout in a layer that is one step of the graph: attention, encoder layers, between recurrent layers."""
    for inner in layer.modules():
        rate = inner.p if isinstance(inner, nn.modules.dropout._DropoutNd) else getattr(inner, "dropout", 0.0)
        one_layer = isinstance(inner, nn.RNNBase) and inner.num_layers == 1
        if isinstance(rate, float) and rate > 0 and not one_layer:
            return f"{rate:g} in {type(inner).__name__}"
    return ""


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:
    path, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(path), name)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
