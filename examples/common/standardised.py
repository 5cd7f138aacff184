"""Variables of mean 0 and deviation 1, by the training part alone, and the way back to their units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """``(values - center) / deviation``, and back."""

    center: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor, dim: int = 0, correction: int = 1) -> Scaling:
        """By the rows that ``dim`` counts; a constant column is left as large as it is.

        :param correction: 1 for the deviation of a sample, 0 for that of these rows themselves.
        """
        deviation = values.std(dim, correction=correction, keepdim=True)
        return cls(values.mean(dim, keepdim=True), torch.where(deviation > 0, deviation, 1.0))

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.center) / self.deviation

    def __getitem__(self, run: int) -> Scaling:
        """That of one run, where several are scaled at once."""
        return Scaling(self.center[run], self.deviation[run])


@dataclass(frozen=True)
class Data:
    """Standardised by the training part ``x``, ``y``; ``center`` and ``scale`` lead back to the units of the target."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    center: float
    scale: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Data:
        inputs, target = Scaling.of(x), Scaling.of(y)
        parts = inputs(x), target(y), inputs(x_test), target(y_test)
        return cls(*parts, center=target.center.item(), scale=target.deviation.item())

    def in_units(self, y: Any) -> Any:
        """Of the target, from standardised values."""
        return y * self.scale + self.center
