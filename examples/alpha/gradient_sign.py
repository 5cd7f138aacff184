"""Attacks along the sign of a gradient, through the predictive distribution of drawn functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
import torch.nn.functional as F
from torch import Tensor

Functions = Callable[
    [Tensor], Tensor
]  # of images [N, pixels] the log-probabilities of each function [draws, N, classes]


def drawn_anew(model: Any, guide: Any, draws: int) -> Functions:
    """Other functions at each call."""

    def functions(x: Tensor) -> Tensor:
        with pyro.plate("draws", draws, dim=-2):  # left of the data's; Pyro's Predictive keeps no gradients
            trace = poutine.trace(guide).get_trace(x)
            return _log_probs(poutine.replay(model.net, trace)(x), x)

    return functions


def drawn_once(model: Any, guide: Any, draws: int, seed: int = 0) -> Functions:
    """The same at each call."""
    anew = drawn_anew(model, guide, draws)

    def functions(x: Tensor) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)  # of a guide's masks, which do not depend on the data
            return anew(x)

    return functions


def mean_network(model: Any, guide: Any) -> Functions:
    """One function: no unit is dropped."""
    return lambda x: _log_probs(poutine.condition(model.net, data=guide.median(x))(x), x)


def _log_probs(inputs: Tensor, x: Tensor) -> Tensor:
    return inputs.reshape(-1, len(x), inputs.shape[-1]).log_softmax(-1)


def predictive(log_probs: Tensor) -> Tensor:
    """Log of the mean of the functions' probabilities, ``[N, classes]``."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def log_odds(log_probs: Tensor, label: Tensor) -> Tensor:
    """Log of p / (1 - p) of a label under the mean of the functions' probabilities, ``[N]``.

    Its gradient has the sign of that of log p, times 1 / (1 - p): also where p rounds to 1, and log p to 0, whose
    gradient is rounded away. An attack on log p fails there, which looks like a network that withstands it.

    :param label: one for each image, ``[N]``.
    """
    own = F.one_hot(label, log_probs.shape[-1]).bool()
    of_label, of_others = (log_probs.masked_fill(hidden, -math.inf).logsumexp((0, -1)) for hidden in (~own, own))
    return of_label - of_others


def step(functions: Functions, x: Tensor, size: float, target: int | None = None) -> Tensor:
    r"""One step, within [0, 1] (BBα section 5.3):

    .. math:: x - \eta \, \mathrm{sign} \nabla_x \max_y \log p(y \mid x), \quad
        x + \eta \, \mathrm{sign} \nabla_x \log p(\mathrm{target} \mid x)

    :param size: η, of pixels in [0, 1].
    :param target: class to go to; by default away from the one that is predicted.
    """
    x = x.detach().requires_grad_()
    log_probs = functions(x)
    predicted = predictive(log_probs.detach()).argmax(-1)
    label, sign = (predicted, -1) if target is None else (torch.full_like(predicted, target), 1)
    (gradient,) = torch.autograd.grad(sign * log_odds(log_probs, label).sum(), x)
    return (x + size * gradient.sign()).clamp(0, 1).detach()


def iterated(functions: Functions, x: Tensor, size: float, target: int, steps: int) -> Iterator[Tensor]:
    """Images after each of so many steps to a target (Kurakin et al. 2016)."""
    for _ in range(steps):
        x = step(functions, x, size, target)
        yield x
