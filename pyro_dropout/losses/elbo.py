"""The ELBO of dropout posteriors, with the exact KL and one mask per datum."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_dropout._checks import check_choice, check_counts, check_flags, check_functions
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import forked_rng, single_precision, trial_run
from pyro_dropout._sites import is_deterministic, sample_sites
from pyro_dropout._values import is_traced
from pyro_dropout.losses._broadcasting import check_broadcasting, check_depth, without_members
from pyro_dropout.losses._independence import check_independence
from pyro_dropout.losses._runs import GuidedRun, Terms
from pyro_dropout.losses._subsamples import check_subsamples
from pyro_dropout.losses._terms import check_masks_of_weights, could_have_changed, entropy, kl_terms, scaled
from pyro_dropout.losses.nonfinite import (
    explain_gradients,
    find_nonfinite,
    finite_gradients,
    naming_culprits,
    not_finite,
)
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.masks.estimators import ESTIMATORS, DisARM, GradientEstimator
from pyro_dropout.masks.messengers import DatumMasks, JointDraw, Members
from pyro_dropout.weights.plates import apart, beside_data, check_data_plates

_SAID = "the loss"


class TraceDropout_ELBO(ELBO):
    r"""The negative ELBO of a dropout posterior:

    .. math:: -\frac{N}{B} \sum_{n} \mathbb{E}_q \log p(y_n \mid x_n, W) + \mathrm{KL}(q \| p), \quad
        \mathrm{KL} = -\sum_k H(\mathrm{keep}_k)
        - \sum_w \bigl[\mathrm{keep} \log p(\mathrm{loc}/\mathrm{keep}) + \mathrm{rate} \log p(0)\bigr]

    (CD eq. 1 and 3, LBD section 2.2, as a sum over the whole data set and with the prior's constants; N/B is the
    plate's own scale). No density of a dense weight is evaluated. Relaxed masks keep the KL of binary ones
    (CD appendix B, first interpretation). Other latent sites contribute their closed-form KL where Pyro has one
    and a reparametrised estimate otherwise.

    Under ``torch.autocast`` the network computes in the lower precision, what leaves a
    :class:`~pyro_dropout.BayesianModule`, the KL and all sums stay in single precision.

    With masks per datum the likelihood of a datum must depend on its own row of each layer's input alone. A run at the
    first step checks it: networks that mix the rows of a batch, or observations that pick rows by an index, need
    ``masks="draw"``.

    :param num_particles: Monte Carlo draws of the expected log-likelihood per step.
    :param vectorize_particles: draw them at once, in a plate left of the model's.
    :param masks: ``"datum"`` draws one mask for each datum, ``"draw"`` one for the whole batch. Both estimate the
        same objective; the first has the lower variance.
    :param gradient: how the rates of hard masks learn: an estimator (:class:`~pyro_dropout.ARM`,
        :class:`~pyro_dropout.DisARM`, :class:`~pyro_dropout.Reinforce`, or one's own) or its name in small letters.
        By default ``DisARM()`` where there are such rates. Each particle is then a pair (or more) of networks
        that differ in these masks alone, evaluated in one vectorised pass: the model must broadcast over one
        dimension left of its plates, as for vectorised particles. Relaxed masks need none.
    :param max_plate_nesting: as in Pyro; guessed from one run if particles are vectorised or rates of hard
        masks learned.
    :param retain_graph: as in Pyro.
    :raises ValueError: at a step: a loss that is not finite, in ``loss_and_grads`` (``SVI``) a gradient that is not
        finite either, with parameters left as they were; masks per datum without a data plate, for a layer whose
        input does not have the data first, or where a datum's likelihood depends on the masks of others; a
        ``gradient`` where no hard mask is learned.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> net = BayesianModule(torch.nn.Linear(3, 1))
        >>> def model(x, y=None):
        ...     mean = net(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        >>> svi = pyro.infer.SVI(model, AutoConcreteDropout(model), pyro.optim.Adam({}), TraceDropout_ELBO())
        >>> svi.step(torch.zeros(5, 3), torch.zeros(5)) > 0
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        masks: str = "datum",
        gradient: GradientEstimator | str | None = None,
        max_plate_nesting: float = float("inf"),
        retain_graph: bool | None = None,
    ) -> None:
        check_choice(("datum", "draw"), masks=masks)
        check_counts(num_particles=num_particles)
        check_flags(vectorize_particles=vectorize_particles)
        if retain_graph is not None:
            check_flags(retain_graph=retain_graph)
        if max_plate_nesting != float("inf"):  # which is guessed
            check_counts(least=0, max_plate_nesting=max_plate_nesting)
        if isinstance(gradient, str) and gradient in ESTIMATORS:
            gradient = ESTIMATORS[gradient]
        if not isinstance(gradient, GradientEstimator | None):
            raise ValueError(
                f"gradient must be an estimator such as DisARM(), or one of {', '.join(ESTIMATORS)}, "
                f"but found {gradient!r}"
            )
        self.max_plate_nesting: float
        self.masks = masks
        self.gradient = gradient
        self._rates = _Rates.UNKNOWN
        self._apart: set[str] = set()  # observed sites in no plate of data, which depend on no mask
        self._independent = masks == "draw"  # whether rows have been seen not to know each other's masks ...
        self._modes: list[tuple[weakref.ref, bool]] = []  # ... with modules in these modes
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles and num_particles > 1,  # one needs no plate, nor its depth
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
        )

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO."""
        with torch.no_grad(), said_of_arguments(_SAID, args, kwargs):
            return sum(torch_item(loss) for loss, _ in self._particles(model, guide, args, kwargs))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """An estimate of the negative ELBO, to call ``backward`` on."""
        with said_of_arguments(_SAID, args, kwargs):
            losses = [loss for loss, _ in self._particles(model, guide, args, kwargs)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO, whose gradient is added to the parameters' ``grad``."""
        total = 0.0
        parameters: dict[str, Tensor] = {}
        try:
            with said_of_arguments(_SAID, args, kwargs):
                for loss, parameters in self._particles(model, guide, args, kwargs):
                    total += torch_item(loss)
                    if loss.requires_grad:
                        loss.backward(retain_graph=self.retain_graph)
                        if not finite_gradients(parameters):
                            raise explain_gradients(parameters, find_nonfinite(model, guide, args, kwargs))
        except Exception:
            for parameter in parameters.values():
                parameter.grad = None  # or the next step would add to it
            raise
        return total

    def estimate(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The same as :meth:`differentiable_loss` without a look at any value, so that it can be traced."""
        runs = self._batches(self._get_traces(model, guide, args, kwargs))
        return torch.stack([self._negative_elbo(batch, traced=True) for batch in runs]).sum()

    def set_up(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
        """The guide's first call, which makes its parameters, and what the loss learns from it.

        It takes no random numbers from later calls, so that training can resume.
        """
        with forked_rng(), naming_culprits(model, guide, args, kwargs):
            self._check_independence(model, guide, args, kwargs)
            guide_trace = self._trace_guide(guide, args, kwargs)[0]
            check_subsamples(guide_trace, model, args, kwargs)
            self._notice_rates(guide_trace, model, guide, args, kwargs)
            if self.vectorize_particles and self.max_plate_nesting == float("inf"):
                self._guess_max_plate_nesting(model, guide, args, kwargs)

    def refresh(self) -> None:
        """Called before a traced estimate is evaluated again: brings tensors up to date that stand for numbers."""

    def _particles(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Losses that add up to the estimate, each finite, with the parameters they depend on."""
        check_functions(model=model, guide=guide)
        with naming_culprits(model, guide, args, kwargs):
            for runs in self._batches(self._get_traces(model, guide, args, kwargs)):
                loss = self._negative_elbo(runs)
                if not bool(torch.isfinite(loss)):
                    raise not_finite(f"the loss is {torch_item(loss)}")
                yield loss, _parameters(runs)

    def _batches(self, runs: Iterator[GuidedRun]) -> Iterator[list[GuidedRun]]:
        """The runs that have to be evaluated together: here, as the ELBO is linear in particles, each alone."""
        return ([run] for run in runs)

    def _get_traces(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[GuidedRun]:
        if self._rates is _Rates.UNKNOWN:
            self.set_up(model, guide, *args, **kwargs)
        self._check_independence(model, guide, args, kwargs)  # of a single particle
        return super()._get_traces(model, guide, args, kwargs)

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> GuidedRun:
        guide_trace, draws = self._trace_guide(guide, args, kwargs)
        if self._notice_rates(guide_trace, model, guide, args, kwargs):
            guide_trace, draws = self._trace_guide(guide, args, kwargs)
        if self.gradient is not None and not self._estimates_rates and torch.is_grad_enabled():
            raise ValueError(
                f"gradient={self.gradient} is for learned rates of hard masks, and the guide has none: leave it out, "
                "or learn rates with AutoBernoulliDropout(model, learnable=True)"
            )
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        self._notice_apart(model_trace, guide_trace, model, args, kwargs)
        if is_validation_enabled():
            if self._estimates_rates:
                traces = (without_members(trace, int(self.max_plate_nesting)) for trace in (model_trace, guide_trace))
                check_model_guide_match(*traces)
            else:
                check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        return GuidedRun(model_trace, guide_trace, draws)

    @property
    def _estimates_rates(self) -> bool:
        return self._rates is _Rates.ESTIMATED

    def _notice_rates(self, guide_trace: Any, model: Callable, guide: Callable, args: Any, kwargs: Any) -> bool:
        """Whether the guide has come to learn rates of hard masks, or ceased to, since the last run."""
        learned = any(isinstance(s["fn"], Mask) and s["fn"].learned for _, s in sample_sites(guide_trace))
        if not learned and not torch.is_grad_enabled():
            learned = self._estimates_rates  # a rate that is computed from a parameter does not show that it is learned
        changed = learned != self._estimates_rates
        if changed and self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        self._rates = _Rates.ESTIMATED if learned else _Rates.DIFFERENTIATED
        return changed

    @property
    def _needs_data(self) -> str:
        """Why it must be known what one datum is, if it must."""
        if self.masks == "draw":
            return ""
        return (
            "masks, but masks per datum need to know what one datum is: put it into "
            '`with pyro.plate("data", N)`, or use masks="draw"'
        )

    def _notice_apart(self, model_trace: Any, guide_trace: Any, model: Callable, args: Any, kwargs: Any) -> None:
        """Looks at observed sites in no plate of data when they are met first: do they depend on masks?"""
        if not self._needs_data or is_traced():
            return
        unknown = beside_data(_sample_sites(model_trace), guide_trace) - self._apart
        if unknown:
            self._apart |= self._of_no_mask(unknown, model, guide_trace, args, kwargs)
            self._check_apart(unknown)

    def _check_apart(self, names: Collection[str]) -> None:
        """Raises where one of these sites in no plate of data is not known to depend on no mask."""
        for name in sorted(set(names) - self._apart):
            raise ValueError(f"observed site {name!r} is in no data plate and depends on {self._needs_data}")

    def _of_no_mask(self, names: set[str], model: Callable, guide_trace: Any, args: Any, kwargs: Any) -> set[str]:
        return apart(names, model, guide_trace, args, kwargs)

    def _check_independence(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> None:
        """Once for modes of modules, with the first data of more than one row; what is traced has run before."""
        if not is_traced() and not (self._independent and self._in_known_modes()):
            self._independent, modes = check_independence(model, guide, args, kwargs)
            self._modes = [(weakref.ref(module), training) for module, training in modes.items()]

    def _in_known_modes(self) -> bool:
        known = ((module(), training) for module, training in self._modes)
        return all(module is None or module.training == training for module, training in known)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which looks for itself."""
        return {**self.__dict__, "_independent": self.masks == "draw", "_modes": []}

    def _guess_max_plate_nesting(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> None:
        """As in Pyro, and makes sure once that the model takes a dimension left of its plates."""
        with forked_rng():
            super()._guess_max_plate_nesting(model, guide, args, kwargs)
            if is_validation_enabled():
                nesting = int(self.max_plate_nesting) - (self.vectorize_particles and self.num_particles > 1)
                try:
                    with trial_run(), torch.no_grad(), poutine.block():
                        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
                        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
                    self._notice_apart(model_trace, guide_trace, model, args, kwargs)
                    check_broadcasting(model, Members(DisARM(), nesting)(guide), nesting, args, kwargs)
                except Exception:
                    self.max_plate_nesting = float("inf")  # or the next call would take it for checked
                    raise

    def _trace_guide(self, guide: Callable, args: Any, kwargs: Any) -> tuple[Any, list[JointDraw]]:
        draws: list[JointDraw] = []
        if self._estimates_rates:
            members = Members(self._estimator, int(self.max_plate_nesting))
            guide, draws = members(guide), members.draws
        if self.masks == "datum":
            guide = DatumMasks()(guide)
        return poutine.trace(guide).get_trace(*args, **kwargs), draws

    @property
    def _estimator(self) -> GradientEstimator:
        return self.gradient or DisARM()

    @single_precision()
    def _negative_elbo(self, runs: list[GuidedRun], traced: bool = False) -> Tensor:
        data = self._data_terms(runs, traced)
        latent = [[self._share(term) for term in self._latent_terms(run)] for run in runs]
        loss = self._total([*data.loss, *(term for terms in latent for term in terms)])
        if torch.is_grad_enabled():
            for run, signal, terms in zip(runs, data.changed, latent, strict=True):
                signal = [*signal, *(term for term in terms if self._has_members(term))]
                for draw in run.draws:
                    losses = sum(self._changed_by(draw, term) for term in signal)
                    if isinstance(losses, Tensor):  # else nothing depends on these masks
                        # Its gradient is the estimate of that of the rates; its value is none of the loss's.
                        surrogate = self._estimator.surrogate(losses, *draw)
                        loss = loss + (surrogate - surrogate.detach())
        return loss

    def _changed_by(self, draw: JointDraw, term: Tensor) -> Tensor:
        """What each of these masks could have changed of a term, ``[members, *shape]`` as the masks."""
        return could_have_changed(term, draw.z.shape[1:-1])

    def _data_terms(self, runs: list[GuidedRun], traced: bool) -> Terms:
        """The observed sites' terms.

        :param traced: whether a graph is written, in which numbers that may change between steps stand as tensors.
        """
        terms = [[-self._share(t) for _, t in self._log_likelihoods(run)] for run in runs]
        changed = [[term for term in of_run if self._has_members(term)] for of_run in terms]
        return Terms([term for of_run in terms for term in of_run], changed)

    def _share(self, term: Tensor) -> Tensor:
        """A particle's part in the mean."""
        return term if self.num_particles == 1 else term / self.num_particles

    def _log_likelihoods(self, run: GuidedRun) -> Iterator[tuple[Any, Tensor]]:
        """Observed sites and their log-densities, scaled and masked."""
        model_sites = _sample_sites(run.model_trace)
        if self.masks == "datum":
            check_data_plates(model_sites, run.guide_trace, apart=self._apart)
        for name, site in model_sites.items():
            if site["is_observed"]:
                run.model_trace.compute_log_prob(site_filter=lambda n, _, name=name: n == name)
                if is_validation_enabled():
                    check_site_shape(site, self.max_plate_nesting)
                check_depth(site, self.max_plate_nesting + self._estimates_rates)
                if site["log_prob"].is_complex():
                    raise ValueError(
                        f"observed site {name!r} has a log-density of complex numbers: is its value complex?"
                    )
                yield site, site["log_prob"]

    def _latent_terms(self, run: GuidedRun) -> Iterator[Tensor]:
        """The latent sites' terms of the loss of all particles: their KL, in closed form or estimated."""
        model_sites, guide_sites = _sample_sites(run.model_trace), _sample_sites(run.guide_trace)
        for name, site in model_sites.items():
            if site["is_observed"]:
                continue
            if name not in guide_sites:
                raise ValueError(
                    f"latent site {name!r} of the model is not in the guide: the loss needs a guide for it"
                )
            for term in kl_terms(guide_sites[name], site):
                yield term[0] if self._has_members(term) and term.stride(0) == 0 else term
        auxiliary = {name: site for name, site in guide_sites.items() if name not in model_sites}
        if not is_traced():
            check_masks_of_weights(guide_sites, auxiliary)
        for site in auxiliary.values():
            yield -scaled(entropy(site), site)

    def _has_members(self, term: Tensor) -> bool:
        """Whether a term has a value for each member of the estimator, in the dimension left of all plates."""
        return self._estimates_rates and term.dim() > self.max_plate_nesting

    def _total(self, terms: list[Tensor]) -> Tensor:
        """The sum of all terms, over members their weighted mean."""
        sums = [term.sum() if term.dim() else term for term in terms if not self._has_members(term)]
        varying = [term.reshape(len(term), -1).sum(1) for term in terms if self._has_members(term)]
        if varying:
            sums.append(self._mean_over_members(torch.stack(varying).sum(0)))
        return torch.stack(sums).sum() if sums else torch.zeros(())

    def _mean_over_members(self, term: Tensor) -> Tensor:
        return torch.tensordot(term.new_tensor(self._estimator.weights), term, dims=1)


class _Rates(Enum):
    """How the guide's rates learn, which the first run tells."""

    UNKNOWN = "no run yet"
    DIFFERENTIATED = "not at all, or through relaxed masks"
    ESTIMATED = "of hard masks, by an estimator of their gradient"


def _sample_sites(trace: Any) -> dict[str, Any]:
    return {name: site for name, site in sample_sites(trace) if not is_deterministic(site)}


def _parameters(runs: list[GuidedRun]) -> dict[str, Tensor]:
    nodes = [node for run in runs for t in (run.model_trace, run.guide_trace) for node in t.nodes.items()]
    sites = {name: site["value"] for name, site in nodes if site["type"] == "param"}
    return {name: getattr(value, "unconstrained", lambda v=value: v)() for name, value in sites.items()}
