"""The α-divergence objective of dropout posteriors, between the ELBO and the predictive log-likelihood.

Beside ``losses``, whose data term it replaces; last in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_dropout.weights.plates import plates_of_weights
from pyro_dropout.losses.elbo import Run, TraceDropout_ELBO

_ELEMENTS = 2**24  # of a temporary tensor


class RenyiDropout_ELBO(TraceDropout_ELBO):
    r"""The reparametrised black-box α energy:

    .. math:: \mathcal{L}_\alpha = \mathrm{KL}(q \| p)
        - \frac{N}{B} \sum_n \frac1\alpha \log \frac1K \sum_{k=1}^K p(y_n \mid x_n, W_k)^\alpha

    (BBα eq. 6 and 7). α = 0 is the ELBO and so is K = 1 for every α; α = 1 maximises the predictive log-likelihood
    of each datum; negative α fit the worst of the K draws more than the mean. Mind the names: Pyro's
    ``RenyiELBO(alpha)`` is the ELBO at α = 1, weighs whole data sets, and is another objective.

    A datum is one entry of an observed site's plates; sites in the same plates belong to one datum, and a
    vector-valued observation is one datum by ``.to_event(1)``. The plate's N/B stands outside of the logarithm, every
    other scale (``poutine.scale``) inside. All latents that are not in these plates are averaged with the weights.

    :param alpha: any finite number, or a function without arguments that returns one, called at every step. The
        attribute ``alpha`` may be set between steps, of a compiled loss too.
    :param num_particles: draws K of each datum's likelihood.
    :param kwargs: as in :class:`~pyro_dropout.TraceDropout_ELBO`; learned rates of hard masks evaluate
        ``gradient``'s members of each of the K draws.
    :raises ValueError: at a step: what :class:`~pyro_dropout.TraceDropout_ELBO` raises; an α that is not a finite
        number; an observed site in no data plate.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from torch import nn
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> net = BayesianModule(nn.Linear(3, 1))
        >>> def model(x, y=None):
        ...     mean = net(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        >>> loss = RenyiDropout_ELBO(alpha=0.5, num_particles=10)
        >>> svi = pyro.infer.SVI(model, AutoBernoulliDropout(model), pyro.optim.Adam({}), loss)
        >>> svi.step(torch.zeros(5, 3), torch.zeros(5)) > 0
        True
        >>> loss.alpha = 1.0  # from here on
    """

    def __init__(self, alpha: float | Callable[[], float] = 0.5, num_particles: int = 10, **kwargs: Any) -> None:
        self.alpha = alpha
        self._traced_alpha, self._estimating = torch.zeros(()), False
        if not callable(alpha):
            self._alpha_now()  # a wrong one raises here
        super().__init__(num_particles, **kwargs)

    def estimate(self, *args: Any, **kwargs: Any) -> Tensor:
        self._estimating = True
        try:
            return super().estimate(*args, **kwargs)
        finally:
            self._estimating = False

    def refresh(self) -> None:
        self._traced_alpha.fill_(self._alpha_now())

    def _alpha_now(self) -> float:
        alpha = self.alpha() if callable(self.alpha) else self.alpha
        try:
            number = float(alpha)
        except (TypeError, ValueError) as error:
            raise ValueError(f"alpha must be a number, or a function that returns one, but found {alpha!r}") from error
        if not math.isfinite(number):
            raise ValueError(f"alpha must be finite, but found {alpha!r}")
        return number

    def _batches(self, runs: Iterator[Run]) -> Iterator[list[Run]]:
        yield list(runs)  # the logarithm is of all particles

    def _data_terms(self, runs: list[Run]) -> tuple[list[Tensor], list[list[Tensor]]]:
        vectorized = self.vectorize_particles and self.num_particles > 1
        terms: list[Tensor] = []
        signals: list[list[Tensor]] = [[] for _ in runs]
        per_run = [self._per_datum(run) for run in runs]
        device = next((own.device for _, own in per_run[0].values()), None)
        alpha = self._traced_alpha.to(device) if self._estimating else self._alpha_now()
        for plates, (scale, first) in per_run[0].items():
            learned = self._has_members(first)
            together = [own[plates][1] for own in per_run]
            if not learned:
                together = [t.unsqueeze(0) for t in together]
            # [members or 1, particles, *plates]
            log_likelihood = together[0] if vectorized else torch.stack(together, dim=1)
            energy = scale * _energy(log_likelihood, alpha, dim=1)
            terms.append(self._mean_over_members(energy) if learned else energy)
            if learned and torch.is_grad_enabled():
                signal = scale * self._energies_of_each_draw(log_likelihood, alpha)
                for k, own in enumerate(signals):
                    own.append(signal if vectorized else signal[:, k])
        return terms, signals

    def _per_datum(self, run: Run) -> dict[Any, tuple[float, Tensor]]:
        """By data plates their N/B, and the log-likelihood of each datum."""
        around_weights = plates_of_weights(run.guide_trace)
        data: dict[Any, tuple[float, Tensor]] = {}
        for site, log_prob in self._log_likelihoods(run):
            frames = [f for f in site["cond_indep_stack"] if f.name not in around_weights]
            if not frames:
                raise ValueError(
                    f"observed site {site['name']!r} is in no data plate, but the α energy needs to know what one "
                    'datum is: put it into `with pyro.plate("data", N)`'
                )
            plates = frozenset((f.name, None if f.vectorized else f.counter) for f in frames)
            scale = math.prod((f.full_size or f.size) / f.size for f in frames)
            log_prob = log_prob / scale if scale != 1 else log_prob
            data[plates] = (scale, data[plates][1] + log_prob if plates in data else log_prob)
        return data

    def _energies_of_each_draw(self, log_likelihood: Tensor, alpha: float | Tensor) -> Tensor:
        """The energy as a function of one particle's member, ``[members, particles, *plates]``.

        The other particles stay, all at their first member, all at their second, ...; these energies are averaged.
        """
        members, particles = log_likelihood.shape[:2]
        if particles == 1 or (not isinstance(alpha, Tensor) and alpha == 0):  # a sum: what the others do cancels
            return -log_likelihood / particles
        identity = torch.eye(particles, dtype=torch.bool, device=log_likelihood.device)
        chunks = []
        for own in identity.split(max(1, _ELEMENTS // (members * log_likelihood.numel()))):
            own = own.reshape(*own.shape, *(1,) * (log_likelihood.dim() - 2))
            swapped = torch.where(own, log_likelihood[None, :, None], log_likelihood[:, None, None])
            chunks.append(self._mean_over_members(_energy(swapped, alpha, dim=3)))
        return torch.cat(chunks, dim=1)


def _energy(log_likelihood: Tensor, alpha: float | Tensor, dim: int) -> Tensor:
    """``-(1/α) log mean exp(α log p)``, accurate for small α and for any size of ``log p``."""
    mean = log_likelihood.mean(dim)
    if isinstance(alpha, Tensor):  # its value is not known yet
        largest, least = log_likelihood.amax(dim, keepdim=True), log_likelihood.amin(dim, keepdim=True)
        top, safe = torch.where(alpha >= 0, largest, least), torch.where(alpha == 0, 1.0, alpha)
        return torch.where(alpha == 0, -mean, _energy_below(log_likelihood, safe, top.detach(), dim))
    if alpha == 0 or log_likelihood.shape[dim] == 1:
        return -mean
    top = (log_likelihood.amax if alpha > 0 else log_likelihood.amin)(dim, keepdim=True)
    return _energy_below(log_likelihood, alpha, top.detach(), dim)


def _energy_below(log_likelihood: Tensor, alpha: float | Tensor, top: Tensor, dim: int) -> Tensor:
    excess = torch.expm1(alpha * (log_likelihood - top)).mean(dim)
    return -top.squeeze(dim) - torch.log1p(excess) / alpha
