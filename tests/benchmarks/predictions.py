"""Predictions of dense networks, whole and in parts, against the loops that a user would write and stock Pyro."""

from __future__ import annotations

import statistics

import pyro
import torch

from tests.benchmarks import peers
from tests.benchmarks.measure import Row, in_own_process, interleaved


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
