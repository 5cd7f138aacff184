"""What a loss looks at once, before its first step: whether masks per datum are right for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import nn

from models.classification import Classification, lenet
from models.regression import Regression
from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO, from_torch
from pyro_dropout.losses._independence import check_independence
from tests.benchmarks.measure import Row, interleaved


def _models() -> Iterator[tuple[str, Callable, Callable, tuple[Any, ...]]]:
    """The README's models and those of ``models``, with guides and data of the README's sizes."""
    for widths, batch in (((10, 50), 64), ((3, 50), 200), ((13, 50), 32), ((13, 50, 50), 32)):
        features, *hidden = widths
        model = Regression(features, 500, hidden)
        name = f"Regression {'-'.join(map(str, widths))}-1, batch {batch}"
        yield name, model, AutoConcreteDropout(model), (torch.randn(batch, features), torch.randn(batch))
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Dropout2d(0.1), nn.MaxPool2d(4)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )
    images, labels = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    model, guide = from_torch(net, images, partial(Classification, size=5_000), guide=AutoConcreteDropout, size=5_000)
    yield "Classification of from_torch, two convolutions, 16 images", model, guide, (images, labels)
    model = Classification(lenet(), size=60_000)
    yield "Classification, lenet, 16 images", model, AutoConcreteDropout(model), (images, labels)


def independence(repeats: int) -> list[Row]:
    """The check that rows do not know each other, which every loss makes once, against one of its steps."""
    rows = []
    pyro.clear_param_store()
    for name, model, guide, data in _models():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceDropout_ELBO())
        check = partial(check_independence, model, guide, data, {})
        work = f"check of independence, once, {name} / a step of SVI"
        rows.append(interleaved(work, check, partial(svi.step, *data), "< 20 ms", repeats, 1))
        pyro.clear_param_store()  # the next guide's parameters have the same names
    return rows
