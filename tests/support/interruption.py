"""A training that goes on from its last checkpoint: ``python -m tests.support.interruption KIND FOLDER STEPS``."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.infer import SVI

from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
    load_checkpoint,
    save_checkpoint,
)


def clipped(model, guide, x, y):
    """SVI with Pyro's global store, learned hard masks and a decaying rate."""
    optimiser = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99})
    svi = SVI(model, guide, optimiser, TraceDropout_ELBO(gradient="disarm", num_particles=2))
    return svi.step, {"optimiser": optimiser}


def local(model, guide, x, y):
    """SVI with parameters of its own, a schedule and several particles."""
    optimiser = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.99})
    svi = SVI(model, guide, optimiser, RenyiDropout_ELBO(0.5, num_particles=3))

    def step(*batch):
        svi.step(*batch)
        optimiser.step()

    return step, {"optimiser": optimiser}


def module(model, guide, x, y):
    """A loop over ``ELBO()(model, guide)`` with a torch optimiser and a schedule."""
    elbo = TraceDropout_ELBO()(model, guide)
    optimiser = torch.optim.AdamW(elbo.parameters(), lr=0.02, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100)

    def step(*batch):
        optimiser.zero_grad()
        elbo(*batch).backward()
        optimiser.step()
        schedule.step()

    return step, {"optimiser": optimiser, "schedule": schedule}


KINDS = {function.__name__: function for function in (clipped, local, module)}


def train(kind: str, folder: Path, steps: int, pause: float = 0.0) -> None:
    pyro.settings.set(module_local_params=kind != "clipped")
    pyro.set_rng_seed(0)
    x = torch.randn(50, 3)
    y = x.sum(-1).sin()
    model = Regression(3, 50, hidden=(8,))
    make = AutoConcreteDropout if kind != "clipped" else AutoBernoulliDropout
    guide = make(model, rate=0.2, **({"learnable": True} if kind == "clipped" else {}))
    guide(x, y)  # sets it up
    step, parts = KINDS[kind](model, guide, x, y)
    parts = {"model": model, "guide": guide, **parts}
    path = folder / "checkpoint.pt"
    start = load_checkpoint(path, **parts)["step"] if path.exists() else 0
    print(f"from {start}", flush=True)
    for k in range(start, steps):
        numpy = np.random.randint(50, size=7).tolist()  # noqa: NPY002
        rows = torch.tensor([random.randrange(50), *numpy, *torch.randint(50, (8,)).tolist()])
        step(x[rows], y[rows])
        if (k + 1) % 10 == 0:
            save_checkpoint(path, step=k + 1, **parts)
        print(f"step {k}", flush=True)
        time.sleep(pause)
    torch.save(guide.state_dict(), folder / "fitted.pt")


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
