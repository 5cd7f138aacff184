"""One linear system by conjugate gradients, where a factor would cost more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of the residual, relative to the solution. No eigenvalue is below 1, so the solution is off by no more.
STOP, ACCEPT = 1e-13, 1e-11


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor | None:
    """``u`` with ``M u = b`` for a symmetric M of which ``M - 1`` is positive semi-definite, or None.

    :param apply: ``M v`` for v of the shape of b.
    :param b: ``[n]``, or ``[n, k]`` for k systems at once, each with steps of its own.
    :param iterations: how many to try; as many as M has clusters of eigenvalues are enough.
    """
    solution, residual = b * 0.0, b.clone()
    direction, square = residual.clone(), _squares(residual)
    for _ in range(iterations):
        done = square <= STOP**2 * _squares(solution)
        if bool(done.all()):
            break
        image = apply(direction)
        step = (square / (direction * image).sum(0)).masked_fill(done, 0.0)  # 0 / 0 where nothing is left
        solution = solution + step * direction
        residual = residual - step * image
        square, before = _squares(residual), square
        direction = residual + (square / before).masked_fill(done, 0.0) * direction
    error = b - apply(solution)  # the residual itself, not what rounding made of it
    return solution if bool((_squares(error) <= ACCEPT**2 * _squares(solution)).all()) else None


def _squares(values: Tensor) -> Tensor:
    return torch.linalg.vecdot(values, values, dim=0)
