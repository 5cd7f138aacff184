"""Checks of single arguments that many callables share: each raises an error that names the argument.

Arguments come by name, as in ``check_positive(temperature=temperature)``. Where a checked function runs in every step
of training, a check is no more than ``isinstance``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


def check_flags(**named: Any) -> None:
    for name, value in named.items():
        if not (isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1))):
            raise TypeError(f"{name} must be True or False, but found {said(value)}")


def check_functions(**named: Any) -> None:
    for name, value in named.items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, a module or another callable, but found {said(value)}")


def check_tensors(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, but found {said(value)}")


def check_distributions(**named: Any) -> None:
    """Distributions of Pyro, which know their event dimensions."""
    for name, value in named.items():
        if not isinstance(value, TorchDistributionMixin):
            raise TypeError(f"{name} must be a distribution of pyro.distributions, but found {said(value)}")


def check_choice(choices: Iterable[str], **named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, str) or value not in choices:
            known = " or ".join(f'"{choice}"' for choice in choices)
            raise ValueError(f"{name} must be {known}, but found {said(value)}")


def check_counts(*, least: int = 1, **named: Any) -> None:
    """Integers, those of numpy included."""
    for name, value in named.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or int(value) < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise (ValueError if whole else TypeError)(f"{name} must be {kind}, but found {said(value)}")


def check_positive(**named: Any) -> None:
    """Finite numbers above 0; also tensors of one."""
    for name, value in named.items():
        number = _number(name, value)
        if not (number > 0 and math.isfinite(number)):
            what = "finite" if number > 0 else "positive"
            raise ValueError(f"{name} must be {what}, but found {said(value)}")


def check_keep(**named: Any) -> None:
    """Probabilities of keeping a unit."""
    for name, value in named.items():
        if not 0 < _number(name, value) <= 1:
            raise ValueError(f"{name} is the probability of keeping a unit, in (0, 1], but found {said(value)}")


def check_share(**named: Any) -> None:
    """Numbers of at least 0 and below 1."""
    for name, value in named.items():
        if not 0 <= _number(name, value) < 1:
            raise ValueError(f"{name} must be in [0, 1), but found {said(value)}")


def check_seeds(**named: Any) -> None:
    """What ``torch.manual_seed`` takes."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer, but found {said(value)}")
        if not -(2**63) <= int(value) < 2**64:
            raise ValueError(f"{name} must have 64 bits, but found {value}")


def checked_shape(name: str, shape: Any) -> torch.Size:
    """A shape as ``torch.Size``; what is one already is taken as it is, as in every step."""
    if type(shape) is torch.Size:
        return shape
    try:
        size = torch.Size(shape)
    except TypeError as error:
        raise TypeError(f"{name} must be a sequence of sizes, as (2, 3), but found {said(shape)}") from error
    if min(size, default=0) < 0:
        raise ValueError(f"{name} must be sizes of at least 0, but found {tuple(size)}")
    return size


def as_numbers(name: str, value: Any) -> Tensor:
    """A tensor of real numbers that has values."""
    try:
        given = not isinstance(value, np.ndarray) or value.flags.writeable
        tensor = torch.as_tensor(value if given else value.copy())  # torch warns of what it must not write to
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must hold numbers, but found {said(value)}") from error
    if tensor.is_complex() or tensor.is_meta:
        raise TypeError(f"{name} must hold real numbers, but found {said(tensor)}")
    return tensor


def said(value: Any) -> str:
    """What was found, short enough for a message."""
    if isinstance(value, Tensor):
        layout = "" if value.layout is torch.strided else "sparse "
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        kind = f"{layout}{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}{where}"
        try:
            return f"{kind}: {value.tolist()}" if value.numel() <= 8 and not layout else kind
        except RuntimeError:  # of a meta device, or a tracer's: there are no values
            return kind
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}: give an instance"
    if value is None or isinstance(value, str | numbers.Number):
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:100]}..."
    if isinstance(value, list | tuple) and len(value) <= 5:
        return f"{type(value).__name__} ({', '.join(said(v) for v in value)})"
    if isinstance(value, torch.distributions.Distribution) and not isinstance(value, TorchDistributionMixin):
        return f"torch.distributions.{type(value).__name__}: take that of pyro.distributions"
    name = getattr(value, "__name__", "")
    return f"{type(value).__name__} {name}".rstrip()


def _number(name: str, value: Any) -> float:
    one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta
    if not one and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number, but found {said(value)}")
    return float(value)


def check_initialised(net: nn.Module) -> None:
    """Refuses what lazy layers have not made yet: tracing would make it, in a copy."""
    lazy = [name for name, parameter in net.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(f"net has parameters without values, {', '.join(lazy)}: call it once with data before")
