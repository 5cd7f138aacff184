"""What may be asked of tensors' values, also while a graph is written and values are not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_as_traced = ContextVar("as_traced", default=False)


def is_traced() -> bool:
    """Whether operations are being written down, for values that are not known yet."""
    return get_proxy_mode() is not None or _as_traced.get()


@contextmanager
def as_traced() -> Iterator[None]:
    """What runs inside does what it will do when it is traced."""
    token = _as_traced.set(True)
    try:
        yield
    finally:
        _as_traced.reset(token)


def holds(condition: Tensor, unknown: bool) -> bool:
    """Whether all of a condition is true, or what is to be taken for it where values are not known."""
    return unknown if is_traced() else bool(condition.all())


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors broadcast, and are equal up to 0.1 % of an entry or of their mean size (in float32)."""
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        return False
    tolerance = 3 * torch.finfo(a.dtype).eps ** 0.5
    size = a[torch.isfinite(a)].abs().mean().item() if a.numel() else 0.0
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance * (size if size > 0 else 1.0), equal_nan=True).all())


def drop_equal(t: Tensor, event_dim: int) -> Tensor:
    """Drops batch dimensions along which all entries are the same memory (size 1, or expanded)."""
    for d in range(t.dim() - event_dim):
        if t.shape[d] > 1 and t.stride(d) != 0:
            return t
    return t[(0,) * (t.dim() - event_dim)] if t.dim() > event_dim else t
