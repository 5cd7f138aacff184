"""Dropout posteriors as Pyro AutoGuides: hard masks at fixed or learned rates, relaxed masks with learned ones.

Third in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

import copy
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
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_dropout.masks.distributions import BernoulliMask, ConcreteMask, MaskedDelta
from pyro_dropout.guides.initialization import init_to_module
from pyro_dropout._sites import is_traced
from pyro_dropout.weights.weight import MaskedUnits, MaskedWeight

_SHARED = "shared"  # the name of the logit of a network with one rate


class DropoutGuide(AutoGuide):
    """What the dropout guides share; a subclass says what the mask of a learned rate is."""

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
        rest: Callable = AutoDelta,
        init_loc_fn: Callable = init_to_module,
        create_plates: Callable | None = None,
    ) -> None:
        if per_unit and shared:
            raise ValueError("per_unit asks for one rate per unit, shared for one of the whole network: choose one")
        if (per_unit or shared) and not learnable:
            raise ValueError("per_unit and shared say how rates are learned: give learnable=True too")
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)
        self._rate = rate
        self.learnable, self.per_unit, self.shared = learnable, per_unit, shared
        self._make_rest = rest
        self._units: dict[str, MaskedUnits] = {}
        self._snapshots: dict[str, Any] = {}
        self.locs = PyroModule()
        self.logits = PyroModule()  # of keeping, where rates are learned
        self.rate_buffers = PyroModule()  # where they are fixed

    def _learned_mask(self, logits: Tensor, units: int) -> BernoulliMask | ConcreteMask:
        """The mask distribution at learned keep logits."""
        raise NotImplementedError

    def _mask(self, name: str, units: int) -> BernoulliMask | ConcreteMask:
        """The mask distribution of a site at its current rate."""
        rate = _read(self, "rate_buffers." + name)
        if rate is not None:
            return BernoulliMask(rate, units=units, validate_args=False)
        return self._learned_mask(_read(self, "logits." + (_SHARED if self.shared else name)), units)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self.model is None:
            raise RuntimeError(
                f"this {type(self).__name__} was unpickled before its first call and has no model: make a new one "
                "and load_state_dict into it, or pickle after the first call"
            )
        loaded = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        children = dict(self._modules)
        try:
            self._set_up(loaded, *args, **kwargs)
        except Exception:  # neither must half a guide run at the next call, nor one without what was loaded
            self.prototype_trace = None
            self._modules.clear()
            self._modules.update(children)
            raise

    def _set_up(self, loaded: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        for child in list(self._modules):
            setattr(self, child, PyroModule())
        super()._setup_prototype(*args, **kwargs)
        unknown = _without_parameters(self.prototype_trace, loaded)
        if unknown:  # data that this first call, a prediction, does not observe
            self._model = (poutine.block(self.model, hide=unknown),)
            super()._setup_prototype(*args, **kwargs)
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        weights = {name: site for name, site in sites.items() if _is_weight(site)}
        if not weights:
            raise ValueError(
                f"{type(self).__name__} found no weight site, that is none with two or more event dimensions; found "
                f"{', '.join(sites) or 'no latent sites'}: declare weights with .to_event(2), or use BayesianModule"
            )
        rates = _resolve_rates(self._rate, list(weights))
        for name, site in weights.items():
            self._add_weight(name, site, rates[name])
        if len(weights) < len(sites):
            rest = self._make_rest(poutine.block(self.model, hide_fn=_is_weight))
            self.rest = rest if isinstance(rest, AutoGuide) else AutoCallable(self.model, rest)
            if loaded and isinstance(rest, AutoGuide):
                rest._setup_prototype(*args, **kwargs)
        if loaded:
            self._adopt(loaded)

    def _add_weight(self, name: str, site: Any, rate: Any) -> None:
        fn = site["fn"]
        if getattr(fn.support, "base_constraint", fn.support) is not constraints.real:
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
        units = site["infer"].get("masked_units") or MaskedUnits(fn.event_dim)
        count = units.count(fn.event_shape)
        try:
            rate = torch.as_tensor(rate, dtype=loc.dtype, device=loc.device)
            BernoulliMask(rate, units=count)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"site {name!r}: rate {rate!r} is not usable: {error}") from error
        self._units[name] = units
        self._set_parameter(self.locs, name, loc, fn.event_dim)
        self._add_rate(name, rate.reshape(1) if rate.dim() == 0 else rate, loc.shape[: -fn.event_dim], count)

    def _add_rate(self, name: str, rate: Tensor, batch_shape: torch.Size, units: int) -> None:
        """Keeps a site's initial rate: as a buffer, or as the logit that is learned."""
        if not self.learnable or not bool(rate.any()):
            leaf, attribute = _leaf(self.rate_buffers, name)
            leaf.register_buffer(attribute, rate)
            return
        if not bool(rate.all()):
            raise ValueError(f"site {name!r}: a learned rate cannot start at 0 for some units and not for others")
        logits = torch.log1p(-rate) - rate.log()
        logits = logits.expand(batch_shape + (units if self.per_unit or rate.shape[-1] > 1 else 1,)).clone()
        if not self.shared:
            self._set_parameter(self.logits, name, logits, event_dim=1)
            return
        first = _read(self.logits, _SHARED)
        if first is None:
            self._set_parameter(self.logits, _SHARED, logits, event_dim=1)
        if logits.shape[-1] > 1 or (first is not None and not torch.equal(first, logits)):
            raise ValueError(
                f"shared=True learns one rate for all sites, but site {name!r} starts at {rate.tolist()} in plates of "
                f"shape {tuple(batch_shape)}: give all sites the same number, or 0 to those without dropout"
            )

    def _set_parameter(self, root: PyroModule, name: str, value: Tensor, event_dim: int) -> None:
        leaf, attribute = _leaf(root, name)
        setattr(leaf, attribute, PyroParam(value, constraints.real, event_dim))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site of the model, given the same arguments; weights are masked weights."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        for name, units in self._units.items():
            site = self.prototype_trace.nodes[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                loc = self._loc(name)
                mask = self._mask(name, units.count(site["fn"].event_shape))
                z = pyro.sample(name + ".mask", mask, infer={"is_auxiliary": True})
                weight = MaskedWeight(loc, z, mask.keep, units, name)
                result[name] = pyro.sample(name, MaskedDelta(weight, self.relaxed))
        rest = self._modules.get("rest")
        if rest is not None:
            result.update(rest(*args, **kwargs))
        return result

    def _loc(self, name: str) -> Tensor:
        loc = _read(self, "locs." + name)
        if torch.is_grad_enabled() or is_traced():
            return loc
        # Draws that are kept must not change when training goes on; all draws until then share one copy.
        state = (loc.data_ptr(), loc._version)
        if self._snapshots.get(name, (None,))[0] != state:
            self._snapshots[name] = (state, loc.detach().clone())
        return self._snapshots[name][1]

    def rates(self) -> dict[str, Tensor]:
        """Current probability of dropping, by site: a number, or one per unit."""
        names = [name.removesuffix("_unconstrained") for name, _ in self.locs.named_parameters()]
        rates = {name: self._mask(name, units=1).rate.detach().clone() for name in names}
        return {name: rate.squeeze(-1) if rate.shape[-1] == 1 else rate for name, rate in rates.items()}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The weight-averaged network, ``loc`` for each weight, with the medians of the rest.

        ``loc = E[W]`` is what dropout networks predict with in one pass (MC's "standard dropout"); the
        elementwise median of a two-point distribution would be 0 or ``loc / keep``.
        """
        result = {name: _read(self, "locs." + name).clone() for name in self._units}
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
        :raises NotImplementedError: the guide of the rest has no quantiles.
        """
        self._create_plates(*args, **kwargs)
        result = {}
        for name, units in self._units.items():
            loc = _read(self, "locs." + name)
            event_shape = loc.shape[-units.event_dim :]
            mask = self._mask(name, units.count(event_shape))
            q = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device)
            q = q.reshape(-1, *(1,) * mask.keep.dim())
            z, mirrored = (units.spread(mask.icdf(p) / mask.keep, event_shape) for p in (q, 1 - q))
            result[name] = torch.where(loc > 0, loc * z, loc * mirrored)
        if hasattr(self, "rest"):
            if isinstance(self.rest, AutoDelta):
                n = len(torch.as_tensor(quantiles))
                result.update({k: v.expand(n, *v.shape) for k, v in self.rest.median(*args, **kwargs).items()})
            elif hasattr(self.rest, "quantiles"):
                result.update(self.rest.quantiles(quantiles, *args, **kwargs))
            else:
                raise NotImplementedError(f"{type(self.rest).__name__}, the guide of the rest, has no quantiles")
        return result

    # Copying and loading

    def __getstate__(self) -> dict[str, Any]:
        # AutoGuide's own takes the model away from the guide that is being copied.
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)
        state = {**self.__dict__, "_model": (None,), "master": None, "_snapshots": {}}
        if self.prototype_trace is not None:  # what is needed only before the first call (and may be a lambda)
            state.update(_rate=None, _make_rest=None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> DropoutGuide:
        new = object.__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = copy.deepcopy(self._model, memo) if self.prototype_trace is None else self._model
        return new

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Before the first call there are no parameters yet: they are made from the state's own names."""
        if self.prototype_trace is None:
            for key, value in state_dict.items():
                if key.startswith(prefix):
                    leaf, attribute = _leaf(self, key[len(prefix) :])
                    if key.startswith(prefix + "rate_buffers."):
                        leaf.register_buffer(attribute, torch.empty_like(value))
                    else:
                        leaf.register_parameter(attribute, nn.Parameter(torch.empty_like(value)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _adopt(self, loaded: dict[str, Tensor]) -> None:
        """Puts what was loaded before the first call, the very tensors, in the place of initial values."""
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if own.keys() != loaded.keys():
            raise ValueError(
                "the state that was loaded into this guide is not of this model: "
                f"without a site {sorted(loaded.keys() - own.keys())}, missing {sorted(own.keys() - loaded.keys())}"
            )
        store = pyro.get_param_store()
        for name, value in loaded.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"the state that was loaded has {name} of shape {tuple(value.shape)}, "
                    f"but the model needs {tuple(own[name].shape)}"
                )
            leaf, attribute = _leaf(self, name)
            if not isinstance(value, nn.Parameter):
                leaf._buffers[attribute] = value
                continue
            leaf._parameters[attribute] = value
            fullname = leaf._pyro_get_fullname(attribute.removesuffix("_unconstrained"))
            if fullname in store:  # as PyroModule does when the two disagree
                store._params[fullname] = value
                store._param_to_name[value] = fullname


class AutoBernoulliDropout(DropoutGuide):
    r"""Dropout as a posterior (MC section 3), at fixed rates or at rates that are learned (LBD):

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / (1 - \mathrm{rate}), \quad
        z_k \sim \mathrm{Bernoulli}(1 - \mathrm{rate}_k)

    for every latent site with at least two event dimensions, one ``z_k`` per input unit or channel; ``loc`` is
    learned and starts from the module's own weights. Biases, precisions and whatever else is latent go to
    ``rest``.

    With ``learnable=True`` the keep logits, :math:`\mathrm{rate} = \sigma(-a)`, are parameters too. A hard mask has
    no derivative, so the loss estimates their gradient: see ``gradient`` of
    :class:`~pyro_dropout.TraceDropout_ELBO`. Stock ``Trace_ELBO`` and ``TraceGraph_ELBO`` use the score function.

    :param model: a Pyro model; it does not know about dropout.
    :param rate: probability of *dropping* a unit, in [0, 1): a number, a tensor with one per unit, or a mapping
        or function from site name to either. 0 makes a site deterministic, also if rates are learned; else it is
        where learning starts. (MC's p is ``1 - rate``.)
    :param learnable: learn the rates, one per site unless ``per_unit`` or ``shared``.
    :param per_unit: learn one rate per unit.
    :param shared: learn one rate for the whole network (LBD section 3.2.1).
    :param rest: makes the guide of all other latents from a model: ``AutoDelta``, ``AutoNormal``, a partial.
    :param init_loc_fn: Pyro initialisation strategy; it may return None to leave a site to ``rest``.
    :param create_plates: as for any AutoGuide, for subsampling plates around latents.
    :raises ValueError: ``per_unit`` or ``shared`` without ``learnable``, or both; at the first call: no weight sites,
        a rate outside [0, 1) or of a wrong shape, a name that is no site, rates to share that differ.

    Example::

        >>> from pyro_dropout import BayesianModule
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.25)
        >>> guide(torch.zeros(5, 3))["weight"].mask.shape
        torch.Size([3])
        >>> guide.rates()
        {'weight': tensor(0.2500)}
    """

    def __init__(
        self,
        model: Callable,
        rate: Any = 0.1,
        *,
        learnable: bool = False,
        per_unit: bool = False,
        shared: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, rate, learnable=learnable, per_unit=per_unit, shared=shared, **kwargs)

    def _learned_mask(self, logits: Tensor, units: int) -> BernoulliMask:
        return BernoulliMask(logits=logits, units=units, validate_args=False)


class AutoConcreteDropout(DropoutGuide):
    r"""Dropout with learned rates, through relaxed masks (CD):

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / (1 - \mathrm{rate}), \quad
        z_k = \sigma\bigl((a + \log u_k - \log(1 - u_k)) / t\bigr), \quad \mathrm{rate} = \sigma(-a)

    (CD eq. 5). The keep logit *a* is learned, per site or per unit, jointly with ``loc``. A site whose initial
    rate is 0 is deterministic and stays so. See :class:`AutoBernoulliDropout` for what is common to both.

    :param model: a Pyro model.
    :param rate: initial probability of *dropping*, as in :class:`AutoBernoulliDropout` (CD's p).
    :param temperature: t of CD eq. 5. At 0.1 the mean of ``z / keep`` is 0.9985 at rate 0.1; at 2/3 it is 0.950.
    :param per_unit: learn one rate per unit instead of one per site.
    :param shared: learn one rate for the whole network.
    :param rest: makes the guide of all other latents.
    :param init_loc_fn: Pyro initialisation strategy.
    :param create_plates: as for any AutoGuide.
    :raises ValueError: a temperature that is not positive, and at the first call what
        :class:`AutoBernoulliDropout` raises.

    Example::

        >>> from pyro_dropout import BayesianModule
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoConcreteDropout(model, rate=0.25, per_unit=True)
        >>> _ = guide(torch.zeros(5, 3))
        >>> guide.rates()
        {'weight': tensor([0.2500, 0.2500, 0.2500])}
    """

    relaxed = True

    def __init__(
        self,
        model: Callable,
        rate: Any = 0.1,
        *,
        temperature: float = 0.1,
        per_unit: bool = False,
        shared: bool = False,
        **kwargs: Any,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, but found {temperature}")
        super().__init__(model, rate, learnable=True, per_unit=per_unit, shared=shared, **kwargs)
        self.temperature = temperature

    def _learned_mask(self, logits: Tensor, units: int) -> ConcreteMask:
        return ConcreteMask(logits=logits, units=units, temperature=self.temperature, validate_args=False)


def rates_of(guide: Any) -> dict[str, Tensor]:
    """Rates of every dropout guide inside this one, by site."""
    parts = guide.modules() if isinstance(guide, nn.Module) else ()
    return {name: rate for part in parts if isinstance(part, DropoutGuide) for name, rate in part.rates().items()}


def _is_weight(msg: Any) -> bool:
    """Weight sites are the latents with at least two event dimensions, unless BayesianModule knows better."""
    return (
        msg["type"] == "sample"
        and not msg["is_observed"]
        and not site_is_subsample(msg)
        and getattr(msg["fn"], "event_dim", 0) >= 2
        and msg["infer"].get("masked_units", MaskedUnits) is not None
    )


def _without_parameters(trace: Any, loaded: Mapping[str, Any]) -> list[str]:
    """Latents other than weights that a loaded state says nothing of, where it names the others."""
    paths = ["." + name.removesuffix("_unconstrained") for name in loaded if name.startswith("rest.")]
    latents = [name for name, site in trace.iter_stochastic_nodes() if not _is_weight(site)]
    unknown = [name for name in latents if not any(path.endswith("." + name) for path in paths)]
    return unknown if loaded and len(unknown) < len(latents) else []


def _resolve_rates(rate: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(rate, Mapping):
        unknown, missing = sorted(rate.keys() - set(names)), sorted(set(names) - rate.keys())
        if unknown or missing:
            raise ValueError(
                f"rate must name the weight sites {', '.join(names)}; found no such site {unknown}, missing {missing}"
            )
        return dict(rate)
    return {name: rate(name) if callable(rate) else rate for name in names}


def _leaf(root: nn.Module, name: str) -> tuple[Any, str]:
    """The module and attribute that a dotted name stands for; modules on the way are made."""
    *path, attribute = name.split(".")
    for part in path:
        if part not in root._modules:
            setattr(root, part, PyroModule())
        root = root._modules[part]  # type: ignore[assignment]
    return root, attribute


def _read(root: nn.Module, name: str) -> Any:
    """``root.<dotted name>``, or None. Only the last step goes through Pyro, whose attribute access is slow."""
    *path, attribute = name.split(".")
    for part in path:
        if part not in root._modules:
            return None
        root = root._modules[part]  # type: ignore[assignment]
    value = getattr(root, attribute, None)
    return root._parameters.get(attribute + "_unconstrained") if value is None else value  # loaded, not set up yet
