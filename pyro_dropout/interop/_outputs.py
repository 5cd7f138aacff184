"""Which layer a dropout stands behind, found by following its mask back, and whether it masks the layer's output units.

What the mask goes back through must commute with it, and nothing else may use what is on the way, which it would see
unmasked.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyro_dropout.interop._graphs import OF_ATTENTION, attribute
from pyro_dropout.interop._network import Dropout, Network
from pyro_dropout.interop._operations import CONVOLUTION_CALLS, Step, argument, came_from, is_tied
from pyro_dropout.nn.slots import CONVOLUTIONS, NORMALISATIONS

_CHANNELS_FIRST = (*CONVOLUTIONS, *(layer for layer in NORMALISATIONS if layer is not nn.LayerNorm))
_SOFTMAX = {F.softmax, torch.softmax, "softmax", nn.Softmax}
_LAYERS = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMALISATIONS)


def output_of(weight: str) -> str:
    """The name of the mask of a layer's outputs, by the name of its weight."""
    return f"{weight.rpartition('.')[0]}.output".lstrip(".")


def layers_before(network: Network, dropout: Dropout) -> dict[str, str]:
    """By weight the side of its layer that a dropout masks: ``"output"``, or ``"branch"`` for all outputs together.

    :raises ValueError: a dropout that does not mask a layer's outputs, naming what is between.
    """
    parts = list(
        _Backward(network).follow(argument(dropout.node, 0, "input", None), dropout.node, network.entries(dropout))
    )
    found = {weight: side for weight, side, _ in parts}
    if len(found) < len(parts):
        raise ValueError(f"it draws more than one mask of the outputs of {', '.join(found)}, which are joined twice")
    for i, (weight, _, entries) in enumerate(parts):
        for other, _, others in parts[:i]:
            if bool(torch.isin(entries.contiguous(), others.contiguous()).any()):
                raise ValueError(
                    f"it has one mask for the outputs of {other} and {weight}, but each has one of its own"
                )
    for weight in found:
        network.check_alone(dropout, weight, "stands behind")
        bias = weight.removesuffix("weight") + "bias"
        if bias in network.names.values():
            network.check_alone(dropout, bias, "stands behind")
    return found


class _Backward:
    def __init__(self, network: Network) -> None:
        self.network, self.say = network, network.say

    def follow(self, node: Any, user: fx.Node, entries: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Weight, side and entries of the layers that ``node`` comes from, on whose output the mask's entries are."""
        network = self.network
        steps = [Step(u, node, network.layer(u), network.values.get(u), network.values) for u in node.users]
        others = [self.say(step.node) for step in steps if step.node is not user and not step.asks_sizes]
        if others:
            raise ValueError(f"{', '.join(others)} uses what is behind {self.say(node)} too, without the mask")
        if node.op in ("placeholder", "get_attr"):
            raise ValueError(f"it stands behind {node.name}, with no layer between")
        layer = self._layer(node)
        if layer is not None:
            network.check_hooks(node)
            name, width, dim = layer
            yield name, self._side(node, entries, width, dim), entries
            return
        if node.target in (torch.cat, torch.concat, torch.concatenate):
            yield from self._parts(node, entries)
            return
        if network.kind(node) in _SOFTMAX:
            raise ValueError(f"it stands behind {self.say(node)}: {OF_ATTENTION}")
        reasons = []
        for source in node.all_input_nodes:
            on = came_from(Step(node, source, network.layer(node), network.values.get(node), network.values), entries)
            if on is not None:
                network.check_hooks(node)
                try:
                    found = list(self.follow(source, node, on))
                except ValueError as error:
                    reasons.append(error)
                else:
                    yield from found
                    return
        if reasons:
            raise reasons[0]
        raise ValueError(f"it stands behind {self.say(node)}, with which its mask does not commute either")

    def _parts(self, node: fx.Node, entries: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """A concatenation has a part of the mask for each of what it joins."""
        parts, dim = list(argument(node, 0, "tensors", ())), argument(node, 1, "dim", node.kwargs.get("axis", 0))
        sizes = [self.network.values[part].shape[dim] for part in parts]
        for part, of_part in zip(parts, entries.split(sizes, dim), strict=True):
            yield from self.follow(part, node, of_part)

    def _layer(self, node: fx.Node) -> tuple[str, int, int] | None:
        """Name of the weight of a layer, number of its output units, and the dimension that has them."""
        network, layer, value = self.network, self.network.layer(node), self.network.values[node]
        if not isinstance(value, Tensor):
            return None
        dims = value.dim()
        if node.target is operator.getitem and node.args[1] == 0:
            attention = network.layer(node.args[0])  # type: ignore[arg-type]
            if isinstance(attention, nn.MultiheadAttention):
                again = [u for u in node.args[0].users if u is not node and u.args[1:] != (1,)]  # type: ignore[union-attr]
                if again:
                    raise ValueError(f"{self.say(again[0])} uses what {self.say(node)} is of too, without the mask")
                weight = attention.out_proj.weight
                name = network.names.get(id(weight), f"{node.args[0].target}.out_proj.weight")  # type: ignore[union-attr]
                return name, len(weight), dims - 1
        if isinstance(layer, _LAYERS):
            return self._of(layer, str(node.target), 1 if isinstance(layer, _CHANNELS_FIRST) else dims - 1)
        if node.op == "call_function":
            for read in node.all_input_nodes:
                owner = self._owner(read)
                if owner is not None and self._has_bias(node, owner):
                    path, dim = owner[0], self._scaled_dim(node, read, owner)
                    if dim is not None:
                        return self._of(owner[1], path, dim)
        return None

    def _of(self, layer: Any, path: str, dim: int) -> tuple[str, int, int] | None:
        if layer.weight is None or (isinstance(layer, nn.LayerNorm) and layer.weight.dim() > 1):
            return None
        name = self.network.names.get(id(layer.weight), f"{path}.weight".lstrip("."))
        if isinstance(layer, nn.Embedding):
            return None if layer.max_norm else (name, layer.embedding_dim, dim)  # else rows are scaled after the mask
        transposed = isinstance(layer, CONVOLUTIONS) and layer.transposed
        return name, layer.out_channels if transposed else len(layer.weight), dim

    # A function that takes a layer's weight and bias

    def _owner(self, node: fx.Node) -> tuple[str, nn.Module] | None:
        """Path and module of the layer whose weight a step reads."""
        path, _, name = str(node.target).rpartition(".")
        if node.op != "get_attr" or name != "weight":
            return None
        layer = self.network.graph.get_submodule(path)
        return (path, layer) if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) else None

    def _has_bias(self, node: fx.Node, owner: tuple[str, Any]) -> bool:
        """Whether the bias that a function adds is the layer's own, or none."""
        if node.target is F.linear or node.target in CONVOLUTION_CALLS:
            given = argument(node, 2, "bias", None)
            return given is None or (owner[1].bias is not None and given is self._bias(node, owner))
        return owner[1].bias is None or self._bias(node, owner) is not None

    def _bias(self, node: fx.Node, owner: tuple[str, Any]) -> fx.Node | None:
        of_function = (n for n in node.all_input_nodes if n.op == "get_attr")
        return next((n for n in of_function if attribute(self.network.graph, n) is owner[1].bias), None)

    def _scaled_dim(self, node: fx.Node, weight: fx.Node, owner: tuple[str, Any]) -> int | None:
        """The dimension of a function's output that is multiplied when outputs of the layer are: tried with numbers."""
        if node.target is F.linear:
            return int(self.network.values[node].dim()) - 1
        if node.target in CONVOLUTION_CALLS:
            return 1
        same = self.network.graphs.same
        with torch.no_grad():
            value = self.network.evaluated(node, {})
            width = len(owner[1].weight)
            scale = torch.rand(width, dtype=value.dtype, device=value.device) + 0.5
            changed = {same[weight]: owner[1].weight * scale.reshape(-1, *(1,) * (owner[1].weight.dim() - 1))}
            if owner[1].bias is not None:
                changed[same[self._bias(node, owner)]] = owner[1].bias * scale  # type: ignore[index]
            found = self.network.evaluated(node, changed)
        for dim in range(1, value.dim()):
            if value.shape[dim] == width:
                expected = value * scale.reshape(-1, *(1,) * (value.dim() - 1 - dim))
                if torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(value.abs().max())):
                    return dim
        return None

    # What a mask does to a layer's outputs

    def _side(self, node: fx.Node, entries: Tensor, width: int, dim: int) -> str:
        name, network = self.say(node), self.network
        others = [d for d in range(1, entries.dim()) if d != dim]
        if entries.shape[0] != network.rows or entries.shape[dim] != width:
            raise ValueError(f"the rows of what {name} returns are not the data, or its units not in their place")
        if not network.told_apart and any(entries.shape[d] == 1 for d in others):
            raise ValueError(
                f"the example has one place or time of what {name} returns, which does not tell whether it draws a "
                "mask for each: give an example with two or more"
            )
        rows = entries.unique().numel() == len(entries)
        if rows and all(is_tied(entries, d) for d in range(1, entries.dim())):
            return "branch" if width > 1 else "output"
        if not all(is_tied(entries, d) for d in others):
            raise ValueError(f"it draws a mask for each place or time of what {name} returns")
        if entries.unique().numel() != len(entries) * width:
            raise ValueError(f"it switches several output units of {name} together, but not all")
        return "output"
