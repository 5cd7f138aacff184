"""Entropic regression at every rate and shrinkage of a grid, with the work on the data done once."""

from __future__ import annotations

from typing import Any

from pyro_dropout.entropic.regression import EntropicLinearRegression


def regression_path(X: Any, y: Any, rates: Any, shrinkages: Any, **kwargs: Any) -> list[list[EntropicLinearRegression]]:
    """``EntropicLinearRegression`` at every rate and shrinkage of a grid, ``[rates][shrinkages]``.

    Data are read once, and where p ≤ n their sums of products are taken once. To choose among the models:
    :meth:`EntropicLinearRegression.log_normalizer`, or an error on held-out data.

    :param X: covariates ``[n, p]``, dense or sparse.
    :param y: responses ``[n]``.
    :param rates: drop rates, each a number or one per covariate.
    :param shrinkages: values of λ0.
    :param kwargs: ``a0``, ``b0``, ``fit_intercept``.

    Example::

        >>> import numpy as np
        >>> x, y = np.eye(4), np.array([1.0, 2.0, 0.0, 1.0])
        >>> path = regression_path(x, y, rates=[0.0, 0.5], shrinkages=[0.1, 1.0, 10.0])
        >>> best = max((model for row in path for model in row), key=lambda m: m.log_normalizer())
        >>> best.rate in (0.0, 0.5)
        True
    """
    path: list[list[EntropicLinearRegression]] = []
    data: Any = None
    for rate in rates:
        path.append([])
        for shrinkage in shrinkages:
            model = EntropicLinearRegression(rate, shrinkage, **kwargs)
            if data is None:
                model.fit(X, y)
                data = model
            else:
                model._share(data)
            path[-1].append(model)
    return path
