"""What a step does with model, guide, loss and optimiser, as one compiled function of data and a key.

After update in the chain randomness → graph → update → program → svi → replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_dropout.training._steps.graph import compiled, trace
from pyro_dropout.training._steps.randomness import KeyedRandomness
from pyro_dropout.training._steps.update import Update
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout._sites import forked_rng


def keys(number: int, device: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """Of masks and all else that is random, from a generator of the CPU, PyTorch's by default, ``[number, 2]``."""
    return torch.randint(-(2**31), 2**31, (number, 2), dtype=torch.int32, generator=generator).to(device)


def check(who: str, losses: Iterable[Any], backend: str) -> None:
    """Raises where a loss or a backend is none that compiled steps have."""
    for loss in losses:
        if not isinstance(loss, TraceDropout_ELBO):
            raise ValueError(
                f"{who} traces the losses of pyro_dropout, but found {type(loss).__name__}: use TraceDropout_ELBO or "
                "RenyiDropout_ELBO, or pyro.infer.SVI for this loss"
            )
    if backend not in ("inductor", "eager"):
        raise ValueError(f'backend must be "inductor" or "eager", but found {backend!r}')


class Program:
    """The loss of some arguments; with ``gradients`` of all parameters; with ``update`` a step.

    A call returns ``[loss, 1 or 0]``, whether loss and gradients are finite; an update happens only where they are,
    and where all before it were, until :meth:`go_on`.

    :param args, kwargs: arguments of model and guide of the kind that calls will have.
    :param parameters: those that the loss has, by name.
    :param modules: of model and guide, also those that only a call shows (:func:`called_modules`).
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        loss: TraceDropout_ELBO,
        args: Any,
        kwargs: Any,
        *,
        parameters: dict[str, Tensor],
        gradients: bool = True,
        update: Update | None = None,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        self.model, self.guide, self.loss, self.gradients, self.update = model, guide, loss, gradients, update
        self.parameters = parameters
        self.modules = modules_of(model, guide, *modules)
        leaves, self._spec = tree_flatten((args, kwargs))
        self._leaves = [_INPUT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # Copies, as the trace knows tensors by identity: one may be given twice, or belong to the model.
        given = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in given]
        device = next(iter(parameters.values())).device if parameters else None
        self._alive = torch.ones((), dtype=torch.bool, device=device)
        self.examples = [torch.zeros(2, dtype=torch.int32, device=device), *inputs]
        self._with_gradient: list[Tensor] = []  # parameters that the loss depends on
        store = pyro.get_param_store()._params
        self._stored = [(name, store[name]) for name in parameters if name in store]
        self._held = held_by(self.modules)
        others = self.update.tensors if self.update else []
        with unchanged(self.modules, self._alive, *others), pyro.validation_enabled(False):
            self.traced = trace(self._run, self.examples)
        self._function: Callable[..., Sequence[Tensor]] = torch.no_grad()(self.traced.module.forward)

    def compile(self) -> None:
        self._function = compiled(self.traced, self.examples)

    def __call__(self, key: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Evaluates it once; gradients of the last call are kept for :meth:`accumulate`."""
        inputs = [tensor.contiguous() for tensor in inputs]  # strides are a part of what was compiled
        result, *self._gradients = self._function(key, *inputs, *self.traced.tensors)
        return result

    def refresh(self) -> None:
        """Before calls: brings up to date what may change between them."""
        self.loss.refresh()
        if self.update is not None:
            self.update.refresh()

    def go_on(self) -> None:
        """After a failure."""
        self._alive.fill_(True)

    def accumulate(self) -> None:
        """Adds the gradients of the last call to those that the parameters have."""
        for parameter, gradient in zip(self._with_gradient, self._gradients, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    def keys(self, number: int) -> Tensor:
        return keys(number, self._alive.device)

    def is_current(self) -> bool:
        """Whether parameters and buffers are the tensors of the trace, and the optimiser's state too."""
        store = pyro.get_param_store()._params
        return (
            all(store.get(name) is parameter for name, parameter in self._stored)
            and still_held(self._held)
            and (self.update is None or self.update.is_current())
        )

    def _run(self, key: Tensor, *inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        leaves = [next(given) if leaf is _INPUT else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        if not self.gradients:
            with torch.no_grad(), KeyedRandomness(key):
                loss = self.loss.estimate(self.model, self.guide, *args, **kwargs)
            return [torch.stack([loss, torch.isfinite(loss).to(loss.dtype)])]
        buffers = [[(b, b._version, b.clone()) for b in m._buffers.values() if b is not None] for m in self.modules]
        with torch.enable_grad(), KeyedRandomness(key):
            loss = self.loss.estimate(self.model, self.guide, *args, **kwargs)
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        gradients = {p: g for p, g in zip(self.parameters.values(), found, strict=True) if g is not None}
        self._with_gradient = list(gradients)
        sums = torch.stack([loss.detach(), *(g.sum().to(loss.dtype) for g in gradients.values())])
        finite = torch.isfinite(sums).all() & self._alive
        result = torch.stack([loss.detach(), finite.to(loss.dtype)])
        if self.update is None:
            return [result, *gradients.values()]
        with torch.no_grad():
            changed = [(t, t.clone()) for t in self.update.tensors]
            for own in buffers:  # a batch norm's count says that the rest has changed too
                if any(b._version != version for b, version, _ in own):
                    changed += [(b, old) for b, _, old in own]
            self.update(found)
            for t, old in changed:
                t.copy_(torch.where(finite, t, old))
            self._alive.copy_(finite)
        return [result]


def held_by(modules: Iterable[nn.Module]) -> list[tuple[dict, str, Tensor, bool]]:
    """Parameters and buffers: where they stand, and whether they are learned."""
    return [
        (held, name, tensor, tensor.requires_grad)
        for module in modules
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None
    ]


def still_held(held: list[tuple[dict, str, Tensor, bool]]) -> bool:
    for place, name, tensor, learned in held:  # at every step: a loop is twice as fast as all(...)
        if place.get(name) is not tensor or tensor.requires_grad != learned:
            return False
    return True


_INPUT = object()  # the place of a tensor among arguments


@contextmanager
def called_modules(found: dict[nn.Module, None]) -> Iterator[None]:
    """Collects the modules that are called inside: of a model that is a function, nothing else knows them."""

    def collect(module: nn.Module, _: Any) -> None:
        found[module] = None

    hook = nn.modules.module.register_module_forward_pre_hook(collect)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def unchanged(modules: Sequence[nn.Module], *others: Tensor) -> Iterator[None]:
    """A trace runs a step: what it changes, and the random numbers it takes, are put back."""
    buffers = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
    tensors = [*buffers, *others]
    copies = [t.detach().clone() for t in tensors]
    try:
        with forked_rng():
            yield
    finally:
        with torch.no_grad():
            for t, copy in zip(tensors, copies, strict=True):
                t.copy_(copy)


def step_program(
    *functions: Any, parameters: dict[str, Tensor], optim: PyroOptim, modules: Iterable[nn.Module] = ()
) -> Program:
    """A program with the optimiser's update, at learning rates that may change if it takes them as tensors."""
    for fixed_rates in (False, True):
        update = Update(optim, list(parameters.values()), fixed_rates)
        try:
            return Program(*functions, parameters=parameters, update=update, modules=modules)
        except Exception:
            if fixed_rates:
                raise
    raise AssertionError


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def modules_of(*functions: Callable) -> list[nn.Module]:
    return list({part: None for f in functions if isinstance(f, nn.Module) for part in f.modules()})


def parameters_of(
    model: Callable,
    guide: Callable,
    loss: TraceDropout_ELBO,
    args: Any,
    kwargs: Any,
    modules: Iterable[nn.Module] = (),
) -> dict[str, Tensor]:
    """Unconstrained parameters of a loss, as ``SVI`` finds them; one that has several names under its first."""
    with (
        poutine.trace(param_only=True) as capture,
        unchanged(modules_of(model, guide, *modules)),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        loss.estimate(model, guide, *args, **kwargs)
    found = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    names = {parameter: name for name, parameter in reversed(found.items()) if parameter.requires_grad}
    return {name: parameter for name, parameter in found.items() if names.get(parameter) == name}


def drawn_by(key: Tensor | None) -> AbstractContextManager:
    return nullcontext() if key is None else KeyedRandomness(key)


def eager_gradients(
    model: Callable, guide: Callable, loss: TraceDropout_ELBO, key: Tensor | None, args: Any, kwargs: Any
) -> tuple[float, dict[Tensor, str]]:
    """The loss, with all checks, by the random numbers that a compiled one would have drawn by this key, if any.

    Gradients are added to those of the parameters, which are returned too, with their names.
    """
    with poutine.trace(param_only=True) as capture, drawn_by(key):
        value = loss.loss_and_grads(model, guide, *args, **kwargs)
    found = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    return value, {parameter: name for name, parameter in reversed(found.items()) if parameter.requires_grad}
