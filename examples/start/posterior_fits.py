"""The fits that ``posterior_checks`` compares: SVI with a record of learned rates, and NUTS, which looks like one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.infer import MCMC, NUTS, SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import Tensor
from tqdm import trange

from examples.common.standardised import Data
from pyro_dropout import TraceDropout_ELBO, init_to_module

RECORDS = 100  # of the rates, over training


@dataclass(frozen=True)
class Fit:
    """An approximate posterior, as ``from_pyro_svi`` takes it, with its learned rates over training."""

    model: Callable
    guide: Callable
    draws: int
    steps: list[int] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)


def fit(model: Callable, guide: Callable, batches: Iterator[Any], args: argparse.Namespace, name: str) -> Fit:
    """A plain SVI loop, which writes down the rates if they are learned."""
    loss = TraceDropout_ELBO(max_plate_nesting=1)
    if isinstance(guide, AutoNormal):  # one draw of the weights for all points is noisy: it needs more of them
        loss = TraceMeanField_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / args.steps)}), loss)
    done = Fit(model, guide, args.draws)
    for step in trange(1, args.steps + 1, desc=name, unit="step", disable=None):
        svi.step(*next(batches))
        if getattr(guide, "learnable", False) and step % max(1, args.steps // RECORDS) == 0:
            done.steps.append(step)
            for site, rate in guide.rates().items():
                done.rates.setdefault(site, []).append(rate.item())
    return done


def sample(model: Callable, data: Data, args: argparse.Namespace) -> Fit:
    """One chain of NUTS, on the model as it is."""
    start = init_to_module(fallback=init_to_median)
    kernel = NUTS(model, init_strategy=start, max_tree_depth=6, max_plate_nesting=1)
    mcmc = MCMC(kernel, args.nuts_draws, args.warmup, disable_progbar=not sys.stderr.isatty())
    mcmc.run(data.x, data.y)
    return Fit(model, as_guide(mcmc.get_samples()), args.nuts_draws)


def as_guide(samples: dict[str, Tensor]) -> Callable:
    """A guide that gives draws back: what exports an SVI then exports NUTS, held-out points included."""

    def guide(*args: Any) -> None:
        for name, value in samples.items():
            pyro.sample(name, dist.Delta(value.unsqueeze(1), event_dim=value.dim() - 1))  # [draws, place of the data]

    return guide
