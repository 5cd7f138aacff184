"""Many networks in one step: data splits, hyperparameters and initial values of their own, matrix products in common.

Last in the chain randomness → graph → update → program → svi → replicates.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from pyro_dropout.training._steps.differences import check_alike, places_of
from pyro_dropout.training._steps.graph import Traced, compiled, graph_of
from pyro_dropout.training._steps.program import (
    Program,
    called_modules,
    check,
    eager_gradients,
    held_by,
    keys,
    modules_of,
    parameters_of,
    step_program,
    still_held,
    tensors_of,
)
from pyro_dropout.training.compiled import announce
from pyro_dropout.training._steps.update import Update
from pyro_dropout.guides.base import DropoutGuide
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout._memory import PeakMemory
from pyro_dropout._sites import forked_rng

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
        progress: bool = True,
    ) -> None:
        number = len(hyperparameters)
        if not number:
            raise ValueError("no replicates: hyperparameters has a mapping for each, {} where there are none")
        optims = [optim] * number if isinstance(optim, PyroOptim) else list(optim)
        loss = TraceDropout_ELBO() if loss is None else loss
        losses = list(loss) if isinstance(loss, Sequence) else [loss] * number
        seeds = torch.randint(2**31, (number,)).tolist() if seeds is None else list(seeds)
        check("ReplicatedSVI", losses, backend)
        if max_memory is not None and max_memory <= 0:
            raise ValueError(f"max_memory must be a positive number of bytes, but found {max_memory}")
        for what, found in (("optimisers", optims), ("losses", losses), ("seeds", seeds)):
            if len(found) != number:
                raise ValueError(f"found {len(found)} {what} for {number} replicates: give one for each")
        self.hyperparameters, self.optims, self.losses, self.seeds = list(hyperparameters), optims, losses, seeds
        self.max_memory, self.backend, self.progress = max_memory, backend, progress
        self._random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._keys = torch.zeros(number, 0, 2, dtype=torch.int32)
        self._programs: dict[Any, _Together] = {}
        self._updates: list[Update] = []
        self._modules: list[list[nn.Module]] = []  # of each replicate, once it was called
        self._held: list[Any] = []
        self._snapshots: list[dict] = []  # of guides, of parameters before the last step
        self._started = False
        self._together: dict[str, Tensor] = {}  # of all replicates, by path; theirs are views
        self.alive = torch.ones(number, dtype=torch.bool)  # whose losses were finite so far
        self.models, self.guides = [], []
        for r, values in enumerate(hyperparameters):
            with self._numbers_of(r):
                model, guide = make(**values)
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
        return self._report(self._program(args, kwargs)(self._next_keys(), tensors_of(args, kwargs)))

    def scan(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step for each entry of the *second* dimension of the arguments, ``[R, steps, ...]``: ``[R, steps]``.

        No step waits for the losses of the one before.
        """
        self._check(args, kwargs)
        tensors = tensors_of(args, kwargs)
        numbers = {t.shape[1] if t.dim() > 1 else -1 for t in tensors}
        if len(numbers) != 1 or numbers == {-1}:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"scan takes tensors [replicates, steps, ...], but found {shapes}")

        if numbers == {0}:
            return torch.zeros(len(self), 0, dtype=torch.float64)
        own_args, own_kwargs = tree_map(lambda t: t[:, 0] if isinstance(t, Tensor) else t, (args, kwargs))
        losses, begin = [], 0
        if not self._started:
            losses, begin = [self._first_step(own_args, own_kwargs).unsqueeze(1)], 1
        inputs = list(zip(*(t.unbind(1) for t in tensors), strict=True))[begin:]
        if inputs:
            program = self._program(own_args, own_kwargs)
            losses.append(self._report(torch.stack([program(self._next_keys(), values) for values in inputs], 1)))
        return torch.cat(losses, 1)

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, to give to :func:`~pyro_dropout.training.checkpoint.save_checkpoint`.

        Parameters and buffers, the optimisers' states of them, random numbers, and who is alive.

        :raises ValueError: before the first step.
        """
        self._check_started()
        return {
            "tensors": [tensor.detach() for _, _, tensor, _ in self._tensors()],
            "optimisers": [_get_state_dict(optimiser) for optimiser in self._optimisers()],
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
        own, optimisers = [tensor for _, _, tensor, _ in self._tensors()], list(self._optimisers())
        ours, theirs = ([(t.shape, t.dtype) for t in tensors] for tensors in (own, state["tensors"]))
        numbers = len(self._random), len(optimisers)
        if ours != theirs or numbers != (len(state["random"]), len(state["optimisers"])):
            raise ValueError(
                f"the state is of {len(state['random'])} replicates with {len(theirs)} tensors, which are not those of "
                f"these {len(self)} with {len(ours)}: make them as at the start"
            )
        with torch.no_grad():
            for tensor, saved in zip(own, state["tensors"], strict=True):
                tensor.copy_(saved)
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            _load_state_dict(optimiser, saved)  # in new tensors: the next step makes its program anew
        for random, saved in zip(self._random, state["random"], strict=True):
            random.set_state(saved.cpu())
        self._keys, self.alive = state["keys"].cpu().clone(), state["alive"].cpu().clone()

    def _check_started(self) -> None:
        if not self._started:
            raise ValueError("no parameters before the first step: take one on the data")

    def _tensors(self) -> list[tuple[dict, str, Tensor, bool]]:
        return held_by(module for own in self._modules for module in own)

    def _optimisers(self) -> Iterator[Any]:
        """Of all parameters in their order, as a ``PyroOptim`` has one for each."""
        for optim, own in zip(self.optims, self._modules, strict=True):
            for parameter in dict.fromkeys(tensor for _, _, tensor, _ in held_by(own)):
                if parameter in optim.optim_objs:
                    yield optim.optim_objs[parameter]

    def _check(self, args: Any, kwargs: Any) -> None:
        for tensor in tensors_of(args, kwargs):
            if tensor.dim() == 0 or len(tensor) != len(self):
                raise ValueError(
                    f"found an argument of shape {tuple(tensor.shape)} for {len(self)} replicates: its first dimension "
                    "must be theirs; for data that they share, x.expand(R, *x.shape)"
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
            self._keys = torch.stack([keys(_KEYS, generator=random) for random in self._random])
        now, self._keys = self._keys[:, 0], self._keys[:, 1:]
        return now

    def _first_step(self, args: Any, kwargs: Any) -> Tensor:
        """Of each replicate by itself, with all checks."""
        losses: list[float] = []
        parameters: list[dict[Tensor, str]] = []
        called: list[dict[nn.Module, None]] = []
        device = next((tensor.device for tensor in tensors_of(args, kwargs)), None)
        for r, (model, guide, elbo) in enumerate(zip(self.models, self.guides, self.losses, strict=True)):
            own_args, own_kwargs = _own(r, args, kwargs)
            found: dict[nn.Module, None] = {}
            try:
                with self._numbers_of(r), called_modules(found):
                    elbo.set_up(model, guide, *own_args, **own_kwargs)
                    loss, own = eager_gradients(model, guide, elbo, keys(1, device)[0], own_args, own_kwargs)
            except Exception as error:
                for tensors in parameters:
                    zero_grads(tensors)
                error.add_note(f"in replicate {r} ({dict(self.hyperparameters[r])}), at the first step of all")
                raise
            losses.append(loss)
            parameters.append(own)
            called.append(found)
        for r, (optim, own) in enumerate(zip(self.optims, parameters, strict=True)):
            with self._numbers_of(r), _named(own):
                optim(list(own))
            zero_grads(own)
        self._started = True
        functions = zip(self.models, self.guides, called, strict=True)
        self._modules = [modules_of(model, guide, *found) for model, guide, found in functions]
        return torch.tensor(losses, dtype=torch.float64)

    def _program(self, args: Any, kwargs: Any) -> _Together:
        leaves, spec = tree_flatten((args, kwargs))
        modes, *others = (tuple(module.training for module in own) for own in self._modules)
        if any(len(other) == len(modes) and other != modes for other in others):
            raise ValueError("some replicates are in training mode and others are not: they share one graph")
        key = (spec, modes, *((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves))
        if not still_held(self._held) or not all(update.is_current() for update in self._updates):
            self._programs, self._together, self._updates = {}, {}, []
        if key not in self._programs:
            start = time.perf_counter()
            with pyro.settings.context(module_local_params=True):
                self._programs[key] = _Together(self, args, kwargs)
            self._held = self._tensors()
            guides = {part for guide in self.guides for part in modules_of(guide) if isinstance(part, DropoutGuide)}
            self._snapshots = [guide._snapshots for guide in guides]
            if self.progress and self.backend == "inductor":
                announce("ReplicatedSVI: compiled a step", args, kwargs, time.perf_counter() - start)
        program = self._programs[key]
        program.refresh()
        for snapshots in self._snapshots:  # parameters change without their knowing, as views
            snapshots.clear()
        return program

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


class _Together:
    """The step of the first replicate as a graph, mapped over all of them."""

    def __init__(self, svi: ReplicatedSVI, args: Any, kwargs: Any) -> None:
        self.svi = svi
        owns = [_own(r, args, kwargs) for r in range(len(svi))]
        functions = list(zip(svi.models, svi.guides, svi.losses, strict=True))
        zipped = zip(functions, owns, svi._modules, strict=True)
        parameters = [parameters_of(*f, *own, modules) for f, own, modules in zipped]
        first = self._first(functions[0], owns[0], parameters)
        self._copied: list[tuple[Tensor, list[Tensor]]] = []
        self._buffers = {id(b) for modules in svi._modules for m in modules for b in m._buffers.values()}
        places = [places_of(*args) for args in zip(functions, parameters, svi._updates, strict=True)]
        for r, place in enumerate(places[1:], start=1):
            check_alike(places[0], place, r)
        self.size, self.parts = self._sizes(first)
        self.device = first._alive.device
        changed = first.traced.changed()
        paths = {id(value): path for path, value in places[0].items() if isinstance(value, Tensor)}
        self.tensors: list[tuple[Tensor, int | None]] = []  # each with its dimension of replicates
        for tensor in first.traced.tensors:
            if tensor is first._alive:
                missing = self.size * self.parts - len(svi)
                alive = torch.cat([svi.alive, svi.alive[-1:].expand(missing)]).to(tensor.device)
                self.tensors.append((svi._together.setdefault("alive", alive), 0))
                continue
            path, changes = paths.get(id(tensor)), id(tensor) in changed
            if path is None and changes:
                raise ValueError("a tensor that every step changes belongs neither to the model nor to its guide")
            # One that has no path was made by the model itself, of numbers that all have in common.
            all_of_it = None if path is None else self._all(path, [place[path] for place in places], changes)
            self.tensors.append((tensor, None) if all_of_it is None else (all_of_it, 0))
        self._function = self._compile(first)
        self.refresh()

    def _first(self, functions: Any, own: Any, parameters: list[dict[str, Tensor]]) -> Program:
        """The first replicate's program. The updates of all are made with the first program of all."""
        svi = self.svi
        known = svi._updates
        if not known:
            first = step_program(
                *functions, *own, parameters=parameters[0], optim=svi.optims[0], modules=svi._modules[0]
            )
            assert first.update is not None
            pairs = zip(svi.optims[1:], parameters[1:], strict=True)
            others = [Update(optim, list(p.values()), first.update.fixed_rates) for optim, p in pairs]
            svi._updates = [first.update, *others]
            return first
        for update, found in zip(known, parameters, strict=True):
            if list(map(id, update.parameters)) != list(map(id, found.values())):
                raise ValueError(
                    f"a step on these arguments has the parameters {', '.join(found)}, which are not those of the "
                    "first step: replicates keep theirs"
                )
        return Program(*functions, *own, parameters=parameters[0], update=known[0], modules=svi._modules[0])

    def _sizes(self, first: Program) -> tuple[int, int]:
        """Replicates at once, and how often."""
        number, bound = len(self.svi), self.svi.max_memory
        if bound is None:
            return number, 1
        copies = [t.detach().clone() for t in first.traced.tensors]
        with torch.no_grad(), PeakMemory() as memory:
            first.traced.module(*first.examples, *copies)
        if memory.peak > bound:
            raise ValueError(
                f"a step of one replicate takes about {memory.peak:,} bytes, but max_memory is {bound:,}: give more"
            )
        most = bound // max(1, memory.peak)
        if "alive" not in self.svi._together:
            parts = -(-number // most)
            return -(-number // parts), parts
        number = len(self.svi._together["alive"])  # and all others have this length
        size = max(n for n in range(1, min(most, number) + 1) if number % n == 0)
        return size, number // size

    def _all(self, path: str, tensors: list[Tensor], changes: bool) -> Tensor | None:
        """One tensor for all replicates, of which theirs become views if it changes; None if all have the same."""
        known = self.svi._together
        different = len({id(t) for t in tensors})
        if path.startswith("loss.") and different > 1:  # of which some may be the same
            stack = torch.stack([*tensors, *[tensors[-1]] * (self.size * self.parts - len(tensors))])
            self._copied.append((stack, tensors))
            return stack
        if path in known:
            return known[path]
        bound = changes or path.startswith("rates.") or id(tensors[0]) in self._buffers
        if changes and different < len(tensors):
            raise ValueError(f"several replicates have one {path}, which every step changes: make one for each")
        if different == 1 and len(tensors) > 1:
            return None
        if bound and different < len(tensors):
            raise ValueError(f"some replicates have one {path}, others have not: make one for each, or one for all")
        if not bound and all(torch.equal(t, tensors[0]) for t in tensors[1:]):
            return None
        padding = [tensors[-1]] * (self.size * self.parts - len(tensors))
        held = [slice(0, 1) if stride == 0 else slice(None) for stride in tensors[0].stride()]
        stack = torch.stack([t.detach()[tuple(held)] for t in (*tensors, *padding)])
        stack = stack.expand(len(stack), *tensors[0].shape)
        if bound:
            for tensor, own in zip(tensors, stack, strict=False):
                tensor.data = own
            known[path] = stack
        return stack

    def _compile(self, first: Program) -> Callable[..., Any]:
        dims = (0,) * len(first.examples) + tuple(dim for _, dim in self.tensors)
        examples = [t.expand(self.size, *t.shape).contiguous() for t in first.examples]
        own = [t if dim is None else t[: self.size] for t, dim in self.tensors]
        copies = [t if dim is None else t[: self.size].clone() for t, dim in self.tensors]
        with torch.no_grad():
            mapped = torch.vmap(first.traced.out_of_place(first.examples), in_dims=dims)
            module = graph_of(lambda *tensors: mapped(*tensors), [*examples, *copies])
        traced = Traced(module, own)
        return torch.no_grad()(module.forward) if self.svi.backend == "eager" else compiled(traced, examples)

    def refresh(self) -> None:
        for loss in {id(loss): loss for loss in self.svi.losses}.values():
            loss.refresh()
        for stack, tensors in self._copied:
            stack[: len(tensors)] = torch.stack(tensors)
        for update in self.svi._updates:  # each has its own learning rates
            update.refresh()

    def __call__(self, keys: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        missing = self.size * self.parts - len(keys)
        keys = keys.to(self.device)
        given = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) if missing else t for t in (keys, *inputs)]
        results = []
        for part in range(self.parts):
            rows = slice(part * self.size, (part + 1) * self.size)
            own = [t if dim is None or self.parts == 1 else t[rows] for t, dim in self.tensors]
            results.append(self._function(*(t[rows].contiguous() for t in given), *own)[0])
        return torch.cat(results)[: len(keys)]


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


@contextmanager
def _named(parameters: dict[Tensor, str]) -> Iterator[None]:
    """Parameters have their names in Pyro's store, by which an optimiser may choose its options."""
    names = pyro.get_param_store()._param_to_name
    names.update(parameters)
    try:
        yield
    finally:
        for parameter in parameters:
            del names[parameter]


def _enter(module: nn.Module, _: Any) -> None:
    context = pyro.settings.context(module_local_params=True)
    context.__enter__()
    module.__dict__.setdefault("_local", []).append(context)


def _leave(module: nn.Module, *_: Any) -> None:
    module.__dict__["_local"].pop().__exit__(None, None, None)


def _own(replicate: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tree_map(lambda t: t[replicate] if isinstance(t, Tensor) else t, (args, kwargs))
