"""Rates that a user gives to a network's weights, by name, by layer, by type or by a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from pyro_dropout.nn.slots import CONVOLUTIONS

_LAYERS = (nn.Linear, *CONVOLUTIONS)


class Weight(NamedTuple):
    """A weight whose input units a mask can switch: its name, and path and module of its layer."""

    name: str
    path: str
    layer: nn.Module

    @property
    def is_recurrent(self) -> bool:
        """Whether its input is the layer's own state."""
        return self.name.rpartition(".")[2].startswith("weight_hh")


def given_rates(net: nn.Module, rate: Any) -> dict[str, float]:
    """Rates above 0 by the names of weights.

    :param rate: as in :func:`~pyro_dropout.from_torch`.
    :raises ValueError: a key, or a function, that no weight matches; a rate outside [0, 1).
    :raises TypeError: a key that is neither name nor type, a rate that is no number.
    """
    weights = list(_weights(net))
    if not weights:
        raise ValueError(f"rate is for linear layers, convolutions and recurrent layers: {_name(net)} has none")
    if isinstance(rate, Mapping):
        found = _by_key(net, rate, weights)
    elif isinstance(rate, Callable) and not isinstance(rate, type):  # type: ignore[arg-type]
        answers = {weight.name: rate(weight.name, weight.layer) for weight in weights}
        found = {name: _checked(value, f"rate({name!r}, ...)") for name, value in answers.items() if value is not None}
    else:
        found = {w.name: _checked(rate, "rate") for w in weights if not w.is_recurrent}
    found = {name: value for name, value in found.items() if value > 0}
    if not found:
        raise ValueError(
            f"rate gives no weight of {_name(net)} a rate above 0, of {', '.join(w.name for w in weights)}"
        )
    _check_alone(net, found)
    return found


def _weights(net: nn.Module) -> Any:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    seen = set()
    for path, layer in net.named_modules():
        if isinstance(layer, _LAYERS):
            parameters = {names.get(id(layer.weight), f"{path}.weight".lstrip(".")): layer.weight}
        elif isinstance(layer, nn.RNNBase):
            own = layer.named_parameters(recurse=False)
            parameters = {names[id(p)]: p for n, p in own if n.startswith(("weight_ih", "weight_hh"))}
        else:
            continue
        for name in parameters:
            if name not in seen:
                seen.add(name)
                yield Weight(name, path, layer)


def _by_key(net: nn.Module, rate: Mapping[Any, Any], weights: list[Weight]) -> dict[str, float]:
    """The most particular key decides: a weight's name, then the innermost module, then the narrowest type."""
    values = {key: _checked(value, f"rate[{_say_key(key)}]") for key, value in rate.items()}
    for key in rate:
        if not isinstance(key, str | type):
            raise TypeError(f"a key of rate is a name or a type of layers, but found {_say_key(key)}")
        if not any(_matches(key, weight) for weight in weights):
            raise ValueError(
                f"rate[{_say_key(key)}] matches no weight of {_name(net)}; it has "
                + ", ".join(f"{w.name} ({type(w.layer).__name__})" for w in weights)
            )
    found = {}
    for weight in weights:
        if keys := [key for key in rate if _matches(key, weight)]:
            found[weight.name] = values[max(keys, key=lambda key: _particular(key, weight))]
    return found


def _matches(key: Any, weight: Weight) -> bool:
    if isinstance(key, type):
        return isinstance(weight.layer, key) and not weight.is_recurrent
    inside = key == weight.path or (key and weight.path.startswith(key + "."))
    return key == weight.name or bool(inside and not weight.is_recurrent)


def _particular(key: Any, weight: Weight) -> tuple[int, int]:
    if isinstance(key, type):
        return 0, len(key.__mro__)
    return (2, 0) if key == weight.name else (1, len(key))


def _checked(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, the probability of dropping, but found {value!r}")
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError(f"{what} must be in [0, 1), but found {value}")
    return float(value)


def _check_alone(net: nn.Module, names: Mapping[str, float]) -> None:
    """A mask switches the input units of one kind of layer, so all users of its weight must be such layers."""
    parameters = dict(net.named_parameters())
    for name in names:
        if name not in parameters:
            raise ValueError(f"rate gives {name} a rate, which is no parameter (but computed, or a buffer)")
        for path, layer in net.named_modules():
            shares = any(p is parameters[name] for p in layer.parameters(recurse=False))
            if shares and not isinstance(layer, (*_LAYERS, nn.RNNBase)):
                raise ValueError(
                    f"rate gives {name} a rate, which {type(layer).__name__} {path!r} uses too, and not for input units"
                )


def _name(net: nn.Module) -> str:
    return type(net).__name__


def _say_key(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)
