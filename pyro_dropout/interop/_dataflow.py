"""Which weight each dropout of a PyTorch network masks, found by following its mask through the network.

The entries of a mask are numbered, and the numbers are sent through the network's own operations that only move
entries. A dropout on two rows of three units has entries ``[[0, 1, 2], [3, 4, 5]]``; behind ``transpose(0, 1)`` they
lie ``[[0, 3], [1, 4], [2, 5]]``. At the next weight they tell what the mask does there: along the input units they must
all differ, along time or space be the same (a mask that is tied), along the rows of data be a mask for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyro_dropout.interop._graphs import Graphs, attribute, draws_of, is_dropout, say
from pyro_dropout.interop._operations import (
    CONVOLUTION_CALLS,
    DROPOUTS,
    Step,
    argument,
    carried,
    hidden_dropout,
    is_tied,
    is_view,
)
from pyro_dropout.interop._sizes import values_of
from pyro_dropout.nn.slots import CONVOLUTIONS


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
    """What is found out about a network: its graphs, if it has them, and the dropouts that mask each weight's units."""

    graphs: Graphs | None
    dropouts: dict[str, list[Dropout]]


def follow_dropouts(net: nn.Module, inputs: tuple[Tensor, ...], may_have_none: bool = False) -> Flow:
    """Follows each dropout's mask to the weight that it switches units of.

    :param may_have_none: whether a network without dropout, which then need not be followed, is what is expected.
    :raises ValueError: a dropout that is not a mask of one weight's input units, naming it and what it meets; any other
        random numbers.
    """
    if fx.Tracer().is_leaf_module(net, ""):
        if draws := draws_of(net, inputs):
            hidden = hidden_dropout(net) or draws[0]
            raise ValueError(
                f"{type(net).__name__} has dropout inside it ({hidden}), which masks no weight's input units"
            )
        return Flow(None, {})
    try:
        graphs = Graphs(net, inputs)
    except ValueError:
        if may_have_none and not draws_of(net, inputs):
            return Flow(None, {})
        raise
    network = _Network(graphs, inputs)
    found: dict[str, list[Dropout]] = {}
    for dropout in network.dropouts():
        for name in network.targets(dropout):
            found.setdefault(name, []).append(dropout)
    return Flow(graphs, found)


class _Network:
    """A network's graph, and the values of its nodes for an example."""

    def __init__(self, graphs: Graphs, inputs: tuple[Tensor, ...]) -> None:
        self.graphs, self.graph = graphs, graphs.training
        values = values_of(graphs.evaluation, inputs)
        self.values = {node: values.of[same] for node, same in graphs.same.items() if same in values.of}
        self.given = {node: values.given[same] for node, same in graphs.same.items() if same in values.given}
        self.rows, self.told_apart = values.rows, values.told_apart
        self.names = {id(parameter): name for name, parameter in self.graph.named_parameters()}

    def layer(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> Any:
        layer = self.layer(node)
        return node.target if layer is None else type(layer)

    def say(self, node: fx.Node) -> str:
        return say(self.graph, node)

    def weights(self, node: fx.Node) -> list[str]:
        """Names of the weights of a layer, or of a function's."""
        layer = self.layer(node)
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            return [self.names.get(id(layer.weight), f"{node.target}.weight")]
        if isinstance(layer, nn.RNNBase):
            return [self.names[id(p)] for p in layer.parameters() if p.dim() == 2]
        if node.target is F.linear or node.target in CONVOLUTION_CALLS:
            weight = argument(node, 1, "weight", None)
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                return [self.names.get(id(attribute(self.graph, weight)), str(weight.target))]
        return []

    def dropouts(self) -> Iterator[Dropout]:
        """Those that are active."""
        for node in self.graph.graph.nodes:
            if not is_dropout(self.graph, node):
                continue
            layer: Any = self.layer(node)
            rate = argument(node, 1, "p", 0.5) if layer is None else layer.p
            if rate == 1:
                raise ValueError(f"{self.say(node)} drops everything; a rate must be in [0, 1)")
            if node not in self.graphs.drawn:
                continue  # rate 0, or called with training=False
            if layer is not None:
                self._check_hooks(node)
            if not isinstance(rate, int | float):
                raise ValueError(f"{self.say(node)} has a rate that is computed: give it a number")
            if layer.inplace if layer is not None else argument(node, 3, "inplace", False):
                self._check_in_place(node)
            yield Dropout(node, rate, DROPOUTS[self.kind(node)])

    def _check_in_place(self, node: fx.Node) -> None:
        """What a dropout overwrites must not be used by anything else."""
        source: Any = node.args[0]
        while True:
            if len(source.users) > 1:
                others = ", ".join(self.say(user) for user in source.users if user is not node)
                raise ValueError(f"{self.say(node)} drops in place what {others} uses too: give it inplace=False")
            if not is_view(self.kind(source)):
                return
            source = source.args[0]

    def _check_alias(self, step: Step) -> None:
        """In evaluation mode a dropout returns its input, so that what is overwritten behind it is so before it too."""
        order = {node: i for i, node in enumerate(self.graph.graph.nodes)}
        source: Any = step.source
        behind = False
        while True:
            later = [user for user in source.users if order[user] > order[step.node]]
            if behind and (later or source.op in ("placeholder", "get_attr")):
                what = f"what {', '.join(map(self.say, later))} uses" if later else f"its input {source.name}"
                raise ValueError(
                    f"{self.say(step.node)} overwrites, in evaluation mode, {what}: a dropout returns its input there, "
                    "and a copy in training; give it inplace=False"
                )
            behind = behind or is_dropout(self.graph, source)
            if not (is_view(self.kind(source)) or self.kind(source) in ("relu_", nn.ReLU, nn.LeakyReLU)):
                return
            source = source.args[0]

    def _check_hooks(self, node: fx.Node) -> None:
        layer = self.layer(node)
        if layer is not None and (layer._forward_hooks or layer._forward_pre_hooks):
            raise ValueError(f"{self.say(node)} has a forward hook, which may do anything to a mask: remove it")

    def targets(self, dropout: Dropout) -> list[str]:
        """Names of the weights whose input units a dropout masks; of several each has entries of its own."""
        found: dict[str, Tensor] = {}
        shared = False
        for name, entries in self._follow(dropout, dropout.node, self._entries(dropout)):
            units = entries.unique()
            shared = shared or any(bool(torch.isin(units, other).any()) for n, other in found.items() if n != name)
            found[name] = units
        if shared or not found:
            what = f"{', '.join(sorted(found))} at once, which share its mask" if found else "nothing"
            raise ValueError(
                f"{self.say(dropout.node)} feeds {what}; a dropout posterior has a mask for each weight: give each "
                "weight layer a dropout of its own"
            )
        for name in found:
            if name not in self.names.values():
                raise ValueError(
                    f"{self.say(dropout.node)} feeds {name}, which is no parameter (but computed, or a buffer)"
                )
            if (uses := self._uses(name)) > 1:
                raise ValueError(
                    f"{self.say(dropout.node)} feeds {name}, which the network uses {uses} times, but a weight's mask "
                    "is the same each time"
                )
        return list(found)

    def _uses(self, name: str) -> int:
        """How often the network uses a parameter, by whatever layer or function."""
        uses = 0
        for node in self.graph.graph.nodes:
            layer = self.layer(node)
            if layer is not None:
                uses += any(self.names.get(id(p)) == name for p in layer.parameters())
            elif node.op == "get_attr" and self.names.get(id(attribute(self.graph, node))) == name:
                uses += len(node.users)
        return uses

    def _entries(self, dropout: Dropout) -> Tensor:
        """Numbers the entries of a mask, and puts each number wherever its entry works."""
        shape, space = self.values[dropout.node].shape, dropout.space
        if space == 0:
            return torch.arange(shape.numel(), dtype=torch.int32).reshape(shape)
        if len(shape) != space + 2:
            raise ValueError(
                f"{self.say(dropout.node)} masks channels, but its input has shape {self._shape(dropout.node)}, not "
                f"the {space + 2} dimensions of [batch, channels, ...]"
            )
        return torch.arange(shape[:2].numel(), dtype=torch.int32).reshape(*shape[:2], *(1,) * space).expand(shape)

    def _follow(self, dropout: Dropout, node: fx.Node, entries: Any) -> Iterator[tuple[str, Tensor]]:
        """The weights that a mask reaches from ``node`` on, which has these entries of it, and what reaches them."""
        for user in node.users:
            step = Step(user, node, self.layer(user), self.values.get(user), self.values)
            if step.asks_sizes:
                continue
            if isinstance(entries, Tensor) and self.weights(user) and step.is_first():
                yield self._masked(dropout, user, entries), entries
                continue
            on = carried(step, entries)
            if on is None:
                raise ValueError(
                    f"{self.say(dropout.node)} is followed by {self.say(user)}, with which its mask does not "
                    f"commute{self._unbatched(step, entries)}: it must stand before a weight layer, or before what "
                    "keeps it (ReLU, pooling of channels that are dropped whole, flatten, transpose, split)"
                )
            self._check_hooks(user)
            if step.in_place:
                self._check_alias(step)
            yield from self._follow(dropout, user, on)

    def _unbatched(self, step: Step, entries: Any) -> str:
        """What PyTorch makes of one dimension less."""
        if step.places is None or not isinstance(entries, Tensor) or entries.dim() != step.places + 1:
            return ""
        return f" (it takes the rows of {self._shape(step.source)} for channels)"

    def _shape(self, node: Any) -> tuple[int, ...]:
        return tuple(self.given[node].shape)

    def _check_batched(self, user: fx.Node, entries: Tensor) -> None:
        """Convolutions and recurrent layers take input of one dimension less for a single datum."""
        layer: Any = self.layer(user)
        if isinstance(layer, CONVOLUTIONS):
            dims = len(layer.kernel_size) + 2
        elif user.target in CONVOLUTION_CALLS:
            dims = len(self.values[argument(user, 1, "weight", None)].shape)
        else:
            dims = 3 if isinstance(layer, nn.RNNBase) else entries.dim()
        if entries.dim() != dims:
            raise ValueError(
                f"{self.say(user)} takes the rows of {self._shape(user.args[0])} for parts of one datum: give it "
                f"{dims} dimensions, with the data first"
            )

    def _masked(self, dropout: Dropout, user: fx.Node, entries: Tensor) -> str:
        """The weight of a layer whose input units are masked, if that is what the mask does."""
        layer, names, last = self.layer(user), self.weights(user), entries.dim() - 1
        if names[0] in self.names.values():  # else what a hook computes the weight for
            self._check_hooks(user)
        unit, advice = last, "tie it over time (x.mT, nn.Dropout1d, x.mT)"
        if isinstance(layer, nn.RNNBase):
            if not layer.batch_first or layer.bidirectional:
                why = "shares it between directions" if layer.bidirectional else "has not the data first (batch_first)"
                raise ValueError(f"{self.say(dropout.node)} feeds {self.say(user)}, which {why}")
            names = [name for name in names if name.rpartition(".")[2] == "weight_ih_l0"]
        elif isinstance(layer, CONVOLUTIONS) or user.target in CONVOLUTION_CALLS:
            unit, advice = 1, "drop whole channels (nn.Dropout2d)"
        self._check_batched(user, entries)
        others = [d for d in range(1, entries.dim()) if d != unit]
        if not self.told_apart and any(entries.shape[d] == 1 for d in others):
            raise ValueError(
                f"{self.say(dropout.node)} masks an input of shape {self._shape(user.args[0])} of {self.say(user)}, "
                "which does not tell whether it draws a mask for each place or time: give an example with two or more "
                "of them"
            )
        if entries.shape[0] != self.rows or not all(is_tied(entries, d) for d in others):
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
