"""Where a network's parameters stand, their priors, and which of their units a mask switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dropout._checks import said
from pyro_dropout.nn._full_prior import full_prior
from pyro_dropout.weights.units import MaskedUnits

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMALISATIONS = (*_BATCH, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Slot:
    """Where one parameter stood in the network, its prior, and which of its units a mask would switch."""

    owners: list[tuple[nn.Module, str]]  # several where layers share a parameter
    prior: Any
    units: MaskedUnits | None
    outputs: MaskedUnits | None = None  # the layer's output units, of its weight and of its bias
    kept: Tensor | None = None  # the initial value, while a sampled one stands in its place

    @property
    def event_dim(self) -> int:
        return self.prior.event_dim

    @property
    def value(self) -> Tensor:
        """The initial value."""
        layer, attribute = self.owners[0]
        return layer._buffers[attribute] if self.kept is None else self.kept  # type: ignore[return-value]

    def fill(self, value: Tensor) -> None:
        """A sampled value stands in the network, until it is emptied."""
        self.kept = self.value
        self._put(value)

    def empty(self) -> None:
        """The initial value stands there again."""
        if self.kept is not None:
            self._put(self.kept)
            self.kept = None

    def _put(self, value: Tensor) -> None:
        for layer, attribute in self.owners:
            layer._buffers[attribute] = value
            if isinstance(layer, nn.RNNBase):
                layer._flat_weights[layer._flat_weights_names.index(attribute)] = value


@contextmanager
def filled(slots: dict[str, Slot], values: dict[str, Tensor]) -> Iterator[None]:
    """Sampled values stand in the network, inside."""
    try:
        for name, slot in slots.items():
            slot.fill(values[name])
        yield
    finally:
        for slot in slots.values():
            slot.empty()


def make_slots(net: nn.Module, prior: Any) -> dict[str, Slot]:
    """Turns each parameter that has a prior into a buffer with its initial value, and says where it stands."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for layer in net.modules():
        for attribute, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((layer, attribute))
    slots = {}
    is_distribution = isinstance(prior, torch.distributions.Distribution)
    if not is_distribution and (isinstance(prior, type) or not callable(prior)):
        raise TypeError(
            "prior must be a distribution of pyro.distributions, or a function of name and parameter that returns one, "
            f"but found {said(prior)}"
        )
    for name, parameter in list(net.named_parameters()):
        given = prior if is_distribution else prior(name, parameter)
        if given is None:
            continue
        for layer, attribute in owners[parameter]:
            del layer._parameters[attribute]
            layer.register_buffer(attribute, parameter.detach(), persistent=False)
        layer = owners[parameter][0][0]
        units = _masked_units(layer, parameter), _output_units(owners[parameter], parameter)
        slots[name] = Slot(owners[parameter], full_prior(name, parameter, given), *units)
    # Weights before biases: a dropout guide samples in this order, and TraceMeanField_ELBO wants one order.
    return dict(sorted(slots.items(), key=lambda item: item[1].value.dim() < 2))


def _masked_units(layer: nn.Module, parameter: Tensor) -> MaskedUnits | None:
    """The input units of layers that have such; of a table of embeddings its words.

    None for all else: vectors, scales and shifts of normalisation layers, and parameters whose meaning only their layer
    knows, as class tokens, positions, gains or what is under a parametrisation.
    """
    if parameter.dim() < 2:
        return None
    if isinstance(layer, (*_TRANSPOSED, nn.Embedding, nn.EmbeddingBag)):
        return MaskedUnits(parameter.dim(), dim=0)
    if isinstance(layer, nn.MultiheadAttention) and parameter.dim() > 2:
        return None  # bias_k, bias_v
    if isinstance(layer, (nn.Linear, *CONVOLUTIONS, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return MaskedUnits(parameter.dim(), groups=getattr(layer, "groups", 1))
    return None


def _output_units(owners: list[tuple[nn.Module, str]], parameter: Tensor) -> MaskedUnits | None:
    """The output units of a layer's weight, or of its bias, if a mask of them is one of what the layer returns.

    None of a parameter that several layers share, and of recurrent layers, whose outputs are their states too.
    """
    layer, attribute = owners[0]
    if len(owners) > 1 or attribute not in ("weight", "bias"):
        return None
    channels = isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or (
        isinstance(layer, NORMALISATIONS) and parameter.dim() == 1
    )
    if attribute == "bias":
        return MaskedUnits(1, dim=0) if channels else None
    if isinstance(layer, _TRANSPOSED):
        return MaskedUnits(parameter.dim(), dim=1, groups=layer.groups)
    if isinstance(layer, nn.Embedding):
        return None if layer.max_norm else MaskedUnits(2, dim=1)
    return MaskedUnits(parameter.dim(), dim=0) if channels else None
