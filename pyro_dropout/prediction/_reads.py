"""What is read at a site of the model's trace: its value, its moments, its log-density.

A reading takes a name, the site, and whether it is among the guide's; None where the site has nothing of the kind.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Categorical

from pyro_dropout._sites import elementwise, is_deterministic
from pyro_dropout.weights.weight import MaskedWeight


def read_value(name: str, site: Any, latent: bool) -> tuple[Tensor]:
    value = site["value"]
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is no tensor, but {type(value).__name__}, and cannot be returned")
    return (value.dense() if isinstance(value, MaskedWeight) else value,)


def read_moments(name: str, site: Any, latent: bool) -> tuple[Tensor, ...] | None:
    if latent or isinstance(site.get("fn"), Unit):
        return None
    if name == "_RETURN" or is_deterministic(site):
        (value,) = read_value(name, site, latent)
        value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
        return value, torch.zeros_like(value)
    fn, base = site["fn"], elementwise(site["fn"])
    if isinstance(base, Categorical):
        return base.probs, base.probs * (1 - base.probs)
    try:
        return fn.mean, fn.variance
    except NotImplementedError as error:
        raise NotImplementedError(
            f"site {name!r} has a {type(base).__name__}, which has no moments in closed form: name the other sites in "
            "return_sites, or take moments of draws"
        ) from error


def read_log_density(name: str, site: Any, latent: bool) -> tuple[Tensor, ...] | None:
    if latent or name == "_RETURN" or not site["is_observed"] or is_deterministic(site) or isinstance(site["fn"], Unit):
        return None
    return (scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"]),)


def location(fn: Any) -> Tensor:
    """What tells a distribution from one of the same family; of a deterministic site its value."""
    base = elementwise(fn)
    if isinstance(base, Categorical):
        return base.logits[..., 0]
    try:
        return fn.mean
    except NotImplementedError:
        return torch.zeros(fn.batch_shape + fn.event_shape)
