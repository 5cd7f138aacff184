"""Rows of covariates, dense or sparse, and the few products that conjugate regression needs of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

import pyro_dropout._settings as settings


class Design:
    """``X - 1 centerᵀ``, ``[n, p]`` in float64; a sparse X stays sparse, its center is taken off in every product.

    :param matrix: ``[n, p]``, a tensor, an array or any ``scipy.sparse`` matrix.
    :param center: what to take off each column, ``[p]``, or None.
    """

    def __init__(self, matrix: Any, center: Tensor | None = None) -> None:
        self.sparse: Any = scipy.sparse.csr_array(matrix, dtype=np.float64) if scipy.sparse.issparse(matrix) else None
        if self.sparse is None:
            if isinstance(matrix, np.ndarray) and not matrix.flags.writeable:
                matrix = matrix.copy()
            dense = torch.as_tensor(matrix).to(torch.float64)
            self.dense = dense if center is None else dense - center
            center = None
        self.center: Any = center
        self.n, self.p = matrix.shape

    def matvec(self, v: Tensor) -> Tensor:
        """``X v`` for ``[p]`` or ``[p, k]``."""
        if self.sparse is None:
            return self.dense @ v
        out = _SparseProduct.apply(v, self.sparse)
        return out if self.center is None else out - self.center @ v

    def rmatvec(self, u: Tensor) -> Tensor:
        """``Xᵀ u`` for ``[n]`` or ``[n, k]``."""
        if self.sparse is None:
            return self.dense.T @ u
        out = torch.from_numpy(self.sparse.T @ u.numpy())
        if self.center is None:
            return out
        return out - (self.center * u.sum() if u.dim() == 1 else self.center.unsqueeze(1) * u.sum(0))

    def squares(self) -> Tensor:
        """``diag(XᵀX)``, ``[p]``."""
        if self.sparse is None:
            return torch.linalg.vecdot(self.dense, self.dense, dim=0)
        values, columns = self.sparse.data, self.sparse.indices
        if self.center is not None:
            values = values - self.center.numpy()[columns]
        there = torch.from_numpy(np.bincount(columns, values**2, minlength=self.p))
        if self.center is None:
            return there
        # No difference of large sums: of a constant column there remains its mean's rounding.
        return there + self.center**2 * torch.from_numpy(self.n - np.bincount(columns, minlength=self.p))

    def gram(self) -> Tensor:
        """``XᵀX``, ``[p, p]``."""
        if self.sparse is None:
            return self.dense.T @ self.dense
        raw = torch.from_numpy((self.sparse.T @ self.sparse).toarray())
        if self.center is None:
            return raw
        cross = torch.outer(self.center, torch.from_numpy(np.asarray(self.sparse.sum(0)).ravel()))
        return raw - cross - cross.T + self.n * torch.outer(self.center, self.center)

    def outer(self, weights: Tensor, other: Design | None = None) -> Tensor:
        """``X diag(weights) Yᵀ`` with the rows Y of another design (or this one), ``[n, m]``."""
        other = other or self
        if self.sparse is None or other.sparse is None:
            if self.sparse is None:
                return other.matvec((self.dense * weights).T).T
            return self.matvec((other.dense * weights).T)
        scaled = _scaled(self.sparse, weights)
        out = _sparse_outer(scaled, other.sparse)
        if other.center is not None:
            out = out - (torch.from_numpy(scaled @ other.center.numpy()))[:, None]
        if self.center is not None:
            out = out - other.matvec(weights * self.center)
        return out

    def weighted_squares(self, weights: Tensor) -> Tensor:
        """``Σ_j weights_j x_j²`` of each row, ``[n]`` for weights ``[p]`` and ``[n, k]`` for ``[p, k]``."""
        if self.sparse is None:
            return self.dense.square() @ weights
        raw = torch.from_numpy(self.sparse.multiply(self.sparse) @ weights.numpy())
        if self.center is None:
            return raw
        centered = (weights.movedim(0, -1) * self.center).movedim(-1, 0)
        cross = torch.from_numpy(self.sparse @ centered.numpy())
        return raw - 2 * cross + self.center @ centered

    def scaled(self, factors: Tensor) -> Design:
        """``X diag(factors)``."""
        if self.sparse is None:
            return Design(self.dense * factors)
        center = None if self.center is None else self.center * factors
        return Design(_scaled(self.sparse, factors), center)

    def to_dense(self) -> Tensor:
        if self.sparse is None:
            return self.dense
        dense = torch.from_numpy(self.sparse.toarray())
        return dense if self.center is None else dense - self.center

    def column_forms(self, matrix: Tensor, index: Tensor) -> Tensor:
        """``x_jᵀ A x_j`` for some columns, with A symmetric ``[n, n]``."""
        if self.sparse is None:
            return torch.cat([_forms(matrix, self.dense[:, part]) for part in self._parts(index)])
        columns = self.sparse.tocsc()[:, index.numpy()]
        forms = _sparse_forms(matrix, columns)
        if self.center is None:
            return forms
        center, sums = self.center[index], matrix.sum(0)
        return forms - 2 * center * torch.from_numpy(columns.T @ sums.numpy()) + center**2 * sums.sum()

    def _parts(self, index: Tensor) -> Any:
        return index.split(max(1, settings.row_block // self.n))


def _scaled(matrix: Any, factors: Tensor) -> Any:
    data = matrix.data * factors.numpy()[matrix.indices]
    return scipy.sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _forms(matrix: Tensor, columns: Tensor) -> Tensor:
    return torch.linalg.vecdot(columns, matrix @ columns, dim=0)


def _sparse_forms(matrix: Tensor, columns: Any) -> Tensor:
    """``x_jᵀ A x_j``: of columns with few entries by the k² entries of A that they meet, of others by products."""
    n, counts = len(matrix), np.diff(columns.indptr)
    out = torch.zeros(columns.shape[1], dtype=torch.float64)
    for k in np.unique(counts[(counts > 0) & (counts <= n / 10)]).tolist():
        (which,) = np.nonzero(counts == k)
        for part in np.array_split(which, -(-len(which) * k * k // settings.row_block)):
            entries = columns.indptr[part, None] + np.arange(k)
            rows = torch.from_numpy(columns.indices[entries].astype(np.int64))
            values = torch.from_numpy(columns.data[entries])
            block = matrix.take(rows.unsqueeze(2) * n + rows.unsqueeze(1))
            out[part] = torch.einsum("ci,cij,cj->c", values, block, values)
    (which,) = np.nonzero(counts > n / 10)
    for part in np.array_split(which, max(1, -(-len(which) * n // settings.row_block))):
        out[part] = _forms(matrix, torch.from_numpy(columns[:, part].toarray()))
    return out


def _sparse_outer(first: Any, second: Any) -> Tensor:
    """``A Bᵀ``: columns that many rows have by a dense product, which is faster there, others by a sparse one."""
    frequent = np.flatnonzero(np.bincount(first.indices, minlength=first.shape[1]) > 0.05 * first.shape[0])
    rare = np.ones(first.shape[1])
    rare[frequent] = 0.0
    left, right = (torch.from_numpy(m[:, frequent].toarray()) for m in (first, second))
    rest = first.multiply(rare[None, :]).tocsr()
    rest.eliminate_zeros()
    return left @ right.T + torch.from_numpy((rest @ second.T).toarray())


class _SparseProduct(torch.autograd.Function):
    """``X v`` for a scipy X, differentiable in v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, matrix: Any) -> Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ v.detach().numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.matrix.T @ grad.numpy()), None
