"""A dimension of components left of plates, which a guide's masks have and its latents' densities are mixed over."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dropout._sites import is_deterministic
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.masks.messengers import MemberMask, Members
from pyro_dropout.weights.delta import MaskedDelta


def is_component(site: Any) -> bool:
    """Whether a site of the guide is a mask (or another auxiliary) that the guide is mixed over."""
    infer = site["infer"] or {}
    of_autoguide = site["name"].startswith("_") and site["name"].endswith("_latent")  # as AutoMultivariateNormal's
    return bool(infer.get("is_auxiliary")) and not infer.get("of_weights") and not of_autoguide


class Components(Messenger):
    """Draws a guide's masks for all components at once, and its latents from the first.

    :param members: whether masks are drawn for the members of an estimator, in a dimension left of components.
    """

    def __init__(self, number: int, max_plate_nesting: int, members: bool) -> None:
        super().__init__()
        self.number, self.max_plate_nesting, self.members = number, max_plate_nesting, members

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["value"] is not None or not hasattr(fn, "batch_shape") or is_deterministic(msg):
            return  # a subsample, say
        depth, dims = self.max_plate_nesting, len(fn.batch_shape)
        if is_component(msg):
            if dims > depth:
                raise ValueError(
                    f"mask {msg['name']!r} is in {dims} plates, more than the {depth} of the loss's first model (or "
                    "its max_plate_nesting): use a new loss for a model of another depth"
                )
            msg["fn"] = fn.expand(torch.Size((self.number, *(1,) * (depth - dims), *fn.batch_shape)))
        elif dims > depth and not isinstance(fn, Mask | MaskedDelta):  # masks of weights, and weights
            if dims != depth + 1 + self.members:
                raise NotImplementedError(
                    f"latent {msg['name']!r} has a batch of shape {tuple(fn.batch_shape)}, not that of masks which it "
                    "is mixed over: where rates of hard masks are learned, it may depend on sites that are a Mask "
                    "(BernoulliMask, ConcreteMask), not on masks of weights"
                )
            msg["fn"] = Mixture(fn, -1 - depth)


class Mixture(TorchDistribution):
    """Equal shares of the components along one dimension of a distribution, drawn from the first of them.

    :param components: a distribution with a batch dimension of components.
    :param dim: that dimension, from the right.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, components: Any, dim: int) -> None:
        self.components, self.dim = components, dim
        batch = list(components.batch_shape)
        self.number = batch.pop(dim)
        super().__init__(torch.Size(batch), components.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return bool(self.components.has_rsample)

    @property
    def support(self) -> Any:
        return self.components.support

    @property
    def dim_of_values(self) -> int:
        """The dimension of components in a value: one long in what is drawn, so that the guide goes on with all."""
        return self.dim - self.event_dim

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Members of an estimator have normal noise in common, so that they differ in their masks alone."""
        base = self.components
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if not isinstance(base, torch.distributions.Normal):
            return self.components.rsample(sample_shape).narrow(self.dim_of_values, 0, 1)
        mean, deviation = (t.expand(base.batch_shape).narrow(self.dim_of_values, 0, 1) for t in (base.loc, base.scale))
        noise = torch.randn(mean.shape[mean.dim() + self.dim_of_values + 1 :], dtype=mean.dtype, device=mean.device)
        return mean + deviation * noise

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.components.sample(sample_shape).narrow(self.dim_of_values, 0, 1)

    def of_components(self, value: Tensor) -> Tensor:
        """Log-density under each, with their dimension."""
        return self.components.log_prob(value.unsqueeze(self.dim_of_values))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.of_components(value).logsumexp(self.dim) - math.log(self.number)


class ComponentMembers(Members):
    """Members left of components; of a mask that says which units are relevant, these alone are learned from."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_component(msg):
            return super()._pyro_sample(msg)
        fn = msg["fn"]
        if isinstance(fn, Mask) and msg["value"] is None:
            relevant = (msg["infer"] or {}).get("relevant")
            if relevant is not None and fn.learned:
                if relevant.dim() > self.max_plate_nesting + 1:
                    raise ValueError(
                        f"which units of mask {msg['name']!r} are relevant depends on other masks (its shape is "
                        f"{tuple(relevant.shape)}), as behind another dropout: say it of data (sparse=False here)"
                    )
                logits = torch.where(relevant, fn.logits, fn.logits.detach())
                fn = type(fn)(logits=logits, units=fn.units, validate_args=False).expand(fn.batch_shape)
            shape = torch.Size((self.estimator.members, *fn.batch_shape))
            msg["fn"] = MemberMask(fn, self.estimator, shape, self.draws)
