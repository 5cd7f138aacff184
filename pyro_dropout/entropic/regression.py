"""Linear regression under the dropout constraint, in closed form and at any size, for scikit-learn."""

from __future__ import annotations

import copy
import numbers
from typing import Any

import numpy as np
import pyro.distributions as dist
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from pyro_dropout._checks import check_flags, said
from pyro_dropout.entropic._chunk import Chunk, as_array
from pyro_dropout.entropic._data import RegressionData
from pyro_dropout.entropic._fitted import Fitted
from pyro_dropout.entropic._groups import export
from pyro_dropout.entropic._intervals import check_mass, interval
from pyro_dropout.entropic._prior import check_prior
from pyro_dropout.entropic._rate import check_index
from pyro_dropout.entropic._solve import solve
from pyro_dropout.entropic.distribution import NormalInverseGamma
from pyro_dropout.entropic.draws import PosteriorDraws


class EntropicLinearRegression(RegressorMixin, BaseEstimator):
    r"""Bayesian linear regression that must do well when covariates drop out (ENT section 2).

    The model is :math:`y_i \sim \mathrm{Normal}(x_i^\top \tilde w_i, \sigma^2)` with every covariate dropped with
    probability f, independently for each datum, and the constraint that data say nothing about which. With priors
    :math:`w \mid \sigma^2 \sim \mathrm{Normal}(0, \sigma^2 / \lambda_0)` and
    :math:`\sigma^2 \sim \mathrm{InverseGamma}(a_0, b_0)` the posterior is a normal-inverse-gamma (ENT eq. 14):

    .. math:: D = \lambda_0 I + f(1-f)\,\mathrm{diag}(X^\top X), \quad \Lambda = D + (1-f)^2 X^\top X, \quad
        \mu = (1-f) \Lambda^{-1} X^\top y,

        w \mid \sigma^2 \sim \mathrm{Normal}(\mu, \sigma^2 \Lambda^{-1}), \quad
        \sigma^2 \sim \mathrm{InverseGamma}(a_0 + \tfrac n2, b_0 + \tfrac12 (y^\top y - \mu^\top \Lambda \mu))

    f = 0 is ordinary conjugate regression, whose mean is ridge regression with penalty λ0. An intercept has a flat
    prior and is neither dropped nor shrunk; covariates are then centered by their means, so dropping one puts its mean
    in its place, and it takes half a degree of freedom from a. (Of words that one training document has, centering
    takes off what other documents never get back; without intercept predictions may be better there.)

    With fewer rows than columns no p × p matrix is formed (Woodbury on D), and a sparse X stays sparse. With dropout a
    fit and its means take some twenty products with X; a factor of n × n is made when deviations, draws or log Z are
    asked for.

    *Coefficients* are those of the fitted mean :math:`\hat y = (1-f) X w`, so ``coef_`` is :math:`(1-f) \mu`, the mean
    of :math:`\tilde w`. ``posterior_`` is that of w itself; its mean tends to each covariate's own regression,
    :math:`\mathrm{diag}(X^\top X)^{-1} X^\top y`, for λ0 → 0 and f → 1.

    *Prediction.* Without dropout of its covariates (``dropout=False``, as a network predicts with its weights scaled by
    1 - f) a new response is :math:`(1-f) x^\top w + \epsilon`; integrating w and σ² gives

    .. math:: y \sim \mathrm{StudentT}_{2a}\bigl((1-f) x^\top \mu,\
        \tfrac ba (1 + (1-f)^2 x^\top \Lambda^{-1} x)\bigr)

    With dropout (``dropout=True``) it is :math:`x^\top \tilde w + \epsilon`, a mixture over masks of the same mean. By
    the law of total variance the masks add
    :math:`f(1-f) \sum_j x_j^2\, \mathbb{E} w_j^2 = f(1-f) \sum_j x_j^2 \bigl(\mu_j^2 + \tfrac{b}{a-1}
    \Lambda^{-1}_{jj}\bigr)`. With an intercept x is centered, and 1/n is added to the 1 of the noise.

    *Weights* ``sample_weight`` v say how exact a response is, as of the mean of v measurements:
    :math:`y_i \sim \mathrm{Normal}(x_i^\top \tilde w_i, \sigma^2 / v_i)`. Then :math:`V = \mathrm{diag}(v)` stands
    inside of every product (:math:`X^\top V X`, :math:`X^\top V y`, :math:`y^\top V y`), means are weighted, 1/n of
    the intercept is :math:`1 / \sum_i v_i`, and log Z has :math:`\tfrac12 \sum_i \log v_i`. A row of weight k has the
    coefficients, Λ and b of k equal rows, as in ``Ridge``, but counts once in a, since it is one response (n is the
    number of rows of positive weight; ``BayesianRidge`` counts :math:`\sum_i v_i`). So the unit of weights is that
    of 1/σ² alone: with k times the weights and λ0 nothing that is predicted of them changes. For k equal responses,
    repeat the row. Predictions are of responses of weight 1.

    *Several outputs* (y of ``[n, outputs]``) have one Λ, and each its own w and σ², independent given X. The results
    have a dimension for them, as those of ``LinearRegression``: ``coef_ [outputs, p]``, ``intercept_`` and
    ``noise_rate_ [outputs]``.

    :param rate: f, the probability of *dropping* a covariate, in [0, 1): a number, or one per covariate.
    :param shrinkage: λ0 ≥ 0, the prior precision of a coefficient in units of the noise's precision. At 0 the prior is
        flat, and rates must be positive wherever data alone do not determine a coefficient.
    :param a0: concentration of the prior of σ²; with b0 = 0 Jeffreys' prior 1/σ².
    :param b0: rate of the prior of σ².
    :param fit_intercept: whether to have an intercept.

    Fitted: ``coef_`` ((1-f) μ), ``intercept_``, ``concentration_`` and ``noise_rate_`` (a and b of σ²), ``posterior_``,
    ``n_features_in_``.

    Example::

        >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
        >>> model = EntropicLinearRegression(rate=0.1).fit(x, x @ [1.0, -1.0])
        >>> mean, std = model.predict(x, return_std=True)
        >>> model.sample(5, random_state=0).coef.shape
        (5, 2)
    """

    def __init__(
        self, rate: Any = 0.1, shrinkage: float = 1.0, a0: float = 0.0, b0: float = 0.0, fit_intercept: bool = True
    ) -> None:
        self.rate = rate
        self.shrinkage = shrinkage
        self.a0 = a0
        self.b0 = b0
        self.fit_intercept = fit_intercept

    _data: RegressionData
    _fitted: Fitted

    # Fitting

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> EntropicLinearRegression:
        """The posterior of all data, ``X [n, p]`` (dense or sparse), ``y [n]`` or ``[n, outputs]``.

        :param sample_weight: v, one for each row or one for all, finite and at least 0; None is 1.
        """
        return self._read(X, y, sample_weight, None)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> EntropicLinearRegression:
        """Adds data; the posterior is that of all data so far. Rows are kept only while there are fewer than p.

        Of noise less than about 1e-6 of the signal sums of products lose digits; a warning says when.
        """
        return self._read(X, y, sample_weight, getattr(self, "_data", None))

    def _read(self, X: Any, y: Any, weights: Any, data: RegressionData | None) -> EntropicLinearRegression:
        before = dict(self.__dict__)
        try:
            chunk = self._chunk(X, y, weights, reset=data is None)
            prior = check_prior(self.get_params(deep=False), chunk.X.shape[1])
            self._dtype, self._data = chunk.X.dtype, RegressionData(chunk) if data is None else copy.copy(data)
            self._data.add(chunk)
            self._finish(solve(self._data, prior, chunk if data is None else None))
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)  # data count as a whole or not at all
            raise
        return self

    def _chunk(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Chunk:
        X, y = (as_array(t) for t in (X, y))
        if scipy.sparse.issparse(y):
            raise TypeError("y must be dense, but found a sparse matrix: give y.toarray()")
        if getattr(y, "shape", ())[1:] == (0,):
            raise ValueError(f"y must have one output or more, but found shape {tuple(y.shape)}")
        dtype = [np.float64, np.float32]
        X, y = validate_data(
            self, X, y, reset=reset, accept_sparse="csr", dtype=dtype, multi_output=True, y_numeric=True
        )
        return Chunk.of(X, y, sample_weight)

    def _share(self, fitted: EntropicLinearRegression, rows: Chunk) -> None:
        """Another posterior of the same data."""
        for name in ("_data", "_dtype", "n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))
        self._finish(solve(self._data, check_prior(self.get_params(deep=False), self._data.p), rows))

    def _finish(self, fit: Fitted) -> None:
        self._fitted = fit
        self.concentration_, self.noise_rate_ = fit.a, _number(fit.b)
        self.coef_ = fit.coef.movedim(0, -1).numpy().astype(self._dtype, order="C")
        self.intercept_ = _number(fit.intercept)

    # The posterior

    @property
    def posterior_(self) -> Any:
        """Of w and σ², a Pyro distribution (of p + 1 entries); of several outputs a tuple, one for each."""
        check_is_fitted(self)
        fit = self._fitted
        if fit.b.dim() == 0:
            return NormalInverseGamma(fit.mu, fit.precision, fit.a, float(fit.b))
        each = zip(fit.mu.T, fit.b.tolist(), strict=True)
        return tuple(NormalInverseGamma(mu, fit.precision, fit.a, b) for mu, b in each)

    def log_normalizer(self) -> Any:
        r"""``log Z`` of ENT eq. 10, by which the shrinkage can be chosen:

        .. math:: Z = \int q(w, \sigma^2) \exp \mathbb{E}_{\tilde w \mid w} \log q(y \mid \tilde w, \sigma^2)

        With f = 0 it is the marginal likelihood. With f > 0 it is not: it is the normaliser of the constrained
        posterior, by Jensen's inequality a lower bound of the marginal likelihood of a model that *draws* masks. It
        compares shrinkages at one rate, and no rates: the spread of masks is a penalty that a rate of 0 does not pay,
        :math:`Z_f(\lambda_0) < Z_0(\lambda_0 / (1-f)^2)` whatever the data. Those are chosen by what they predict:
        ``cv`` of :func:`regression_path`. An improper prior (Jeffreys', or the flat one of the intercept) is known up
        to a constant, taken as 1.

        :returns: a number; of several outputs one for each, ``[outputs]``. Outputs are independent given the
            covariates, so their sum is log Z of all.
        :raises ValueError: ``shrinkage = 0``, where the coefficients' prior has no density.
        """
        check_is_fitted(self)
        return _number(self._fitted.log_normalizer())

    def sample(self, n_draws: int = 1, random_state: Any = None) -> PosteriorDraws:
        """Exact joint draws of coefficients, intercept and noise variance."""
        check_is_fitted(self)
        if isinstance(n_draws, bool) or not isinstance(n_draws, numbers.Integral) or n_draws < 1:
            raise ValueError(f"n_draws must be an integer of at least 1, but found {n_draws!r}")
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        return PosteriorDraws(*(t.numpy() for t in self._fitted.draw(n_draws, generator)))

    def credible_interval(self, mass: float = 0.95, index: Any = None) -> np.ndarray:
        """Central intervals of coefficients, ``[p, 2]`` or ``[outputs, p, 2]``, or of those in ``index``."""
        check_mass(mass)
        posterior = self.posterior_
        if isinstance(posterior, tuple):
            return np.stack([self._interval(each, mass, index) for each in posterior])
        return self._interval(posterior, mass, index)

    def _interval(self, posterior: NormalInverseGamma, mass: float, index: Any) -> np.ndarray:
        keep = self._fitted.prior.keep.numpy()
        keep = keep if index is None else keep[check_index(index, len(keep)).numpy()]
        return keep[:, None] * interval(posterior.marginal(index), mass)

    def to_arviz(
        self,
        X: Any = None,
        y: Any = None,
        *,
        n_draws: int = 1000,
        random_state: Any = None,
        feature_names: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        r"""Exact independent draws as ArviZ groups, in one chain.

        With a rate above 0 ``log_likelihood`` has two variables: ``y``, the log-density of a prediction (without
        dropout), and ``y_constrained``, what the posterior conditioned on,
        :math:`\mathbb{E}_{\tilde w \mid w} \log \mathrm{Normal}(y_i; x_i^\top \tilde w, \sigma^2)`. Leave-one-out takes
        the *weights* ``az.psislw(-y_constrained)`` and the *density* ``y``: in ArviZ 1.x ``az.loo`` does, with
        ``var_name="y"`` and the ``log_weights`` of ``y_constrained.azstats.psislw()``. By a name alone it takes one for
        both, which is neither, so it refuses without one. Exact is ``cv=LeaveOneOut()`` of :func:`regression_path`.

        :param X: with ``y``, data for ``posterior_predictive`` (without dropout), ``log_likelihood`` and
            ``observed_data``.
        :param y: their responses.
        :param feature_names: labels of the covariates; the names of the columns of a table by default.
        :param sample_weight: of these rows, positive: what the posterior conditioned on has those of the fit.
        :returns: ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).
        """
        check_is_fitted(self)
        if (X is None) != (y is None) or (X is None and sample_weight is not None):
            raise ValueError("X and y, and their weights, are exported together, but found one of them alone")
        names = getattr(self, "feature_names_in_", None) if feature_names is None else feature_names
        if names is not None and (not hasattr(names, "__len__") or len(names) != self.n_features_in_):
            raise ValueError(
                f"feature_names must name each of {self.n_features_in_} covariates, but found {said(names)}"
            )
        random = check_random_state(random_state)
        draws = self.sample(n_draws, random)
        data = None if X is None else self._chunk(X, y, sample_weight, reset=False).all_of(len(y))
        return export(self._fitted, draws, data, names, random)

    # Prediction

    def predict(self, X: Any, return_std: bool = False, dropout: bool = False) -> Any:
        """Predictive means ``[n]`` or ``[n, outputs]``, with ``return_std`` also standard deviations, noise included.

        Noise is that of a response of weight 1.

        :param X: covariates ``[n, p]``.
        :param return_std: infinite with one degree of freedom or two.
        :param dropout: whether the covariates of new data drop out as in training, which adds to the deviations.
        """
        check_flags(return_std=return_std, dropout=dropout)
        X, fit = self._covariates(X), self._fitted
        design = fit.design(X)
        mean = fit.mean(design).numpy().astype(X.dtype)
        if not return_std:
            return mean
        return mean, fit.variance(design, dropout).sqrt().numpy().astype(X.dtype)

    def predictive(self, X: Any) -> dist.StudentT:
        """The predictive distribution of each row (and output) without dropout, noise of weight 1 included."""
        return self._fitted.predictive(self._covariates(X))

    def predictive_interval(self, X: Any, mass: float = 0.95) -> np.ndarray:
        """Central predictive intervals, ``[n, 2]`` or ``[n, outputs, 2]``."""
        check_mass(mass)
        return interval(self.predictive(X), mass)

    def _covariates(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, as_array(X), reset=False, accept_sparse="csr", dtype=[np.float64, np.float32])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags


def _number(value: Tensor) -> Any:
    """A float, or an array where there are several outputs."""
    return value.item() if value.dim() == 0 else value.numpy()
