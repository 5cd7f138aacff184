"""``make bench``: one table of ratios, each measured in one run on interleaved repeats.

Timings are printed, never asserted. Peak memory is that of a process of its own, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch._inductor.utils import fresh_cache

from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    CompiledSVI,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.training._steps import graph
from tests.benchmarks import documents, numpyro_peer, peers
from tests.benchmarks.control import control
from tests.benchmarks.digits import digits
from tests.benchmarks.fits import fits
from tests.benchmarks.jobs import jobs
from tests.benchmarks.lenet import lenet
from tests.benchmarks.levers import levers
from tests.benchmarks.measure import Row, in_own_process, interleaved
from tests.benchmarks.networks import networks
from tests.benchmarks.outputs import compiled_densenet, outputs
from tests.benchmarks.predictions import functions, parts, predictions
from tests.benchmarks.ranks import ranks
from tests.benchmarks.recommendation import recommendation
from tests.benchmarks.segmentation import segmentation
from tests.benchmarks.set_up import independence


def steps(repeats: int) -> list[Row]:
    rows = []
    for batch, width, calls, targets in ((32, 50, 40, ("1.6", "")), (128, 1024, 8, ("1.15", ""))):
        x, y = torch.randn(batch, peers.FEATURES), torch.randn(batch)
        shape = f"{peers.FEATURES}-{width}-{width}-1, batch {batch}"
        for name, make, target in (
            ("ELBO()(model, guide), torch.optim.Adam", peers.module_step, targets[0]),
            ("SVI, pyro.optim.Adam", peers.svi_step, targets[1]),
            ("for scale, SVI with AutoNormal and TraceMeanField_ELBO", peers.normal_step, ""),
        ):
            ours, peer = make(x, y, width), peers.hand_written_step(x, y, width)
            work = f"step {shape}: {name} / hand-written PyTorch"
            rows.append(interleaved(work, ours, peer, f"≤ {target}" if target else "", repeats, calls))
        work = f"two traces of Pyro, {shape}, of the first row, without loss and gradients / hand-written PyTorch step"
        ours, peer = peers.traces(x, y, width), peers.hand_written_step(x, y, width)
        rows.append(interleaved(work, ours, peer, "", repeats, calls))
        with pyro.validation_enabled(False):
            work = f"step {shape}: as the first row, without Pyro's validation"
            ours, peer = peers.module_step(x, y, width), peers.hand_written_step(x, y, width)
            rows.append(interleaved(work, ours, peer, "", repeats, calls))
    return rows


def objectives(repeats: int) -> list[Row]:
    """Steps with learned hard masks, and α steps, against steps at fixed rates (all ``ELBO()(model, guide)``)."""
    rows = []
    learnable = partial(AutoBernoulliDropout, learnable=True)
    for batch, width, calls, pair, ten in ((32, 50, 20, "1.6", "0.3"), (128, 1024, 4, "2.2", "1.1")):
        x, y = torch.randn(batch, peers.FEATURES), torch.randn(batch)
        shape = f"{peers.FEATURES}-{width}-{width}-1, batch {batch}"

        def step(
            guide: Callable = AutoBernoulliDropout, loss: ELBO | None = None, x=x, y=y, width=width
        ) -> Callable[[], float]:
            return peers.module_step(x, y, width, guide, loss)

        for per_unit in (False, True):
            for gradient in ("arm", "disarm"):
                ours = step(partial(learnable, per_unit=per_unit), TraceDropout_ELBO(gradient=gradient))
                work = f"step {shape}: {gradient}, rates by {'unit' if per_unit else 'site'} / fixed rates"
                rows.append(interleaved(work, ours, step(), f"≤ {pair}", repeats, calls))
        fixed = step()
        work = f"step {shape}: α = 0.5 with K = 10 / ten steps at K = 1"
        peer = lambda fixed=fixed: [fixed() for _ in range(10)]  # noqa: E731
        rows.append(
            interleaved(work, step(loss=RenyiDropout_ELBO(0.5, 10)), peer, f"≤ {ten}", repeats, max(1, calls // 4))
        )
    return rows


def compiled(repeats: int) -> list[Row]:
    """Compiled steps with the optimiser's update, against loops in PyTorch and NumPyro on the same data."""
    rows = []
    for batch, width, calls, targets in ((32, 50, 100, ("0.15", "1.0")), (128, 1024, 10, ("0.45", "0.9"))):
        x, y = torch.randn(batch, peers.FEATURES), torch.randn(batch)
        shape = f"{peers.FEATURES}-{width}-{width}-1, batch {batch}"
        many = [t.expand(calls, *t.shape) for t in (x, y)]
        svi = peers.compiled_svi(width)
        svi.step(x, y)
        with fresh_cache():  # of the compiler, which earlier runs have filled
            start = time.perf_counter()
            svi.step(x, y)
            seconds = time.perf_counter() - start
        scan, by_hand = partial(svi.scan, *many), peers.hand_written_step(x, y, width)
        together = partial(interleaved, repeats=repeats, calls=calls)
        hand = together(
            f"compiled steps {shape}: scan / hand-written PyTorch", scan, by_hand, f"≤ {targets[0]}", steps=(calls, 1)
        )
        rows.append(hand)
        rows.append(together(f"{shape}: step / hand-written PyTorch", partial(svi.step, x, y), by_hand, ""))
        peer = peers.hand_written_step(x, y, width, compiled=True)
        rows.append(
            together(f"{shape}: scan / the same with torch.compile and fused Adam", scan, peer, "", steps=(calls, 1))
        )
        eager = together(
            f"{shape}: scan / the same model and guide with SVI",
            scan,
            peers.svi_step(x, y, width),
            "",
            steps=(calls, 1),
        )
        rows.append(eager)
        rows.append(
            together(
                f"{shape}: scan / AutoNormal and TraceMeanField_ELBO with SVI",
                scan,
                peers.normal_step(x, y, width),
                "",
                steps=(calls, 1),
            )
        )
        saved = (float(eager.peer.split()[0]) - float(eager.ours.split()[0])) / 1e3
        rows.append(Row(f"{shape}: start-up", f"{seconds:.1f} s", "", f"pays from {seconds / saved:,.0f} steps on", ""))
        if numpyro_peer.available():
            update, lax_scan = numpyro_peer.numpyro_steps(x.numpy(), y.numpy(), width, calls)
            rows.append(
                together(f"{shape}: scan / NumPyro lax.scan", scan, lax_scan, f"≤ {targets[1]}", steps=(calls, calls))
            )
            rows.append(together(f"{shape}: step / NumPyro jitted update", partial(svi.step, x, y), update, ""))
        fixed = peers.compiled_svi(width, AutoBernoulliDropout)
        fixed.scan(*many)
        learned = peers.compiled_svi(width, partial(AutoBernoulliDropout, learnable=True))
        learned.scan(*many)
        work = f"{shape}: compiled DisARM / compiled fixed rates"
        rows.append(
            together(work, partial(learned.scan, *many), partial(fixed.scan, *many), "≤ 2.0", steps=(calls, calls))
        )
    return rows


def profile() -> list[Row]:
    """Where the time of compiled steps goes, by the compiler's own kernels."""
    rows = []

    def numbers(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(*shape, peers.FEATURES), torch.randn(*shape)

    for name, make, arguments in (
        ("13-50-50-1, batch 32", partial(peers.compiled_svi, 50), numbers(40, 32)),
        ("13-1024-1024-1, batch 128", partial(peers.compiled_svi, 1024), numbers(10, 128)),
        ("320 replicates of 13-50-1, batch 32", partial(peers.replicated_svi, 320), numbers(320, 40, 32)),
        (
            "a small DenseNet, 32 images",
            compiled_densenet,
            (torch.randn(10, 32, 3, 32, 32), torch.zeros(10, 32).long()),
        ),
    ):
        with patch.dict(graph._OPTIONS, {"cpp.enable_kernel_profile": True}):
            svi = make()
            svi.scan(*arguments)
        svi.scan(*arguments)
        start = time.perf_counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            svi.scan(*arguments)
        total = (time.perf_counter() - start) * 1e6
        shares: dict[str, float] = {}
        for event in profiler.key_averages():
            kind = next((kind for key, kind in KINDS.items() if key in event.key), None)
            if kind:
                shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / total
        known = [f"{kind} {share:.0%}" for kind, share in sorted(shares.items(), key=lambda pair: -pair[1])]
        rest = f"the rest, with the generated code around the kernels and Python, {1 - sum(shares.values()):.0%}"
        rows.append(Row(f"profile of compiled steps, {name}", "; ".join([*known, rest]), "", "", ""))
    return rows


KINDS = {  # of kernels: the first that stands in a name
    "arange": "kernels that draw masks, with what is fused to them",
    "addcdiv": "the kernel of the update, with what is fused to it",
    "cpp_fused": "other fused kernels",
    "convolution": "convolutions",
    "aoti_torch": "matrix products",
    "copy_": "copies",
}


def replicates(repeats: int, number: int = 320) -> list[Row]:
    """A step of many networks against as many compiled steps of one."""
    x, y = torch.randn(32, peers.FEATURES), torch.randn(32)
    svi = peers.replicated_svi(number)
    arguments = [t.expand(number, 20, *t.shape).contiguous() for t in (x, y)]
    svi.scan(*arguments)
    pyro.clear_param_store()
    model = Regression(peers.FEATURES, peers.SIZE, (50,))
    one = CompiledSVI(
        model, AutoConcreteDropout(model, rate=peers.RATE), pyro.optim.Adam({"lr": 1e-3}), wait=True, progress=False
    )
    alone = [t.expand(number, *t.shape) for t in (x, y)]
    one.scan(*alone)
    work = f"{number} replicates of {peers.FEATURES}-50-1, batch 32, a step / {number} compiled steps of one"
    return [interleaved(work, partial(svi.scan, *arguments), partial(one.scan, *alone), "≤ 1/12", repeats, 20, (20, 1))]


def scaling() -> list[Row]:
    """Time and peak memory of 20 compiled steps against each size, the others fixed; each in a process of its own."""
    rows = []
    for what, sizes, linear in (
        ("width", (64, 256, 1024, 2048), "at most 2"),
        ("batch", (32, 128, 512, 1024), "at most 1"),
        ("particles", (1, 4, 16, 64), "at most 1"),
        ("replicates", (1, 8, 64, 512), "at most 1"),
    ):
        runs = [in_own_process("compiled_steps", **{what: size}) for size in sizes]
        exponent = np.polyfit(np.log(sizes[-2:]), np.log([seconds for _, seconds in runs[-2:]]), 1)[0]
        shown = ", ".join(
            f"{n}: {seconds / 20 * 1e3:.3g} ms, {peak:.0f} MiB" for n, (peak, seconds) in zip(sizes, runs, strict=True)
        )
        rows.append(
            Row(
                f"compiled step of 13-50-50-1 (replicates: 13-50-1), batch 32, against {what}",
                shown,
                "",
                f"exponent at the end {exponent:.2f}",
                linear,
            )
        )
    return rows


def entropic(repeats: int) -> list[Row]:
    """The closed form on sparse documents, means alone and with deviations, against ridge regression, means alone."""
    rows = []
    cases = [("synthetic, n = 4,500, p = 190,000, 1,500 new", {"kind": "synthetic", "n": 4500, "p": 190_000})]
    if documents.books() is not None:
        cases.append(("books, n = 1,500, p = 195,887, 500 new", {"kind": "books", "new": 500}))
    works = (
        ("mean", "none", "≤ 0.5"),
        ("mean and deviation", "all", "≤ 3"),
        ("deviation of 100 rows with dropout", "dropout", "≤ 3"),
    )
    for name, arguments in cases:
        runs: dict[str, list[Any]] = {deviations: [] for _, deviations, _ in works}
        for _ in range(max(3, repeats // 5)):
            peer = in_own_process("ridge", **arguments)
            for deviations, found in runs.items():
                found.append((in_own_process("entropic", deviations=deviations, **arguments), peer))
        for what, deviations, most in works:
            for quantity, index, unit, target in (("time", 1, "s", most), ("peak memory", 0, "MiB more", "< 2048 MiB")):
                pairs = [(ours[index], peer[index]) for ours, peer in runs[deviations]]
                ratios = sorted(a / b for a, b in pairs)
                medians = [f"{statistics.median(column):.3g} {unit}" for column in zip(*pairs, strict=True)]
                spread = f"{statistics.median(ratios):.3g} [{ratios[0]:.3g}, {ratios[-1]:.3g}]"
                work = f"entropic fit, {what}, {name} / Ridge(lsqr), mean: {quantity}"
                rows.append(Row(work, *medians, spread, target))
    for what, sizes, fixed in (
        ("n", (1000, 2000, 4000, 6000), {"p": 190_000}),
        ("p", (1000, 10_000, 50_000, 200_000), {"n": 2000}),
    ):
        seconds = [in_own_process("entropic", kind="synthetic", new=500, **{what: size}, **fixed)[1] for size in sizes]
        exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        times = ", ".join(f"{size}: {second:.2f} s" for size, second in zip(sizes, seconds, strict=True))
        rows.append(Row(f"entropic, time against {what} at {fixed}", times, "", f"exponent {exponent:.2f}", ""))
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "steps": lambda options: steps(options.repeats),
    "independence": lambda options: independence(options.repeats),
    "objectives": lambda options: objectives(options.repeats),
    "entropic": lambda options: entropic(options.repeats),
    "functions": lambda options: functions(options.repeats),
    "parts": lambda options: parts(options.repeats),
    "networks": lambda options: networks(options.repeats),
    "lenet": lambda options: lenet(options.repeats),
    "digits": lambda options: digits(options.repeats),
    "recommendation": lambda options: recommendation(options.repeats),
    "segmentation": lambda options: segmentation(options.repeats),
    "control": lambda options: control(options.repeats),
    "outputs": lambda options: outputs(options.repeats),
    "compiled": lambda options: compiled(options.repeats),
    "levers": lambda options: levers(options.repeats),
    "jobs": lambda options: jobs(options.repeats),
    "fits": lambda options: fits(options.repeats),
    "ranks": lambda options: ranks(options.repeats),
    "replicates": lambda options: replicates(max(3, options.repeats // 5)),
    "profile": lambda options: profile(),
    "scaling": lambda options: scaling(),
    "predictions": lambda options: predictions(options.repeats, options.draws, options.width),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=25, help="interleaved repeats of a step (default 25)")
    parser.add_argument("--draws", type=int, default=1000, help="posterior draws (default 1000)")
    parser.add_argument("--width", type=int, default=1024, help="hidden width of the predictions (default 1024)")
    parser.add_argument("--only", choices=list(PARTS), nargs="+", help="parts of the table")
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    pyro.set_rng_seed(0)
    rows = [row for name, part in PARTS.items() if name in (options.only or PARTS) for row in part(options)]
    lines = ["| work | ours | peer | ratio, median [quartiles] | target |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, pyro {pyro.__version__}"
    lines.append(f"\n{versions}, {torch.get_num_threads()} threads, {platform.machine()}")
    Path("outputs").mkdir(exist_ok=True)
    Path("outputs/bench.md").write_text("\n".join(lines) + "\n")
    Path("outputs/bench.json").write_text(json.dumps([row._asdict() for row in rows], indent=1))
    print("\n".join(lines))
    print("written to outputs/bench.md and outputs/bench.json")


if __name__ == "__main__":
    main()
