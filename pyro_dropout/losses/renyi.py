"""The α-divergence objective of dropout posteriors, between the ELBO and the predictive log-likelihood.

The ELBO with another data term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import pyro_dropout._settings as settings
from pyro_dropout.losses._runs import GuidedRun, Terms
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.weights.plates import apart, plates_of_weights


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
    An observed site in no plate of data that depends on no weight (a conditioned weight, ``pyro.factor`` of a noise's
    scale) is no datum: its log-density is added as that of a prior.

    :param alpha: any finite number, or a function without arguments that returns one, called at every step. The
        attribute ``alpha`` may be set between steps, of a compiled loss too.
    :param num_particles: draws K of each datum's likelihood.
    :param kwargs: as in :class:`~pyro_dropout.TraceDropout_ELBO`; learned rates of hard masks evaluate
        ``gradient``'s members of each of the K draws.
    :raises ValueError: at a step: what :class:`~pyro_dropout.TraceDropout_ELBO` raises; an α that is not a finite
        number; an observed site in no data plate that depends on weights.

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
        self._alpha_tensor = torch.zeros(())  # α in a traced loss, where a number would be written into the graph
        if not callable(alpha):
            self._alpha_now()  # a wrong one raises here
        super().__init__(num_particles, **kwargs)

    def refresh(self) -> None:
        self._alpha_tensor.fill_(self._alpha_now())

    def _alpha_now(self) -> float:
        alpha = self.alpha() if callable(self.alpha) else self.alpha
        try:
            number = float(alpha)
        except (TypeError, ValueError) as error:
            raise ValueError(f"alpha must be a number, or a function that returns one, but found {alpha!r}") from error
        if not math.isfinite(number):
            raise ValueError(f"alpha must be finite, but found {alpha!r}")
        return number

    def _batches(self, runs: Iterator[GuidedRun]) -> Iterator[list[GuidedRun]]:
        yield list(runs)  # the logarithm is of all particles

    @property
    def _needs_data(self) -> str:
        return 'weights, but the α energy needs to know what one datum is: put it into `with pyro.plate("data", N)`'

    def _of_no_mask(self, names: set[str], model: Callable, guide_trace: Any, args: Any, kwargs: Any) -> set[str]:
        return apart(names, model, guide_trace, args, kwargs, network=True)

    def _data_terms(self, runs: list[GuidedRun], traced: bool) -> Terms:
        vectorized = self.vectorize_particles and self.num_particles > 1
        terms = Terms([], [[] for _ in runs])
        per_run = [self._per_datum(run, terms) for run in runs]
        device = next((log_likelihood.device for _, log_likelihood in per_run[0].values()), None)
        alpha = self._alpha_tensor.to(device) if traced else self._alpha_now()
        for plates, (scale, first) in per_run[0].items():
            learned = self._has_members(first)
            of_runs = [data[plates][1] for data in per_run]
            if not learned:
                of_runs = [t.unsqueeze(0) for t in of_runs]
            # [members or 1, particles, *plates]
            log_likelihood = of_runs[0] if vectorized else torch.stack(of_runs, dim=1)
            energy = scale * _energy(log_likelihood, alpha, dim=1)
            terms.loss.append(self._mean_over_members(energy) if learned else energy)
            if learned and torch.is_grad_enabled():
                signal = scale * self._energies_of_each_draw(log_likelihood, alpha)
                for k, changed in enumerate(terms.changed):
                    changed.append(signal if vectorized else signal[:, k])
        return terms

    def _per_datum(self, run: GuidedRun, terms: Terms) -> dict[Any, tuple[float, Tensor]]:
        """By data plates their N/B, and the log-likelihood of each datum; what is no datum's goes to the terms."""
        around_weights = plates_of_weights(run.guide_trace)
        data: dict[Any, tuple[float, Tensor]] = {}
        for site, log_prob in self._log_likelihoods(run):
            frames = [f for f in site["cond_indep_stack"] if f.name not in around_weights]
            if not frames:
                self._check_apart([site["name"]])
                terms.loss.append(-self._share(log_prob))
                continue
            plates = frozenset((f.name, None if f.vectorized else f.counter) for f in frames)
            scale = math.prod((f.full_size or f.size) / f.size for f in frames)
            log_prob = log_prob / scale if scale != 1 else log_prob
            data[plates] = (scale, data[plates][1] + log_prob if plates in data else log_prob)
        return data

    def _energies_of_each_draw(self, log_likelihood: Tensor, alpha: float | Tensor) -> Tensor:
        """The energy as a function of one particle's member, ``[members, particles, *plates]``.

        The other particles stay, all at their first member, all at their second, ...; these energies are averaged.

        :param log_likelihood: ``[members, particles, *plates]``.
        """
        members, particles, *plates = log_likelihood.shape
        if particles == 1 or (not isinstance(alpha, Tensor) and alpha == 0):  # a sum: what the others do cancels
            return -log_likelihood / particles
        identity = torch.eye(particles, dtype=torch.bool, device=log_likelihood.device)
        chunks = []
        for chosen in identity.split(max(1, settings.energy_block // (members * log_likelihood.numel()))):
            chosen = chosen.reshape(*chosen.shape, *(1,) * len(plates))  # [chosen, particles, *1]
            alone = log_likelihood[None, :, None]  # [1, members, 1, particles, *plates]: the chosen particle's member
            others = log_likelihood[:, None, None]  # [members, 1, 1, particles, *plates]: that of all others
            swapped = torch.where(chosen, alone, others)  # [others, members, chosen, particles, *plates]
            energy = _energy(swapped, alpha, dim=3)  # [others, members, chosen, *plates]
            chunks.append(self._mean_over_members(energy))  # [members, chosen, *plates]
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
