"""One linear system by conjugate gradients, where a factor would cost more."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Of the residual, relative to the solution. No eigenvalue is below 1, so the solution is off by no more.
STOP, ACCEPT = 1e-13, 1e-11


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor | None:
    """``u`` with ``M u = b`` for a symmetric M of which ``M - 1`` is positive semi-definite, or None.

    :param apply: ``M v`` for v of ``[n]``.
    :param iterations: how many to try; as many as M has clusters of eigenvalues are enough.
    """
    solution, residual = b * 0.0, b.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        if bool(square <= STOP**2 * (solution @ solution)):
            break
        image = apply(direction)
        step = square / (direction @ image)
        solution = solution + step * direction
        residual = residual - step * image
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    error = b - apply(solution)  # the residual itself, not what rounding made of it
    return solution if bool(error @ error <= ACCEPT**2 * (solution @ solution)) else None
