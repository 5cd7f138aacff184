"""The whole job: seconds from the start of a process until so many steps are done."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import numpyro_peer
from tests.benchmarks.measure import Row

NUMBERS = (300, 3_000, 30_000, 300_000)
KINDS = {  # name: what runs, and whether what was compiled before is there
    "SVI": ("eager", False),
    "CompiledSVI, cold": ("compiled", False),
    "CompiledSVI, warm": ("compiled", True),
    "NumPyro, cold": ("numpyro", False),
    "NumPyro, with its cache": ("numpyro", True),
    "by hand": ("hand", False),
}
PEERS = {"CompiledSVI, cold": ("NumPyro, cold", "≤ 1.5"), "CompiledSVI, warm": ("NumPyro, with its cache", "≤ 1.0")}


def _run(kind: str, width: int, numbers: tuple[int, ...], folder: str) -> dict[int, float]:
    """One process; what it compiles goes to the folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    if kind == "numpyro":
        environment["JAX_COMPILATION_CACHE_DIR"] = folder
    command = [sys.executable, "-m", "tests.benchmarks.job", kind, str(width), str(time.time()), *map(str, numbers)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {int(number): seconds for number, seconds in json.loads(result.stdout.splitlines()[-1]).items()}


def jobs(repeats: int, widths: tuple[int, ...] = (50, 1024)) -> list[Row]:
    """Each in a process of its own, in turn; the median of three."""
    rows = []
    kinds = {name: of for name, of in KINDS.items() if of[0] != "numpyro" or numpyro_peer.available()}
    for width in widths:
        found: dict[str, list[dict[int, float]]] = {name: [] for name in kinds}
        with tempfile.TemporaryDirectory() as kept:
            for kind, warm in kinds.values():
                if warm:
                    _run("made" if kind == "compiled" else kind, width, (600,), str(Path(kept) / kind))
            for _ in range(min(3, max(1, repeats))):
                for name, (kind, warm) in kinds.items():
                    with tempfile.TemporaryDirectory() as fresh:
                        found[name].append(_run(kind, width, NUMBERS, str(Path(kept) / kind) if warm else fresh))
        medians = {
            name: {number: statistics.median(run[number] for run in runs) for number in NUMBERS}
            for name, runs in found.items()
        }
        for name, seconds in medians.items():
            shown = ", ".join(f"{number:,}: {seconds[number]:.1f} s" for number in NUMBERS)
            rows.append(Row(f"whole job, width {width}, {name}: seconds to so many steps", shown, "", "", ""))
        for name, (peer, target) in PEERS.items():
            for other, most in ((peer, target), ("SVI", "≤ 1.1")):
                if other in medians:
                    ratios = ", ".join(f"{n:,}: {medians[name][n] / medians[other][n]:.2f}" for n in NUMBERS)
                    rows.append(Row(f"whole job, width {width}: {name} / {other}", "", "", ratios, most))
    return rows
