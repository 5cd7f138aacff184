"""Labels of held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dropout.metrics.labels import as_tensor


def held_out_labels(labels: Any, shape: Sequence[int], of: str, like: Any) -> Tensor:
    """Integers that are classes.

    :param shape: number of data, number of classes.
    :param of: name of the argument whose shape this is.
    :param like: its value, whose labels (of ArviZ) those of data must be.
    """
    by_datum = like.isel({like.dims[-1]: 0}, drop=True) if hasattr(like, "isel") else like
    y = as_tensor(labels, "labels", like=by_datum)
    size, classes = shape
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"labels must be integers, but found {y.dtype}")
    if tuple(y.shape) != (size,) or not size:
        raise ValueError(f"labels must be one for each of the {size} data of {of}, but found shape {tuple(y.shape)}")
    y = y.long()  # small integers do not hold the number of classes
    if bool((y < 0).any()) or bool((y >= classes).any()):
        raise ValueError(
            f"labels must be classes of {of}, 0 to {classes - 1}, but found {y.min().item()} to {y.max().item()}"
        )
    return y
