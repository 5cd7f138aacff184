"""Whether a model broadcasts over a dimension left of its plates, as particles and members of an estimator have it."""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_dropout._modes import forked_rng
from pyro_dropout._sites import plate_depth
from pyro_dropout._values import same_values
from pyro_dropout.weights.plates import masked_sites


def check_broadcasting(model: Any, guide: Any, max_plate_nesting: int, args: Any, kwargs: Any) -> None:
    """The model must give two draws of masks at once the log-densities that it gives them alone.

    :param guide: a guide whose masks have a leading dimension, by ``Members``.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if not masked_sites(guide_trace):
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
    return value.reshape(value.shape[value.dim() - event_dim - plate_depth(site) :])


def check_depth(site: Any, max_depth: float) -> None:
    """A log-density must not have dimensions that no plate accounts for."""
    if site["log_prob"].dim() > max_depth:
        raise ValueError(
            f"observed site {site['name']!r} has log-density of shape {tuple(site['log_prob'].shape)}, with more "
            f"dimensions than plates, particles and members of an estimator together ({max_depth}): the data plate "
            "must be the one at dim -1, a vector of outputs is one observation by .to_event(1), and max_plate_nesting "
            "must count all plates of the model"
        )


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
