"""A classifier of digits by several processes: PyTorch's DistributedDataParallel around the loss as a module.

    torchrun --nproc-per-node=2 -m examples.scale.train_ddp

Each process (rank) has its own rows and masks, and takes the mean of all gradients. States are written after each
epoch, and a run goes on from the last: killed in the middle and started again by ``--max-restarts``, it ends as one
that was not. With ``--compiled`` steps are those of ``DistributedSVI``; with ``--bfloat16`` the network computes in it.
On machines with GPUs each rank takes its own; more machines need torchrun's ``--nnodes`` and ``--rdzv-endpoint`` alone.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

from examples.common.arguments import add_outputs, add_seed, count, parsed, script, settle
from examples.common.fits import digits, named_by, scores, softmax_inputs
from models.classification import Classification
from models.regression import mlp
from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO
from pyro_dropout.training import (
    DistributedSVI,
    distributed_loss,
    distributed_step,
    load_distributed,
    save_distributed,
)


def main(arguments: list[str] | None = None) -> dict[str, float] | None:
    parser = script("scale.train_ddp", __doc__)
    parser.add_argument("--epochs", type=count, default=5, help="(default %(default)s)")
    parser.add_argument("--batch", type=count, default=128, help="images of a step of one process (default 128)")
    parser.add_argument("--width", type=count, default=512, help="of two hidden layers (default %(default)s)")
    parser.add_argument("--images", type=count, default=60_000, help="to learn from (default %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="steps of DistributedSVI")
    parser.add_argument("--bfloat16", action="store_true", help="networks compute in it; losses and rates do not")
    add_seed(parser)
    add_outputs(parser, default="outputs/scale")
    options = parsed(parser, arguments, {"epochs": 2, "width": 16, "images": 512})
    if "RANK" not in os.environ:
        parser.error("start it by torchrun: torchrun --nproc-per-node=2 -m examples.scale.train_ddp")
    settle(options.seed)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return train(options)
    finally:
        dist.destroy_process_group()


def train(options: argparse.Namespace) -> dict[str, float] | None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    x, y = (part[: options.images] for part in digits("train"))
    model = Classification(mlp(x.shape[1], (options.width,) * 2, 10), size=len(x)).to(device)
    guide = AutoConcreteDropout(model, rate=0.1)
    step, optim = stepper(model, guide, x[:2].to(device), y[:2].to(device), options)
    sampler: Any = DistributedSampler(TensorDataset(x, y), seed=options.seed, drop_last=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=options.batch, sampler=sampler, drop_last=True)
    if not len(loader):
        raise ValueError(
            f"{len(x)} images are no batch of {options.batch} for each of {ranks} processes: give --images"
        )
    path, done, seconds = state_of(options, ranks), 0, 0.0
    if path.exists():
        found = load_distributed(path, map_location=device, guide=guide, optim=optim)
        done, seconds = found["done"], found["seconds"]
    for epoch in range(done, options.epochs):
        sampler.set_epoch(epoch)  # or every epoch had one order
        start, losses = time.monotonic(), []
        for rows in tqdm(loader, desc=f"epoch {epoch + 1}", disable=True if rank else None):
            losses.append(step(*(part.to(device) for part in rows)))
        seconds += time.monotonic() - start
        save_distributed(path, guide=guide, optim=optim, done=epoch + 1, seconds=seconds)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.1f}")
    if rank:
        return None
    tests = scores(softmax_inputs(model, guide, digits("test")[0].to(device), draws=20).cpu(), digits("test")[1])
    images = options.epochs * len(loader) * options.batch * ranks
    print(f"{ranks} processes, {images / seconds:,.0f} images a second; test accuracy {100 * tests['accuracy']:.2f} %")
    print(f"rates: {', '.join(f'{name} {float(rate):.3f}' for name, rate in guide.rates().items())}")
    print(f"written to {path}")
    return tests


def stepper(model: Any, guide: Any, x: torch.Tensor, y: torch.Tensor, options: argparse.Namespace) -> tuple[Any, Any]:
    """A function that takes a step of all ranks, and the optimiser that it takes it with."""
    elbo = TraceDropout_ELBO()
    low = torch.autocast(x.device.type, torch.bfloat16, enabled=options.bfloat16)
    if options.compiled:
        compiled = DistributedSVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo, seed=options.seed, progress=False)
        compiled.start(x, y)
        return low(compiled.step), compiled.optim
    loss = distributed_loss(elbo, model, guide, x, y, seed=options.seed)
    optim = torch.optim.Adam(loss.parameters(), lr=1e-3)
    return low(lambda *rows: distributed_step(loss, optim, *rows)), optim


def state_of(options: argparse.Namespace, ranks: int) -> Path:
    names = ("epochs", "batch", "width", "images", "compiled", "bfloat16", "seed")
    options.outputs.mkdir(parents=True, exist_ok=True)
    return named_by(options.outputs / "ddp.pt", {**{name: getattr(options, name) for name in names}, "ranks": ranks})


if __name__ == "__main__":
    main()
