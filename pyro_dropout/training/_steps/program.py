"""What a step does with model, guide, loss and optimiser, as one compiled function of data and a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_dropout._store import still_stored, stored, unconstrained
from pyro_dropout._values import as_traced
from pyro_dropout.guides.rates import zero_rates
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.training._steps.captured import Captured
from pyro_dropout.training._steps.graph import Compiled, trace
from pyro_dropout.training._steps.randomness import KeyedRandomness, drawn_by, random_keys
from pyro_dropout.training._steps.state import held_by, modules_of, still_held, unchanged
from pyro_dropout.training._steps.update import Update


class Program:
    """The loss of some arguments; with ``gradients`` of all parameters; with ``update`` a step.

    A call returns ``[loss, 1 or 0]``, whether loss and gradients are finite; an update happens only where they are,
    and where all before it were, until :meth:`revive`. One of ``_loss``, ``_gradients_of`` and ``_step`` is traced.

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
        self._stored = stored(parameters)
        self._held = held_by(self.modules)
        self._zeros = [rate for _, _, rate in zero_rates(self.modules)]
        others = self.update.tensors if self.update else []
        function = self._loss if not gradients else self._gradients_of if update is None else self._step
        with unchanged(self.modules, self._alive, *others), pyro.validation_enabled(False):
            self._numbers = self._count_numbers(args, kwargs)
            self.traced = trace(function, self.examples)
        self._function: Callable[..., Sequence[Tensor]] = torch.no_grad()(self.traced.module.forward)

    def compile(self, wait: bool, say: Callable[[str, float], None]) -> None:
        self._function = Compiled(self.traced, self.examples, wait, say)

    def capture(self) -> None:
        """
        :raises ValueError: tensors that are not on a GPU.
        """
        self._function = Captured(self.traced, len(self.examples))

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

    def revive(self) -> None:
        """After a failure."""
        self._alive.fill_(True)

    def accumulate(self) -> None:
        """Adds the gradients of the last call to those that the parameters have."""
        for parameter, gradient in zip(self._with_gradient, self._gradients, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    def keys(self, number: int) -> Tensor:
        return random_keys(number, self._alive.device)

    def is_current(self, others_ran: bool = False) -> bool:
        """Whether parameters, buffers and optimiser's state are the tensors of the trace, and rates of 0 still 0.

        :param others_ran: since its last call, programs that may update some of its parameters.
        """
        return (
            still_stored(self._stored)
            and still_held(self._held)
            and not any(map(torch.count_nonzero, self._zeros))
            and (self.update is None or self.update.is_current(others_ran))
        )

    def _count_numbers(self, args: Any, kwargs: Any) -> int:
        """Random numbers of a run."""
        with as_traced(), poutine.block(), torch.no_grad(), KeyedRandomness(self.examples[0]) as drawn:
            self.loss.estimate(self.model, self.guide, *args, **kwargs)
        return drawn.number

    def _loss(self, key: Tensor, *inputs: Tensor) -> list[Tensor]:
        args, kwargs = self._arguments(inputs)
        with torch.no_grad(), KeyedRandomness(key, self._numbers):
            loss = self.loss.estimate(self.model, self.guide, *args, **kwargs)
        return [torch.stack([loss, torch.isfinite(loss).to(loss.dtype)])]

    def _gradients_of(self, key: Tensor, *inputs: Tensor) -> list[Tensor]:
        result, _, found = self._differentiated(key, inputs)
        return [result, *(gradient for gradient in found if gradient is not None)]

    def _step(self, key: Tensor, *inputs: Tensor) -> list[Tensor]:
        assert self.update is not None
        buffers = [[(b, b._version, b.clone()) for b in m._buffers.values() if b is not None] for m in self.modules]
        result, finite, found = self._differentiated(key, inputs)
        with torch.no_grad():
            changed = []
            for of_module in buffers:  # a batch norm's count says that the rest has changed too
                if any(b._version != version for b, version, _ in of_module):
                    changed += [(b, old) for b, _, old in of_module]
            self.update(found, finite)
            for t, old in changed:
                t.copy_(torch.where(finite, t, old))
            self._alive.copy_(finite)
        return [result]

    @property
    def learns(self) -> bool:
        """Whether the loss depends on any parameter."""
        return bool(self._with_gradient)

    def _differentiated(self, key: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """What a call returns, whether all is finite, and the gradient of each parameter, None of those without one."""
        args, kwargs = self._arguments(inputs)
        with torch.enable_grad(), KeyedRandomness(key, self._numbers):
            loss = self.loss.estimate(self.model, self.guide, *args, **kwargs)
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        gradients = {p: g for p, g in zip(self.parameters.values(), found, strict=True) if g is not None}
        self._with_gradient = list(gradients)
        sums = torch.stack([loss.detach(), *(g.sum().to(loss.dtype) for g in gradients.values())])
        finite = torch.isfinite(sums).all() & self._alive
        return torch.stack([loss.detach(), finite.to(loss.dtype)]), finite, found

    def _arguments(self, inputs: Sequence[Tensor]) -> tuple[Any, Any]:
        given = iter(inputs)
        leaves = [next(given) if leaf is _INPUT else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._spec)


_INPUT = object()  # the place of a tensor among arguments


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


def eager_gradients(
    model: Callable, guide: Callable, loss: TraceDropout_ELBO, key: Tensor | None, args: Any, kwargs: Any
) -> tuple[float, dict[Tensor, str]]:
    """The loss, with all checks, by the random numbers that a compiled one would have drawn by this key, if any.

    Gradients are added to those of the parameters, which are returned too, with their names.
    """
    with poutine.trace(param_only=True) as capture, drawn_by(key):
        value = loss.loss_and_grads(model, guide, *args, **kwargs)
    found = unconstrained(capture.trace)
    return value, {parameter: name for name, parameter in reversed(found.items()) if parameter.requires_grad}
