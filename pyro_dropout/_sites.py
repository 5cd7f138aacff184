"""What several files ask of Pyro's traces, of random numbers and of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def sample_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """Latent, observed and deterministic sites, without subsamples of plates."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))


def plate_nesting(trace: Any) -> int:
    """Number of dimensions that the trace's plates take."""
    return -min((f.dim for _, s in sample_sites(trace) for f in s["cond_indep_stack"] if f.vectorized), default=0)


def is_traced() -> bool:
    """Whether operations are being written down, for values that are not known yet."""
    return get_proxy_mode() is not None


def holds(condition: Tensor, unknown: bool) -> bool:
    """Whether all of a condition is true, or what is to be taken for it where values are not known."""
    return unknown if is_traced() else bool(condition.all())


@contextmanager
def forked_rng() -> Iterator[None]:
    """Random numbers that are drawn inside leave those outside as they are."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextmanager
def evaluation_mode() -> Iterator[None]:
    """Every module that is called inside is in evaluation mode, wherever the model keeps it."""
    changed: list[nn.Module] = []

    def switch(module: nn.Module, _: Any) -> None:
        if module.training:
            for part in module.modules():
                if part.training:
                    part.training = False
                    changed.append(part)

    hook = nn.modules.module.register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for part in changed:
            part.training = True
