"""What PyTorch's operations do to a mask that is on their input, and what a mask on their output is to their input."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

# Dropouts, with the number of dimensions behind the channels that they mask; 0 masks entries.
DROPOUTS: dict[Any, int] = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3, torch.dropout: 0}
DROPOUTS |= {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}

# f(z x) = z f(x) for z ≥ 0, entry by entry.
_ACTIVATIONS = {nn.ReLU, nn.LeakyReLU, F.relu, F.leaky_relu}
_HOMOGENEOUS = {*_ACTIVATIONS, nn.PReLU, nn.Identity, *DROPOUTS, torch.relu, torch.neg, operator.neg, torch.abs}
_HOMOGENEOUS |= {"relu", "relu_", "abs", "neg", "contiguous", "clone", "to", "float", "double", "half"}

# Entries change their places only; some leave entries out, or part them among several tensors.
_NAMES = [
    *("flatten", "unflatten", "reshape", "transpose", "permute", "movedim", "squeeze", "unsqueeze", "swapaxes"),
    *("swapdims", "narrow", "select", "flip", "chunk", "split", "unbind", "tensor_split", "unsafe_chunk"),
]
_MOVES = {nn.Flatten, nn.Unflatten, *(getattr(torch, name) for name in _NAMES), *_NAMES, "view", "t", "expand"}
_MOVES |= {operator.getitem, torch.t, "split_with_sizes"}

# f(z x) = z f(x) where z is one number for all places of a channel; with the number of dimensions of places. For one
# dimension less PyTorch takes the rows of data for channels.
_POOLS = [(kind, d) for kind in ("Max", "Avg") for d in (1, 2, 3)]
_SPATIAL: dict[Any, int] = {getattr(nn, f"{a}{kind}Pool{d}d"): d for kind, d in _POOLS for a in ("", "Adaptive")}
_SPATIAL |= {getattr(F, f"{a}{kind.lower()}_pool{d}d"): d for kind, d in _POOLS for a in ("", "adaptive_")}
_PADS = [(kind, d) for kind in ("Zero", "Reflection", "Replication", "Circular") for d in (1, 2, 3)]
_SPATIAL |= {getattr(nn, f"{kind}Pad{d}d"): d for kind, d in _PADS}
_RESIZES = {nn.Upsample, F.interpolate}

_PRODUCTS = {operator.mul, torch.mul, torch.multiply, "mul", "multiply"}

# What is asked of a tensor besides its values.
_SIZES = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", len, torch.numel}
_SIZES |= {"new_zeros", "new_ones", "new_full", "new_empty", torch.zeros_like, torch.ones_like, torch.full_like}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout", "is_cuda"}

CONVOLUTION_CALLS = {getattr(F, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)}


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class Step(NamedTuple):
    """A step of a graph that has a mask on one of its inputs.

    :param node: the step.
    :param source: the input that has the mask.
    :param layer: of a step that calls one.
    :param value: what it computes for the example; only shapes and types matter.
    :param values: the same for its inputs.
    """

    node: fx.Node
    source: fx.Node
    layer: nn.Module | None
    value: Any
    values: dict[fx.Node, Any]

    @property
    def kind(self) -> Any:
        """Function, method's name or type of layer."""
        return self.node.target if self.layer is None else type(self.layer)

    @property
    def places(self) -> int | None:
        """Dimensions of places behind those of data and channels, where a layer wants a number of them."""
        return _SPATIAL.get(self.kind)

    @property
    def asks_sizes(self) -> bool:
        """Whether it asks for what does not depend on the mask."""
        if self.kind is getattr:
            return self.node.args[1] in _ATTRIBUTES
        return self.node.op != "call_module" and self.kind in _SIZES

    @property
    def in_place(self) -> bool:
        """Whether it overwrites the input that has the mask."""
        if self.layer is not None:
            return bool(getattr(self.layer, "inplace", False))
        if self.kind in _ACTIVATIONS or self.kind in DROPOUTS:
            return bool(self.node.kwargs.get("inplace", self.node.args[-1] is True and len(self.node.args) > 1))
        return isinstance(self.kind, str) and self.kind.endswith("_")

    def is_one_of_two(self) -> bool:
        """Whether the mask is on one of two inputs by position."""
        return len(self.node.args) == 2 and not self.node.kwargs and list(self.node.args).count(self.source) == 1

    def is_first(self) -> bool:
        """Whether the mask is on the first input and on no other."""
        inputs: list[fx.Node] = []
        map_arg((self.node.args, self.node.kwargs), inputs.append)
        return inputs.count(self.source) == 1 and argument(self.node, 0, "input", None) is self.source


def drop_path_rate(layer: nn.Module | None) -> float | None:
    """The rate of a layer of stochastic depth, torchvision's or timm's say, which drops whole rows; None of others."""
    if layer is None or not type(layer).__name__.endswith(("DropPath", "StochasticDepth")) or any(layer.parameters()):
        return None
    rate = getattr(layer, "p", getattr(layer, "drop_prob", None))
    return 0.0 if rate is None else float(rate)


def set_rate(layer: Any, rate: float) -> None:
    """Of a dropout layer, or of one of stochastic depth."""
    setattr(layer, "p" if hasattr(layer, "p") else "drop_prob", rate)


def is_view(kind: Any) -> bool:
    """Whether what comes out may be the same memory as what went in."""
    return kind in _MOVES or kind is getattr or kind in {*DROPOUTS, nn.Identity, "contiguous", "to", "float", "double"}


def carried(step: Step, entries: Any) -> Any:
    """Where the entries of a mask are behind a step; None where the mask does not commute with it.

    :param entries: numbers of the mask's entries where they work, a tensor, or a tuple of them behind a split.
    """
    if isinstance(entries, tuple):
        picks = step.kind is operator.getitem and isinstance(step.node.args[1], int | slice)
        return entries[step.node.args[1]] if picks and step.is_first() else None  # type: ignore[index]
    if _scales(step):
        return entries
    if not step.is_first():
        return None
    if step.kind in _HOMOGENEOUS or drop_path_rate(step.layer) is not None:
        keeps = isinstance(step.value, Tensor) and (step.value.is_floating_point() or step.value.is_complex())
        alone = all(n is step.source or not isinstance(step.values[n], Tensor) for n in step.node.all_input_nodes)
        return entries if keeps and alone else None
    if step.kind in _MOVES or (step.kind is getattr and step.node.args[1] in ("mT", "T", "mH", "H")):
        return _moved(step, entries)
    if step.kind in _RESIZES or step.places == entries.dim() - 2:
        return _spread(step, entries)
    return None


def came_from(step: Step, entries: Tensor) -> Tensor | None:
    """The mask on the input of a step that is the same as these entries on its output; None if there is none.

    It is the way back of :func:`carried`, and goes through products with what the mask does not reach.
    """
    value: Any = step.values[step.source]
    if not isinstance(value, Tensor):
        return None
    if _scales(step) or (step.kind in _PRODUCTS and step.is_one_of_two() and value.shape == entries.shape):
        return entries
    if not step.is_first():
        return None
    if step.kind in _HOMOGENEOUS or drop_path_rate(step.layer) is not None:
        return entries if carried(step, entries) is not None else None
    if step.kind in _MOVES or step.kind is getattr:
        return _moved_back(step, value, entries)
    if step.kind in _RESIZES or step.places == entries.dim() - 2:
        channels = torch.arange(value.shape[:2].numel()).reshape(*value.shape[:2], *(1,) * (value.dim() - 2))
        tied = _spread(step, entries, value)
        return tied if _spread(step, channels.expand(value.shape)) is not None else None
    return None


def _moved_back(step: Step, value: Tensor, entries: Tensor) -> Tensor | None:
    """Each entry of the input is one of the output, or several that are the same; none is left out."""
    places = carried(step, torch.arange(value.numel()).reshape(value.shape))
    if not isinstance(places, Tensor) or places.unique().numel() != value.numel():
        return None
    back = torch.empty(value.numel(), dtype=entries.dtype)
    back[places.flatten()] = entries.flatten()
    return back.reshape(value.shape) if torch.equal(back[places.flatten()], entries.flatten()) else None


def is_tied(entries: Tensor, dim: int) -> bool:
    """Whether a mask is the same along a dimension."""
    return bool((entries == entries.narrow(dim, 0, 1)).all())


def _moved(step: Step, entries: Tensor) -> Any:
    """The step itself tells where its entries go; places must not depend on data, nor the entries be reinterpreted."""
    others = [n for n in step.node.all_input_nodes if n is not step.source]
    if any(n.op != "get_attr" and isinstance(step.values[n], Tensor) for n in others):
        return None
    if any(isinstance(a, torch.dtype) for a in (*step.node.args, *step.node.kwargs.values())):
        return None
    args, kwargs = map_arg(
        (step.node.args, step.node.kwargs), lambda n: entries if n is step.source else step.values[n]
    )
    call: Any = getattr(torch.Tensor, step.kind) if isinstance(step.kind, str) else step.layer or step.kind
    moved = call(*args, **kwargs)
    moved = tuple(moved) if isinstance(moved, list | tuple) else moved
    shapes = [[tuple(t.shape) for t in tree_leaves(out)] for out in (moved, step.value)]
    return moved if shapes[0] == shapes[1] else None


def _spread(step: Step, entries: Tensor, onto: Any = None) -> Tensor | None:
    """Channels that are dropped whole stay so, at whatever places there are.

    :param onto: what has these places; what the step computes by default.
    """
    onto = step.value if onto is None else onto
    if entries.dim() < 3 or not isinstance(onto, Tensor):
        return None
    if not all(is_tied(entries, d) for d in range(2, entries.dim())):
        return None
    channels = entries.flatten(2)[..., 0]
    return channels.reshape(*channels.shape, *(1,) * (onto.dim() - 2)).expand(onto.shape)


def hidden_dropout(layer: nn.Module) -> str:
    """Dropout in a layer that is one step of the graph: attention, encoder layers, between recurrent layers."""
    for inner in layer.modules():
        rate = inner.p if isinstance(inner, nn.modules.dropout._DropoutNd) else getattr(inner, "dropout", 0.0)
        one_layer = isinstance(inner, nn.RNNBase) and inner.num_layers == 1
        if isinstance(rate, float) and rate > 0 and not one_layer:
            return f"{rate:g} in {type(inner).__name__}"
    return ""


def _scales(step: Step) -> bool:
    """A product with, or a quotient by, a number."""
    args = [step.values[a] if isinstance(a, fx.Node) and a is not step.source else a for a in step.node.args]
    numbers = [isinstance(a, int | float) for a in args]
    if step.node.kwargs or len(args) != 2 or args[numbers.index(False) if False in numbers else 0] is not step.source:
        return False
    if step.kind in (operator.mul, torch.mul, "mul"):
        return any(numbers)
    return step.kind in (operator.truediv, torch.div, "div") and numbers[1]
