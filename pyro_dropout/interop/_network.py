"""A network's graph with what its steps compute, its dropouts, and the numbered entries of their masks."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyro_dropout._modes import forked_rng
from pyro_dropout.interop._graphs import Graphs, attribute, is_dropout, say
from pyro_dropout.interop._operations import (
    CONVOLUTION_CALLS,
    DROPOUTS,
    argument,
    drop_path_rate,
    is_tied,
    is_view,
    set_rate,
)
from pyro_dropout.interop._sizes import values_of
from pyro_dropout.nn.slots import CONVOLUTIONS

ROWS = -1  # instead of a number of dimensions: a mask of whole rows of data


class Dropout(NamedTuple):
    """A dropout in a network's graph."""

    node: fx.Node
    rate: float
    space: int  # dimensions behind the channels that it masks; 0 where it masks entries, ROWS where whole rows

    @property
    def layer(self) -> str | None:
        """Path of the dropout layer; a function has none."""
        return str(self.node.target) if self.node.op == "call_module" else None


class Network:
    """A network's graph, and the values of its nodes for an example."""

    def __init__(self, graphs: Graphs, inputs: tuple[Tensor, ...]) -> None:
        self.graphs, self.graph = graphs, graphs.training
        values = values_of(graphs.evaluation, inputs)
        self.values = {node: values.of[same] for node, same in graphs.same.items() if same in values.of}
        self.given = {node: values.given[same] for node, same in graphs.same.items() if same in values.given}
        self.rows, self.told_apart = values.rows, values.told_apart
        self.inputs = inputs
        self._functions: _OfFunctions | None = None
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

    def active(self) -> list[fx.Node]:
        """Steps that are dropouts and draw masks: not at rate 0, nor where they are called with ``training=False``."""
        dropouts = [node for node in self.graph.graph.nodes if is_dropout(self.graph, node)]
        return [node for node in dropouts if node in self.graphs.drawn or self.rate_at(node) == 1]

    def rate_at(self, node: fx.Node) -> Any:
        layer: Any = self.layer(node)
        if layer is None:
            return argument(node, 1, "p", 0.5)
        depth = drop_path_rate(layer)
        return layer.p if depth is None else depth

    def dropout_at(self, node: fx.Node) -> Dropout:
        """The dropout that a step is.

        :raises ValueError: one whose mask is not known.
        """
        layer: Any = self.layer(node)
        rate, depth = self.rate_at(node), drop_path_rate(layer)
        if rate == 1:
            raise ValueError(f"{self.say(node)} drops everything; a rate must be in [0, 1)")
        if layer is not None:
            self.check_hooks(node)
        if not isinstance(rate, int | float):
            raise ValueError(f"{self.say(node)} has a rate that is computed: give it a number")
        if getattr(layer, "inplace", False) if layer is not None else argument(node, 3, "inplace", False):
            self._check_in_place(node)
        if depth is not None:
            self._check_depth(node, layer)
        return Dropout(node, rate, DROPOUTS[self.kind(node)] if depth is None else ROWS)

    def _check_depth(self, node: fx.Node, layer: Any) -> None:
        """Stochastic depth multiplies each row by 0 or 1 / keep, by itself; tried at a rate that shows both."""
        rows, rate = 32, 0.5
        layer = copy.deepcopy(layer)
        set_rate(layer, rate)
        with forked_rng(), torch.no_grad():
            factors = torch.stack([layer(torch.ones(rows, 2, 2)).flatten(1) for _ in range(8)])
        if not is_tied(factors, 2):
            raise ValueError(f"{self.say(node)} has the name of stochastic depth, but does not drop whole rows")
        if is_tied(factors, 1):
            raise ValueError(
                f"{self.say(node)} drops a branch for all rows of a batch at once (mode 'batch'), so that a datum's "
                "output depends on which data it is with: give it mode 'row'"
            )
        kept = factors[factors != 0]
        if not torch.allclose(kept, torch.tensor(1 / (1 - rate))):
            raise ValueError(
                f"{self.say(node)} multiplies rows that it keeps by {kept[0]:.3g} at rate {rate:g}, where a dropout "
                f"posterior has 1 / (1 - {rate:g}): its evaluation mode is not its mean"
            )

    def _check_in_place(self, node: fx.Node) -> None:
        """What a dropout overwrites must not be used by anything else."""
        source: Any = argument(node, 0, "input", None)
        while True:
            if len(source.users) > 1:
                others = ", ".join(self.say(user) for user in source.users if user is not node)
                raise ValueError(f"{self.say(node)} drops in place what {others} uses too: give it inplace=False")
            if not is_view(self.kind(source)):
                return
            source = source.args[0]

    def check_hooks(self, node: fx.Node) -> None:
        layer = self.layer(node)
        if layer is not None and (layer._forward_hooks or layer._forward_pre_hooks):
            raise ValueError(f"{self.say(node)} has a forward hook, which may do anything to a mask: remove it")

    def uses(self, name: str) -> int:
        """How often the network uses a parameter, by whatever layer or function."""
        uses = 0
        for node in self.graph.graph.nodes:
            layer = self.layer(node)
            if layer is not None:
                uses += any(self.names.get(id(p)) == name for p in layer.parameters())
            elif node.op == "get_attr" and self.names.get(id(attribute(self.graph, node))) == name:
                uses += len(node.users)
        return uses

    def evaluated(self, node: fx.Node, changed: dict[fx.Node, Tensor]) -> Tensor:
        """What a function computes for the example, in evaluation mode, with other values of some of its inputs.

        :param changed: by steps of that graph.
        """
        if self._functions is None:
            self._functions = _OfFunctions(self.graphs.evaluation)
            with torch.no_grad():
                self._functions.run(*(x.clone() for x in self.inputs))
        return self._functions.evaluate(self.graphs.same[node], changed)

    def check_alone(self, dropout: Dropout, name: str, relation: str) -> None:
        """A parameter that a mask switches is the network's own, and used once."""
        if name not in self.names.values():
            raise ValueError(
                f"{self.say(dropout.node)} {relation} {name}, which is no parameter (but computed, or a buffer)"
            )
        if (uses := self.uses(name)) > 1:
            raise ValueError(
                f"{self.say(dropout.node)} {relation} {name}, which the network uses {uses} times, but a weight's mask "
                "is the same each time"
            )

    def entries(self, dropout: Dropout) -> Tensor:
        """Numbers the entries of a mask, and puts each number wherever its entry works."""
        shape, space = self.values[dropout.node].shape, dropout.space
        if space == ROWS:
            return torch.arange(shape[0], dtype=torch.int32).reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
        if space == 0:
            return torch.arange(shape.numel(), dtype=torch.int32).reshape(shape)
        if len(shape) != space + 2:
            raise ValueError(
                f"{self.say(dropout.node)} masks channels, but its input has shape {self.shape(dropout.node)}, not "
                f"the {space + 2} dimensions of [batch, channels, ...]"
            )
        return torch.arange(shape[:2].numel(), dtype=torch.int32).reshape(*shape[:2], *(1,) * space).expand(shape)

    def shape(self, node: Any) -> tuple[int, ...]:
        return tuple(self.given[node].shape)


class _OfFunctions(fx.Interpreter):
    """Runs a graph once, and keeps the inputs of functions that take parameters: these can be evaluated again."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._inputs: dict[fx.Node, dict[fx.Node, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and any(source.op == "get_attr" for source in n.all_input_nodes):
            self._inputs[n] = {source: self.env[source] for source in n.all_input_nodes}
        return super().run_node(n)

    def evaluate(self, node: fx.Node, changed: dict[fx.Node, Tensor]) -> Tensor:
        self.env = {**self._inputs[node], **changed}
        out = super().run_node(node)
        return out if isinstance(out, Tensor) else torch.zeros(())
