"""Where a network's parameters stand, their priors, and which of their units a mask switches.

For :class:`~pyro_dropout.BayesianModule`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_dropout.weights.weight import MaskedUnits

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass
class Slot:
    """Where one parameter stood in the network, its prior, and which of its units a mask would switch."""

    owners: list[tuple[nn.Module, str]]  # several where layers share a parameter
    prior: Any
    units: MaskedUnits | None

    @property
    def event_dim(self) -> int:
        return self.prior.event_dim

    @property
    def initial(self) -> Tensor:
        layer, attribute = self.owners[0]
        return layer._buffers[attribute]  # type: ignore[return-value]

    def put(self, value: Tensor) -> None:
        for layer, attribute in self.owners:
            layer._buffers[attribute] = value
            if isinstance(layer, nn.RNNBase):
                layer._flat_weights[layer._flat_weights_names.index(attribute)] = value


def make_slots(net: nn.Module, prior: Any) -> dict[str, Slot]:
    """Turns each parameter that has a prior into a buffer with its initial value, and says where it stands."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for layer in net.modules():
        for attribute, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((layer, attribute))
    slots = {}
    for name, parameter in list(net.named_parameters()):
        given = prior if isinstance(prior, torch.distributions.Distribution) else prior(name, parameter)
        if given is None:
            continue
        for layer, attribute in owners[parameter]:
            del layer._parameters[attribute]
            layer.register_buffer(attribute, parameter.detach(), persistent=False)
        layer = owners[parameter][0][0]
        slots[name] = Slot(owners[parameter], _full_prior(name, parameter, given), _masked_units(layer, parameter))
    # Weights before biases: a dropout guide samples in this order, and TraceMeanField_ELBO wants one order.
    return dict(sorted(slots.items(), key=lambda item: item[1].initial.dim() < 2))


def _masked_units(layer: nn.Module, parameter: Tensor) -> MaskedUnits | None:
    """None for what is no weight: vectors, and the scales and shifts of normalisation layers."""
    if parameter.dim() < 2 or isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return None
    if isinstance(layer, _TRANSPOSED):
        return MaskedUnits(parameter.dim(), dim=0)
    return MaskedUnits(parameter.dim(), groups=getattr(layer, "groups", 1) if isinstance(layer, CONVOLUTIONS) else 1)


def _full_prior(name: str, parameter: Tensor, prior: Any) -> Any:
    shape = parameter.shape
    if not hasattr(prior, "to_event"):
        raise TypeError(f"the prior of {name!r} must be a Pyro distribution, but found {type(prior).__name__}")
    prior = move(prior, parameter)
    if prior.support is constraints.real:
        prior.__dict__["_validate_args"] = False  # any value is in its support: nothing to check at every step
    if not prior.event_shape:
        try:
            full = prior.expand(shape).to_event(len(shape))
        except RuntimeError as error:
            raise ValueError(
                f"the prior of {name!r} has batch shape {tuple(prior.batch_shape)}, which does not expand to the "
                f"parameter's shape {tuple(shape)}"
            ) from error
        full.__dict__["_validate_args"] = prior.__dict__.get("_validate_args", full._validate_args)
        return full
    if prior.batch_shape or prior.event_shape != shape:
        raise ValueError(
            f"the prior of {name!r} has shape {tuple(prior.shape())}, but the parameter has shape {tuple(shape)}"
        )
    return prior


def move(prior: Any, like: Tensor) -> Any:
    """The distribution with its tensors in the parameter's dtype and on its device."""
    prior = copy.copy(prior)
    for key, value in vars(prior).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            prior.__dict__[key] = value.detach().to(like.device, like.dtype)
        elif isinstance(value, torch.distributions.Distribution):
            prior.__dict__[key] = move(value, like)
    return prior
