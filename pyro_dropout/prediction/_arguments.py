"""Checks of what a prediction is made of: names of sites and arguments, draws that are given."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pyro_dropout._checks import said


def check_names(return_sites: Any, data: Any) -> None:
    for name, values, kinds in (("return_sites", return_sites, (str,)), ("data", data, (str, numbers.Integral))):
        if values is None:
            continue
        if not isinstance(values, Collection):
            raise TypeError(f"{name} must be a list, but found {said(values)}")
        for value in values:
            if not isinstance(value, kinds):
                what = " or ".join("a name" if kind is str else "a position" for kind in kinds)
                raise TypeError(f"{name} must list {what} each, but found {said(value)}")


def check_samples(samples: Any) -> None:
    if samples is None:
        return
    if not isinstance(samples, Mapping):
        raise TypeError(f"posterior_samples must be a mapping from sites to tensors, but found {said(samples)}")
    for name, value in samples.items():
        if not isinstance(value, Tensor) or not value.dim() or not len(value):
            raise ValueError(
                f"posterior_samples must have a tensor [draws, ...] for each site, but for {name!r} found {said(value)}"
            )
    lengths = {name: len(value) for name, value in samples.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"posterior_samples have different numbers of draws: {lengths}")
