"""Rows of covariates, dense or sparse, and the few products that conjugate regression needs of them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

import pyro_dropout._settings as settings


class Design:
    """``diag(root) (X - 1 centerᵀ)``, ``[n, p]`` in float64; a sparse X stays sparse, with its center in every product.

    :param matrix: ``[n, p]``, a tensor, an array or any ``scipy.sparse`` matrix.
    :param center: what to take off each column, ``[p]``, or None.
    :param root: square roots of the rows' weights, ``[n]``, or None where all are 1.
    """

    def __init__(self, matrix: Any, center: Tensor | None = None, root: Tensor | None = None) -> None:
        self.n, self.p = matrix.shape
        self.sparse: Any = scipy.sparse.csr_array(matrix, dtype=np.float64) if scipy.sparse.issparse(matrix) else None
        if self.sparse is None:
            if isinstance(matrix, np.ndarray) and not matrix.flags.writeable:
                matrix = matrix.copy()
            dense = torch.as_tensor(matrix).to(torch.float64)
            dense = dense if center is None else dense - center
            self.dense = dense if root is None else dense * root.unsqueeze(1)
            center = None
        elif root is not None:
            self.sparse = _with_data(self.sparse, self.sparse.data * self._of_entries(root))
        self.weighted = root is not None
        self.root = torch.ones(self.n, dtype=torch.float64) if root is None else root
        self.center: Any = center

    def _of_entries(self, rows: Tensor) -> np.ndarray:
        """What each stored entry has of its row."""
        return np.repeat(rows.numpy(), np.diff(self.sparse.indptr))

    def matvec(self, v: Tensor) -> Tensor:
        """``X v`` for ``[p]`` or ``[p, k]``."""
        if self.sparse is None:
            return self.dense @ v
        out = _SparseProduct.apply(v, self.sparse)
        return out if self.center is None else out - torch.tensordot(self.root, self.center @ v, dims=0)

    def rmatvec(self, u: Tensor) -> Tensor:
        """``Xᵀ u`` for ``[n]`` or ``[n, k]``."""
        if self.sparse is None:
            return self.dense.T @ u
        out = torch.from_numpy(self.sparse.T @ u.numpy())
        if self.center is None:
            return out
        return out - torch.tensordot(self.center, self.root @ u, dims=0)

    def squares(self) -> Tensor:
        """``diag(XᵀX)``, ``[p]``."""
        if self.sparse is None:
            return torch.linalg.vecdot(self.dense, self.dense, dim=0)
        values, columns = self.sparse.data, self.sparse.indices
        if self.center is not None:
            centers = self.center.numpy()[columns]
            values = values - (centers * self._of_entries(self.root) if self.weighted else centers)
        there = torch.from_numpy(np.bincount(columns, values**2, minlength=self.p))
        # No difference of large sums: of a constant column there remains its mean's rounding.
        return there if self.center is None else there + self.center**2 * self._absent()

    def _absent(self) -> Tensor:
        """The weight of the rows that store nothing in a column, ``[p]``; exactly 0 where all store something."""
        columns = self.sparse.indices
        counts = np.bincount(columns, minlength=self.p)
        if not self.weighted:
            return torch.from_numpy(self.n - counts)
        weights = self.root**2
        absent = weights.sum() - torch.from_numpy(np.bincount(columns, self._of_entries(weights), minlength=self.p))
        (full,) = np.nonzero(counts > self.n / 2)  # of those the sum itself, as the difference has lost digits
        for part in np.array_split(full, max(1, -(-len(full) * self.n // settings.row_block))):
            stored = _with_data(self.sparse, np.ones(len(columns)))[:, part].toarray()
            absent[part] = torch.from_numpy(weights.numpy() @ (stored == 0))
        return absent

    def gram(self) -> Tensor:
        """``XᵀX``, ``[p, p]``."""
        if self.sparse is None:
            return self.dense.T @ self.dense
        raw = torch.from_numpy((self.sparse.T @ self.sparse).toarray())
        if self.center is None:
            return raw
        cross = torch.outer(self.center, torch.from_numpy(self.sparse.T @ self.root.numpy()))
        return raw - cross - cross.T + self.root.square().sum() * torch.outer(self.center, self.center)

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
            out.addr_(torch.from_numpy(scaled @ other.center.numpy()), other.root, alpha=-1)  # in place: n × n is large
        if self.center is not None:
            out.addr_(self.root, other.matvec(weights * self.center), alpha=-1)
        return out

    def weighted_squares(self, weights: Tensor) -> Tensor:
        """``Σ_j weights_j x_j²`` of each row, ``[n]`` for weights ``[p]`` and ``[n, k]`` for ``[p, k]``."""
        if self.sparse is None:
            return self.dense.square() @ weights
        raw = torch.from_numpy(self.sparse.multiply(self.sparse) @ weights.numpy())
        if self.center is None:
            return raw
        centered = times(self.center, weights)
        cross = times(self.root, torch.from_numpy(self.sparse @ centered.numpy()))
        return raw - 2 * cross + torch.tensordot(self.root**2, self.center @ centered, dims=0)

    def scaled(self, factors: Tensor) -> Design:
        """``X diag(factors)``."""
        if self.sparse is None:
            return Design(self.dense * factors)
        out = copy.copy(self)
        out.sparse = _scaled(self.sparse, factors)
        out.center = None if self.center is None else self.center * factors
        return out

    def to_dense(self) -> Tensor:
        if self.sparse is None:
            return self.dense
        dense = torch.from_numpy(self.sparse.toarray())
        return dense if self.center is None else dense - torch.outer(self.root, self.center)

    def column_forms(self, matrix: Tensor, index: Tensor) -> Tensor:
        """``x_jᵀ A x_j`` for some columns, with A symmetric ``[n, n]``."""
        if self.sparse is None:
            return torch.cat([_forms(matrix, self.dense[:, part]) for part in self._parts(index)])
        columns = self.sparse.tocsc()[:, index.numpy()]
        forms = _sparse_forms(matrix, columns)
        if self.center is None:
            return forms
        center, sums = self.center[index], matrix @ self.root
        return forms - 2 * center * torch.from_numpy(columns.T @ sums.numpy()) + center**2 * (self.root @ sums)

    def _parts(self, index: Tensor) -> Any:
        return index.split(max(1, settings.row_block // self.n))


def times(factors: Tensor, values: Tensor) -> Tensor:
    """``diag(factors) values`` for ``[n]`` or ``[n, k]``."""
    return values * (factors if values.dim() == 1 else factors.unsqueeze(1))


def _scaled(matrix: Any, factors: Tensor) -> Any:
    return _with_data(matrix, matrix.data * factors.numpy()[matrix.indices])


def _with_data(matrix: Any, data: np.ndarray) -> Any:
    """Other values in the same places."""
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
    return torch.from_numpy((rest @ second.T).toarray()).addmm_(left, right.T)  # in place: n × n is large


class _SparseProduct(torch.autograd.Function):
    """``X v`` for a scipy X, differentiable in v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, matrix: Any) -> Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ v.detach().numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.matrix.T @ grad.numpy()), None
