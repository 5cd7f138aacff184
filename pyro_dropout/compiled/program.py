"""What a step does with model, guide, loss and optimiser, as one compiled function of data and a key.

After update in the chain randomness → graph → update → program → svi → replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_dropout.compiled.graph import compiled, trace
from pyro_dropout.compiled.randomness import KeyedRandomness
from pyro_dropout.compiled.update import Update
from pyro_dropout.losses import TraceDropout_ELBO
from pyro_dropout.traces import forked_rng


class Program:
    """The loss of some arguments; with ``parameters`` its gradients too; with ``update`` a step.

    A call returns ``[loss, 1 or 0]``, whether loss and gradients are finite; an update happens only where they are,
    and where all before it were, until :meth:`go_on`.

    :param parameters: those that the loss has, by name.
    :param args, kwargs: arguments of model and guide of the kind that calls will have.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        loss: TraceDropout_ELBO,
        args: Any,
        kwargs: Any,
        *,
        parameters: dict[str, Tensor] | None = None,
        update: Update | None = None,
    ) -> None:
        self.model, self.guide, self.loss, self.update = model, guide, loss, update
        self.parameters = parameters or {}
        self.modules = modules_of(model, guide)
        self._modes = [module.training for module in self.modules]
        leaves, self._spec = tree_flatten((args, kwargs))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.inputs = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
        device = next(iter(self.parameters.values())).device if self.parameters else None
        self._alive = torch.ones((), dtype=torch.bool, device=device)
        self._with_gradient: list[Tensor] = []  # parameters that the loss depends on
        others = self.update.tensors if self.update else []
        with unchanged(self.modules, self._alive, *others), pyro.validation_enabled(False):
            self.traced = trace(self._run, [self.keys(1)[0], *self.inputs])
        self._function: Callable[..., Sequence[Tensor]] = torch.no_grad()(self.traced.module.forward)

    def compile(self) -> None:
        self._function = compiled(self.traced, [self.keys(1)[0], *self.inputs])

    def __call__(self, key: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Evaluates it once; the gradients of the last call are kept for :meth:`accumulate`."""
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
        """Keys of masks and all else that is random, from PyTorch's generator."""
        return torch.randint(-(2**31), 2**31, (number, 2), dtype=torch.int32, device=self._alive.device)

    def is_current(self) -> bool:
        """Whether parameters, the optimiser's state and the modules' modes are those of the trace."""
        store = pyro.get_param_store()._params
        return (
            all(store.get(name, parameter) is parameter for name, parameter in self.parameters.items())
            and (self.update is None or self.update.is_current())
            and self._modes == [module.training for module in self.modules]
        )

    def _run(self, key: Tensor, *inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        leaves = [next(given) if leaf is None else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        if not self.parameters:
            with torch.no_grad(), KeyedRandomness(key):
                loss = self.loss.estimate(self.model, self.guide, *args, **kwargs)
            return [torch.stack([loss, torch.isfinite(loss).to(loss.dtype)])]
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
        changed = self.update.tensors
        with torch.no_grad():
            before = [t.clone() for t in changed]
            self.update(found)
            for t, old in zip(changed, before, strict=True):
                t.copy_(torch.where(finite, t, old))
            self._alive.copy_(finite)
        return [result]


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


def step_program(*functions: Any, parameters: dict[str, Tensor], optim: PyroOptim) -> Program:
    """A program with the optimiser's update, at learning rates that may change if it takes them as tensors."""
    for fixed_rates in (False, True):
        update = Update(optim, list(parameters.values()), fixed_rates)
        try:
            return Program(*functions, parameters=parameters, update=update)
        except Exception:
            if fixed_rates:
                raise
    raise AssertionError


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def modules_of(*functions: Callable) -> list[nn.Module]:
    return [part for f in functions if isinstance(f, nn.Module) for part in f.modules()]


def parameters_of(model: Callable, guide: Callable, loss: TraceDropout_ELBO, args: Any, kwargs: Any) -> dict:
    """Unconstrained parameters of a loss, as ``SVI`` finds them."""
    with poutine.trace(param_only=True) as capture, unchanged(modules_of(model, guide)):
        loss.loss(model, guide, *args, **kwargs)
    found = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    return {name: parameter for name, parameter in found.items() if parameter.requires_grad}
