"""Fits of a few steps."""

import pyro
from pyro.infer import SVI

from pyro_dropout import TraceDropout_ELBO


def train(model, guide, x, y, steps=5, loss=None):
    """The loss of each step."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss or TraceDropout_ELBO())
    return [svi.step(x, y) for _ in range(steps)]
