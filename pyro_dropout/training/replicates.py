"""Many networks in one step: splits, hyperparameters and initial values of their own, matrix products in common."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from pyro_dropout._checks import check_flags, check_functions, check_positive, check_seeds, check_tensors, said
from pyro_dropout._failures import listed, said_of_arguments, undone_if_it_fails
from pyro_dropout._modes import autocast_state, forked_rng, trial_run
from pyro_dropout._store import load_state_of, named, state_of
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.training._steps.arguments import (
    check_loss_and_backend,
    check_optimisers,
    made_by,
    number_of,
    one_for_each,
)
from pyro_dropout.training._steps.messages import NOTHING_TO_LEARN, shapes_of
from pyro_dropout.training._steps.program import eager_gradients
from pyro_dropout.training._steps.randomness import random_keys
from pyro_dropout.training._steps.shared import Replicates, SharedStep, arguments_of
from pyro_dropout.training._steps.state import called_modules, held_by, modules_of, still_held, tensors_of

_KEYS = 64  # of each replicate, drawn at once


class ReplicatedSVI:
    """SVI of R networks in one compiled step, as if each were trained alone.

    ``make(**hyperparameters[r])`` gives model and guide of replicate r. They run the same code on other numbers:
    whatever differs between replicates must be a tensor somewhere in them (a rate, a prior's scale, a buffer of the
    model), as a number would be written into the graph that they share; one that is not raises, with its name. Data
    have a first dimension for the replicates. Each draws its masks from a seed of its own, so that it ends where a
    :class:`~pyro_dropout.CompiledSVI` after ``pyro.set_rng_seed(seeds[r])`` ends, up to rounding.

    Afterwards, and between steps, ``models`` and ``guides`` are ordinary ones: parameters and buffers are views of what
    all train in common, and belong to their modules (not to Pyro's parameter store). Other tensors are taken as they
    are at the second step.

    :param make: a function of hyperparameters that returns model and guide. Their parameters belong to modules.
    :param hyperparameters: of each replicate, a mapping of names to values. What ``make`` does with ``seeds[r]``
        set is repeatable too: initial values.
    :param optim: one ``PyroOptim``, or one for each replicate (learning rates may differ).
    :param loss: as of :class:`~pyro_dropout.CompiledSVI`; or one for each (α may differ).
    :param seeds: of each replicate; drawn by default.
    :param max_memory: bytes that a step may take beside parameters and optimiser; replicates go through in as many
        parts of one size as that needs.
    :param backend: ``"inductor"`` or ``"eager"``.
    :param wait: as of :class:`~pyro_dropout.CompiledSVI`.
    :param progress: print what was compiled, and how long it took.
    :raises ValueError: no replicates; numbers of seeds, optimisers or losses that differ from theirs; a loss that is
        not of this package; another backend; at a step: replicates whose parameters have other shapes, or that differ
        in something that is no tensor; one replicate's step in more than ``max_memory``.

    Example::

        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> def make(scale):
        ...     net = BayesianModule(nn.Linear(3, 1), prior=dist.Normal(0.0, torch.tensor(scale)))
        ...     def model(x, y=None):
        ...         mean = net(x).squeeze(-1)
        ...         with pyro.plate("data", len(x)):
        ...             return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        ...     return model, AutoConcreteDropout(model)
        >>> grid = [{"scale": 0.1}, {"scale": 1.0}]
        >>> svi = ReplicatedSVI(make, grid, pyro.optim.Adam({"lr": 0.01}), backend="eager")
        >>> svi.step(torch.zeros(2, 5, 3), torch.zeros(2, 5)).shape  # a data set for each
        torch.Size([2])
        >>> svi.guides[1].rates().keys()
        dict_keys(['weight'])
    """

    def __init__(
        self,
        make: Callable[..., tuple[Callable, Callable]],
        hyperparameters: Sequence[Mapping[str, Any]],
        optim: PyroOptim | Sequence[PyroOptim],
        loss: TraceDropout_ELBO | Sequence[TraceDropout_ELBO] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        max_memory: int | None = None,
        backend: str = "inductor",
        wait: bool = False,
        progress: bool = True,
    ) -> None:
        check_functions(make=make)
        check_flags(wait=wait, progress=progress)
        number = number_of(hyperparameters)
        if not number:
            raise ValueError("no replicates: hyperparameters has a mapping for each, {} where there are none")
        optims = one_for_each("optim", [optim] * number if isinstance(optim, PyroOptim) else optim)
        check_optimisers(**{f"optim[{i}]": each for i, each in enumerate(optims)})
        loss = TraceDropout_ELBO() if loss is None else loss
        losses = list(loss) if isinstance(loss, Sequence) else [loss] * number
        check_loss_and_backend("ReplicatedSVI", losses, backend)
        if max_memory is not None:
            check_positive(max_memory=max_memory)
        given = range(number) if seeds is None else one_for_each("seeds", seeds)
        check_seeds(**{f"seeds[{i}]": seed for i, seed in enumerate(given)})
        for name, what, found in (
            ("optim", "optimisers", optims),
            ("loss", "losses", losses),
            ("seeds", "seeds", given),
        ):
            if len(found) != number:
                raise ValueError(f"{name}: found {len(found)} {what} for {number} replicates: give one for each")
        self.hyperparameters, self.optims, self.losses = list(hyperparameters), optims, losses
        self.max_memory, self.backend, self.wait, self.progress = max_memory, backend, wait, progress
        self._keys = torch.zeros(number, 0, 2, dtype=torch.int32)
        self._steps: dict[Any, SharedStep] = {}  # by kind of arguments
        self._checked: set[Any] = set()  # kinds that the model has been seen to take
        self._common: Replicates | None = None  # what these steps have in common
        self._modules: list[list[nn.Module]] = []  # of each replicate, once it was called
        self._held: list[Any] = []
        self._started = False
        self.alive = torch.ones(number, dtype=torch.bool)  # whose losses were finite so far
        self.models, self.guides = [], []
        with undone_if_it_fails():
            self.seeds = torch.randint(2**31, (number,)).tolist() if seeds is None else list(given)
            self._random = [torch.Generator().manual_seed(seed) for seed in self.seeds]
            for r, values in enumerate(hyperparameters):
                with self._numbers_of(r):
                    model, guide = made_by(r, make(**values))
                self.models.append(_local(model))
                self.guides.append(_local(guide))

    def __len__(self) -> int:
        return len(self.models)

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step of each replicate on its own entry of the arguments; estimates of their losses, ``[R]``.

        A loss that is not finite leaves its replicate as it was, for good, with a warning. At the first step, which
        each takes by itself, it raises, and none has stepped. :meth:`scan` is faster.
        """
        self._check(args, kwargs)
        if not self._started:
            return self._first_step(args, kwargs)
        return self._report(self._shared_step(args, kwargs)(self._next_keys(), tensors_of(args, kwargs)))

    def scan(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step for each entry of the *second* dimension of the arguments, ``[R, steps, ...]``: ``[R, steps]``.

        No step waits for the losses of the one before.
        """
        self._check(args, kwargs)
        tensors = tensors_of(args, kwargs)
        numbers = {t.shape[1] if t.dim() > 1 else -1 for t in tensors}
        if len(numbers) != 1 or numbers == {-1}:
            raise ValueError(f"scan takes tensors [replicates, steps, ...], but found {listed(args, kwargs)}")
        if numbers == {0}:
            return torch.zeros(len(self), 0, dtype=torch.float64)
        first_args, first_kwargs = tree_map(lambda t: t[:, 0] if isinstance(t, Tensor) else t, (args, kwargs))
        losses, begin = [], 0
        if not self._started:
            losses, begin = [self._first_step(first_args, first_kwargs).unsqueeze(1)], 1
        inputs = list(zip(*(t.unbind(1) for t in tensors), strict=True))[begin:]
        if inputs:
            step = self._shared_step(first_args, first_kwargs)
            losses.append(self._report(torch.stack([step(self._next_keys(), values) for values in inputs], 1)))
        return torch.cat(losses, 1)

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, to give to :func:`~pyro_dropout.save_checkpoint`.

        Parameters and buffers, the optimisers' states of them, random numbers, and who is alive.

        :raises ValueError: before the first step.
        """
        self._check_started()
        return {
            "tensors": [tensor.detach() for _, _, tensor, _ in self._tensors()],
            "optimisers": [state_of(optimiser) for optimiser in self._optimisers()],
            "random": [random.get_state() for random in self._random],
            "keys": self._keys,
            "alive": self.alive,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a :meth:`state_dict`, after a first step (on any data of the shapes) that has made parameters.

        The steps that follow are those of a run that was not interrupted, up to rounding.

        :raises ValueError: before the first step; a state of other networks. Nothing has changed then.
        """
        self._check_started()
        held, optimisers = [tensor for _, _, tensor, _ in self._tensors()], list(self._optimisers())
        if not isinstance(state, Mapping) or not state.keys() >= {"tensors", "optimisers", "random", "keys", "alive"}:
            raise ValueError(f"the state must be one of state_dict, but found {said(state)}")
        check_tensors(**{f"state[{name!r}]": state[name] for name in ("keys", "alive")})
        ours, theirs = ([(t.shape, t.dtype) for t in tensors] for tensors in (held, state["tensors"]))
        numbers = len(self._random), len(optimisers)
        if ours != theirs or numbers != (len(state["random"]), len(state["optimisers"])):
            raise ValueError(
                f"the state is of {len(state['random'])} replicates with {len(theirs)} tensors, which are not those of "
                f"these {len(self)} with {len(ours)}: make them as at the start"
            )
        with torch.no_grad():
            for tensor, saved in zip(held, state["tensors"], strict=True):
                tensor.copy_(saved)
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            load_state_of(optimiser, saved)  # in new tensors: the next step makes its program anew
        for random, saved in zip(self._random, state["random"], strict=True):
            random.set_state(saved.cpu())
        self._keys, self.alive = state["keys"].cpu().clone(), state["alive"].cpu().clone()

    def _check_started(self) -> None:
        if not self._started:
            raise ValueError("no parameters before the first step: take one on the data")

    def _tensors(self) -> list[tuple[dict, str, Tensor, bool]]:
        return held_by(module for modules in self._modules for module in modules)

    def _optimisers(self) -> Iterator[Any]:
        """Of all parameters in their order, as a ``PyroOptim`` has one for each."""
        for optim, modules in zip(self.optims, self._modules, strict=True):
            for parameter in dict.fromkeys(tensor for _, _, tensor, _ in held_by(modules)):
                if parameter in optim.optim_objs:
                    yield optim.optim_objs[parameter]

    def _check(self, args: Any, kwargs: Any) -> None:
        for tensor in tensors_of(args, kwargs):
            if tensor.dim() == 0 or len(tensor) != len(self):
                raise ValueError(
                    f"found an argument of shape {tuple(tensor.shape)} for {len(self)} replicates: its first dimension "
                    f"must be theirs; for data that they share, x.expand(R, *x.shape) ({listed(args, kwargs)})"
                )

    @contextmanager
    def _numbers_of(self, replicate: int) -> Iterator[None]:
        """Random numbers drawn inside are the replicate's own; its parameters belong to its modules."""
        with forked_rng(), pyro.settings.context(module_local_params=True):
            torch.set_rng_state(self._random[replicate].get_state())
            try:
                yield
            finally:
                self._random[replicate].set_state(torch.get_rng_state())

    def _next_keys(self) -> Tensor:
        if self._keys.shape[1] == 0:
            self._keys = torch.stack([random_keys(_KEYS, generator=random) for random in self._random])
        now, self._keys = self._keys[:, 0], self._keys[:, 1:]
        return now

    def _first_step(self, args: Any, kwargs: Any) -> Tensor:
        """Of each replicate by itself, with all checks."""
        before = [random.get_state() for random in self._random]
        losses: list[float] = []
        parameters: list[dict[Tensor, str]] = []  # of each replicate, with their names
        called: list[dict[nn.Module, None]] = []
        device = next((tensor.device for tensor in tensors_of(args, kwargs)), None)
        for r, (model, guide, elbo) in enumerate(zip(self.models, self.guides, self.losses, strict=True)):
            own_args, own_kwargs = arguments_of(r, args, kwargs)
            found: dict[nn.Module, None] = {}
            try:
                with self._numbers_of(r), called_modules(found), said_of_arguments("the step", own_args, own_kwargs):
                    elbo.set_up(model, guide, *own_args, **own_kwargs)
                    key = random_keys(1, device)[0]
                    loss, names = eager_gradients(model, guide, elbo, key, own_args, own_kwargs)
                if not names:
                    raise ValueError(f"ReplicatedSVI cannot run: {NOTHING_TO_LEARN}")
            except Exception as error:
                for tensors in parameters:
                    zero_grads(tensors)
                for random, state in zip(self._random, before, strict=True):
                    random.set_state(state)
                error.add_note(f"in replicate {r} ({dict(self.hyperparameters[r])}), at the first step of all")
                raise
            losses.append(loss)
            parameters.append(names)
            called.append(found)
        for r, (optim, names) in enumerate(zip(self.optims, parameters, strict=True)):
            with self._numbers_of(r), named(names):
                optim(list(names))
            zero_grads(names)
        self._started = True
        for guide in self.guides:  # median() of a dropout guide calls that of the rest by itself
            for inner in modules_of(guide):
                if isinstance(inner, AutoGuide) and inner is not guide:
                    _local(inner)
        functions = zip(self.models, self.guides, called, strict=True)
        self._modules = [modules_of(model, guide, *found) for model, guide, found in functions]
        self._checked.add(self._kind(args, kwargs, self._modes()))
        return torch.tensor(losses, dtype=torch.float64)

    def _shared_step(self, args: Any, kwargs: Any) -> SharedStep:
        """The compiled step of arguments of this kind."""
        every = self._modes()
        modes, *others = every
        if any(len(other) == len(modes) and other != modes for other in others):
            raise ValueError("some replicates are in training mode and others are not: they share one graph")
        key = self._kind(args, kwargs, every)
        common = self._common
        current = all(step.is_current() for step in self._steps.values()) and still_held(self._held)
        if common is None or not current or not all(u.is_current() for u in common.updates):
            functions = list(zip(self.models, self.guides, self.losses, strict=True))
            common = Replicates(functions, self.optims, self._modules, self.max_memory, self.backend, self.wait)
            self._common, self._steps = common, {}
        if key not in self._steps:
            say = functools.partial(self._say, shapes_of(args, kwargs))
            with pyro.settings.context(module_local_params=True), said_of_arguments("the step", args, kwargs):
                if key not in self._checked:
                    self._check_kind(args, kwargs)
                    self._checked.add(key)
                self._steps[key] = SharedStep(common, self.alive, args, kwargs, say)
            self._held = self._tensors()
        step = self._steps[key]
        step.refresh()
        return step

    @staticmethod
    def _kind(args: Any, kwargs: Any, modes: list[tuple[bool, ...]]) -> Any:
        """Shapes and types of arguments, and the modes that modules are in."""
        leaves, spec = tree_flatten((args, kwargs))
        kinds = ((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves)
        return spec, *modes, autocast_state(), *kinds

    def _modes(self) -> list[tuple[bool, ...]]:
        """Of each replicate's modules."""
        return [tuple(module.training for module in modules) for modules in self._modules]

    def _check_kind(self, args: Any, kwargs: Any) -> None:
        """Whether the model takes arguments like these, of other shapes or in other modes than before: the first step's
        checks, by a replicate that is alive; not those of values."""
        living = self.alive.nonzero().flatten().tolist()
        for r in living[:1]:
            model, guide, elbo = self.models[r], self.guides[r], self.losses[r]
            own_args, own_kwargs = arguments_of(r, args, kwargs)
            with trial_run(), torch.no_grad(), poutine.block(), dist.validation_enabled(False):
                elbo.estimate(model, guide, *own_args, **own_kwargs)

    def _say(self, shapes: str, error: str, seconds: float) -> None:
        """Of compiling that has ended."""
        if error:
            warnings.warn(
                f"ReplicatedSVI runs a step operation by operation, not compiled: the compiler failed ({error})",
                stacklevel=2,
            )
        elif self.progress:
            print(f"ReplicatedSVI: a step for {shapes} is compiled, after {seconds:.1f} s")

    def _report(self, results: Tensor) -> Tensor:
        """Losses of ``results [R, ..., 2]``, with a warning for those that are not finite."""
        losses, finite = results[..., 0].cpu().double(), (results[..., 1] == 1).reshape(len(self), -1).all(1).cpu()
        new = (self.alive & ~finite).nonzero().flatten().tolist()
        if new:
            self.alive = self.alive & finite
            shown = "; ".join(f"{r}: {dict(self.hyperparameters[r])}" for r in new[:5])
            warnings.warn(
                f"loss or gradient of {len(new)} of {len(self)} replicates is not finite; they stay as they were "
                f"before this step ({shown}{'; ...' if len(new) > 5 else ''})",
                stacklevel=3,
            )
        return losses


def _local(function: Any) -> Any:
    """Its parameters belong to its modules, also outside of ``pyro.settings.context(module_local_params=True)``.

    Pyro's global store, by names, would take those of all replicates for one.
    """
    if not isinstance(function, nn.Module):

        @functools.wraps(function)
        def local(*args: Any, **kwargs: Any) -> Any:
            with pyro.settings.context(module_local_params=True):
                return function(*args, **kwargs)

        return local
    function.register_forward_pre_hook(_enter)
    function.register_forward_hook(_leave, always_call=True)
    return function


def _enter(module: nn.Module, _: Any) -> None:
    stack = ExitStack()
    stack.enter_context(pyro.settings.context(module_local_params=True))
    module.__dict__.setdefault("_local", []).append(stack)  # one for each call, as a module may call itself


def _leave(module: nn.Module, *_: Any) -> None:
    module.__dict__["_local"].pop().close()
