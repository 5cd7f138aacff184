"""What PyTorch's operations do to a mask that is on their input."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

# Dropouts, with the number of dimensions behind the channels that they mask; 0 masks entries.
DROPOUTS: dict[Any, int] = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3, torch.dropout: 0}
DROPOUTS |= {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}

# f(z x) = z f(x) for z ≥ 0, entry by entry.
_HOMOGENEOUS = {nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, *DROPOUTS}
_HOMOGENEOUS |= {F.relu, torch.relu, F.leaky_relu, torch.neg, operator.neg, torch.abs}
_HOMOGENEOUS |= {"relu", "relu_", "abs", "neg", "contiguous", "clone", "to", "float", "double", "half"}

# Entries change their places only.
_NAMES = ("flatten", "reshape", "transpose", "permute", "movedim", "squeeze", "unsqueeze", "swapaxes", "swapdims")
MOVES = {nn.Flatten, nn.Unflatten, *(getattr(torch, name) for name in _NAMES), *_NAMES, "view", "t", operator.getitem}

# f(z x) = z f(x) where z is one number for all places of a channel.
_POOLS = [(kind, d) for kind in ("Max", "Avg") for d in (1, 2, 3)]
SPATIAL = {getattr(nn, f"{adaptive}{kind}Pool{d}d") for kind, d in _POOLS for adaptive in ("", "Adaptive")}
SPATIAL |= {getattr(F, f"{adaptive}{kind.lower()}_pool{d}d") for kind, d in _POOLS for adaptive in ("", "adaptive_")}
SPATIAL |= {nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, F.interpolate}

CONVOLUTION_CALLS = {getattr(F, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)}


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_homogeneous(kind: Any, node: fx.Node) -> bool:
    """Whether f(z x) = z f(x), entry by entry."""
    return kind in _HOMOGENEOUS or _scales(node)


def hidden_dropout(layer: nn.Module) -> str:
    """Dropout in a layer that is one step of the graph: attention, encoder layers, between recurrent layers."""
    for inner in layer.modules():
        rate = inner.p if isinstance(inner, nn.modules.dropout._DropoutNd) else getattr(inner, "dropout", 0.0)
        one_layer = isinstance(inner, nn.RNNBase) and inner.num_layers == 1
        if isinstance(rate, float) and rate > 0 and not one_layer:
            return f"{rate:g} in {type(inner).__name__}"
    return ""


def _scales(node: fx.Node) -> bool:
    """A product with, or a quotient by, a number."""
    numbers = [isinstance(a, int | float) for a in node.args]
    if node.target in (operator.mul, torch.mul, "mul"):
        return any(numbers)
    return node.target in (operator.truediv, torch.div, "div") and numbers[1:] == [True]
