"""The ELBO of guides whose latents depend on masks: mixtures over masks, which the bound mixes over a few draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_dropout._checks import check_counts
from pyro_dropout._modes import forked_rng
from pyro_dropout._sites import sample_sites
from pyro_dropout._values import is_traced
from pyro_dropout.losses._components import ComponentMembers, Components, Mixture, is_component
from pyro_dropout.losses._runs import GuidedRun
from pyro_dropout.losses._terms import could_have_changed, scaled
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.losses.nonfinite import naming_culprits
from pyro_dropout.masks.messengers import JointDraw


class SemiImplicitDropout_ELBO(TraceDropout_ELBO):
    r"""The negative lower bound of guides that are mixtures over masks (LBD eq. 5 and 6; Yin & Zhou 2018):

    .. math:: q(\eta) = \mathbb{E}_z q(\eta \mid z), \quad
        \mathcal{L}_V = \mathbb{E} \log p(x, \eta)
        - \mathbb{E} \log \frac{1}{V + 1} \sum_{v=0}^{V} q(\eta \mid z_v),

    with the masks z_0, ..., z_V from one distribution and η from the component of z_0. It rises with V, to the ELBO of
    the mixture; V = 0 is the ELBO that knows the mask.

    Masks are auxiliary sample sites of the guide, ``pyro.sample("mask", BernoulliMask(...), infer={"is_auxiliary":
    True})``, one for each datum in its plate, or one for all data. The guide is run once, with the masks of all
    components in a dimension left of its plates: what it computes from them must broadcast. Latents that depend on
    no mask, and weights with masks of their own, have the terms of :class:`~pyro_dropout.TraceDropout_ELBO`. Masks
    have no term: a prior on them, or on their rates, is the model's to say.

    Rates of hard masks learn by ``gradient``, from joint draws of all V + 1 masks. A site may say which units of which
    datum can change anything, ``infer={"relevant": x != 0}``: the others' share of the estimate is 0 instead of noise
    whose mean is 0.

    :param extra_masks: V, the number of masks beside the one that η is drawn with.
    :param annealing: β, a number or a function without arguments that returns one, called at every step: a factor of
        ``log q(η) - log p(η)`` of latents that depend on masks.
    :param kwargs: as in :class:`~pyro_dropout.TraceDropout_ELBO`.
    :raises ValueError: at a step: masks for all data with a subsample of them, whose bound no subsample tells; what
        :class:`~pyro_dropout.TraceDropout_ELBO` raises.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_dropout.masks import BernoulliMask
        >>> encoder = torch.nn.Linear(8, 2)
        >>> logits = torch.nn.Parameter(torch.zeros(8))  # of keeping
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Bernoulli(logits=eta.unsqueeze(-1) * torch.ones(8)).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder), pyro.param("logits", logits)
        ...     mask = BernoulliMask(logits=logits, units=8)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("mask", mask, infer={"is_auxiliary": True, "relevant": x != 0})
        ...         mean, log_scale = encoder(x * z / mask.keep).unbind(-1)
        ...         pyro.sample("eta", dist.Normal(mean, log_scale.exp()))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), SemiImplicitDropout_ELBO(extra_masks=2))
        >>> svi.step((torch.rand(5, 8) < 0.5).float()) > 0
        True
    """

    def __init__(
        self, extra_masks: int = 1, annealing: float | Callable[[], float] = 1.0, num_particles: int = 1, **kwargs: Any
    ) -> None:
        check_counts(least=0, extra_masks=extra_masks)
        self.extra_masks, self.annealing = extra_masks, annealing
        self._annealing_tensor = torch.ones(())  # β in a traced loss, where a number would be written into the graph
        self._annealing_now()  # a wrong one raises here
        super().__init__(num_particles, **{"masks": "draw", **kwargs})
        if self.masks != "draw":
            raise ValueError(
                'masks must be "draw": masks of data are sites of the guide in the data\'s plate, but found "datum"'
            )

    def refresh(self) -> None:
        self._annealing_tensor.fill_(self._annealing_now())

    def _annealing_now(self) -> float:
        return _finite(self.annealing() if callable(self.annealing) else self.annealing)

    def set_up(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
        if self.max_plate_nesting == float("inf"):  # where the dimension of components goes
            with forked_rng(), naming_culprits(model, guide, args, kwargs):
                self._guess_max_plate_nesting(model, guide, args, kwargs)
        super().set_up(model, guide, *args, **kwargs)

    def _trace_guide(self, guide: Callable, args: Any, kwargs: Any) -> tuple[Any, list[JointDraw]]:
        depth = int(self.max_plate_nesting)
        components = Components(self.extra_masks + 1, depth, self._estimates_rates)
        draws: list[JointDraw] = []
        guide = components(guide)
        if self._estimates_rates:
            members = ComponentMembers(self._estimator, depth)
            guide, draws = members(guide), members.draws
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for _, site in sample_sites(trace):
            if isinstance(site["fn"], Mixture):  # the model, which comes next, has no components
                site["value"] = site["value"].squeeze(site["fn"].dim_of_values)
        return trace, draws

    def _changed_by(self, draw: JointDraw, term: Tensor) -> Tensor:
        shape = draw.z.shape[1:-1]
        if len(shape) <= self.max_plate_nesting:  # of weights
            return super()._changed_by(draw, term)
        return could_have_changed(term, shape[1:]).unsqueeze(1)  # the same for the masks of all components

    def _latent_terms(self, run: GuidedRun) -> Iterator[Tensor]:
        sites = dict(sample_sites(run.guide_trace))
        masks = [name for name, site in sites.items() if is_component(site)]
        mixed = [name for name, site in sites.items() if isinstance(site["fn"], Mixture)]
        rest = run._replace(
            model_trace=_without(mixed, run.model_trace), guide_trace=_without([*masks, *mixed], run.guide_trace)
        )
        yield from super()._latent_terms(rest)
        pairs = [(sites[name], run.model_trace.nodes[name]) for name in mixed]
        beta = self._annealing_tensor if is_traced() else self._annealing_now()
        for term in self._mixed_terms(pairs, [sites[name] for name in masks]):
            yield beta * term

    def _mixed_terms(self, pairs: list[tuple[Any, Any]], masks: list[Any]) -> Iterator[Tensor]:
        """Log-density under the mixture, less that of the prior, of latents that depend on masks."""
        if not pairs:
            return
        for site, _ in pairs:
            if not site["fn"].has_rsample:
                raise NotImplementedError(
                    f"latent {site['name']!r} depends on masks and is {type(site['fn'].components).__name__}, which is "
                    "not reparametrised, so that its gradient would be ignored: use a reparametrised distribution"
                )
        if self.extra_masks == 0:
            closed = [_closed_form(*pair) for pair in pairs]
            if all(term is not None for term in closed):
                yield from (term for term in closed if term is not None)
                return
        yield _log_mixture([site for site, _ in pairs], masks, int(self.max_plate_nesting))
        for site, prior in pairs:
            yield -scaled(prior["fn"].log_prob(site["value"]), prior)


def _closed_form(guide_site: Any, model_site: Any) -> Tensor | None:
    """The KL of the only component, where there is one; a prior that has members would not meet its dimension."""
    q, p = guide_site["fn"], model_site["fn"]
    if len(p.batch_shape) >= -q.dim:
        return None
    if guide_site["scale"] != model_site["scale"] or guide_site["mask"] is not model_site["mask"]:
        return None
    with suppress(NotImplementedError):
        return scaled(kl_divergence(q.components, p).select(q.dim, 0), guide_site)
    return None


def _log_mixture(latents: list[Any], masks: list[Any], depth: int) -> Tensor:
    """Log-density of all latents under the mixture, one for each entry of the plates that all masks are in."""
    common = set.intersection(*({frame.name for frame in mask["cond_indep_stack"]} for mask in masks))
    total: Tensor | float = 0.0
    for site in latents:
        term = site["fn"].of_components(site["value"])
        if site["mask"] is not None:
            term = torch.where(torch.as_tensor(site["mask"]), term, 0.0)
        for frame in site["cond_indep_stack"]:
            if frame.name in common:
                continue
            if frame.full_size is not None and frame.full_size > frame.size:
                raise ValueError(
                    f"latent {site['name']!r} is in plate {frame.name!r}, a subsample, but not all masks are: the "
                    "density of a mixture is that of all data, which a subsample does not tell; give each datum a mask "
                    "of its own"
                )
            term = term.sum(frame.dim, keepdim=True)
        total = total + term
    scales = [site["scale"] for site in latents]
    if any(scale != scales[0] for scale in scales):
        raise NotImplementedError(
            f"latents {', '.join(site['name'] for site in latents)} have scales {scales}: those that depend on masks "
            "must have one"
        )
    assert isinstance(total, Tensor)
    dim = -1 - depth
    return scales[0] * (total.logsumexp(dim) - math.log(total.shape[dim]))


def _without(names: list[str], trace: Any) -> Any:
    trace = trace.copy()
    for name in names:
        trace.remove_node(name)
    return trace


def _finite(annealing: Any) -> float:
    try:
        number = float(annealing)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"annealing must be a number, or a function that returns one, but found {annealing!r}"
        ) from error
    if not math.isfinite(number):
        raise ValueError(f"annealing must be finite, but found {annealing!r}")
    return number
