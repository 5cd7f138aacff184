"""Layers that run again in a backward pass, as ``torch.utils.checkpoint`` has it, see the values of their own call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.nn.slots import Slot
from pyro_dropout.weights.weight import MaskedWeight


class Again:
    """Sampled values of one call, which stand in the network again while a backward pass goes through it.

    Autograd goes through several calls of one network from the last to the first, each from its outputs on. Masks per
    datum that layers drew in the call are drawn again, from the random numbers that checkpointing gives back.
    """

    def __init__(self, slots: dict[str, Slot], values: dict[str, Tensor]) -> None:
        self.slots, self.values = slots, values
        self.draws = [(mask, dict(mask.draws)) for mask in _datum_masks(values)]

    def after(self, outputs: Any) -> None:
        """The call has returned these. Inside of ``vmap`` nothing is checkpointed."""
        if torch._C._are_functorch_transforms_active():
            return
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(self._fill)
            elif callable(output) or isinstance(output, Iterator):
                raise TypeError(
                    f"the network returned a {type(output).__name__}, which would run its layers later, with their "
                    "initial weights: return tensors"
                )

    def _fill(self, _: Tensor) -> None:
        for name, slot in self.slots.items():
            slot.fill(self.values[name])
        for mask, draws in self.draws:
            mask.rewind(draws)
        torch.autograd.Variable._execution_engine.queue_callback(self._empty)

    def _empty(self) -> None:
        for slot in self.slots.values():
            slot.empty()
        for mask, _ in self.draws:
            mask.resume()


def _datum_masks(values: dict[str, Tensor]) -> list[DatumMask]:
    weights = [value for value in values.values() if isinstance(value, MaskedWeight)]
    masks = [switch.mask for weight in weights for switch in weight.switches]
    return list({id(mask): mask for mask in masks if isinstance(mask, DatumMask)}.values())  # a bias has its weight's
