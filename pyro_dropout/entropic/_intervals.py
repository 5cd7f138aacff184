"""Central intervals of Student-t distributions."""

from __future__ import annotations

import numbers

import numpy as np
import pyro.distributions as dist
import scipy.stats


def check_mass(mass: float) -> None:
    if not (isinstance(mass, numbers.Real) and 0 < mass < 1):
        raise ValueError(f"mass is the probability inside of an interval, between 0 and 1, but found {mass}")


def interval(student: dist.StudentT, mass: float) -> np.ndarray:
    """Bounds, ``[..., 2]``."""
    half = scipy.stats.t.ppf(0.5 + mass / 2, student.df.numpy()) * student.scale.numpy()
    return np.stack([student.loc.numpy() - half, student.loc.numpy() + half], axis=-1)
