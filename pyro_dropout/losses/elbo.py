"""Objectives for dropout posteriors: the ELBO with the exact KL and one mask per datum.

Last in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_dropout.weights.plates import (
    check_broadcasting,
    check_data_plates,
    check_depth,
    explain_gradients,
    find_nonfinite,
    finite_gradients,
    without_members,
)
from pyro_dropout.masks.distributions import (
    BernoulliMask,
    ConcreteMask,
    MaskedDelta,
    point_cross_entropy,
    quantised_cross_entropy,
)
from pyro_dropout.masks.estimators import ESTIMATORS, DisARM, GradientEstimator
from pyro_dropout.masks.messengers import DatumMasks, Draw, MemberMask, Members
from pyro_dropout._sites import forked_rng, holds, is_deterministic, sample_sites


class Run(NamedTuple):
    """One run of guide and model, and the joint draws of masks in it whose rates are learned."""

    model_trace: Any
    guide_trace: Any
    draws: list[Draw]


class TraceDropout_ELBO(ELBO):
    r"""The negative ELBO of a dropout posterior:

    .. math:: -\frac{N}{B} \sum_{n} \mathbb{E}_q \log p(y_n \mid x_n, W) + \mathrm{KL}(q \| p), \quad
        \mathrm{KL} = -\sum_k H(\mathrm{keep}_k)
        - \sum_w \bigl[\mathrm{keep} \log p(\mathrm{loc}/\mathrm{keep}) + \mathrm{rate} \log p(0)\bigr]

    (CD eq. 1 and 3, LBD section 2.2, as a sum over the whole data set and with the prior's constants; N/B is the
    plate's own scale). No density of a dense weight is evaluated. Relaxed masks keep the KL of binary ones
    (CD appendix B, first interpretation). Other latent sites contribute their closed-form KL where Pyro has one
    and a reparametrised estimate otherwise.

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
    With masks per datum the likelihood of a datum must depend on its own row of each layer's input alone: networks
    that mix the rows of a batch, or observations that pick rows by an index, need ``masks="draw"``.

    :raises ValueError: at a step: a loss that is not finite, in ``loss_and_grads`` (``SVI``) a gradient that is not
        finite either, with parameters left as they were; masks per datum without a data plate, or for a layer
        whose input does not have the data first; a ``gradient`` where no hard mask is learned.

    Example::

        >>> import pyro
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
        if masks not in ("datum", "draw"):
            raise ValueError(f'masks must be "datum" or "draw", but found {masks!r}')
        if isinstance(num_particles, bool) or not (isinstance(num_particles, int) and num_particles > 0):
            raise ValueError(f"num_particles must be a positive integer, but found {num_particles!r}")
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
        self._learned: bool | None = None  # hard masks with learned rates in the guide? the first run tells
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles and num_particles > 1,  # one needs no plate, nor its depth
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
        )

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO."""
        with torch.no_grad():
            return sum(torch_item(loss) for loss, _ in self._particles(model, guide, args, kwargs))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """An estimate of the negative ELBO, to call ``backward`` on."""
        losses = [loss for loss, _ in self._particles(model, guide, args, kwargs)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO, whose gradient is added to the parameters' ``grad``."""
        total = 0.0
        parameters: dict[str, Tensor] = {}
        try:
            for loss, parameters in self._particles(model, guide, args, kwargs):
                total += torch_item(loss)
                if loss.requires_grad:
                    loss.backward(retain_graph=self.retain_graph)
                    if not finite_gradients(parameters):
                        raise ValueError(explain_gradients(parameters, find_nonfinite(model, guide, args, kwargs)))
        except Exception:
            for parameter in parameters.values():
                parameter.grad = None  # or the next step would add to it
            raise
        return total

    def estimate(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The same as :meth:`differentiable_loss` without a look at any value, so that it can be traced."""
        runs = self._batches(self._get_traces(model, guide, args, kwargs))
        return torch.stack([self._negative_elbo(batch) for batch in runs]).sum()

    def set_up(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
        """The guide's first call, which makes its parameters, and what the loss learns from it.

        It takes no random numbers from later calls, so that training can resume.
        """
        with forked_rng(), _naming_culprits(model, guide, args, kwargs):
            self._look_at(self._trace_guide(guide, args, kwargs)[0], model, guide, args, kwargs)
            if self.vectorize_particles and self.max_plate_nesting == float("inf"):
                self._guess_max_plate_nesting(model, guide, args, kwargs)

    def refresh(self) -> None:
        """Called before a traced estimate is evaluated again: brings tensors up to date that stand for numbers."""

    def _particles(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Losses that add up to the estimate, each finite, with the parameters they depend on."""
        with _naming_culprits(model, guide, args, kwargs):
            for runs in self._batches(self._get_traces(model, guide, args, kwargs)):
                loss = self._negative_elbo(runs)
                if not bool(torch.isfinite(loss)):
                    raise ValueError(f"the loss is {torch_item(loss)}; parameters were not changed")
                yield loss, _parameters(runs)

    def _batches(self, runs: Iterator[Run]) -> Iterator[list[Run]]:
        """The runs that have to be evaluated together: here, as the ELBO is linear in particles, each alone."""
        return ([run] for run in runs)

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Run:
        if self._learned is None:
            self.set_up(model, guide, *args, **kwargs)
        guide_trace, draws = self._trace_guide(guide, args, kwargs)
        if self._look_at(guide_trace, model, guide, args, kwargs):
            guide_trace, draws = self._trace_guide(guide, args, kwargs)
        if self.gradient is not None and not self._learned and torch.is_grad_enabled():
            raise ValueError(
                f"gradient={self.gradient} is for learned rates of hard masks, and the guide has none: leave it out, "
                "or learn rates with AutoBernoulliDropout(model, learnable=True)"
            )
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            if self._learned:
                traces = (without_members(trace, int(self.max_plate_nesting)) for trace in (model_trace, guide_trace))
                check_model_guide_match(*traces)
            else:
                check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        return Run(model_trace, guide_trace, draws)

    def _look_at(self, guide_trace: Any, model: Callable, guide: Callable, args: Any, kwargs: Any) -> bool:
        """Whether the guide has come to learn rates of hard masks, or ceased to, since the last run."""
        learned = _has_learned_masks(guide_trace)
        before, self._learned = self._learned, bool(self._learned)
        # Under no_grad a rate that is computed from a parameter does not show that it is learned.
        if learned == bool(before) or not (learned or torch.is_grad_enabled()):
            return False
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        self._learned = learned
        return True

    def _guess_max_plate_nesting(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> None:
        """As in Pyro, and makes sure once that the model takes a dimension left of its plates."""
        with forked_rng():
            super()._guess_max_plate_nesting(model, guide, args, kwargs)
            if is_validation_enabled():
                nesting = int(self.max_plate_nesting) - (self.vectorize_particles and self.num_particles > 1)
                try:
                    check_broadcasting(model, Members(DisARM(), nesting)(guide), nesting, args, kwargs)
                except Exception:
                    self.max_plate_nesting = float("inf")  # or the next call would take it for checked
                    raise

    def _trace_guide(self, guide: Callable, args: Any, kwargs: Any) -> tuple[Any, list[Draw]]:
        draws: list[Draw] = []
        if self._learned:
            members = Members(self._estimator, int(self.max_plate_nesting))
            guide, draws = members(guide), members.draws
        if self.masks == "datum":
            guide = DatumMasks()(guide)
        return poutine.trace(guide).get_trace(*args, **kwargs), draws

    @property
    def _estimator(self) -> GradientEstimator:
        return self.gradient or DisARM()

    def _negative_elbo(self, runs: list[Run]) -> Tensor:
        terms, signals = self._data_terms(runs)
        for run, signal in zip(runs, signals, strict=True):
            latent = [term / self.num_particles for term in self._latent_terms(run)]
            terms += latent
            signal += [term for term in latent if self._has_members(term)]
        loss = self._total(terms)
        if torch.is_grad_enabled():
            for run, signal in zip(runs, signals, strict=True):
                for draw in run.draws:
                    losses = sum(_share(term, draw.z.shape[1:-1]) for term in signal)
                    if isinstance(losses, Tensor):  # else nothing depends on these masks
                        surrogate = self._estimator.surrogate(losses, *draw)
                        loss = loss + (surrogate - surrogate.detach())
        return loss

    def _data_terms(self, runs: list[Run]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The observed sites' terms of the loss, and for each run the losses that its masks could have changed.

        The latter are ``[members, *particles, *plates]``.
        """
        signals = [[-t / self.num_particles for _, t in self._log_likelihoods(run)] for run in runs]
        terms = [term for signal in signals for term in signal]
        return terms, [[term for term in signal if self._has_members(term)] for signal in signals]

    def _log_likelihoods(self, run: Run) -> Iterator[tuple[Any, Tensor]]:
        """Observed sites and their log-densities, scaled and masked."""
        model_sites = _sample_sites(run.model_trace)
        if self.masks == "datum":
            check_data_plates(model_sites, run.guide_trace)
        for name, site in model_sites.items():
            if site["is_observed"]:
                run.model_trace.compute_log_prob(site_filter=lambda n, _, name=name: n == name)
                if is_validation_enabled():
                    check_site_shape(site, self.max_plate_nesting)
                check_depth(site, self.max_plate_nesting + bool(self._learned))
                yield site, site["log_prob"]

    def _latent_terms(self, run: Run) -> Iterator[Tensor]:
        """The latent sites' terms of the loss of all particles: their KL, in closed form or estimated."""
        model_sites, guide_sites = _sample_sites(run.model_trace), _sample_sites(run.guide_trace)
        for name, site in model_sites.items():
            if site["is_observed"]:
                continue
            if name not in guide_sites:
                raise ValueError(
                    f"latent site {name!r} of the model is not in the guide: the loss needs a guide for it"
                )
            for term in _kl(guide_sites[name], site):
                yield term[0] if self._has_members(term) and term.stride(0) == 0 else term
        for name, site in guide_sites.items():
            if name not in model_sites:  # auxiliary
                yield -_scaled(_entropy(site), site)

    def _has_members(self, term: Tensor) -> bool:
        """Whether a term has a value for each member of the estimator, in the dimension left of all plates."""
        return bool(self._learned) and term.dim() > self.max_plate_nesting

    def _total(self, terms: list[Tensor]) -> Tensor:
        """The sum of all terms, over members their weighted mean."""
        sums = [term.sum() if term.dim() else term for term in terms if not self._has_members(term)]
        varying = [term.reshape(len(term), -1).sum(1) for term in terms if self._has_members(term)]
        if varying:
            sums.append(self._mean_over_members(torch.stack(varying).sum(0)))
        return torch.stack(sums).sum() if sums else torch.zeros(())

    def _mean_over_members(self, term: Tensor) -> Tensor:
        return torch.tensordot(term.new_tensor(self._estimator.weights), term, dims=1)


def _sample_sites(trace: Any) -> dict[str, Any]:
    return {name: site for name, site in sample_sites(trace) if not is_deterministic(site)}


def _has_learned_masks(guide_trace: Any) -> bool:
    fns = (site["fn"] for site in guide_trace.nodes.values() if site["type"] == "sample")
    return any(isinstance(fn, BernoulliMask | MemberMask) and fn.learned for fn in fns)


def _share(term: Tensor, shape: torch.Size) -> Tensor:
    """What masks of ``[*shape, units]`` could have changed of ``[members, *particles, *plates]``.

    Dimensions along which the masks differ are kept, the others summed. Sizes that do not match (other data, say)
    are summed too: each mask might have changed all of it.
    """
    if len(shape) > term.dim() - 1:
        raise NotImplementedError(
            "learned rates of hard masks with masks per datum need a vectorised data plate, `with pyro.plate(...)`; in "
            'a sequential one, `for i in pyro.plate(...)`, use masks="draw"'
        )
    own = (1,) * (term.dim() - 1 - len(shape)) + tuple(shape)
    summed = [d for d, (t, s) in enumerate(zip(term.shape[1:], own, strict=True), start=1) if t not in (1, s)]
    term = term.sum(summed, keepdim=True) if summed else term
    return term.expand(len(term), *own).reshape(len(term), *shape)


def _scaled(term: Tensor, site: Any) -> Tensor:
    return scale_and_mask(term, site["scale"], site["mask"])


def _kl(guide_site: Any, model_site: Any) -> Iterator[Tensor]:
    """A latent's terms of the loss, with the prior scaled and masked as in the model and q as in the guide."""
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, MaskedDelta):
        yield _scaled(quantised_cross_entropy(q.weight, p), model_site)  # the entropy is the mask site's
        return
    if isinstance(q, dist.Delta):
        yield _scaled(q.log_density, guide_site)
        yield _scaled(point_cross_entropy(q.v, p), model_site)
        return
    if not q.has_rsample:
        raise NotImplementedError(
            f"the guide's site {guide_site['name']!r} is {type(q).__name__}, which is not reparametrised: use "
            "Trace_ELBO, or a reparametrised guide for this site"
        )
    same_scale = _same(guide_site["scale"], model_site["scale"])
    closed_form = None
    if same_scale and guide_site["mask"] is model_site["mask"]:
        with suppress(NotImplementedError):
            closed_form = kl_divergence(q, p)
    if closed_form is not None:
        yield _scaled(closed_form, guide_site)
        return
    value = guide_site["value"]
    yield _scaled(q.log_prob(value), guide_site)
    yield -_scaled(p.log_prob(value), model_site)


def _same(a: Any, b: Any) -> bool:
    equal = a is b or a == b
    return holds(equal, unknown=False) if isinstance(equal, Tensor) else equal


def _entropy(site: Any) -> Tensor:
    fn = site["fn"]
    if isinstance(fn, BernoulliMask | ConcreteMask | MemberMask):
        return fn.entropy()
    if not fn.has_rsample:
        raise NotImplementedError(
            f"the guide's site {site['name']!r} is {type(fn).__name__} with learned parameters, whose gradient would "
            "be ignored here: use Trace_ELBO, or BernoulliMask"
        )
    return -fn.log_prob(site["value"])


@contextmanager
def _naming_culprits(model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[None]:
    """What is wrong with a value is said of what it came from."""
    try:
        yield
    except ValueError as error:
        culprit = find_nonfinite(model, guide, args, kwargs)
        if culprit:
            raise ValueError(f"{culprit}; parameters were not changed ({error})") from error
        raise


def _parameters(runs: list[Run]) -> dict[str, Tensor]:
    nodes = [node for run in runs for t in (run.model_trace, run.guide_trace) for node in t.nodes.items()]
    sites = {name: site["value"] for name, site in nodes if site["type"] == "param"}
    return {name: getattr(value, "unconstrained", lambda v=value: v)() for name, value in sites.items()}
