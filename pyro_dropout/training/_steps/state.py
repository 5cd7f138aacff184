"""What model and guide consist of: their modules, the tensors these hold, the parameters of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyro_dropout._modes import forked_rng
from pyro_dropout._store import unconstrained
from pyro_dropout.losses.elbo import TraceDropout_ELBO


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


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def modules_of(*functions: Callable) -> list[nn.Module]:
    return list({module: None for f in functions if isinstance(f, nn.Module) for module in f.modules()})


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
    found = unconstrained(capture.trace)
    names = {parameter: name for name, parameter in reversed(found.items()) if parameter.requires_grad}
    return {name: parameter for name, parameter in found.items() if names.get(parameter) == name}
