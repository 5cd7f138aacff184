"""The dropout constraint for any Pyro model: its observed log-likelihood becomes the expectation over masks.

Beside the closed form, which is the case of a linear-Gaussian model.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro.poutine as poutine
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dropout._checks import check_choice, check_counts, check_functions, said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._sites import elementwise, plate_depth
from pyro_dropout._values import same_values
from pyro_dropout.entropic._rate import check_rate
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight

MAX_ENUMERATED = 12


class entropic_dropout:
    r"""The entropic posterior of a Pyro model whose weights drop out (ENT eq. 10):

    .. math:: p(\theta) \propto q(\theta) \exp \mathbb{E}_{\tilde\theta \mid \theta} \log q(x \mid \tilde\theta)

    A model again: named weight sites keep their prior and their value, but the rest of the model sees them with
    units dropped, at a whole set of masks in a new dimension left of all plates, and each observed site has the
    weighted mean of its log-densities. NUTS and SVI run on it unchanged. Predict with the original model.

    The model must broadcast over that dimension, as for parallel enumeration: a site ``w`` of ``[p]`` becomes
    ``[masks, 1, p]``, so write ``(x * w).sum(-1)`` rather than ``x @ w``. Weights of ``[out, in]`` come as masked
    weights with a mask entry per input unit, for ``F.linear`` and :class:`~pyro_dropout.BayesianModule`. Nothing is
    rescaled by 1 / keep, as in the paper.

    :param model: a Pyro model.
    :param rate: from site name to the probability of *dropping* a unit: a number, or one per unit.
    :param expectation: the set of masks.

        * ``"enumerate"``: all :math:`2^{\mathrm{units}}`, exact for any model, up to 12 units.
        * ``"moments"``: 2·units points with the mean and variance of the mask, exact where the log-likelihood is
          quadratic in the masks, that is a Normal whose mean is affine in them and whose scale does not know them
          (then it is ENT eq. 13). Anything else raises.
        * ``"bank"``: ``num_masks`` draws, taken once, so that the target is a fixed density.
        * ``"fresh"``: ``num_masks`` draws at every call; an unbiased estimate for SVI, no density for NUTS.
    :param num_masks: of ``"bank"`` and ``"fresh"``.
    :param max_plate_nesting: number of plate dimensions of the model.
    :raises ValueError: here, an unknown expectation; at a call, a rate outside [0, 1), a name that is no latent site,
        too many units to enumerate, a model that is not linear-Gaussian for ``"moments"``, a latent site that
        depends on dropped weights.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)
        >>> constrained = entropic_dropout(model, rate={"w": 0.3})
        >>> trace = pyro.poutine.trace(constrained).get_trace(torch.ones(5, 3), torch.ones(5))
        >>> trace.compute_log_prob()
        >>> trace.nodes["y"]["log_prob"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable,
        *,
        rate: Mapping[str, Any],
        expectation: str = "enumerate",
        num_masks: int = 64,
        max_plate_nesting: int = 1,
    ) -> None:
        check_functions(model=model)
        check_choice(("enumerate", "moments", "bank", "fresh"), expectation=expectation)
        check_counts(num_masks=num_masks)
        check_counts(least=0, max_plate_nesting=max_plate_nesting)
        if not isinstance(rate, Mapping) or not rate:
            raise TypeError(f"rate must be a mapping from site names to rates, but found {said(rate)}")
        self.model, self.expectation = model, expectation
        # The first call reads them, so they are copied.
        self.rate = {name: f.clone() if isinstance(f, Tensor) else copy.copy(f) for name, f in rate.items()}
        self.num_masks, self.max_plate_nesting = num_masks, max_plate_nesting
        self._keep: Any = None  # of all units of all sites; the first call finds them
        self._units: dict[str, MaskedUnits] = {}
        self._counts: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with said_of_arguments("the model", args, kwargs):
            return self._run(args, kwargs)

    def _run(self, args: Any, kwargs: Any) -> Any:
        if self._keep is None:
            self._set_up(*args, **kwargs)
        if self.expectation == "fresh":
            self._masks, self._weights = _drawn(self._keep, self.num_masks)
        moments_of = self._keep if self.expectation == "moments" else None
        return self._see(self._masks, self._weights, moments_of)(self.model)(*args, **kwargs)

    def _see(self, masks: Tensor, weights: Tensor, moments_of: Tensor | None = None) -> _SeeMasks:
        by_site = dict(zip(self._units, masks.split(self._counts, dim=1), strict=True))
        return _SeeMasks(by_site, weights, self._units, self.max_plate_nesting, moments_of)

    def _set_up(self, *args: Any, **kwargs: Any) -> None:
        """Finds the sites by one run, and makes the set of masks."""
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
        for name, site in trace.nodes.items():
            depth = plate_depth(site)
            if depth > self.max_plate_nesting:
                raise ValueError(f"site {name!r} is in {depth} plate dimensions: give max_plate_nesting={depth}")
        self._units, self._counts = {}, []
        keeps = []
        for name, rate in self.rate.items():
            site = trace.nodes.get(name)
            if site is None or site["type"] != "sample" or site["is_observed"] or not site["fn"].event_dim:
                latent = [n for n, s in trace.iter_stochastic_nodes() if not site_is_subsample(s)]
                raise ValueError(
                    f"rate names {name!r}, which is no latent site with an event dimension; latent sites: {latent}"
                )
            shape = site["fn"].event_shape
            units = site["infer"].get("masked_units") or MaskedUnits(len(shape), dim=min(1, len(shape) - 1))
            self._units[name] = units
            self._counts.append(units.count(shape))
            try:
                rate = check_rate(rate, self._counts[-1])
            except (TypeError, ValueError) as error:
                raise type(error)(f"site {name!r}: {error}") from error
            keeps.append((1 - rate).to(site["value"].dtype))
        keep = torch.cat(keeps)
        if self.expectation == "enumerate":
            self._masks, self._weights = _enumerated(keep)
        elif self.expectation == "moments":
            points, probes = _sigma_points(keep)
            self._masks = torch.cat([points, probes])
            self._weights = torch.cat([keep.new_full((len(points),), 1 / len(points)), keep.new_zeros(len(probes))])
        elif self.expectation == "bank":
            self._masks, self._weights = _drawn(keep, self.num_masks)
        self._check_broadcasting(trace, *args, **kwargs)
        self._keep = keep

    def _check_broadcasting(self, trace: Any, *args: Any, **kwargs: Any) -> None:
        """Two masks that drop nothing must leave the log-densities of observed sites as they are."""
        hint = (
            "the model does not broadcast over masks, which stand in a dimension left of its plates: write "
            "(x * w).sum(-1) for x @ w, index from the right as in net(x)[..., 0]"
        )
        ones = torch.ones(2, sum(self._counts))
        masked = self._see(ones, ones.new_full((2,), 0.5))(poutine.replay(self.model, trace=trace))
        try:
            with poutine.block(), torch.no_grad():
                seen = poutine.trace(masked).get_trace(*args, **kwargs)
                for both in (trace, seen):
                    both.compute_log_prob(site_filter=lambda _, site: site["is_observed"])
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error.__cause__, RuntimeError):
                raise
            raise ValueError(f"{hint} ({error})") from error
        for name in trace.observation_nodes:
            if not same_values(trace.nodes[name]["log_prob"], seen.nodes[name]["log_prob"]):
                raise ValueError(f"{hint}: site {name!r} has other log-densities with masks that drop nothing")


class _SeeMasks(Messenger):
    """One call under the constraint."""

    def __init__(
        self,
        masks: dict[str, Tensor],
        weights: Tensor,
        units: dict[str, MaskedUnits],
        max_plate_nesting: int,
        moments_of: Tensor | None,
    ) -> None:
        super().__init__()
        self.masks, self.weights, self.units = masks, weights, units
        self.max_plate_nesting, self.moments_of = max_plate_nesting, moments_of

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["name"] in self.masks:
            return
        fn, nesting = msg["fn"], self.max_plate_nesting
        if len(getattr(fn, "batch_shape", ())) <= nesting:
            return  # it does not depend on the masks
        if not msg["is_observed"]:
            raise ValueError(
                f"site {msg['name']!r} is not observed but depends on weights that drop out, which have no single "
                "value here: to predict, run the model itself"
            )
        if self.moments_of is not None:
            _check_linear_gaussian(msg["name"], fn, torch.cat(list(self.masks.values()), 1), self.moments_of)
        msg["fn"] = _Expected(fn, self.weights)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in self.masks:
            return
        # Handlers further out have seen the weight; the model sees it masked.
        value, units = msg["value"], self.units[msg["name"]]
        z = self.masks[msg["name"]].to(value.dtype)
        z = z.reshape(len(z), *(1,) * self.max_plate_nesting, z.shape[1])
        if units.event_dim == 1:
            msg["value"] = value * z
        else:
            msg["value"] = MaskedWeight(value, z, value.new_ones(1), units, msg["name"])


class _Expected(TorchDistribution):
    """The mean over the first batch dimension of another distribution's log-densities."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, weights: Tensor) -> None:
        self.fn, self.weights = fn, weights
        super().__init__(fn.batch_shape[1:], fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Expected:
        return _Expected(self.fn.expand(self.fn.batch_shape[:1] + torch.Size(batch_shape)), self.weights)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        raise NotImplementedError("an expected log-likelihood cannot be sampled: to predict, run the model itself")

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.fn.log_prob(value)
        return torch.tensordot(self.weights.to(log_prob.dtype), log_prob, dims=1)


def _enumerated(keep: Tensor) -> tuple[Tensor, Tensor]:
    if len(keep) > MAX_ENUMERATED:
        raise ValueError(
            f"{len(keep)} masked units have 2^{len(keep)} masks; up to {MAX_ENUMERATED} are enumerated: use "
            'expectation="bank", or "moments" for a linear-Gaussian model'
        )
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(keep))), dtype=keep.dtype)
    return masks, torch.where(masks > 0, keep, 1 - keep).prod(1)


def _drawn(keep: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
    return torch.bernoulli(keep.expand(num_masks, -1)), torch.full((num_masks,), 1 / num_masks, dtype=keep.dtype)


def _sigma_points(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``keep ± √(units · variance)`` along each axis; two more that tell whether a mean is affine in masks."""
    steps = torch.diag((len(keep) * keep * (1 - keep)).sqrt())
    probes = torch.stack([keep, torch.where(keep < 1, torch.rand_like(keep), keep)])
    return torch.cat([keep + steps, keep - steps]), probes


def _check_linear_gaussian(name: str, fn: Any, masks: Tensor, keep: Any) -> None:
    fn = elementwise(fn)
    if type(fn).__name__ != "Normal":
        raise ValueError(
            f'expectation="moments" is exact for a Normal likelihood alone, but site {name!r} is {type(fn).__name__}: '
            'use "enumerate" or "bank"'
        )
    units = len(keep)
    loc, scale = fn.loc.detach(), fn.scale.detach()
    up, down, (centre, other) = loc.split((units, units, 2))
    steps = (masks[:units] - keep).diagonal()
    gain = torch.where(steps > 0, (masks[-1] - keep) / steps.clamp_min(torch.finfo(steps.dtype).tiny), 0.0)
    straight = centre + torch.tensordot(gain, 0.5 * (up - down), dims=1)
    size = (up - down).abs().amax(0) + centre.abs()
    tolerance = 100 * math.sqrt(torch.finfo(loc.dtype).eps) * (1 + size)
    affine = ((up + down - 2 * centre).abs() <= tolerance).all() and ((other - straight).abs() <= tolerance).all()
    if not bool(affine) or not bool((scale == scale[:1]).all()):
        raise ValueError(
            f'expectation="moments" needs a mean that is affine in the masks and a scale without them, but those of '
            f'site {name!r} are not: use "enumerate" or "bank"'
        )
