"""Numbers that are not finite: whether a gradient has any, and which argument or parameter they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def finite_gradients(parameters: dict[str, Tensor]) -> bool:
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf"))).sum()))


def not_finite(what: str, culprit: str | None = None, where: str = "") -> ValueError:
    """The error of a step that is refused."""
    return ValueError(f"{where}{f'{culprit}: ' if culprit else ''}{what}; parameters were not changed")


def explain_gradients(parameters: dict[str, Tensor], culprit: str | None) -> ValueError:
    """The error of a step whose loss alone is finite."""
    broken = [n for n, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    why = culprit or "a function may have no slope where it was evaluated"
    return not_finite(f"the loss is finite, but the gradient of {', '.join(broken)} is not: {why}")


def find_nonfinite(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
    """Names the argument or parameter that has NaN or infinite entries."""
    named = [(f"argument {i}", a) for i, a in enumerate(args)] + [(f"argument {k!r}", a) for k, a in kwargs.items()]
    for owner, module in (("guide", guide), ("model", model)):
        if isinstance(module, nn.Module):
            named += [(f"the {owner}'s parameter {n!r}", p) for n, p in module.named_parameters()]
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            broken = int((~torch.isfinite(value)).sum())
            if broken:
                return f"{name} has {broken} NaN or infinite entries of {value.numel()}"
    return None


@contextmanager
def naming_culprits(model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[None]:
    """What is wrong with a value is said of what it came from."""
    try:
        yield
    except ValueError as error:
        culprit = find_nonfinite(model, guide, args, kwargs)
        if culprit:
            raise ValueError(f"{culprit}; parameters were not changed ({error})") from error
        raise
