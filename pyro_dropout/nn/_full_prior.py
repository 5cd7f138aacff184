"""A prior in the full shape of its parameter, with its dtype, on its device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_dropout._checks import check_distributions


def full_prior(name: str, parameter: Tensor, prior: Any) -> Any:
    """The distribution over the whole parameter that a user's distribution over one weight, or over all, stands for.

    :raises TypeError: what is no distribution.
    :raises ValueError: a shape that is not the parameter's and does not expand to it; tensors that require gradients.
    """
    shape = parameter.shape
    check_distributions(**{f"the prior of {name!r}": prior})
    if learned := _learned(prior):
        raise ValueError(
            f"the prior of {name!r} has {', '.join(learned)} that a parameter stands behind, but priors of "
            "BayesianModule are fixed: what is to be learned of a prior is latent in a model that samples its weights "
            "itself (PyroSample), or a buffer that is set between steps"
        )
    prior = moved(prior, parameter)
    if prior.support is constraints.real:
        prior.__dict__["_validate_args"] = False  # any value is in its support: nothing to check at every step
    if not prior.event_shape:
        try:
            full = prior.expand(shape).to_event(len(shape))
        except RuntimeError as error:
            raise ValueError(
                f"the prior of {name!r} has batch shape {tuple(prior.batch_shape)}, which does not expand to the "
                f"parameter's shape {tuple(shape)}"
            ) from error
        full.__dict__["_validate_args"] = prior.__dict__.get("_validate_args", full._validate_args)
        return full
    if prior.batch_shape or prior.event_shape != shape:
        raise ValueError(
            f"the prior of {name!r} has shape {tuple(prior.shape())}, but the parameter has shape {tuple(shape)}"
        )
    return prior


def _learned(prior: Any) -> list[str]:
    """Names of a distribution's tensors that require a gradient."""
    names = []
    for key, value in vars(prior).items():
        if isinstance(value, Tensor) and value.requires_grad:
            names.append(key)
        elif isinstance(value, torch.distributions.Distribution):
            names += [f"{key}.{name}" for name in _learned(value)]
    return names


def moved(prior: Any, like: Tensor) -> Any:
    """The distribution with its tensors in the parameter's dtype and on its device."""
    prior = copy.copy(prior)
    for key, value in vars(prior).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            prior.__dict__[key] = value.detach().to(like.device, like.dtype)
        elif isinstance(value, torch.distributions.Distribution):
            prior.__dict__[key] = moved(value, like)
    return prior
