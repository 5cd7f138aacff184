"""Entropic regression at every rate and shrinkage of a grid, with the work on the data done once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.model_selection import check_cv

from pyro_dropout._checks import said
from pyro_dropout.entropic._chunk import Chunk
from pyro_dropout.entropic._data import RegressionData
from pyro_dropout.entropic._fitted import Fitted
from pyro_dropout.entropic._solve import solve
from pyro_dropout.entropic.regression import EntropicLinearRegression


def regression_path(
    X: Any, y: Any, rates: Any, shrinkages: Any, *, cv: Any = None, sample_weight: Any = None, **kwargs: Any
) -> list[list[EntropicLinearRegression]]:
    r"""``EntropicLinearRegression`` at every rate and shrinkage of a grid, ``[rates][shrinkages]``.

    Data are read once, and where p ≤ n their sums of products are taken once. To choose among the models, ``cv`` gives
    each the log-density of every datum under the model without it (of those of its fold),

    .. math:: \log p(y_i \mid x_i, y_{-i}), \quad \text{a Student-t,}

    as ``cv_log_density_``: the better model has the larger mean. Each fold is an exact refit, without dropout of the
    covariates of what is held out. :meth:`EntropicLinearRegression.log_normalizer` takes no refits, but compares
    shrinkages at one rate alone: of any two rates it prefers the smaller, with the shrinkage that belongs to it.

    :param X: covariates ``[n, p]``, dense or sparse.
    :param y: responses ``[n]`` or ``[n, outputs]``.
    :param rates: drop rates, each a number or one per covariate.
    :param shrinkages: values of λ0.
    :param cv: how to hold data out, as in scikit-learn: a number of folds (of consecutive rows), a splitter such as
        ``LeaveOneOut()`` or ``KFold(5, shuffle=True)``, or pairs of row numbers. None holds nothing out.
    :param sample_weight: v, so that the variance of a response is σ² / v; of what is held out as well, so with ``cv``
        it must be positive.
    :param kwargs: ``a0``, ``b0``, ``fit_intercept``.
    :returns: fitted models; with ``cv`` they have ``cv_log_density_``, in nats, one entry for each datum that is held
        out, in the order of the held-out sets, ``[held out]`` or ``[held out, outputs]``.
    :raises ValueError: an empty grid; what the estimator refuses, also of the data without a fold.

    Example::

        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(20, 3))
        >>> y = x @ [1.0, 0.0, -1.0] + rng.normal(size=20)
        >>> path = regression_path(x, y, rates=[0.0, 0.3], shrinkages=[0.1, 1.0, 10.0], cv=5)
        >>> best = max((model for row in path for model in row), key=lambda m: m.cv_log_density_.mean())
        >>> best.rate in (0.0, 0.3), best.cv_log_density_.shape
        (True, (20,))
    """
    for name, values in (("rates", rates), ("shrinkages", shrinkages)):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"{name} must be a list of values, but found {said(values)}")
    grid = {"rates": list(rates), "shrinkages": list(shrinkages)}
    for name, values in grid.items():
        if not values:
            raise ValueError(f"{name} must have one value or more, but found none")
    path = [[EntropicLinearRegression(f, s, **kwargs) for s in grid["shrinkages"]] for f in grid["rates"]]
    models = [model for row in path for model in row]
    rows = models[0].fit(X, y, sample_weight)._chunk(X, y, sample_weight, reset=False)
    for model in models[1:]:
        model._share(models[0], rows)
    if cv is not None:
        splits = check_cv(cv).split(rows.X, rows.all_of(len(y)).y)
        for model, density in zip(models, _held_out([m._fitted for m in models], rows, splits), strict=True):
            model.cv_log_density_ = density
    return path


def _held_out(fits: list[Fitted], rows: Chunk, splits: Any) -> list[np.ndarray]:
    """Log-densities of what is held out, in the order of the held-out sets, of each fit's prior."""
    found: list[list[np.ndarray]] = []
    for train, test in splits:
        if np.ndim(train) != 1 or np.ndim(test) != 1:
            raise ValueError(f"cv must give pairs of lists of row numbers, but found {said(train)} and {said(test)}")
        kept, out = rows[train], rows[test]
        data = RegressionData(kept)
        data.add(kept)
        refits = [solve(data, fit.prior, kept) for fit in fits]
        found.append([refit.predictive(out.X, out.weights).log_prob(out.y).numpy() for refit in refits])
    if not found:
        raise ValueError("cv must hold out rows, but found no folds")
    return [np.concatenate(densities) for densities in zip(*found, strict=True)]
