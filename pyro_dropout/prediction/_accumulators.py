"""What is kept of predictions that come in parts: all of them, their moments, or the log of their mean.

A part is of some draws and some data; parts come in any order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_dropout.metrics.moments import PredictiveMoments


class Accumulator(ABC):
    """Takes ``[draws, ...]`` parts of one site; ``shape`` is that of all draws and all data."""

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        self.shape, self.like = shape, like

    def _new(self, fill: float = 0.0) -> Tensor:
        return torch.full(self.shape[1:], fill, dtype=self.like.dtype, device=self.like.device)

    @abstractmethod
    def add(self, draws: slice, data: tuple[slice, ...], *values: Tensor) -> None:
        """Adds values of the draws ``draws`` at the entries ``data`` of the other dimensions."""

    @abstractmethod
    def result(self) -> object: ...


class Stack(Accumulator):
    """All values, ``[draws, ...]``."""

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        super().__init__(shape, like)
        self.out = torch.empty(shape, dtype=like.dtype, device=like.device)

    def add(self, draws: slice, data: tuple[slice, ...], *values: Tensor) -> None:
        self.out[(draws, *data)] = values[0]

    def result(self) -> Tensor:
        return self.out


class Moments(Accumulator):
    """Mean and variance of conditional means, and the mean of conditional variances (Chan et al. 1979)."""

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        super().__init__(shape, like)
        self.count, self.mean, self.squares, self.noise = (self._new() for _ in range(4))

    def add(self, draws: slice, data: tuple[slice, ...], *values: Tensor) -> None:
        mean, variance = values
        n, before = len(mean), self.count[data]
        center = mean.mean(0)
        change = center - self.mean[data]
        share = n / (before + n)
        self.squares[data] += (mean - center).square().sum(0) + change.square() * before * share
        self.mean[data] += change * share
        self.noise[data] += (variance.mean(0) - self.noise[data]) * share
        self.count[data] += n

    def result(self) -> PredictiveMoments:
        return PredictiveMoments(self.mean, self.squares / self.count, self.noise)


class LogMean(Accumulator):
    """Log of the mean over draws of the exponentials."""

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        super().__init__(shape, like)
        self.log_sum = self._new(-math.inf)

    def add(self, draws: slice, data: tuple[slice, ...], *values: Tensor) -> None:
        self.log_sum[data] = torch.logaddexp(self.log_sum[data], values[0].logsumexp(0))

    def result(self) -> Tensor:
        return self.log_sum - math.log(self.shape[0])
