"""Export of a fitted SVI to ArviZ, in the way of ``arviz.from_numpyro_svi``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import SVI
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_dropout._checks import check_counts, check_flags, said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._sites import is_deterministic, is_of_network, plate_nesting, sample_sites
from pyro_dropout.guides.rates import rates_of
from pyro_dropout.interop.groups import inference_data
from pyro_dropout.prediction.draws import PLATE, draws_plate, replayed
from pyro_dropout.weights.weight import MaskedWeight


def from_pyro_svi(
    svi: SVI,
    *,
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    prior: bool = False,
    weights: bool = False,
    constant_data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    parallel: bool = True,
) -> Any:
    """Draws from a fitted guide and model as ArviZ groups.

    ``posterior`` (non-weight latents, and each site's current drop rate as ``<site>.rate``),
    ``posterior_predictive``, ``log_likelihood`` (pointwise, without the plate's scale or a ``poutine.mask``),
    ``observed_data`` and ``constant_data`` (the model's other tensor arguments), all from the same draws; ``prior``
    and ``prior_predictive`` on request.
    Dimensions carry the names of the model's plates. SVI has one chain.

    :param svi: a :class:`pyro.infer.SVI` or anything with ``model`` and ``guide``.
    :param model_args: arguments of the model, data included.
    :param model_kwargs: keyword arguments of the model.
    :param num_samples: number of draws.
    :param prior: also draw from the prior.
    :param weights: also export weights of networks (every latent with two or more event dimensions), dense, and their
        masks; this can be large.
    :param constant_data: variables of that group, instead of the model's tensor arguments.
    :param coords: as in ArviZ.
    :param dims: as in ArviZ; by default plates name them.
    :param parallel: draw all at once, in a plate left of the model's own (as ``Predictive(parallel=True)``), or
        one after the other, for models that do not broadcast.
    :returns: ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).
    :raises ValueError: the model observes nothing, or the draws are not finite.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule, TraceDropout_ELBO
        >>> net = BayesianModule(torch.nn.Linear(3, 1))
        >>> def model(x, y=None):
        ...     mean = net(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        >>> svi = SVI(model, AutoConcreteDropout(model), pyro.optim.Adam({}), TraceDropout_ELBO())
        >>> x, y = torch.randn(5, 3), torch.randn(5)
        >>> _ = svi.step(x, y)
        >>> idata = from_pyro_svi(svi, model_args=(x, y), num_samples=10)
        >>> idata["log_likelihood"]["obs"].dims
        ('chain', 'draw', 'data')
    """
    if isinstance(svi, type) or not (callable(getattr(svi, "model", None)) and callable(getattr(svi, "guide", None))):
        raise TypeError(f"svi must have a model and a guide, as pyro.infer.SVI has, but found {said(svi)}")
    if not isinstance(model_args, tuple | list):
        raise TypeError(f"model_args must be a tuple of the model's arguments, but found {said(model_args)}")
    for name, value in {
        "model_kwargs": model_kwargs,
        "constant_data": constant_data,
        "coords": coords,
        "dims": dims,
    }.items():
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise TypeError(f"{name} must be a mapping of names, but found {said(value)}")
    check_counts(num_samples=num_samples)
    check_flags(prior=prior, weights=weights, parallel=parallel)
    kwargs = dict(model_kwargs or {})
    with said_of_arguments("the model, run on model_args and model_kwargs,", model_args, kwargs):
        arrays, named = _exported(svi, model_args, kwargs, num_samples, prior, weights, parallel)
        if constant_data is not None:
            arrays["constant_data"] = {n: _array(v) for n, v in constant_data.items()}
        import arviz  # here: it is slow to import, and 0.23 warns as it is

        try:
            return inference_data(arviz, arrays, dict(coords or {}), named | dict(dims or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"coords or dims do not fit the draws: {error}") from error


def _exported(
    svi: Any, model_args: Any, kwargs: dict[str, Any], num_samples: int, prior: bool, weights: bool, parallel: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Groups of arrays, and the names of their dimensions."""
    with torch.no_grad(), poutine.block():
        one = poutine.trace(svi.model).get_trace(*model_args, **kwargs)
    observed = {n: site["value"] for n, site in sample_sites(one) if site["is_observed"] and not is_deterministic(site)}
    if not observed:
        raise ValueError("the model observes nothing with these arguments: pass the data in model_args")
    # A plate that draws its subsample keeps this one, so that all draws see the same data.
    indices = {n: s["value"] for n, s in one.nodes.items() if s["type"] == "sample" and site_is_subsample(s)}
    model, guide = (poutine.condition(f, data=indices) for f in (svi.model, svi.guide))
    posterior = _draw(model, guide, model_args, kwargs, num_samples, parallel, one)
    rates = {f"{n}.rate": r.expand(num_samples, *r.shape) for n, r in rates_of(svi.guide).items()}  # the same for all
    groups: dict[str, dict[str, Tensor]] = {
        "posterior": posterior.latents(weights) | rates,
        "posterior_predictive": posterior.predictive,
        "log_likelihood": posterior.log_likelihood,
    }
    if prior:
        drawn = _draw(model, None, model_args, kwargs, num_samples, parallel, one)
        groups |= {"prior": drawn.latents(weights), "prior_predictive": drawn.predictive}
    for group, variables in groups.items():
        for name, value in variables.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"draws of {name!r} in group {group} are not finite: was the fit finite?")
    arrays = {group: {n: _array(v)[None] for n, v in variables.items()} for group, variables in groups.items()}
    arrays["observed_data"] = {n: _array(v) for n, v in observed.items()}
    arrays["constant_data"] = {n: _array(v) for n, v in _inputs(svi.model, model_args, kwargs, observed).items()}
    return arrays, posterior.dims


@dataclass
class _Exported:
    """What one set of draws gives, each ``[num_samples, *the site's plates, *event]``."""

    small: dict[str, Tensor] = field(default_factory=dict)  # latents other than a network's weights
    weights: dict[str, Tensor] = field(default_factory=dict)
    predictive: dict[str, Tensor] = field(default_factory=dict)
    log_likelihood: dict[str, Tensor] = field(default_factory=dict)
    dims: dict[str, list[str]] = field(default_factory=dict)

    def latents(self, weights: bool) -> dict[str, Tensor]:
        return self.small | self.weights if weights else self.small


def _draw(model: Callable, guide: Any, args: Any, kwargs: Any, num_samples: int, parallel: bool, one: Any) -> _Exported:
    """Latents from the guide (or, without one, the prior); for each the data's log-likelihood and a replicate.

    :param one: a trace of the model without the plate of draws, for shapes.
    """
    with torch.no_grad(), poutine.block():
        nesting = plate_nesting(one)
        if parallel:
            plate = draws_plate(num_samples, nesting)
            trace = _run(plate(model), plate(guide) if guide else None, args, kwargs)
            return _from_trace(trace, one, nesting, num_samples)
        runs = [_from_trace(_run(model, guide, args, kwargs), one, nesting, 0) for _ in range(num_samples)]
    stacked = _Exported(dims=runs[0].dims)
    for group in ("small", "weights", "predictive", "log_likelihood"):
        names = getattr(runs[0], group)
        setattr(stacked, group, {n: torch.stack([getattr(run, group)[n] for run in runs]) for n in names})
    return stacked


def _run(model: Callable, guide: Any, args: Any, kwargs: Any) -> Any:
    if guide is None:
        return poutine.trace(model).get_trace(*args, **kwargs)
    return replayed(model, guide, args, kwargs)[1]


def _from_trace(trace: Any, one: Any, nesting: int, num_samples: int) -> _Exported:
    draws = _Exported()
    number: tuple[int, ...] = (num_samples,) if num_samples else ()
    for name, site in sample_sites(trace):
        fn, value = site["fn"], site["value"]
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PLATE]
        frames.sort(key=lambda f: f.dim)
        draws.dims[name] = [f.name for f in frames]
        plates = [f.dim for f in frames]
        if is_deterministic(site):  # declares no event dimensions, so its batch may stand anywhere
            shape = one.nodes[name]["value"].shape
            each = value.numel() == shape.numel() * max(num_samples, 1)
            draws.small[name] = (
                value.reshape((*number, *shape)) if each else value.reshape(shape).expand((*number, *shape))
            )
        elif site["is_observed"]:
            draws.predictive[name] = _in_plates(fn(), fn.event_dim, plates, nesting, number)
            log_prob = fn.log_prob(value).double()  # ArviZ weighs draws by their exponents in the type that it gets
            draws.log_likelihood[name] = _in_plates(log_prob, 0, plates, nesting, number)
        elif is_of_network(one.nodes[name]):
            dense = value.dense() if isinstance(value, MaskedWeight) else value
            draws.weights[name] = _in_plates(dense, fn.event_dim, plates, nesting, number)
            for switch in value.switches if isinstance(value, MaskedWeight) else ():
                mask: Any = switch.mask
                draws.weights[switch.name + ".mask"] = _in_plates(mask, 1, plates, nesting, number)
        else:
            draws.small[name] = _in_plates(value, fn.event_dim, plates, nesting, number)
    return draws


def _in_plates(t: Tensor, event_dim: int, plates: list[int], nesting: int, number: tuple[int, ...]) -> Tensor:
    """``[*number, *the site's plates, *event]`` from a batch shape with a place for every plate of the model.

    :param plates: dimensions of the site's plates, from the right.
    :param nesting: number of plate dimensions of the model.
    :param number: of draws, where there is a plate of them, as a shape.
    """
    event = t.shape[t.dim() - event_dim :]
    batch = (1,) * (nesting + 1 + event_dim - t.dim()) + tuple(t.shape[: t.dim() - event_dim])
    kept = tuple(batch[dim] for dim in plates)
    return t.reshape((*batch[: len(number)], *kept, *event)).expand((*number, *kept, *event))


def _inputs(model: Any, args: Any, kwargs: Any, observed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensor arguments, by name, that are not what it observes."""
    function = model.forward if isinstance(model, nn.Module) else model
    arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    seen = {id(value) for value in observed.values()}
    return {n: a for n, a in arguments.items() if isinstance(a, Tensor) and id(a) not in seen}


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
