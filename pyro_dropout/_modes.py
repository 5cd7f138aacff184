"""Contexts around a run of a model: no trace of random numbers, evaluation mode, parameters that are borrowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_DEVICES = ("cpu", "cuda")  # that autocast is for
_borrowing = ContextVar("borrowing", default=False)


@contextmanager
def borrowed_parameters() -> Iterator[None]:
    """What guides draw inside is used up before parameters change, and needs no copies of them."""
    token = _borrowing.set(True)
    try:
        yield
    finally:
        _borrowing.reset(token)


def are_borrowed() -> bool:
    return _borrowing.get()


def in_backward() -> bool:
    """Whether a backward pass is under way, in which a layer can only run again."""
    return torch._C._current_graph_task_id() != -1


@contextmanager
def forked_rng() -> Iterator[None]:
    """Random numbers that are drawn inside leave those outside as they are."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def autocast_state() -> tuple[Any, ...]:
    """Of each device where autocast is on, the type that operations take."""
    on = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    return tuple((device, torch.get_autocast_dtype(device)) for device in on)


@contextmanager
def single_precision() -> Iterator[None]:
    """Without autocast, which would take sums of products to fewer digits."""
    with ExitStack() as stack:
        for device, _ in autocast_state():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def evaluation_mode() -> Iterator[None]:
    """Every module that is called inside is in evaluation mode, wherever the model keeps it."""
    changed: list[nn.Module] = []

    def switch(module: nn.Module, _: Any) -> None:
        if module.training:
            for inner in module.modules():
                if inner.training:
                    inner.training = False
                    changed.append(inner)

    hook = nn.modules.module.register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for inner in changed:
            inner.training = True


@contextmanager
def unchanged_buffers() -> Iterator[None]:
    """Buffers of modules that are called inside, running statistics say, are afterwards as before."""
    kept: dict[Tensor, Tensor] = {}

    def keep(module: nn.Module, _: Any) -> None:
        for name, buffer in module._buffers.items():  # others hold sampled weights
            if buffer is not None and name not in module._non_persistent_buffers_set and buffer not in kept:
                kept[buffer] = buffer.detach().clone()

    hook = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        with torch.no_grad():
            for buffer, before in kept.items():
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def trial_run() -> Iterator[None]:
    """A run whose gradients are looked at, and which leaves nothing behind: no random numbers taken, buffers as before.

    Also inside of ``torch.no_grad`` and ``torch.inference_mode``.
    """
    # Outside of dispatch modes: what counts memory or random numbers must not count this.
    with unchanged_buffers(), _disable_current_modes(), torch.inference_mode(False), torch.enable_grad(), forked_rng():
        yield
