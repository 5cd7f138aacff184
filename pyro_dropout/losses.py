"""Objectives for dropout posteriors: the ELBO with the exact KL and one mask per datum.

Last in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_dropout.distributions import (
    BernoulliMask,
    ConcreteMask,
    MaskedDelta,
    point_cross_entropy,
    quantised_cross_entropy,
)
from pyro_dropout.weight import DatumMask


class DatumMasks(Messenger):
    """Leaves a guide's masks undrawn, so that each layer draws one mask per datum when it sees the data.

    Example::

        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.5)
        >>> with DatumMasks():
        ...     weight = guide(torch.zeros(8, 3))["weight"]
        >>> _ = nn.functional.linear(torch.ones(8, 3), weight)
        >>> weight.mask.draw((8,)).shape
        torch.Size([8, 3])
    """

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], BernoulliMask | ConcreteMask) and msg["value"] is None:
            msg["value"] = DatumMask(msg["fn"])
            msg["done"] = True


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
    :param max_plate_nesting: as in Pyro; guessed from one run if particles are vectorised.
    :param retain_graph: as in Pyro.
    :raises ValueError: at a step: a loss that is not finite, in ``loss_and_grads`` (``SVI``) a gradient that is not
        finite either, with parameters left as they were; masks per datum without a data plate, or for a layer
        whose input does not have the data first.

    Example::

        >>> import pyro
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> net = BayesianModule(nn.Linear(3, 1))
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
        max_plate_nesting: float = float("inf"),
        retain_graph: bool | None = None,
    ) -> None:
        if masks not in ("datum", "draw"):
            raise ValueError(f'masks must be "datum" or "draw", but found {masks!r}')
        if isinstance(num_particles, bool) or not (isinstance(num_particles, int) and num_particles > 0):
            raise ValueError(f"num_particles must be a positive integer, but found {num_particles!r}")
        self.masks = masks
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
                    if not _finite_gradients(parameters):
                        raise ValueError(_explain_gradients(parameters, _find_nonfinite(model, guide, args, kwargs)))
        except ValueError:
            for parameter in parameters.values():
                parameter.grad = None  # or the next step would add to it
            raise
        return total

    def _particles(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Losses that add up to the estimate, each finite, with the parameters they depend on."""
        try:
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
                loss = self._negative_elbo(model_trace, guide_trace) / self.num_particles
                if not bool(torch.isfinite(loss)):
                    raise ValueError(f"the loss is {torch_item(loss)}; parameters were not changed")
                yield loss, _parameters(model_trace, guide_trace)
        except ValueError as error:
            culprit = _find_nonfinite(model, guide, args, kwargs)
            if culprit:
                raise ValueError(f"{culprit}; parameters were not changed ({error})") from error
            raise

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Any:
        if self.masks == "datum":
            guide = DatumMasks()(guide)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        return model_trace, guide_trace

    def _negative_elbo(self, model_trace: Any, guide_trace: Any) -> Tensor:
        model_sites, guide_sites = _sample_sites(model_trace), _sample_sites(guide_trace)
        if self.masks == "datum":
            _check_data_plates(model_sites, guide_sites)
        terms = []  # of the loss
        gains = []  # to subtract
        for name, site in model_sites.items():
            if site["is_observed"]:
                gains.append(_log_prob_sum(model_trace, name, self.max_plate_nesting))
            elif name not in guide_sites:
                raise ValueError(
                    f"latent site {name!r} of the model is not in the guide: the loss needs a guide for it"
                )
            else:
                terms.append(_kl(guide_sites[name], site))
        for name, site in guide_sites.items():
            if name not in model_sites:  # auxiliary
                gains.append(_sum(_entropy(site), site))
        return _total(terms) - _total(gains)


def _sample_sites(trace: Any) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _sum(term: Tensor, site: Any) -> Tensor:
    term = scale_and_mask(term, site["scale"], site["mask"])
    return term.sum() if term.dim() else term


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _log_prob_sum(trace: Any, name: str, max_plate_nesting: float) -> Tensor:
    trace.compute_log_prob(site_filter=lambda n, _: n == name)
    site = trace.nodes[name]
    if is_validation_enabled():
        check_site_shape(site, max_plate_nesting)
    return site["log_prob_sum"]


def _kl(guide_site: Any, model_site: Any) -> Tensor:
    """A latent's share of the loss, with the prior scaled and masked as in the model and q as in the guide."""
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, MaskedDelta):
        return _sum(quantised_cross_entropy(q.weight, p), model_site)  # the entropy is the mask site's
    if isinstance(q, dist.Delta):
        return _sum(q.log_density, guide_site) + _sum(point_cross_entropy(q.v, p), model_site)
    if not q.has_rsample:
        raise NotImplementedError(
            f"the guide's site {guide_site['name']!r} is {type(q).__name__}, which is not reparametrised: use "
            "Trace_ELBO, or a reparametrised guide for this site"
        )
    same_scale = guide_site["scale"] is model_site["scale"] or guide_site["scale"] == model_site["scale"]
    if same_scale and guide_site["mask"] is model_site["mask"]:
        with suppress(NotImplementedError):
            return _sum(kl_divergence(q, p), guide_site)
    value = guide_site["value"]
    return _sum(q.log_prob(value), guide_site) - _sum(p.log_prob(value), model_site)


def _entropy(site: Any) -> Tensor:
    fn = site["fn"]
    if not fn.has_rsample:
        raise NotImplementedError(
            f"the guide's site {site['name']!r} is {type(fn).__name__} with learned parameters, whose gradient would "
            "be ignored here: use Trace_ELBO, or relaxed masks"
        )
    if isinstance(fn, BernoulliMask | ConcreteMask):
        return fn.entropy()
    return -fn.log_prob(site["value"])


def _check_data_plates(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """One mask per datum needs a likelihood that factorises over data, and layers that see the data first."""
    weights = [s for s in guide_sites.values() if isinstance(s["fn"], MaskedDelta)]
    around = {f for site in weights for f in site["cond_indep_stack"]}
    names = {f.name for f in around} | {"num_particles_vectorized"}
    sizes = {}
    for name, site in model_sites.items():
        if weights and site["is_observed"]:
            data = {f.name: f.size for f in site["cond_indep_stack"] if f.name not in names}
            if not data:
                raise ValueError(
                    f"observed site {name!r} is in no data plate, but masks per datum need to know what one datum is: "
                    f'put it into `with pyro.plate("data", N)`, or use masks="draw"'
                )
            sizes.update(data)
    known = {1, *sizes.values(), *(f.size for f in around)}
    for site in weights:
        mask = site["fn"].weight.mask
        if not isinstance(mask, DatumMask):
            continue
        drawn = {size for m in (mask, *mask.entries.values()) for shape in m.draws for size in shape}
        if not drawn <= known:
            raise ValueError(
                f"weight {site['name']!r} drew masks for {min(drawn - known)} data, but the data plates are "
                f'{sizes}: the first dimension of a layer\'s input must be the data, or use masks="draw"'
            )


def _parameters(*traces: Any) -> dict[str, Tensor]:
    sites = {name: site["value"] for t in traces for name, site in t.nodes.items() if site["type"] == "param"}
    return {name: getattr(value, "unconstrained", lambda v=value: v)() for name, value in sites.items()}


def _finite_gradients(parameters: dict[str, Tensor]) -> bool:
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf"))).sum()))


def _explain_gradients(parameters: dict[str, Tensor], culprit: str | None) -> str:
    broken = [n for n, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    why = culprit or "a function may have no slope where it was evaluated"
    return f"the loss is finite, but the gradient of {', '.join(broken)} is not: {why}; parameters were not changed"


def _find_nonfinite(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
    """Names the argument or parameter that has NaN or infinite entries."""
    named = [(f"argument {i}", a) for i, a in enumerate(args)] + [(f"argument {k!r}", a) for k, a in kwargs.items()]
    for owner, module in (("guide", guide), ("model", model)):
        if isinstance(module, nn.Module):
            named += [(f"the {owner}'s parameter {n!r}", p) for n, p in module.named_parameters()]
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            broken = int((~torch.isfinite(value)).sum())
            if broken:
                return f"{name} has {broken} NaN or infinite entries of {value.numel()}"
    return None
