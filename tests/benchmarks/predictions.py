"""Predictions of dense networks, whole and in parts, against the loops that a user would write and stock Pyro."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import Predictive

from pyro_dropout import DropoutPredictive
from tests.benchmarks import peers
from tests.benchmarks.measure import Row, in_own_process, interleaved, slowest, unused


def predictions(repeats: int, draws: int, width: int) -> list[Row]:
    x = torch.randn(100, peers.FEATURES)
    rows = []
    work = f"{draws} predictive passes, 100 points, width {width}: Predictive(parallel={{}}) / raw PyTorch loop"
    for parallel in (True, False):
        ours = peers.dropout_predictive(x, width, draws, parallel)
        peer = peers.raw_predictive(x, width, draws)
        rows.append(interleaved(work.format(parallel), ours, peer, "≤ 1.2", max(3, repeats // 5), 1))
    peer_runs = [in_own_process("normal_predictive", width=width, draws=draws) for _ in range(2)]
    for parallel in (True, False):
        runs = [in_own_process("dropout_predictive", width=width, draws=draws, parallel=parallel) for _ in range(2)]
        work = f"the same, Predictive(parallel={parallel}) / Predictive with AutoNormal"
        for quantity, unit, index, target in (("time", "s", 1, "≤ 1/15"), ("peak memory", "MiB more", 0, "≤ 1/20")):
            pairs = [(a[index], b[index]) for a, b in zip(runs, peer_runs, strict=True)]
            ratios = sorted(b / a for a, b in pairs)
            medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
            spread = f"1/{statistics.median(ratios):.3g} [1/{ratios[0]:.3g}, 1/{ratios[-1]:.3g}]"
            rows.append(
                Row(f"{work}: {quantity}", f"{medians[0]:.4g} {unit}", f"{medians[1]:.4g} {unit}", spread, target)
            )
    return rows


def functions(repeats: int) -> list[Row]:
    """Many function draws over many points, in parts, against loops over passes."""
    rows = []
    x = torch.randn(1000, peers.FEATURES)
    for width, draws, target in ((50, 10_000, "≤ 1.0"), (1024, 1000, "≤ 1.1")):
        work = f"{draws} function draws, 1,000 points, width {width}: DropoutPredictive in 1 GB / raw loop, mask per "
        ours = peers.function_predictive(x, width, draws)
        rows.append(
            interleaved(f"{work}pass", ours, peers.raw_functions(x, width, draws), target, max(3, repeats // 5), 1)
        )
        if width == 50:  # the usual loop, which draws more random numbers
            rows.append(interleaved(f"{work}row", ours, peers.raw_predictive(x, width, draws), "", 3, 1))
        peak, _ = in_own_process("function_predictive", width=width, draws=draws, points=1000)
        rows.append(Row(f"the same, width {width}: peak memory", f"{peak:.4g} MiB more", "", "", "< 954 MiB"))
    for rate in (0.3, 0.5, 0.9):
        work = f"100 function draws, 1,000 points, width 1024, rate {rate}: kept units taken out / masked"
        predict = peers.function_predictive(x, 1024, 100, rate=rate)
        ours, peer = (pyro.settings.context(dropout_take_out_above=share)(predict) for share in (0.0, 1.0))
        rows.append(interleaved(work, ours, peer, "", max(3, repeats // 5), 1))
    return rows


def parts(repeats: int) -> list[Row]:
    """What it costs to find parts, which first calls do, and to take them: by rows of data, and against stock Pyro."""
    rows = []
    x = torch.randn(17, peers.FEATURES)
    make = partial(peers.predictive, DropoutPredictive, x, 50, 2000, return_sites=["mean"])

    def new(n: int) -> Callable[[], Any]:
        return partial(make(), x[:n])

    sizes = range(1, len(x) + 1)
    work = "2,000 function draws at each of 1 to 17 rows, 13-50-50-1: slowest / fastest, {} calls"
    for which, calls in (
        ("later", {n: new(n) for n in sizes}),
        ("first", {n: unused(partial(new, n), repeats + 1) for n in sizes}),
    ):
        rows.append(slowest(work.format(which), calls, "≤ 3", repeats))
    repeats = max(3, repeats // 2)
    x = torch.randn(200, peers.FEATURES)
    ours, peer = (
        lambda kind=kind, options=options: partial(peers.predictive(kind, x, 600, 400, **options), x)
        for kind, options in ((DropoutPredictive, {}), (Predictive, {"parallel": True}))
    )
    work = "400 draws, 200 rows, 13-600-600-1: DropoutPredictive / Predictive(parallel=True), {} calls"
    rows.append(interleaved(work.format("later"), ours(), peer(), "≤ 1.1", repeats, 1))
    first = (unused(make, repeats + 1) for make in (ours, peer))
    rows.append(interleaved(work.format("first"), *first, "≤ 1.1", repeats, 1))
    return rows
