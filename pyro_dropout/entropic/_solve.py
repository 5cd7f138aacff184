"""From data and a prior to the posterior."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_dropout.entropic._chunk import Chunk
from pyro_dropout.entropic._data import EPS, RegressionData
from pyro_dropout.entropic._design import times
from pyro_dropout.entropic._fitted import Fitted
from pyro_dropout.entropic._precision import DensePrecision, Precision, first
from pyro_dropout.entropic._prior import Prior
from pyro_dropout.entropic._rows import DiagonalPlusRows

Pair = tuple[Tensor, Tensor]  # of covariates and of responses


def solve(data: RegressionData, prior: Prior, rows: Chunk | None = None) -> Fitted:
    """ENT eq. 14, for responses of variances σ² / weight.

    :param rows: all of the data, where they are at hand: what sums of products lose of little noise is in them.
    :raises ValueError: data and prior leave a coefficient or the noise undetermined.
    """
    nothing = (torch.zeros(data.p, dtype=torch.float64), torch.zeros(data.outputs, dtype=torch.float64))
    means = data.means() if prior.intercept else nothing
    a = prior.a0 + 0.5 * (data.n - prior.intercept)
    if a <= 0:
        raise ValueError(
            "1 sample with an intercept and Jeffreys' prior leaves no posterior of the noise: give a0 and b0 > 0"
        )
    rounding = data.rounding() if prior.intercept else nothing
    if data.rows is None:
        solved = _of_sums(data, prior, means, rounding, rows)
    else:
        solved = _of_rows(data, prior, means, rounding)
    exact = ~(solved.squares > solved.error)
    if prior.b0 == 0 and bool(exact.any()):
        which = f" of outputs {first(exact)}" if data.outputs else ""
        raise ValueError(
            f"the targets{which} are fitted without error, up to rounding, so Jeffreys' prior puts the noise variance "
            "at 0: give b0 > 0, or fit() all data at once if they came in chunks"
        )
    b = prior.b0 + 0.5 * solved.squares.clamp_min(0.0)
    return Fitted(prior, data.n, data.total, data.log_weights, *means, solved.mu, solved.precision, a, b)


class _Solved(NamedTuple):
    """Λ and μ; ``yᵀWy - μᵀΛμ``, and how much of it may be rounding."""

    mu: Tensor
    precision: Precision
    squares: Tensor
    error: Tensor


def _of_sums(data: RegressionData, prior: Prior, means: Pair, rounding: Pair, rows: Chunk | None) -> _Solved:
    """From sums of products, by Cholesky of p × p; refined by the rows, if they are at hand."""
    keep, (x_mean, y_mean), (columns_error, y_error) = prior.keep, means, rounding
    gram, cross, total = data.products(x_mean, y_mean)
    diagonal = prior.shrinkage + keep * (1 - keep) * gram.diagonal()
    matrix = torch.outer(keep, keep) * gram
    matrix.diagonal().add_(diagonal)
    precision = DensePrecision(matrix, keep * columns_error)
    cross = times(keep, cross)
    mu = precision.solve(cross)
    squares = total - (cross * mu).sum(0)
    # Of what is added up to the residual: much more than itself where there is little noise.
    size = (total.sqrt() + gram.diagonal().clamp_min(0).sqrt() @ times(keep, mu).abs()) ** 2
    if rows is None:
        error = y_error + 1e-14 * total
        lost = 4 * math.sqrt(data.n) * EPS * size
        if bool(((error < squares) & (2 * prior.b0 + squares < 100 * lost)).any()):
            warnings.warn(
                "the noise is little beside the signal and read from sums of products, of which rounding may leave "
                "less than two digits: fit() of all data at once keeps them",
                stacklevel=5,
            )
        return _Solved(mu, precision, squares, error)
    design, y = rows.design(x_mean if prior.intercept else None), rows.response(y_mean)
    for _ in range(2):
        residual = y - design.matvec(times(keep, mu))
        mu = mu + precision.solve(times(keep, design.rmatvec(residual)) - times(diagonal, mu))
    residual = y - design.matvec(times(keep, mu))
    squares = residual.square().sum(0) + diagonal @ mu**2
    return _Solved(mu, precision, squares, y_error + 64 * EPS**2 * size)


def _of_rows(data: RegressionData, prior: Prior, means: Pair, rounding: Pair) -> _Solved:
    """From fewer rows than columns, by products with them."""
    keep, (x_mean, y_mean), (columns_error, y_error) = prior.keep, means, rounding
    rows = data.kept()
    design, y = rows.design(x_mean if prior.intercept else None), rows.response(y_mean)
    diagonal = prior.shrinkage + keep * (1 - keep) * design.squares()
    unseen = diagonal <= keep * (1 - keep) * columns_error
    if bool(unseen.any()):
        raise ValueError(
            f"there are {data.n} rows for {data.p} columns, and columns {first(unseen)} are neither shrunk nor "
            "dropped: the posterior is improper; give shrinkage > 0, or leave out constant columns"
        )
    precision = DiagonalPlusRows(diagonal, design, keep)
    dual = precision.solve_rows(y)
    mu = times(keep / diagonal, design.rmatvec(dual))
    squares = dual.square().sum(0) + diagonal @ mu**2  # dual is the residual: no difference of large sums
    return _Solved(mu, precision, squares, y_error)
