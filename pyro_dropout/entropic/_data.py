"""What conjugate regression keeps of data that arrive in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from pyro_dropout._checks import said
from pyro_dropout.entropic._design import Design

EPS = float(np.finfo(np.float64).eps)


class RegressionData:
    """Rows while there are fewer than columns, then sums of products alone.

    :param X: the first rows, ``[n, p]``, which tell dense from sparse and where the columns lie; not added yet.
    """

    def __init__(self, X: Any) -> None:
        self.p, self.n = X.shape[1], 0
        self.rows: list[Any] | None = []
        self.responses: list[Tensor] = []
        # Sums are of differences to the first rows' mean, or large means would drown the variances.
        self.shift = torch.zeros(self.p, dtype=torch.float64)
        self.sparse = scipy.sparse.issparse(X)
        if not self.sparse:
            self.shift = torch.from_numpy(X.mean(0, dtype=np.float64))
        self.y_shift = 0.0

    def add(self, X: Any, y: Tensor) -> None:
        if self.n == 0:
            self.y_shift = float(y.mean())
        self.n += len(y)
        self.sparse = self.sparse or scipy.sparse.issparse(X)
        if self.rows is not None:
            # Copies, as a caller may read the next chunk into the same memory. New lists and sums, as models of a path
            # share the old ones.
            self.rows = [*self.rows, X.copy() if self.n < self.p else X]
            self.responses = [*self.responses, y]
            if self.n < self.p:
                return
            rows, responses, self.rows, self.responses = self.rows, self.responses, None, []
            self._gram = torch.zeros(self.p, self.p, dtype=torch.float64)
            self._sum, self._cross = torch.zeros(2, self.p, dtype=torch.float64)
            self._y_sum = self._y_square = 0.0
            for X, y in zip(rows, responses, strict=True):
                self._accumulate(X, y)
        else:
            self._accumulate(X, y)

    def _accumulate(self, X: Any, y: Tensor) -> None:
        design = Design(X, self.shift if bool(self.shift.any()) else None)  # also of sparse rows after dense ones
        y = y - self.y_shift
        self._gram = self._gram + design.gram()
        self._sum = self._sum + design.rmatvec(torch.ones_like(y))
        self._cross = self._cross + design.rmatvec(y)
        self._y_sum += float(y.sum())
        self._y_square += float(y @ y)

    @property
    def y(self) -> Tensor:
        return torch.cat(self.responses)

    def design(self, center: Tensor | None) -> Design:
        assert self.rows is not None
        if len(self.rows) == 1:
            return Design(self.rows[0], center)
        if self.sparse:  # some of them: made dense, all might not fit
            return Design(scipy.sparse.vstack([scipy.sparse.csr_array(rows) for rows in self.rows]), center)
        return Design(np.concatenate(self.rows), center)

    def means(self) -> tuple[Tensor, float]:
        if self.rows is None:
            return self.shift + self._sum / self.n, self.y_shift + self._y_sum / self.n
        ones = torch.ones(self.n, dtype=torch.float64)
        return self.design(None).rmatvec(ones) / self.n, float(self.y.mean())

    def products(self, x_mean: Tensor, y_mean: float) -> tuple[Tensor, Tensor, float]:
        """``XᵀX``, ``Xᵀy`` and ``yᵀy`` of the data less these means, where sums are kept."""
        delta, y_delta = x_mean - self.shift, y_mean - self.y_shift
        cross = torch.outer(delta, self._sum)
        gram = self._gram - cross - cross.T + self.n * torch.outer(delta, delta)
        with_y = self._cross - delta * self._y_sum - y_delta * self._sum + self.n * y_delta * delta
        return gram, with_y, self._y_square - 2 * y_delta * self._y_sum + self.n * y_delta**2

    def rounding(self) -> tuple[Tensor, float]:
        """How far ``diag(XᵀX)`` and ``yᵀy`` may be off: by the rounding of means, and of sums where those are kept."""
        if self.rows is None:
            squares, y_square = self._gram.diagonal(), self._y_square
        else:
            squares, y_square = self.design(self.shift).squares(), float((self.y - self.y_shift).square().sum())
        n = self.n
        means = 64 * n * EPS**2  # of entries that are off by their mean's rounding
        # Sparse products add term by term, dense ones in blocks.
        sums = 0.0 if self.rows is not None else 4 * (n if self.sparse else n**0.5) * EPS
        columns = means * (squares + n * self.shift**2) + sums * squares
        return columns, means * (y_square + n * self.y_shift**2)


def as_array(value: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided or value.is_meta:
        raise TypeError(
            f"a tensor must be dense and hold values, but found {said(value)}: for sparse data scipy.sparse"
        )
    return value.detach().cpu().numpy()
