"""What the losses refuse, with the reason: data that masks per datum cannot serve, numbers that are not finite.

Beside the losses in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from pyro_dropout.masks.distributions import MaskedDelta
from pyro_dropout.masks.messengers import MemberMask
from pyro_dropout._sites import forked_rng
from pyro_dropout.weights.weight import DatumMask


def plates_of_weights(guide_trace: Any) -> set[str]:
    """Names of the plates that hold draws and networks, not data."""
    return {f.name for site in _weights(guide_trace) for f in site["cond_indep_stack"]} | {"num_particles_vectorized"}


def check_data_plates(model_sites: dict[str, Any], guide_trace: Any, rows: int | None = None) -> None:
    """One mask per datum needs a likelihood that factorises over data, and layers that see the data first.

    :param rows: number of data, where there is no plate to say so.
    """
    weights = _weights(guide_trace)
    names = plates_of_weights(guide_trace)
    around = {f for site in weights for f in site["cond_indep_stack"]}
    sizes = {} if rows is None else {"data": rows}
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
        masks = list(mask.entries.values()) or [mask]
        members = isinstance(mask.distribution, MemberMask)
        shapes = [shape[members and m is mask :] for m in masks for shape in m.draws]
        drawn = {size for shape in shapes for size in shape}
        last = {shape[-1] for shape in shapes if shape}
        if 1 in last and len(last) > 1:
            raise ValueError(
                f"weight {site['name']!r} drew a mask for one datum and masks for {max(last)}: where an observation "
                'depends on both, masks per datum would be independent; use masks="draw"'
            )
        if not drawn <= known:
            raise ValueError(
                f"weight {site['name']!r} drew masks for {min(drawn - known)} data, but the data plates are "
                f'{sizes}: the first dimension of a layer\'s input must be the data, or use masks="draw"'
            )


def check_depth(site: Any, max_depth: float) -> None:
    """A log-density must not have dimensions that no plate accounts for."""
    if site["log_prob"].dim() > max_depth:
        raise ValueError(
            f"observed site {site['name']!r} has log-density of shape {tuple(site['log_prob'].shape)}, with more "
            f"dimensions than plates, particles and members of an estimator together ({max_depth}): the data plate "
            "must be the one at dim -1, a vector of outputs is one observation by .to_event(1), and max_plate_nesting "
            "must count all plates of the model"
        )


def check_broadcasting(model: Any, guide: Any, max_plate_nesting: int, args: Any, kwargs: Any) -> None:
    """The model must give two draws of masks at once the log-densities that it gives them alone.

    :param guide: a guide whose masks have a leading dimension, by ``Members``.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if not _weights(guide_trace):
        return

    def log_probs(trace: Any) -> dict[str, Tensor]:
        with forked_rng(), torch.no_grad(), poutine.block():
            torch.manual_seed(0)  # the same random numbers of the model's own, a subsample say, in every run
            run = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
            run.compute_log_prob(site_filter=lambda _, site: site["is_observed"])
        return {n: s["log_prob"] for n, s in run.nodes.items() if s["type"] == "sample" and s["is_observed"]}

    together = log_probs(guide_trace)
    for member in range(2):
        alone = guide_trace.copy()
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and isinstance(site["value"], Tensor):
                alone.nodes[name] = {**site, "value": _of_member(site, member, max_plate_nesting)}
        for name, expected in log_probs(alone).items():
            found = together[name]
            found = found[member] if found.dim() > max_plate_nesting else found
            if not same_values(found, expected):
                raise ValueError(
                    "the model does not broadcast: with a dimension left of its plates, as particles and pairs of masks"
                    f" have it, observed site {name!r} has other log-densities than without; index its output "
                    "from the right (net(x)[..., 0] or .squeeze(-1), not net(x)[:, 0]), give BayesianModule the "
                    "event_dim of its inputs, or use fixed or relaxed masks, one particle at a time"
                )


def _of_member(site: Any, member: int, max_plate_nesting: int) -> Tensor:
    value = site["value"]
    event_dim = getattr(site["fn"], "event_dim", 0)
    if value.dim() - event_dim <= max_plate_nesting:
        return value
    value = value[member]
    own = max((-f.dim for f in site["cond_indep_stack"] if f.vectorized), default=0)
    return value.reshape(value.shape[value.dim() - event_dim - own :])


def same_values(a: Tensor, b: Tensor) -> bool:
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        return False
    tolerance = 100 * torch.finfo(a.dtype).eps ** 0.5
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all())


def without_members(trace: Any, max_plate_nesting: int) -> Any:
    """The trace as Pyro's checks expect it: no dimension left of the plates."""
    trace = trace.copy()
    for name, site in trace.nodes.items():
        fn = site.get("fn")
        if site["type"] == "sample" and len(getattr(fn, "batch_shape", ())) > max_plate_nesting:
            trace.nodes[name] = {**site, "fn": _Shape(fn, max_plate_nesting)}
    return trace


class _Shape:
    def __init__(self, fn: Any, max_plate_nesting: int) -> None:
        self.event_dim = fn.event_dim
        self._shape = fn.batch_shape[len(fn.batch_shape) - max_plate_nesting :] + fn.event_shape

    def shape(self, *args: Any, **kwargs: Any) -> torch.Size:
        return self._shape


def _weights(guide_trace: Any) -> list[Any]:
    return [site for site in guide_trace.nodes.values() if isinstance(site.get("fn"), MaskedDelta)]


def finite_gradients(parameters: dict[str, Tensor]) -> bool:
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf"))).sum()))


def explain_gradients(parameters: dict[str, Tensor], culprit: str | None) -> str:
    broken = [n for n, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    why = culprit or "a function may have no slope where it was evaluated"
    return f"the loss is finite, but the gradient of {', '.join(broken)} is not: {why}; parameters were not changed"


def find_nonfinite(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
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
