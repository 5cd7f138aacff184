"""Steps of the papers' networks of digits: replicates of α networks against one by one, draws beside convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
from torch import Tensor

from examples.alpha.networks import Network
from pyro_dropout import CompiledSVI, ReplicatedSVI
from tests.benchmarks.measure import Row, interleaved

SIZE, BATCH, STEPS = 60_000, 128, 10
ALPHAS = (0.0, 0.5, 1.0)


def digits(repeats: int) -> list[Row]:
    with pyro.settings.context(module_local_params=True):
        return list(_rows(max(3, repeats // 3)))


def _adam() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 1e-3})


def _one(kind: str, alpha: float | None, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    network = Network(kind, alpha)
    svi = CompiledSVI(*network.make(SIZE), _adam(), network.loss(), wait=True, progress=False)
    scan = partial(svi.scan, x, y)
    scan()
    return scan


def _rows(repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    x, y = torch.rand(STEPS, BATCH, 784), torch.randint(10, (STEPS, BATCH))
    for kind in ("100,100", "1000,1000,1000"):
        one_by_one = [_one(kind, alpha, x, y) for alpha in ALPHAS]
        losses = [Network(kind, alpha).loss() for alpha in ALPHAS]
        make = partial(Network(kind, 0.5).make, SIZE)
        svi = ReplicatedSVI(make, [{}] * 3, _adam(), losses, wait=True, progress=False)
        together = partial(svi.scan, *(t.expand(3, *t.shape) for t in (x, y)))
        together()
        work = f"step of three α networks 784-{kind.replace(',', '-')}-10, 10 draws: replicates / one by one"
        yield interleaved(
            work, together, lambda runs=one_by_one: [run() for run in runs], "", repeats, STEPS, (STEPS,) * 2
        )
    images = x.unflatten(-1, (1, 28, 28))
    ten, plain = _one("cnn", 0.5, images, y), _one("cnn", None, images, y)
    work = "step of the α CNN: 10 draws, convolutions once / no dropout"
    yield interleaved(work, ten, plain, "", repeats, STEPS, (STEPS, STEPS))
