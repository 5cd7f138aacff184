"""The step of many replicates: that of the first one as a graph, mapped over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_dropout._memory import PeakMemory
from pyro_dropout.guides.rates import zero_rates
from pyro_dropout.training._steps.differences import check_alike, places_of
from pyro_dropout.training._steps.graph import Compiled, Traced, graph_of
from pyro_dropout.training._steps.program import Program, step_program
from pyro_dropout.training._steps.state import parameters_of
from pyro_dropout.training._steps.update import Update


@dataclass(frozen=True)
class Replicates:
    """What the steps of all replicates have in common, whatever the shapes of their arguments.

    :param functions: model, guide and loss of each.
    :param optims: of each.
    :param modules: of each, those of its model and guide.
    :param max_memory: bytes that a step may take, or None.
    :param backend: ``"inductor"`` or ``"eager"``.
    :param wait: for the compiler.
    :param updates: of each; the first step makes them.
    :param stacks: tensors of all replicates in one, by path; the replicates' own are views of them.
    """

    functions: list[tuple[Any, Any, Any]]
    optims: list[PyroOptim]
    modules: list[list[nn.Module]]
    max_memory: int | None
    backend: str
    wait: bool
    updates: list[Update] = field(default_factory=list)
    stacks: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.functions)


class Kind(Enum):
    """How the replicates' tensors of one path come into the graph that they share."""

    SHARED = "one for all, as it is: the same tensor, or equal ones that no step changes"
    COPIED = "a copy of each, made once: no step changes them, and they are taken as they are then"
    REFRESHED = "a copy of each, made at every step: α of losses, of which several replicates may have one"
    BOUND = "one tensor of which theirs become views: what steps change, and buffers and rates, which users may set"


class SharedStep:
    """The compiled step of all replicates, for arguments of one kind.

    :param replicates: what it has in common with steps of other arguments.
    :param alive: whose losses were finite so far.
    :param args, kwargs: arguments of the kind that calls will have, ``[R, ...]``.
    :param say: is told an error, empty where there is none, and seconds, when compiling has ended.
    """

    def __init__(
        self, replicates: Replicates, alive: Tensor, args: Any, kwargs: Any, say: Callable[[str, float], None]
    ) -> None:
        self.replicates = replicates
        arguments = [arguments_of(r, args, kwargs) for r in range(len(replicates))]
        functions = replicates.functions
        zipped = zip(functions, arguments, replicates.modules, strict=True)
        parameters = [parameters_of(*f, *given, modules) for f, given, modules in zipped]
        self._zeros = _zeros_of_all(replicates.modules)
        first = self._first(arguments[0], parameters)
        self._refreshed: list[tuple[Tensor, list[Tensor]]] = []
        self._buffers = {id(b) for modules in replicates.modules for m in modules for b in m._buffers.values()}
        places = [places_of(*of_one) for of_one in zip(functions, parameters, replicates.updates, strict=True)]
        for r, place in enumerate(places[1:], start=1):
            check_alike(places[0], place, r)
        self.size, self.parts = self._sizes(first)
        self.device = first._alive.device
        self.tensors = self._tensors(first, places, alive)
        self._function = self._compile(first, say)
        self.refresh()

    def _first(self, arguments: Any, parameters: list[dict[str, Tensor]]) -> Program:
        """The first replicate's program. The updates of all are made with the first program of all."""
        replicates = self.replicates
        functions, modules, known = replicates.functions[0], replicates.modules[0], replicates.updates
        if not known:
            optim, *optims = replicates.optims
            first = step_program(*functions, *arguments, parameters=parameters[0], optim=optim, modules=modules)
            assert first.update is not None
            pairs = zip(optims, parameters[1:], strict=True)
            known += [first.update, *(Update(o, list(p.values()), first.update.fixed_rates) for o, p in pairs)]
            for r, update in enumerate(known):
                if update.together != known[0].together:
                    raise ValueError(
                        f"replicates 0 and {r} differ in which of their parameters have been updated equally often"
                    )
            return first
        for update, found in zip(known, parameters, strict=True):
            if list(map(id, update.parameters)) != list(map(id, found.values())):
                raise ValueError(
                    f"a step on these arguments has the parameters {', '.join(found)}, which are not those of the "
                    "first step: replicates keep theirs"
                )
        return Program(*functions, *arguments, parameters=parameters[0], update=known[0], modules=modules)

    def _sizes(self, first: Program) -> tuple[int, int]:
        """Replicates at once, and how often."""
        number, bound = len(self.replicates), self.replicates.max_memory
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
        if "alive" not in self.replicates.stacks:
            parts = -(-number // most)
            return -(-number // parts), parts
        number = len(self.replicates.stacks["alive"])  # and all others have this length
        size = max(n for n in range(1, min(most, number) + 1) if number % n == 0)
        return size, number // size

    # The tensors of the graph, for all replicates

    def _tensors(self, first: Program, places: list[dict], alive: Tensor) -> list[tuple[Tensor, int | None]]:
        """Each with its dimension of replicates, if it has one."""
        changed = first.traced.changed()
        paths = {id(value): path for path, value in places[0].items() if isinstance(value, Tensor)}
        tensors: list[tuple[Tensor, int | None]] = []
        for tensor in first.traced.tensors:
            if tensor is first._alive:
                alive = torch.cat([alive, alive[-1:].expand(self._missing)]).to(tensor.device)
                tensors.append((self.replicates.stacks.setdefault("alive", alive), 0))
                continue
            path, changes = paths.get(id(tensor)), id(tensor) in changed
            if path is None and changes:
                raise ValueError("a tensor that every step changes belongs neither to the model nor to its guide")
            # One that has no path was made by the model itself, of numbers that all have in common.
            stack = None if path is None else self._stack(path, [place[path] for place in places], changes)
            tensors.append((tensor, None) if stack is None else (stack, 0))
        return tensors

    @property
    def _missing(self) -> int:
        """Replicates that are added, copies of the last, to make all parts of one size."""
        return self.size * self.parts - len(self.replicates)

    def _stack(self, path: str, tensors: list[Tensor], changes: bool) -> Tensor | None:
        """One tensor for all replicates; None if all have the same."""
        padded, known = [*tensors, *[tensors[-1]] * self._missing], self.replicates.stacks
        match self._kind(path, tensors, changes):
            case Kind.SHARED:
                return None
            case Kind.COPIED:
                return _stacked(padded)
            case Kind.REFRESHED:
                stack = torch.stack(padded)
                self._refreshed.append((stack, tensors))
                return stack
            case Kind.BOUND:
                if path not in known:
                    known[path] = _stacked(padded)
                    for tensor, view in zip(tensors, known[path], strict=False):
                        tensor.data = view
                return known[path]

    def _kind(self, path: str, tensors: list[Tensor], changes: bool) -> Kind:
        """How the tensors of one path come into the graph.

        :param changes: whether this step changes them.
        :raises ValueError: what must differ between replicates and does not.
        """
        different = len({id(t) for t in tensors})
        if path.startswith("loss."):
            return Kind.REFRESHED if different > 1 else Kind.SHARED
        if path in self.replicates.stacks:  # by a step that changes it
            return Kind.BOUND
        if changes and different < len(tensors):
            raise ValueError(f"several replicates have one {path}, which every step changes: make one for each")
        if different == 1 and len(tensors) > 1:
            return Kind.SHARED
        if changes or path.startswith("rates.") or id(tensors[0]) in self._buffers:
            if different < len(tensors):
                raise ValueError(f"some replicates have one {path}, others have not: make one for each, or one for all")
            return Kind.BOUND
        return Kind.SHARED if all(torch.equal(t, tensors[0]) for t in tensors[1:]) else Kind.COPIED

    def _compile(self, first: Program, say: Callable[[str, float], None]) -> Callable[..., Any]:
        dims = (0,) * len(first.examples) + tuple(dim for _, dim in self.tensors)
        examples = [t.expand(self.size, *t.shape).contiguous() for t in first.examples]
        of_one_part = [t if dim is None else t[: self.size] for t, dim in self.tensors]
        copies = [t if dim is None else t[: self.size].clone() for t, dim in self.tensors]
        with torch.no_grad():
            mapped = torch.vmap(first.traced.out_of_place(first.examples), in_dims=dims)
            module = graph_of(lambda *tensors: mapped(*tensors), [*examples, *copies])
        if self.replicates.backend == "eager":
            return torch.no_grad()(module.forward)
        return Compiled(Traced(module, of_one_part), examples, self.replicates.wait, say)

    # Calls

    def is_current(self) -> bool:
        """Whether rates that were 0 in all replicates still are."""
        return not any(map(torch.count_nonzero, self._zeros))

    def refresh(self) -> None:
        """Before calls: brings up to date what may change between them."""
        for loss in {id(loss): loss for _, _, loss in self.replicates.functions}.values():
            loss.refresh()
        for stack, tensors in self._refreshed:
            stack[: len(tensors)] = torch.stack(tensors)
        for update in self.replicates.updates:  # each has its own learning rates
            update.refresh()

    def __call__(self, keys: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """One step of each: loss, and whether it is finite, ``[R, 2]``.

        :param keys: of random numbers, ``[R, 2]``.
        :param inputs: tensors among the arguments, ``[R, ...]``.
        """
        missing, keys = self._missing, keys.to(self.device)
        given = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) if missing else t for t in (keys, *inputs)]
        results = []
        for number in range(self.parts):
            rows = slice(number * self.size, (number + 1) * self.size)
            tensors = [t if dim is None or self.parts == 1 else t[rows] for t, dim in self.tensors]
            results.append(self._function(*(t[rows].contiguous() for t in given), *tensors)[0])
        return torch.cat(results)[: len(keys)]


def _zeros_of_all(modules: list[list[nn.Module]]) -> list[Tensor]:
    """Fixed rates that are 0 in all replicates, whose weights have no masks; where one has a mask, all have."""
    zeros = [zero_rates(of_one) for of_one in modules]
    common = set.intersection(*({name for _, name, _ in of_one} for of_one in zeros))
    for guide, name, _ in (zero for of_one in zeros for zero in of_one):
        guide._at_zero[name] = name in common
    return [rate for of_one in zeros for _, name, rate in of_one if name in common]


def arguments_of(replicate: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """One replicate's entry of arguments of all."""
    return tree_map(lambda t: t[replicate] if isinstance(t, Tensor) else t, (args, kwargs))


def _stacked(tensors: list[Tensor]) -> Tensor:
    """``[R, ...]``; what was expanded from fewer entries is expanded from as few."""
    held = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensors[0].stride())
    stack = torch.stack([t.detach()[held] for t in tensors])
    return stack.expand(len(stack), *tensors[0].shape)
