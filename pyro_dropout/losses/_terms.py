"""A latent site's terms of the loss: its KL, its entropy, its scale; what a mask could have changed of a term."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_dropout._values import holds
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.weights.delta import MaskedDelta
from pyro_dropout.weights.kl import point_cross_entropy, quantised_cross_entropy


def scaled(term: Tensor, site: Any) -> Tensor:
    return scale_and_mask(term, site["scale"], site["mask"])


def kl_terms(guide_site: Any, model_site: Any) -> Iterator[Tensor]:
    """A latent's terms of the loss, with the prior scaled and masked as in the model and q as in the guide."""
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, MaskedDelta):
        yield scaled(quantised_cross_entropy(q.weight, p), model_site)  # the entropy is the mask site's
        return
    if isinstance(q, dist.Delta):
        yield scaled(q.log_density, guide_site)
        yield scaled(point_cross_entropy(q.v, p), model_site)
        return
    if not q.has_rsample:
        raise NotImplementedError(
            f"the guide's site {guide_site['name']!r} is {type(q).__name__}, which is not reparametrised: use "
            "Trace_ELBO, or a reparametrised guide for this site"
        )
    same_scale = _equal(guide_site["scale"], model_site["scale"])
    closed_form = None
    if same_scale and guide_site["mask"] is model_site["mask"]:
        with suppress(NotImplementedError):
            closed_form = kl_divergence(q, p)
    if closed_form is not None:
        yield scaled(closed_form, guide_site)
        return
    value = guide_site["value"]
    yield scaled(q.log_prob(value), guide_site)
    yield -scaled(p.log_prob(value), model_site)


def _equal(a: Any, b: Any) -> bool:
    equal = a is b or a == b
    return holds(equal, unknown=False) if isinstance(equal, Tensor) else equal


def entropy(site: Any) -> Tensor:
    fn = site["fn"]
    if isinstance(fn, Mask):
        return fn.entropy()
    if not fn.has_rsample:
        raise NotImplementedError(
            f"the guide's site {site['name']!r} is {type(fn).__name__} with learned parameters, whose gradient would "
            "be ignored here: use Trace_ELBO, or BernoulliMask"
        )
    return -fn.log_prob(site["value"])


def check_masks_of_weights(guide_sites: dict[str, Any], auxiliary: dict[str, Any]) -> None:
    """Raises for an auxiliary mask that is of no weight, whose entropy has no part in the bound.

    Guides of this package say of which it is; other masks are taken to be of the weights that wear none of those.
    """
    masks = {name: site for name, site in auxiliary.items() if isinstance(site["fn"], Mask)}
    said = {name for name, site in masks.items() if (site["infer"] or {}).get("of_weights")}
    if len(said) == len(masks):
        return
    weights = [site["fn"].weight for site in guide_sites.values() if isinstance(site["fn"], MaskedDelta)]
    worn = {_storage(switch.mask) for weight in weights for switch in weight.switches}
    if worn <= {_storage(masks[name]["value"]) for name in said}:
        name = next(name for name in masks if name not in said)
        raise ValueError(
            f"mask {name!r} is of no weight, as in a guide's own network (AuxiliaryDropout), so that latents are a "
            "mixture over masks: use SemiImplicitDropout_ELBO, with extra_masks=0 for the bound that knows the mask"
        )


def _storage(mask: Any) -> int:
    return mask.untyped_storage().data_ptr() if isinstance(mask, Tensor) else id(mask)


def could_have_changed(term: Tensor, shape: torch.Size) -> Tensor:
    """What masks of ``[*shape, units]`` could have changed of ``[members, *particles, *plates]``.

    Dimensions along which the masks differ are kept, the others summed. Sizes that do not match (other data, say)
    are summed too: each mask might have changed all of it.
    """
    if len(shape) > term.dim() - 1:
        raise NotImplementedError(
            "learned rates of hard masks with masks per datum need a vectorised data plate, `with pyro.plate(...)`; in "
            'a sequential one, `for i in pyro.plate(...)`, use masks="draw"'
        )
    aligned = (1,) * (term.dim() - 1 - len(shape)) + tuple(shape)
    summed = [d for d, (t, s) in enumerate(zip(term.shape[1:], aligned, strict=True), start=1) if t not in (1, s)]
    term = term.sum(summed, keepdim=True) if summed else term
    return term.expand(len(term), *aligned).reshape(len(term), *shape)
