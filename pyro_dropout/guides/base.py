"""What dropout guides share: an AutoGuide that samples masks, then weights that wear them, then the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList
from pyro.infer.autoguide.guides import AutoCallable
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn.module import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor

from pyro_dropout._checks import check_flags, check_functions, said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import are_borrowed, unchanged_buffers
from pyro_dropout._sites import has_real_support
from pyro_dropout._store import own_parameter, store_kept_on_failure
from pyro_dropout._values import is_traced
from pyro_dropout.guides._quantiles import checked_levels, of_weight
from pyro_dropout.guides._sides import Masks, checked_sides, masks_of, rates_by_mask
from pyro_dropout.guides._state import adopt, leaf_of, make_room, tensors_of, unknown_sites, value_at
from pyro_dropout.guides.initialization import init_to_module
from pyro_dropout.masks.distributions import BernoulliMask, Mask
from pyro_dropout.weights.delta import MaskedDelta
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight, Switch

_SHARED = "shared"  # the name of the logit of a network with one rate


class DropoutGuide(AutoGuide):
    """The base class of dropout guides. A subclass says what the mask of a learned rate is, ``_learned_mask``.

    At its first call the guide runs the model once, takes each weight's own initial value for ``loc``, and makes its
    parameters: the trees ``locs``, ``logits`` (of keeping, where rates are learned) or ``rate_buffers`` (where they are
    fixed), and the guide ``rest`` of all other latents.

    :param model: a Pyro model; it does not know about dropout.
    :param rate: probability of *dropping* a unit, a number, one per unit, or by site, as in
        :class:`~pyro_dropout.AutoBernoulliDropout`.
    :param learnable: learn the rates: one per site, or as the next two say.
    :param per_unit: learn one rate per unit.
    :param shared: learn one rate for the whole network.
    :param units: which units are masked, as in :class:`~pyro_dropout.AutoBernoulliDropout`.
    :param rest: makes the guide of all other latents from a model.
    :param init_loc_fn: Pyro initialisation strategy.
    :param create_plates: as for any AutoGuide.
    :raises ValueError: as :class:`~pyro_dropout.AutoBernoulliDropout` says.

    Example, hard masks whose learned rates are never above one half::

        >>> from torch import nn
        >>> from pyro_dropout import BayesianModule
        >>> class AtMostHalf(DropoutGuide):
        ...     def _learned_mask(self, logits, units):
        ...         return BernoulliMask(logits=logits.abs(), units=units, validate_args=False)
        >>> guide = AtMostHalf(BayesianModule(nn.Linear(3, 1)), rate=0.25, learnable=True)
        >>> _ = guide(torch.zeros(5, 3))
        >>> guide.rates()
        {'weight': tensor(0.2500)}
    """

    relaxed = False
    prototype_trace: Any
    _check_prototype = AutoGuideList._check_prototype  # like a list of two guides: the weights' and the rest's

    def __init__(
        self,
        model: Callable,
        rate: Any = 0.1,
        *,
        learnable: bool,
        per_unit: bool = False,
        shared: bool = False,
        units: Any = "input",
        rest: Callable = AutoDelta,
        init_loc_fn: Callable = init_to_module,
        create_plates: Callable | None = None,
    ) -> None:
        check_functions(model=model, rest=rest, init_loc_fn=init_loc_fn)
        if create_plates is not None:
            check_functions(create_plates=create_plates)
        check_flags(learnable=learnable, per_unit=per_unit, shared=shared)
        if per_unit and shared:
            raise ValueError("per_unit asks for one rate per unit, shared for one of the whole network: choose one")
        if (per_unit or shared) and not learnable:
            raise ValueError("per_unit and shared say how rates are learned: give learnable=True too")
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)
        self._rate, self._sides = rate, checked_sides(units)
        self.learnable, self.per_unit, self.shared = learnable, per_unit, shared
        self._make_rest = rest
        self._masks: Masks = {}  # of each weight: the names of its masks, and their units
        self._snapshots: dict[str, Tensor] = {}
        self._shared_start: Tensor  # the logits that all sites must start at, where they share them
        self._at_zero: dict[str, bool] = {}  # whether a fixed rate was 0 for all units, when it was last looked at
        self.locs = PyroModule()
        self.logits = PyroModule()  # of keeping, where rates are learned
        self.rate_buffers = PyroModule()  # where they are fixed

    def _learned_mask(self, logits: Tensor, units: int) -> Mask:
        """The mask distribution at learned keep logits."""
        raise NotImplementedError(f"{type(self).__name__} has learned rates, and needs _learned_mask(logits, units)")

    def _mask(self, name: str, units: int) -> Mask:
        """The mask distribution of a site at its current rate."""
        rate = value_at(self, "rate_buffers." + name)
        if rate is not None:
            return BernoulliMask(rate, units=units, validate_args=False)
        return self._learned_mask(value_at(self, "logits." + (_SHARED if self.shared else name)), units)

    def _never_drops(self, name: str) -> bool:
        """Whether a site's rate is fixed at 0 for all units: its weight is deterministic, and has no mask.

        While a graph is written values are not known: the last run says it (``zero_rates``).
        """
        rate = value_at(self, "rate_buffers." + name)
        if rate is None:
            return False
        if not is_traced():
            self._at_zero[name] = not bool(rate.any())
        return self._at_zero.get(name, False)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self.model is None:
            raise RuntimeError(
                f"this {type(self).__name__} was unpickled before its first call and has no model: make a new one "
                "and load_state_dict into it, or pickle after the first call"
            )
        loaded = tensors_of(self)
        children = dict(self._modules)
        try:
            self._set_up(loaded, *args, **kwargs)
        except Exception:  # neither must half a guide run at the next call, nor one without what was loaded
            self.prototype_trace = None
            self._modules.clear()
            self._modules.update(children)
            raise

    def _set_up(self, loaded: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        for child in list(self._modules):  # what was loaded must not stand in the trees when parameters are made
            del self._modules[child]  # Pyro's delattr would empty the parameter store of it, too
            setattr(self, child, PyroModule())
        super()._setup_prototype(*args, **kwargs)
        if unknown := unknown_sites(self.prototype_trace, loaded):  # else they would get parameters that nobody loaded
            self._model = (poutine.block(self.model, hide=unknown),)
            super()._setup_prototype(*args, **kwargs)
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        self._masks = masks_of(sites, self._sides)
        if not self._masks:
            raise ValueError(
                f"{type(self).__name__} found no weight site, that is none with two or more event dimensions; found "
                f"{', '.join(sites) or 'no latent sites'}: declare weights with .to_event(2), or use BayesianModule"
            )
        rates = rates_by_mask(self._rate, list(self.units))
        for name in self._masks:
            self._add_weight(name, sites[name], rates)
        if len(self._masks) < len(sites):
            rest = self._make_rest(poutine.block(self.model, hide=list(self._masks)))
            if not callable(rest):
                raise TypeError(f"rest must make a guide from a model, but made {said(rest)}")
            self.rest = rest if isinstance(rest, AutoGuide) else AutoCallable(self.model, rest)
            if loaded and isinstance(rest, AutoGuide):  # now, as at its first call parameters come too late to load
                rest._setup_prototype(*args, **kwargs)
        if loaded:
            adopt(self, loaded)
        if all(map(self._never_drops, rates)):
            warnings.warn(
                f"{type(self).__name__} has rate 0 at every site ({', '.join(rates)}), so that all draws of these "
                "weights are the same and predictions have no epistemic part: give rate, a number or one by site",
                stacklevel=2,
            )

    def _add_weight(self, name: str, site: Any, rates: dict[str, Any]) -> None:
        fn = site["fn"]
        if not has_real_support(fn):
            raise ValueError(
                f"site {name!r} has support {fn.support}, but dropped weights are 0: a dropout posterior needs real "
                "support; hide the site with poutine.block and give it another guide (AutoGuideList)"
            )
        loc = site["value"].detach().clone()
        for frame in site["cond_indep_stack"]:
            if frame.dim == -1:
                raise ValueError(
                    f"weight site {name!r} is inside plate {frame.name!r} at dim -1, the place of the data: call the "
                    "network outside of the data plate; a plate of many networks needs dim=-2"
                )
            full_size = frame.full_size or frame.size
            if full_size != frame.size:
                loc = periodic_repeat(loc, full_size, frame.dim - fn.event_dim).contiguous()
        self._set_parameter(self.locs, name, loc, fn.event_dim)
        for key, units in self._masks[name]:
            trees = self.rate_buffers, self.logits
            if all(value_at(tree, key) is None for tree in trees):  # else it is shared, and has its rate
                self._add_rate(key, rates[key], loc, units)

    def _add_rate(self, name: str, rate: Any, loc: Tensor, units: MaskedUnits) -> None:
        """Keeps a mask's initial rate: as a buffer, or as the logit that is learned."""
        batch_shape, event_shape = loc.shape[: -units.event_dim], loc.shape[-units.event_dim :]
        count = units.count(event_shape)
        try:
            rate = torch.as_tensor(rate, dtype=loc.dtype, device=loc.device)
            BernoulliMask(rate, units=count)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"site {name!r}: rate {rate!r} is not usable: {error}") from error
        rate = rate.reshape(1) if rate.dim() == 0 else rate
        if not self.learnable or not bool(rate.any()):
            leaf, attribute = leaf_of(self.rate_buffers, name)
            leaf.register_buffer(attribute, rate)
            return
        if not bool(rate.all()):
            raise ValueError(f"site {name!r}: a learned rate cannot start at 0 for some units and not for others")
        logits = torch.log1p(-rate) - rate.log()
        logits = logits.expand(batch_shape + (count if self.per_unit or rate.shape[-1] > 1 else 1,)).clone()
        if not self.shared:
            self._set_parameter(self.logits, name, logits, event_dim=1)
            return
        if value_at(self.logits, _SHARED) is None:
            self._set_parameter(self.logits, _SHARED, logits, event_dim=1)
            self._shared_start = logits
        if logits.shape[-1] > 1 or not torch.equal(self._shared_start, logits):
            raise ValueError(
                f"shared=True learns one rate for all sites, but site {name!r} starts at {rate.tolist()} in plates of "
                f"shape {tuple(batch_shape)}: give all sites the same number, or 0 to those without dropout"
            )

    def _set_parameter(self, root: PyroModule, name: str, value: Tensor, event_dim: int) -> None:
        """A parameter at this value, or at the one that Pyro's parameter store was loaded with."""
        leaf, attribute = leaf_of(root, name)
        with own_parameter(leaf, attribute):
            setattr(leaf, attribute, PyroParam(value, constraints.real, event_dim))
        found = getattr(leaf, attribute)
        if found.shape != value.shape:
            raise ValueError(
                f"the parameter store was loaded with {leaf._pyro_get_fullname(attribute)!r} of shape "
                f"{tuple(found.shape)}, but this model's is {tuple(value.shape)}: load what was saved of this model, "
                "or pyro.clear_param_store()"
            )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site of the model, given the same arguments; weights are masked weights."""
        if self.prototype_trace is None:
            what = f"the model, in the first call of {type(self).__name__},"
            # The model runs for its sites alone, for the guide of the rest too.
            with unchanged_buffers(), store_kept_on_failure(), said_of_arguments(what, args, kwargs):
                self._setup_prototype(*args, **kwargs)
                return self.forward(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        drawn: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self._masks:
            site = self.prototype_trace.nodes[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                weight = self._weight(name, site["fn"].event_shape, drawn)
                result[name] = pyro.sample(name, MaskedDelta(weight, self.relaxed))
        rest = self._modules.get("rest")
        if rest is not None:
            result.update(rest(*args, **kwargs))
        return result

    def _weight(self, name: str, shape: torch.Size, drawn: dict[str, tuple[Tensor, Tensor]]) -> MaskedWeight:
        """The masked weight of a site, with masks that are drawn, each once for all sites that share it."""
        loc, switches = self._loc(name), []
        for key, units in self._masks[name]:
            if self._never_drops(key):
                continue
            if key not in drawn:
                mask = self._mask(key, units.count(shape))
                drawn[key] = (
                    pyro.sample(key + ".mask", mask, infer={"is_auxiliary": True, "of_weights": True}),
                    mask.keep,
                )
            switches.append(Switch(*drawn[key], units, key))
        if not switches:
            units = self._masks[name][0][1]
            return MaskedWeight(loc, loc.new_ones(units.count(shape)), loc.new_ones(1), units, name, masked=False)
        first, *others = switches
        other = others[0] if others else None
        return MaskedWeight(loc, first.mask, first.keep, first.units, name, other=other, mask_name=first.name)

    def _loc(self, name: str) -> Tensor:
        """The mean weight: where gradients are taken, or draws are not kept, the parameter itself, else a copy.

        Draws that are kept must not change when training goes on, and all draws until then share one copy. Only the
        values tell whether the parameter has changed since: writes through ``.data``, as of some optimisers, are not
        counted.
        """
        loc = value_at(self, "locs." + name)
        if torch.is_grad_enabled() or is_traced() or are_borrowed():
            return loc
        known = self._snapshots.get(name)
        if known is None or known.dtype != loc.dtype or known.device != loc.device or not torch.equal(known, loc):
            known = self._snapshots[name] = loc.detach().clone()
        return known

    def rates(self) -> dict[str, Tensor]:
        """Current probability of dropping, by mask: a number, or one per unit.

        The mask of a weight's input units has the weight's name, that of a layer's output units the layer's and
        ``.output``.
        """
        names = list(self.units)
        if not names:  # before the first call, of a state that was loaded: one rate of all masks may be known alone
            learned = self.locs if self.shared and self._sides == "input" else self.logits
            trees = (self.rate_buffers.named_buffers(), learned.named_parameters())
            names = list(dict.fromkeys(name.removesuffix("_unconstrained") for tree in trees for name, _ in tree))
        rates = {name: self._mask(name, units=1).rate.detach().clone() for name in names}
        return {name: rate.squeeze(-1) if rate.shape[-1] == 1 else rate for name, rate in rates.items()}

    @property
    def units(self) -> dict[str, MaskedUnits]:
        """Which units of its weight each mask switches, by mask."""
        found: dict[str, MaskedUnits] = {}
        for masks in self._masks.values():
            for key, units in masks:
                found.setdefault(key, units)  # of the first weight that has it
        return found

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The weight-averaged network, ``loc`` for each weight, with the medians of the rest.

        ``loc = E[W]`` is what dropout networks predict with in one pass (MC's "standard dropout"); the
        elementwise median of a two-point distribution would be 0 or ``loc / keep``.
        """
        self._check_called()
        result = {name: value_at(self, "locs." + name).clone() for name in self._masks}
        if hasattr(self, "rest"):
            self._create_plates(*args, **kwargs)
            result.update(self.rest.median(*args, **kwargs))
        return result

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal quantiles of every latent: ``{site: [len(quantiles), *shape]}``.

        A weight is ``loc · z / keep`` with ``z`` binary or Concrete, so its quantile is that of ``z``. Point
        estimates are their own quantiles.

        :param quantiles: probabilities between 0 and 1.
        :raises ValueError: other numbers; a guide before its first call.
        :raises NotImplementedError: the guide of the rest has no quantiles.
        """
        self._check_called()
        levels = checked_levels(quantiles)
        self._create_plates(*args, **kwargs)
        result = {}
        for name, masks in self._masks.items():
            loc = value_at(self, "locs." + name)
            key, units = self._one_mask(name, masks)
            result[name] = of_weight(loc, self._mask(key, units.count(loc.shape[-units.event_dim :])), units, levels)
        if hasattr(self, "rest"):
            if isinstance(self.rest, AutoDelta):
                n = len(levels)
                result.update({k: v.expand(n, *v.shape) for k, v in self.rest.median(*args, **kwargs).items()})
            elif hasattr(self.rest, "quantiles"):
                result.update(self.rest.quantiles(levels.tolist(), *args, **kwargs))
            else:
                raise NotImplementedError(f"{type(self.rest).__name__}, the guide of the rest, has no quantiles")
        return result

    def _one_mask(self, name: str, masks: list[tuple[str, MaskedUnits]]) -> tuple[str, MaskedUnits]:
        """The mask of a weight that has no second one."""
        active = [mask for mask in masks if not self._never_drops(mask[0])]
        if len(active) > 1:
            raise NotImplementedError(
                f"weight {name!r} has masks of input and of output units, whose quantiles are not known"
            )
        return (active or masks)[0]

    def _check_called(self) -> None:
        if self.prototype_trace is None:
            raise ValueError(f"this {type(self).__name__} has no parameters before its first call: call it with data")

    # Copying and loading

    def __getstate__(self) -> dict[str, Any]:
        # AutoGuide's own takes the model away from the guide that is being copied.
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)
        state = {**self.__dict__, "_model": (None,), "master": None, "_snapshots": {}}
        if self.prototype_trace is not None:  # what is needed only before the first call (and may be a lambda)
            state.update(_rate=None, _sides=None, _make_rest=None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> DropoutGuide:
        new = object.__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = copy.deepcopy(self._model, memo) if self.prototype_trace is None else self._model
        return new

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if self.prototype_trace is None:
            make_room(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
