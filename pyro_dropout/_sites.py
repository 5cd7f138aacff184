"""What a Pyro trace says about a model: its sites, the plates around them, which of them are a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.poutine.util import site_is_subsample
from torch.distributions import Independent, constraints


def sample_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """Latent, observed and deterministic sites, without subsamples of plates."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))


def plate_depth(site: Any) -> int:
    """Number of dimensions that the plates around a site take."""
    return max((-frame.dim for frame in site.get("cond_indep_stack", ()) if frame.vectorized), default=0)


def plate_nesting(trace: Any) -> int:
    """Number of dimensions that the trace's plates take."""
    return max((plate_depth(site) for _, site in sample_sites(trace)), default=0)


def elementwise(fn: Any) -> Any:
    """The distribution of single entries: without what ``.to_event`` put around it."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def is_of_network(site: Any) -> bool:
    """Whether a latent site is a network's: a parameter of a ``BayesianModule``, or of two or more event dimensions."""
    return "masked_units" in site["infer"] or getattr(site["fn"], "event_dim", 0) >= 2


def is_weight(site: Any) -> bool:
    """Whether a dropout guide may mask a site: a network's latent with units, which a bias or a scale has not.

    A matrix that is constrained, a Cholesky factor say, is none; of a ``BayesianModule`` the guide says so.
    """
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return False
    if "masked_units" in site["infer"]:
        return site["infer"]["masked_units"] is not None
    return getattr(site["fn"], "event_dim", 0) >= 2 and has_real_support(site["fn"])


def has_real_support(fn: Any) -> bool:
    return getattr(fn.support, "base_constraint", fn.support) is constraints.real
