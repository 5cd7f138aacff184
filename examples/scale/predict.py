"""Predictions for more rows than memory takes: parquet files, by Ray Data or by one process of PyTorch.

A small regression, with noise that depends on the covariates, is fitted and saved. Rows are generated into files, come
from there a batch at a time, and their predictions go to files again: mean, deviation between functions (epistemic) and
deviation of the noise (aleatoric), by the number of the row, as Ray's files are in no order.

========= ==============================================================================================================
``ray``   ``read_parquet(...).map_batches(Predictor, ...).write_parquet(...)``: ``--processes`` that predict, each with
          the saved fit, and those that read and write
``torch`` ``torch.utils.data`` in one process, which does all
========= ==============================================================================================================

Each process draws its functions from the same seed. These depend neither on rows nor on parts, so that processes agree
without a word, and both engines find the same. What they take is printed: rows a second, with the start of processes,
and the most memory that all of them held together, what they share counted once; it does not grow with the rows.

Needs ``pip install "pyro-dropout[ray]"``. ``python -m examples.scale.predict --help``
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm, trange

from examples.common.arguments import add_outputs, count, parsed, script, settle
from examples.common.engines import needed, ray_started
from examples.common.results import whole
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    DropoutPredictive,
    TraceDropout_ELBO,
    load_checkpoint,
    save_checkpoint,
)

pa, pq, psutil = (needed(name, "ray") for name in ("pyarrow", "pyarrow.parquet", "psutil"))

ENGINES = ("torch", "ray")
FEATURES, TRAINING = 8, 1000
GROUPS = 20  # batches in a file
TENSORS = 2**27  # bytes of a prediction, at most
STORE, BLOCK = 2**29, 2**24  # bytes of all that Ray's processes share, and of a part of it
RESULTS = ("mean", "epistemic_sd", "aleatoric_sd")

Batch = dict[str, np.ndarray]  # by column


class Found(NamedTuple):
    """What an engine took.

    :param memory: bytes, at most.
    """

    folder: Path
    seconds: float
    memory: int


def main(arguments: list[str] | None = None) -> dict[str, Found]:
    parser = script("scale.predict", __doc__)
    parser.add_argument("--rows", type=count, default=10_000_000, help="to predict (default 10,000,000)")
    parser.add_argument("--batch", type=count, default=50_000, help="rows at once (default 50,000)")
    parser.add_argument("--draws", type=count, default=50, help="functions of a prediction (default 50)")
    parser.add_argument("--steps", type=count, default=2000, help="of the fit (default 2,000)")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES, help="(default both, in turn)")
    parser.add_argument("--processes", type=count, default=2, help="of Ray that predict (default 2)")
    add_outputs(parser, default="outputs/scale_predict")
    quick = {"rows": 5000, "batch": 500, "draws": 10, "steps": 100, "processes": 1}
    options = parsed(parser, arguments, quick)
    settle(0)
    rows, checkpoint = generated(options), options.outputs / "fit.pt"
    options.outputs.mkdir(parents=True, exist_ok=True)
    fit(checkpoint, options.steps)
    found = {}
    for name in dict.fromkeys(options.engine):
        folder = options.outputs / f"predictions-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found[name] = {"torch": by_torch, "ray": by_ray}[name](rows, folder, checkpoint, options)
        speed, memory = options.rows / found[name].seconds, found[name].memory / 2**20
        print(f"{name}: {options.rows:,} rows, {speed:,.0f} a second, peak memory {memory:,.0f} MiB; {folder}")
    if len(found) > 1:
        print(f"largest difference between them: {difference(found, options.rows):.1e}")
    return found


# The rows, and the fit that predicts them


def generated(options: argparse.Namespace) -> Path:
    """A folder of files, each of which a seed decides; those that are there stay."""
    folder = options.outputs / f"rows-{options.rows}-by-{options.batch}"
    for first in trange(0, options.rows, options.batch * GROUPS, desc="files of rows", disable=None):
        path = folder / f"{first:012}.parquet"
        if not path.exists():
            number = min(options.batch * GROUPS, options.rows - first)
            x = np.random.default_rng(first).normal(size=(FEATURES, number)).astype(np.float32)
            columns = {"row": np.arange(first, first + number), **{f"x{i}": column for i, column in enumerate(x)}}
            with whole(path) as file:
                pq.write_table(pa.table(columns), file, row_group_size=options.batch)
    return folder


def network() -> tuple[Regression, AutoBernoulliDropout]:
    model = Regression(FEATURES, TRAINING, precision="network")
    return model, AutoBernoulliDropout(model, rate=0.05, rest=AutoDelta)


def fit(path: Path, steps: int) -> None:
    x = torch.randn(TRAINING, FEATURES)
    y = x[:, 0].sin() + x[:, 1] / 3 + (0.1 + 0.2 * x[:, 2].abs()) * torch.randn(TRAINING)
    model, guide = network()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 5e-3}), TraceDropout_ELBO())
    for _ in trange(steps, desc="fit", disable=None):
        batch = torch.randint(TRAINING, (100,))
        svi.step(x[batch], y[batch])
    save_checkpoint(path, guide=guide)


class Predictor:
    """A saved fit, loaded once, and the functions that a seed draws from it."""

    def __init__(self, checkpoint: Path, draws: int) -> None:
        settle(0)
        model, guide = network()
        load_checkpoint(checkpoint, guide=guide)
        settings = {"num_samples": draws, "return_sites": ["obs"], "max_memory": TENSORS, "seed": 0}
        self.predict = DropoutPredictive(model, guide=guide, **settings)

    def __call__(self, batch: Batch) -> Batch:
        x = torch.from_numpy(np.column_stack([batch[f"x{i}"] for i in range(FEATURES)]))
        moments = self.predict.moments(x)["obs"]
        values = (moments.mean, moments.epistemic.sqrt(), moments.aleatoric.sqrt())
        return {"row": batch["row"], **{name: value.numpy() for name, value in zip(RESULTS, values, strict=True)}}


# Two engines


class RowGroups(IterableDataset):
    """Row groups of all files in a folder, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Batch]:
        for path in sorted(self.folder.glob("*.parquet")):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                yield {name: table[name].to_numpy() for name in table.column_names}


def by_torch(rows: Path, folder: Path, checkpoint: Path, options: argparse.Namespace) -> Found:
    schema = pa.schema([("row", pa.int64()), *((name, pa.float32()) for name in RESULTS)])
    with (
        measured(folder) as found,
        pq.ParquetWriter(folder / "all.parquet", schema) as writer,
        tqdm(total=options.rows, desc="torch", unit="row", unit_scale=True, disable=None) as bar,
    ):
        predict = Predictor(checkpoint, options.draws)
        for batch in DataLoader(RowGroups(rows), batch_size=None, collate_fn=dict):  # arrays, as they are
            writer.write_table(pa.table(predict(batch), schema))
            bar.update(len(batch["row"]))
    return found[0]


def by_ray(rows: Path, folder: Path, checkpoint: Path, options: argparse.Namespace) -> Found:
    """Predictors count as one CPU each; one more is for those who read and write."""
    with measured(folder) as found, ray_started(options.processes + 1, object_store_memory=STORE) as ray:
        context = ray.data.DataContext.get_current()
        context.target_max_block_size, context.enable_progress_bars = BLOCK, sys.stderr.isatty()
        ray.data.read_parquet(str(rows)).map_batches(
            Predictor,
            fn_constructor_args=(checkpoint.absolute(), options.draws),
            batch_size=options.batch,
            compute=ray.data.ActorPoolStrategy(size=options.processes),
        ).write_parquet(str(folder.absolute()))
    return found[0]


# What they take, and whether they agree


@contextmanager
def measured(folder: Path) -> Iterator[list[Found]]:
    """A list that has what was found, when the context ends."""
    found: list[Found] = []
    ended, most = threading.Event(), [held()]

    def watch() -> None:
        while not ended.wait(0.5):
            most.append(max(most.pop(), held()))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    start = time.perf_counter()
    try:
        yield found
    finally:
        seconds = time.perf_counter() - start
        ended.set()
        watching.join()
        found.append(Found(folder, seconds, max(most[0], held())))


def held() -> int:
    """Bytes of this process and those it started; where the system says it, pages that several share count once."""
    total, this = 0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total


def difference(found: dict[str, Found], rows: int) -> float:
    """The largest, of any row: one engine's results are put in order in a file, the others' compared to it."""
    first, *others = (each.folder for each in found.values())
    path = first / "in_order.npy"
    shape = (rows, len(RESULTS))
    in_order = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    in_order[:] = np.nan
    for row, values in results(first):
        in_order[row] = values
    largest = 0.0
    for other in others:
        number = 0
        for row, values in results(other):
            largest = np.maximum(largest, np.abs(in_order[row] - values).max())  # NaN where a row is missing
            number += len(row)
        if number != rows:
            raise ValueError(f"{other} must have {rows:,} rows, but found {number:,}")
    path.unlink()
    return float(largest)


def results(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of rows, and what was predicted of them ``[rows, 3]``, in parts."""
    for batch in RowGroups(folder):
        yield batch["row"], np.column_stack([batch[name] for name in RESULTS])


if __name__ == "__main__":
    main()
