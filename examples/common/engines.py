"""Many fits: splits, grids and restarts, spread over processes by joblib, by Ray or by Dask behind the same lines."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from joblib import Parallel, delayed, parallel_config

ENGINES = ("loky", "ray", "dask")  # joblib's own processes, a plain loop where there is one; extras of the package
EACH = 11  # of joblib: a line for each task that ends


def add_engine(
    parser: argparse.ArgumentParser,
    default: str | None = ENGINES[0],
    says: str = "what starts the processes (default: %(default)s)",
) -> None:
    parser.add_argument("--engine", choices=ENGINES, default=default, help=says)


def spread(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], options: argparse.Namespace) -> list[Any]:
    """``[function(*task, options) for task in tasks]``, by so many processes as the options say, and by which engine.

    A task that fails leaves others alone; what they find is lost unless they write it to a file, as ``kept`` does. A
    process that is killed, for its memory say, ends all.

    :raises RuntimeError: after the last task, which of them failed and how; a note has where.
    """
    tasks = list(tasks)
    with engine(options.engine or "loky", options.processes):
        run = Parallel(verbose=EACH if len(tasks) > 1 else 0)
        found = run(delayed(_tried)(function, task, options) for task in tasks)
    failed = {f"{function.__name__}{task}": error for task, (_, error) in zip(tasks, found, strict=True) if error}
    if failed:
        lines = [f"{call}: {error.strip().splitlines()[-1]}" for call, error in failed.items()]
        error = RuntimeError("\n  ".join([f"{len(failed)} of {len(tasks)} failed, all others have finished:", *lines]))
        for call, where in failed.items():
            error.add_note(f"\n{call}\n{where}")
        raise error
    return [value for value, _ in found]


def _tried(function: Callable[..., Any], task: tuple[Any, ...], options: argparse.Namespace) -> tuple[Any, str | None]:
    """What it returns, or where it failed: as text, as not every exception goes from one process to another."""
    try:
        return function(*task, options), None
    except Exception as error:
        return None, "".join(traceback.format_exception(error))


@contextmanager
def engine(name: str, processes: int) -> Iterator[None]:
    """What ``joblib.Parallel()`` runs by inside: so many processes on this machine, which end afterwards.

    :raises ModuleNotFoundError: an engine that is not installed.
    """
    start = {"loky": _loky, "ray": ray_started, "dask": _dask}[name]
    with start(processes):
        if name == "ray":
            importlib.import_module("ray.util.joblib").register_ray()
        with parallel_config(name, n_jobs=processes):
            yield


def needed(name: str, extra: str) -> Any:
    """A module that an extra of the package has.

    :raises ModuleNotFoundError: where that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{name} is not installed: pip install "pyro-dropout[{extra}]"', name=name) from error


@contextmanager
def _loky(processes: int) -> Iterator[None]:
    yield


@contextmanager
def ray_started(processes: int, **more: Any) -> Iterator[Any]:
    """Ray with so many CPUs, which other machines do not see.

    :param more: of ``ray.init``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = needed("ray", "ray")
    settings = {"include_dashboard": False, "logging_level": logging.WARNING, "_node_ip_address": "127.0.0.1"}
    ray.init(num_cpus=processes, **settings, **more)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _dask(processes: int) -> Iterator[None]:
    distributed = needed("distributed", "dask")
    local = {"host": "127.0.0.1", "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=processes, threads_per_worker=1, **local) as cluster,
        distributed.Client(cluster),
    ):
        yield
