"""What each dropout of a network masks: the input units of a weight behind it, or the outputs of a layer before it.

The entries of a mask are numbered, and the numbers are sent through the network's own operations that only move
entries. A dropout on two rows of three units has entries ``[[0, 1, 2], [3, 4, 5]]``; behind ``transpose(0, 1)`` they
lie ``[[0, 3], [1, 4], [2, 5]]``. At the next weight they tell what the mask does there: along the input units they must
all differ, along time or space be the same (a mask that is tied), along the rows of data be a mask for each.

Where the mask does not commute with what follows, ``_outputs`` follows it back to the layer that the dropout stands
behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from pyro_dropout.interop._graphs import Graphs, draws_of, is_dropout
from pyro_dropout.interop._network import Dropout, Network
from pyro_dropout.interop._operations import (
    CONVOLUTION_CALLS,
    Step,
    argument,
    carried,
    hidden_dropout,
    is_tied,
    is_view,
)
from pyro_dropout.interop._outputs import layers_before, output_of
from pyro_dropout.nn.slots import CONVOLUTIONS


class Flow(NamedTuple):
    """What is found out about a network.

    :param graphs: its graphs, if it has them.
    :param dropouts: by mask: that of a weight's input units has the weight's name, that of a layer's output units the
        layer's and ``.output``.
    :param sides: for each weight whose layer's outputs are masked, ``"output"``, or ``"branch"`` for all at once.
    :param left_out: dropouts that are masks of nothing, and why, by their steps.
    """

    graphs: Graphs | None
    dropouts: dict[str, list[Dropout]]
    sides: dict[str, str]
    left_out: dict[fx.Node, str]


def follow_dropouts(
    net: nn.Module, inputs: tuple[Tensor, ...], may_have_none: bool = False, leave_out: bool = False
) -> Flow:
    """Follows each dropout's mask to the weight or layer that it switches units of.

    :param may_have_none: whether a network without dropout, which then need not be followed, is what is expected.
    :param leave_out: whether to go on without dropouts that are masks of nothing.
    :raises ValueError: a dropout that is a mask neither of one weight's input units nor of a layer's output units,
        naming it and what it meets; any other random numbers.
    """
    if fx.Tracer().is_leaf_module(net, ""):
        if draws := draws_of(net, inputs):
            hidden = hidden_dropout(net) or draws[0]
            raise ValueError(
                f"{type(net).__name__} has dropout inside it ({hidden}), which masks no weight's input units"
            )
        return Flow(None, {}, {}, {})
    try:
        graphs = Graphs(net, inputs, leave_out)
    except ValueError:
        if may_have_none and not draws_of(net, inputs):
            return Flow(None, {}, {}, {})
        raise
    network, flow = Network(graphs, inputs), Flow(graphs, {}, {}, graphs.left_out)
    for node in network.active():
        try:
            _add(network, node, flow)
        except ValueError as error:
            if not leave_out:
                raise
            flow.left_out[node] = str(error)
    return flow


def _add(network: Network, node: fx.Node, flow: Flow) -> None:
    """Adds a dropout to what is found out, by the masks that it is."""
    dropout = network.dropout_at(node)
    try:
        names = _Forward(network).targets(dropout)
    except ValueError as ahead:
        try:
            before = layers_before(network, dropout)
        except ValueError as behind:
            raise ValueError(f"{ahead}. Nor does it mask a layer's output units: {behind}") from None
        for weight, side in before.items():
            if flow.sides.get(weight, side) != side:
                raise ValueError(
                    f"{network.say(node)} is a second mask of the outputs of {weight}, one of units and one of all "
                    "together (stochastic depth): take one of them out"
                ) from None
        flow.sides.update(before)
        names = [output_of(weight) for weight in before]
    for name in names:
        flow.dropouts.setdefault(name, []).append(dropout)


class _Forward:
    """Follows a mask from a dropout on to the weights whose input units it masks."""

    def __init__(self, network: Network) -> None:
        self.network, self.say = network, network.say

    def targets(self, dropout: Dropout) -> list[str]:
        """Names of the weights whose input units a dropout masks; of several each has entries of its own."""
        found: dict[str, Tensor] = {}
        shared = False
        for name, entries in self._follow(dropout, dropout.node, self.network.entries(dropout)):
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
            self.network.check_alone(dropout, name, "feeds")
        return list(found)

    def _follow(self, dropout: Dropout, node: fx.Node, entries: Any) -> Iterator[tuple[str, Tensor]]:
        """The weights that a mask reaches from ``node`` on, which has these entries of it, and what reaches them."""
        for user in node.users:
            step = Step(user, node, self.network.layer(user), self.network.values.get(user), self.network.values)
            if step.asks_sizes:
                continue
            if isinstance(entries, Tensor) and self.network.weights(user) and step.is_first():
                yield self._masked(dropout, user, entries), entries
                continue
            on = carried(step, entries)
            if on is None:
                raise ValueError(
                    f"{self.say(dropout.node)} is followed by {self.say(user)}, with which its mask does not "
                    f"commute{self._unbatched(step, entries)}: it must stand before a weight layer, or before what "
                    "keeps it (ReLU, pooling of channels that are dropped whole, flatten, transpose, split)"
                )
            self.network.check_hooks(user)
            if step.in_place:
                self._check_alias(step)
            yield from self._follow(dropout, user, on)

    def _check_alias(self, step: Step) -> None:
        """In evaluation mode a dropout returns its input, so that what is overwritten behind it is so before it too."""
        order = {node: i for i, node in enumerate(self.network.graph.graph.nodes)}
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
            behind = behind or is_dropout(self.network.graph, source)
            if not (
                is_view(self.network.kind(source)) or self.network.kind(source) in ("relu_", nn.ReLU, nn.LeakyReLU)
            ):
                return
            source = source.args[0]

    def _unbatched(self, step: Step, entries: Any) -> str:
        """What PyTorch makes of one dimension less."""
        if step.places is None or not isinstance(entries, Tensor) or entries.dim() != step.places + 1:
            return ""
        return f" (it takes the rows of {self.network.shape(step.source)} for channels)"

    def _check_batched(self, user: fx.Node, entries: Tensor) -> None:
        """Convolutions and recurrent layers take input of one dimension less for a single datum."""
        layer: Any = self.network.layer(user)
        if isinstance(layer, CONVOLUTIONS):
            dims = len(layer.kernel_size) + 2
        elif user.target in CONVOLUTION_CALLS:
            dims = len(self.network.values[argument(user, 1, "weight", None)].shape)
        else:
            dims = 3 if isinstance(layer, nn.RNNBase) else entries.dim()
        if entries.dim() != dims:
            raise ValueError(
                f"{self.say(user)} takes the rows of {self.network.shape(user.args[0])} for parts of one datum: give "
                f"it {dims} dimensions, with the data first"
            )

    def _masked(self, dropout: Dropout, user: fx.Node, entries: Tensor) -> str:
        """The weight of a layer whose input units are masked, if that is what the mask does."""
        layer, names, last = self.network.layer(user), self.network.weights(user), entries.dim() - 1
        if names[0] in self.network.names.values():  # else what a hook computes the weight for
            self.network.check_hooks(user)
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
        if not self.network.told_apart and any(entries.shape[d] == 1 for d in others):
            raise ValueError(
                f"{self.say(dropout.node)} masks an input of shape {self.network.shape(user.args[0])} of "
                f"{self.say(user)}, which does not tell whether it draws a mask for each place or time: give an "
                "example with two or more of them"
            )
        if entries.shape[0] != self.network.rows or not all(is_tied(entries, d) for d in others):
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
