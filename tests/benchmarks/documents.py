"""Sparse documents for the entropic rows: synthetic ones of the paper's shape, and the books reviews."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge

from examples.common.data import VARIABLE, load_amazon
from pyro_dropout.entropic import EntropicLinearRegression

WORDS = 240  # of a document


def synthetic(n: int, p: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    """Documents of 240 words drawn by Zipf's law, and labels of ±1."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, p + 1)
    columns = rng.choice(p, size=(n, WORDS), p=frequency / frequency.sum())
    rows = np.repeat(np.arange(n), WORDS)
    return sp.csr_matrix((np.ones(n * WORDS), (rows, columns.ravel())), shape=(n, p)), rng.choice([-1.0, 1.0], n)


def books() -> tuple[Any, np.ndarray] | None:
    """The 2,000 labelled reviews, or None without the data."""
    if not os.environ.get(VARIABLE):
        return None
    table = load_amazon("books")
    order = np.random.default_rng(0).permutation(len(table.y))
    return table.x[order].astype(np.float64), 2.0 * table.y[order] - 1


def _data(kind: str, n: int, p: int, new: int) -> tuple[Any, Any, np.ndarray]:
    found = books() if kind == "books" else synthetic(n + new, p)
    assert found is not None
    x, y = found
    return x[:-new], x[-new:], y[:-new]


def entropic(_: Any, kind: str, n: int = 0, p: int = 0, new: int = 1500, deviations: str = "all") -> Callable[[], Any]:
    """Fit and predictive mean; standard deviations of no new row, of all, or with dropout of 100."""
    x, x_new, y = _data(kind, n, p, new)

    def run() -> Any:
        model = EntropicLinearRegression(0.3, 1.0).fit(x, y)
        mean = model.predict(x_new)
        if deviations == "all":
            return model.predict(x_new, return_std=True)
        if deviations == "dropout":
            return model.predict(x_new[:100], return_std=True, dropout=True)
        return [mean]

    return run


def ridge(_: Any, kind: str, n: int = 0, p: int = 0, new: int = 1500) -> Callable[[], Any]:
    """Fit and mean."""
    x, x_new, y = _data(kind, n, p, new)
    return lambda: [Ridge(alpha=1.0, solver="lsqr", tol=1e-8).fit(x, y).predict(x_new)]
