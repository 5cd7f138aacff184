"""Several processes: images a second against one with as many threads, and what messages cost by parameters."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pyro
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from models.classification import Classification
from models.regression import mlp
from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO
from pyro_dropout.training import distributed_loss, distributed_step
from tests.benchmarks.measure import Row

WIDTH, BATCH, INPUTS, CLASSES = 1024, 256, 784, 10
SIZES = (10**5, 10**6, 10**7)  # of gradients


def ranks(repeats: int) -> list[Row]:
    return list(_rows(repeats))


def _rows(repeats: int) -> Iterator[Row]:
    one, two = [], []
    for _ in range(repeats):  # in turn
        two.append(_seconds(_steps, 2, 1, BATCH // 2))
        one.append(_seconds(_steps, 1, 2, BATCH))
    ratios = sorted(a / b for a, b in zip(two, one, strict=True))
    work = f"a step of {BATCH} images, {INPUTS}-{WIDTH}-{WIDTH}-{CLASSES}"
    name = f"{work}: two processes of one thread / one of two threads"
    yield Row(name, f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]", "", "", "")
    for number in (2, 4):
        cells = [f"{size:.0e}: {1000 * _seconds(_messages, number, 1, size):.1f} ms" for size in SIZES]
        yield Row(f"mean of gradients over {number} processes, by their number", ", ".join(cells), "", "", "")


def _seconds(function: Any, number: int, threads: int, size: int) -> float:
    """The median of what the first process sees."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run, (function, number, threads, size, folder), nprocs=number)
        return float(torch.load(f"{folder}/seconds"))


def _run(rank: int, function: Any, number: int, threads: int, size: int, folder: str) -> None:
    torch.set_num_threads(threads)
    pyro.settings.set(module_local_params=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/at", rank=rank, world_size=number)
    step = function(size)
    times = []
    for i in range(35):
        dist.barrier()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if i == 5:
            times.clear()
    if rank == 0:
        torch.save(statistics.median(times), f"{folder}/seconds")
    del step
    dist.destroy_process_group()


def _steps(batch: int) -> Any:
    x, y = torch.rand(batch, INPUTS), torch.arange(batch) % CLASSES
    model = Classification(mlp(INPUTS, (WIDTH, WIDTH), CLASSES), size=60_000)
    loss = distributed_loss(TraceDropout_ELBO(), model, AutoConcreteDropout(model), x, y)
    optim = torch.optim.Adam(loss.parameters())
    return lambda: distributed_step(loss, optim, x, y)


def _messages(size: int) -> Any:
    gradients: Tensor = torch.zeros(size)
    return lambda: dist.all_reduce(gradients)
