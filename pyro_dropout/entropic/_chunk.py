"""Rows that arrive together: covariates, responses and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from pyro_dropout._checks import said
from pyro_dropout.entropic._design import Design, times


@dataclass(frozen=True)
class Chunk:
    """Rows whose responses have variances σ² / weight.

    :param X: ``[n, p]``, dense or sparse.
    :param y: ``[n]``, or ``[n, outputs]``.
    :param weights: positive, ``[n]``, or None where all are 1.
    """

    X: Any
    y: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, X: Any, y: np.ndarray, sample_weight: Any = None) -> Chunk:
        """Of validated covariates and responses, less the rows of weight 0, whose responses say nothing."""
        if scipy.sparse.issparse(X) and not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()  # squares are of sums
        response = torch.from_numpy(np.array(y, dtype=np.float64))  # a copy: theirs may change
        if sample_weight is None:
            return cls(X, response)
        weights = check_weights(sample_weight, len(response))
        if bool((weights == 0).all()):
            raise ValueError("sample_weight must be positive for one row or more, but found zeros alone")
        seen = weights > 0
        if bool(seen.all()):
            return cls(X, response, weights)
        return cls(X[seen.numpy()], response[seen], weights[seen])

    def all_of(self, n: int) -> Chunk:
        """Itself, if it has all of n rows."""
        if len(self) < n:
            raise ValueError(
                f"sample_weight must be positive where densities of single responses are asked for, but {n - len(self)}"
                " rows have weight 0: leave them out"
            )
        return self

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Any) -> Chunk:
        return Chunk(self.X[rows], self.y[rows], None if self.weights is None else self.weights[rows])

    @property
    def root(self) -> Tensor:
        return torch.ones(len(self), dtype=torch.float64) if self.weights is None else self.weights.sqrt()

    def design(self, center: Tensor | None) -> Design:
        """``√w (x - center)`` of each row."""
        return Design(self.X, center, None if self.weights is None else self.root)

    def response(self, mean: Tensor) -> Tensor:
        """``√w (y - mean)``."""
        return self.y - mean if self.weights is None else times(self.root, self.y - mean)

    @classmethod
    def concatenated(cls, chunks: list[Chunk], sparse: bool) -> Chunk:
        """:param sparse: whether some are, so that all of them made dense might not fit."""
        if len(chunks) == 1:
            return chunks[0]
        X: Any = [chunk.X for chunk in chunks]
        X = scipy.sparse.vstack([scipy.sparse.csr_array(rows) for rows in X]) if sparse else np.concatenate(X)
        weighted = any(chunk.weights is not None for chunk in chunks)
        weights = torch.cat([chunk.root**2 for chunk in chunks]) if weighted else None
        return cls(X, torch.cat([chunk.y for chunk in chunks]), weights)


def check_weights(sample_weight: Any, n: int) -> Tensor:
    """Weights of n rows, finite and at least 0, of one for each or one for all."""
    try:
        weights = np.array(as_array(sample_weight), dtype=np.float64)  # a copy: theirs may change
    except (TypeError, ValueError) as error:
        raise TypeError(f"sample_weight must be numbers, but found {sample_weight!r}") from error
    if weights.shape not in ((), (n,)):
        raise ValueError(f"sample_weight must be one number for each of {n} rows, but found shape {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))].ravel()[0]
        raise ValueError(f"sample_weight must be finite and at least 0, but found {wrong}")
    return torch.from_numpy(np.broadcast_to(weights, n).copy())


def describe(outputs: torch.Size) -> str:
    """The shape of responses, in words."""
    return f"[n, {outputs[0]}]" if outputs else "[n]"


def as_array(value: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided or value.is_meta:
        raise TypeError(
            f"a tensor must be dense and hold values, but found {said(value)}: for sparse data scipy.sparse"
        )
    return value.detach().cpu().numpy()
