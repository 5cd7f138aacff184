"""How the benchmarks measure: interleaved repeats for time, a process of its own for memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import trange

from tests.benchmarks import documents, peers, segmentation_peers


class Row(NamedTuple):
    work: str
    ours: str  # milliseconds, or MiB
    peer: str
    ratio: str  # median [quartiles] of the ratios within one repeat
    target: str


def interleaved(
    work: str, ours: Callable, peer: Callable, target: str, repeats: int, calls: int, steps: tuple[int, int] = (1, 1)
) -> Row:
    """Times both in turn, ``repeats`` times; the ratio is taken within each repeat.

    :param steps: how many steps a call of each takes; time is per step.
    """
    for _ in range(3 if calls > 1 else 1):
        ours(), peer()
    times: list[tuple[float, float]] = []
    for repeat in trange(repeats, desc=work, disable=None, leave=False):
        pair = {}
        for name, function, each in (("ours", ours, steps[0]), ("peer", peer, steps[1]))[:: 1 if repeat % 2 else -1]:
            number = max(1, calls // each)
            start = time.perf_counter()
            for _ in range(number):
                function()
            pair[name] = (time.perf_counter() - start) / (number * each) * 1e3
        times.append((pair["ours"], pair["peer"]))
    median = [f"{statistics.median(column):.3g} ms" for column in zip(*times, strict=True)]
    return Row(work, median[0], median[1], _spread([a / b for a, b in times]), target)


def slowest(work: str, functions: Mapping[int, Callable], target: str, repeats: int) -> Row:
    """Times all in turn, ``repeats`` times, there and back; the slowest by median against the fastest."""
    times: dict[int, list[float]] = {size: [] for size in functions}
    for repeat in trange(repeats + 1, desc=work, disable=None, leave=False):
        for size, function in list(functions.items())[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            function()
            times[size].append((time.perf_counter() - start) * 1e3)
    medians = {size: statistics.median(found[1:]) for size, found in times.items()}
    most, least = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    ratios = [a / b for a, b in zip(times[most][1:], times[least][1:], strict=True)]
    shown = (f"{medians[size]:.3g} ms at {size}" for size in (most, least))
    return Row(work, *shown, _spread(ratios), target)


def in_turn(work: str, functions: Mapping[str, Callable], repeats: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step, of functions that make so many, all in turn, there and back."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in trange(repeats + 1, desc=work, disable=None, leave=False):
        for name, function in list(functions.items())[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def unused(make: Callable[[], Callable], calls: int) -> Callable[[], Any]:
    """Calls what ``make`` returns, each only once: first calls, of what was made before time is taken."""
    made = iter([make() for _ in range(calls)])
    return lambda: next(made)()


def _spread(ratios: Sequence[float]) -> str:
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return f"{statistics.median(ratios):.3g} [{quartiles[0]:.3g}, {quartiles[2]:.3g}]"


def _run_once(name: str, arguments: dict, sender: object) -> None:
    run = next(getattr(each, name) for each in (peers, documents, segmentation_peers) if hasattr(each, name))
    run = run(torch.randn(100, peers.FEATURES), **arguments)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    sender.send((_status("VmHWM") - before, seconds, len(result)))  # type: ignore[attr-defined]


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def in_own_process(name: str, **arguments: object) -> tuple[float, float]:
    """Peak MiB above the start, and seconds, of one run."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_once, args=(name, arguments, sender))
    process.start()
    peak, seconds, _ = receiver.recv()
    process.join()
    return peak, seconds
