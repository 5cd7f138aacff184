"""The normal-inverse-gamma distribution of coefficients and noise variance, a prior and a posterior."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import scipy.sparse
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_dropout._checks import as_numbers, check_positive, check_tensors, checked_shape, said
from pyro_dropout.entropic._design import Design
from pyro_dropout.entropic._precision import DensePrecision, Precision
from pyro_dropout.entropic._rate import check_index, check_rate


class NormalInverseGamma(TorchDistribution):
    r"""Coefficients w and noise variance σ² together, as one vector ``[w, σ²]`` of p + 1 entries:

    .. math:: w \mid \sigma^2 \sim \mathrm{Normal}(\mu, \sigma^2 \Lambda^{-1}), \quad
        \sigma^2 \sim \mathrm{InverseGamma}(a, b)

    The prior and, with the exact :meth:`update`, the posterior of linear regression under the dropout constraint
    (ENT eq. 11 and 14; the paper's Gamma is on the inverse scale). It is an ordinary Pyro distribution, so a
    posterior may be the prior of any model.

    :param loc: μ, ``[p]``.
    :param precision: Λ, ``[p, p]``, or a :class:`~pyro_dropout.entropic._precision.Precision`.
    :param concentration: a > 0.
    :param noise_rate: b > 0, the rate of the InverseGamma.
    :raises ValueError: Λ is not positive definite, a or b not positive, shapes that do not match.

    Example::

        >>> prior = NormalInverseGamma(torch.zeros(2), torch.eye(2), 2.0, 1.0)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, 2.0, 3.0])
        >>> posterior = prior.update(x, y, rate=0.2)
        >>> w, variance = posterior.split(posterior.sample((5,)))
        >>> w.shape, variance.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, loc: Tensor, precision: Tensor | Precision, concentration: float, noise_rate: float) -> None:
        loc = as_numbers("loc", loc)
        if not bool(torch.isfinite(loc).all()):
            raise ValueError(f"loc has NaN or infinite entries: {said(loc)}")
        if not isinstance(precision, Tensor) and not hasattr(precision, "inverse_diagonal"):
            raise TypeError(f"precision must be a tensor [p, p], but found {said(precision)}")
        check_positive(concentration=concentration, noise_rate=noise_rate)
        self.loc = loc.to(torch.float64, copy=True)  # theirs may change
        matrix = precision.to(torch.float64, copy=True) if isinstance(precision, Tensor) else None
        if loc.dim() != 1 or (matrix is not None and matrix.shape != (len(loc), len(loc))):
            shape = "" if matrix is None else f" and precision of shape {tuple(matrix.shape)}"
            raise ValueError(f"loc must be [p] and precision [p, p], but found loc of shape {tuple(loc.shape)}{shape}")
        self.precision: Any = precision if matrix is None else DensePrecision(matrix)
        self.concentration, self.noise_rate = float(concentration), float(noise_rate)
        self._dtype = loc.dtype
        super().__init__(torch.Size(), torch.Size((len(loc) + 1,)), validate_args=False)

    @property
    def support(self) -> Any:
        parts = constraints.cat([constraints.real, constraints.positive], dim=-1, lengths=[len(self.loc), 1])
        return constraints.independent(parts, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalInverseGamma:
        new = object.__new__(NormalInverseGamma)
        new.__dict__.update(self.__dict__)
        new._batch_shape = checked_shape("batch_shape", batch_shape)
        return new

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients ``[..., p]`` and the noise variance ``[...]`` of a value."""
        check_tensors(value=value)
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must be [..., {len(self.loc) + 1}], but found shape {tuple(value.shape)}")
        return value[..., :-1], value[..., -1]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Exact independent draws, ``[*sample, *batch, p + 1]``."""
        shape = checked_shape("sample_shape", sample_shape) + self.batch_shape
        n = shape.numel()
        with torch.no_grad():
            gamma = torch.distributions.Gamma(
                torch.tensor(self.concentration, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
            )
            variance = self.noise_rate / gamma.sample((n,))
            w = self.loc + variance.sqrt().unsqueeze(1) * self.precision.draw(n)
            return torch.cat([w, variance.unsqueeze(1)], 1).reshape(shape + self.event_shape).to(self._dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log-density of ``[w, σ²]``, in nats."""
        w, variance = (part.to(torch.float64) for part in self.split(value))
        a, b, p = self.concentration, self.noise_rate, len(self.loc)
        quadratic = self.precision.quadratic(w - self.loc)
        normal = 0.5 * (self.precision.logdet - p * (2 * math.pi * variance).log() - quadratic / variance)
        gamma = a * math.log(b) - math.lgamma(a) - (a + 1) * variance.log() - b / variance
        return (normal + gamma).expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape)).to(value.dtype)

    def marginal(self, index: Any = None) -> dist.StudentT:
        r"""Of single coefficients: :math:`\mathrm{StudentT}_{2a}(\mu_j, \sqrt{(b / a) \Lambda^{-1}_{jj}})`.

        :param index: which coefficients; all by default.
        """
        index = None if index is None else check_index(index, len(self.loc))
        loc = self.loc if index is None else self.loc[index]
        scale = (self.noise_rate / self.concentration * self.precision.inverse_diagonal(index)).sqrt()
        return dist.StudentT(torch.tensor(2 * self.concentration, dtype=torch.float64), loc, scale)

    @property
    def noise(self) -> dist.InverseGamma:
        """The marginal of σ²."""
        a, b = torch.tensor([self.concentration, self.noise_rate], dtype=torch.float64)
        return dist.InverseGamma(a, b)

    @property
    def mean(self) -> Tensor:
        """``[E w, E σ²]``; the latter is infinite for a ≤ 1."""
        a, b = self.concentration, self.noise_rate
        return torch.cat([self.loc, torch.tensor([b / (a - 1) if a > 1 else math.inf])])

    @property
    def variance(self) -> Tensor:
        """Of each entry; infinite where it does not exist."""
        a, b = self.concentration, self.noise_rate
        w = b / (a - 1) * self.precision.inverse_diagonal() if a > 1 else torch.full_like(self.loc, math.inf)
        return torch.cat([w, torch.tensor([b**2 / ((a - 1) ** 2 * (a - 2)) if a > 2 else math.inf])])

    def update(self, x: Any, y: Any, rate: Any = 0.0) -> NormalInverseGamma:
        r"""The posterior after data, exactly (ENT eq. 14 for a general prior):

        .. math:: \Lambda_n = \Lambda + f(1-f)\,\mathrm{diag}(X^\top X) + (1-f)^2 X^\top X, \quad
            \mu_n = \Lambda_n^{-1} (\Lambda \mu + (1-f) X^\top y), \quad a_n = a + n/2,

            b_n = b + \tfrac12 (y^\top y + \mu^\top \Lambda \mu - \mu_n^\top \Lambda_n \mu_n)

        The constraint's exponents add up over data, so updating in parts is updating by all.

        :param x: covariates ``[n, p]``; no intercept is added.
        :param y: responses ``[n]``.
        :param rate: f, the probability of *dropping* a covariate: a number, or one per covariate.
        """
        if not isinstance(self.precision, DensePrecision):
            raise NotImplementedError("update needs the precision as a matrix; fit all data at once instead")
        x, y = x if scipy.sparse.issparse(x) else as_numbers("x", x), as_numbers("y", y).to(torch.float64)
        if x.ndim != 2 or x.shape[1] != len(self.loc) or y.shape != x.shape[:1]:
            raise ValueError(
                f"x must be [n, {len(self.loc)}] and y [n], but found {tuple(x.shape)} and {tuple(y.shape)}"
            )
        design = Design(x)
        for name, values in (("x", design.dense if design.sparse is None else design.sparse.data), ("y", y)):
            if not bool(torch.isfinite(torch.as_tensor(values)).all()):
                raise ValueError(f"{name} has NaN or infinite entries")
        keep = 1 - check_rate(rate, design.p)
        gram, old = design.gram(), self.precision.matrix
        matrix = old + torch.outer(keep, keep) * gram
        matrix.diagonal().add_(keep * (1 - keep) * gram.diagonal())
        precision = DensePrecision(matrix)
        loc = precision.solve(old @ self.loc + keep * design.rmatvec(y))
        residual = y - design.matvec(keep * loc)
        spread = keep * (1 - keep) * gram.diagonal() @ loc**2
        b = self.noise_rate + 0.5 * (residual @ residual + spread + self.precision.quadratic(loc - self.loc))
        return NormalInverseGamma(loc.to(self._dtype), precision, self.concentration + design.n / 2, float(b))
