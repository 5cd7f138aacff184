"""What conjugate regression keeps of data that arrive in chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from pyro_dropout.entropic._chunk import Chunk, describe
from pyro_dropout.entropic._design import Design

EPS = float(np.finfo(np.float64).eps)


class RegressionData:
    """Rows while there are fewer than columns, then sums of products alone.

    ``n`` counts rows, ``total`` is the sum of their weights, ``log_weights`` that of the weights' logarithms.

    :param chunk: the first rows, which tell dense from sparse and where the columns lie; not added yet.
    """

    def __init__(self, chunk: Chunk) -> None:
        X, weights = chunk.X, chunk.weights
        self.p, self.n, self.total, self.log_weights = X.shape[1], 0, 0.0, 0.0
        self.outputs = chunk.y.shape[1:]
        self.rows: list[Chunk] | None = []
        # Sums are of differences to the first rows' mean, or large means would drown the variances.
        self.shift = torch.zeros(self.p, dtype=torch.float64)
        self.sparse = scipy.sparse.issparse(X)
        if not self.sparse:
            mean = X.mean(0, dtype=np.float64) if weights is None else np.average(X, 0, weights.numpy())
            self.shift = torch.from_numpy(mean)
        self.y_shift = chunk.y.mean(0) if weights is None else weights @ chunk.y / weights.sum()

    def add(self, chunk: Chunk) -> None:
        if chunk.y.shape[1:] != self.outputs:
            raise ValueError(
                f"y must be {describe(self.outputs)}, as in the data before, but found {describe(chunk.y.shape[1:])}"
            )
        self.n += len(chunk)
        self.total += len(chunk) if chunk.weights is None else float(chunk.weights.sum())
        self.log_weights += 0.0 if chunk.weights is None else float(chunk.weights.log().sum())
        self.sparse = self.sparse or scipy.sparse.issparse(chunk.X)
        if self.rows is not None:
            # Copies, as a caller may read the next chunk into the same memory. New lists and sums, as models of a path
            # share the old ones.
            few = self.n < self.p
            self.rows = [*self.rows, replace(chunk, X=chunk.X.copy()) if few else chunk]
            if few:
                return
            rows, self.rows = self.rows, None
            self._gram = torch.zeros(self.p, self.p, dtype=torch.float64)
            self._sum = torch.zeros(self.p, dtype=torch.float64)
            self._cross = torch.zeros(self.p, *self.outputs, dtype=torch.float64)
            self._y_sum, self._y_square = torch.zeros(2, *self.outputs, dtype=torch.float64)
            for chunk in rows:
                self._accumulate(chunk)
        else:
            self._accumulate(chunk)

    def _accumulate(self, chunk: Chunk) -> None:
        design = chunk.design(self.shift if bool(self.shift.any()) else None)  # also of sparse rows after dense ones
        y, root = chunk.response(self.y_shift), chunk.root
        self._gram = self._gram + design.gram()
        self._sum = self._sum + design.rmatvec(root)
        self._cross = self._cross + design.rmatvec(y)
        self._y_sum = self._y_sum + root @ y
        self._y_square = self._y_square + y.square().sum(0)

    def kept(self) -> Chunk:
        """All rows, where they are kept."""
        assert self.rows is not None
        return Chunk.concatenated(self.rows, self.sparse)

    def design(self, center: Tensor | None) -> Design:
        return self.kept().design(center)

    def means(self) -> tuple[Tensor, Tensor]:
        """Of covariates ``[p]`` and responses ``[]`` or ``[outputs]``, by weight."""
        if self.rows is None:
            return self.shift + self._sum / self.total, self.y_shift + self._y_sum / self.total
        chunk = self.kept()
        nothing = torch.zeros(self.outputs, dtype=torch.float64)
        return chunk.design(None).rmatvec(chunk.root) / self.total, chunk.root @ chunk.response(nothing) / self.total

    def products(self, x_mean: Tensor, y_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``XᵀWX``, ``XᵀWy`` and ``yᵀWy`` of the data less these means, where sums are kept."""
        delta, y_delta = x_mean - self.shift, y_mean - self.y_shift
        cross = torch.outer(delta, self._sum)
        gram = self._gram - cross - cross.T + self.total * torch.outer(delta, delta)
        with_y = self._cross - torch.tensordot(delta, self._y_sum, dims=0)
        with_y = with_y - torch.tensordot(self._sum - self.total * delta, y_delta, dims=0)
        return gram, with_y, self._y_square - 2 * y_delta * self._y_sum + self.total * y_delta**2

    def rounding(self) -> tuple[Tensor, Tensor]:
        """How far the diagonals of ``XᵀWX`` and ``yᵀWy`` may be off: by the rounding of means, and of sums where those
        are kept."""
        if self.rows is None:
            squares, y_square = self._gram.diagonal(), self._y_square
        else:
            chunk = self.kept()
            squares, y_square = chunk.design(self.shift).squares(), chunk.response(self.y_shift).square().sum(0)
        means = 64 * self.n * EPS**2  # of entries that are off by their mean's rounding
        # Sparse products add term by term, dense ones in blocks.
        sums = 0.0 if self.rows is not None else 4 * (self.n if self.sparse else self.n**0.5) * EPS
        columns = means * (squares + self.total * self.shift**2) + sums * squares
        return columns, means * (y_square + self.total * self.y_shift**2)
