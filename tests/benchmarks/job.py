"""One training from the start of its process: ``python -m tests.benchmarks.job KIND WIDTH STARTED N...``.

Prints, as JSON, the seconds from ``STARTED`` (of the clock) until each number of steps was done. The rest of what it
would take, if that is more than ``LONGEST`` seconds, is told by the speed of the last steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

LONGEST = 60.0  # seconds between two numbers of steps
CHUNK = 300  # steps of a scan
COMPILES = 60.0  # seconds in which compiling ends


def _torch_job(kind: str, width: int, batch: int) -> Callable[[int], None]:
    import torch

    from tests.benchmarks import peers

    torch.manual_seed(0)
    x, y = torch.randn(batch, peers.FEATURES), torch.randn(batch)
    if kind in ("compiled", "made"):  # made: until it is compiled
        svi = peers.compiled_svi(width, wait=kind == "made")
        return lambda number: svi.scan(*(t.expand(number, *t.shape) for t in (x, y)))
    step = peers.svi_step(x, y, width) if kind == "eager" else peers.hand_written_step(x, y, width)
    return lambda number: [step() for _ in range(number)]


def _numpyro_job(width: int, batch: int) -> Callable[[int], None]:
    import jax
    import numpy as np

    from tests.benchmarks import numpyro_peer

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    random = np.random.default_rng(0)
    x, y = (random.normal(size=size).astype(np.float32) for size in ((batch, numpyro_peer.FEATURES), batch))
    _, scan = numpyro_peer.numpyro_steps(x, y, width, CHUNK)
    return lambda number: scan()


def main(kind: str, width: int, started: float, numbers: list[int]) -> dict[int, float]:
    batch = 32 if width < 100 else 128
    run = _numpyro_job(width, batch) if kind == "numpyro" else _torch_job(kind, width, batch)
    done, seconds, speed = 0, {}, 0.0
    for number in numbers:
        before = time.time()
        compiles = kind == "compiled" and before - started < COMPILES
        if done and not compiles and speed * (number - done) > LONGEST:
            seconds[number] = seconds[done] + speed * (number - done)
        else:
            while done < number:
                start = time.time()
                run(CHUNK)
                done += CHUNK
                speed = (time.time() - start) / CHUNK
                if kind == "compiled" and time.time() - started < COMPILES:
                    continue  # the speed will be another one
                rest = speed * (number - done)
                if rest > LONGEST and time.time() - before > LONGEST / 5:
                    break
            seconds[number] = time.time() - started + speed * (number - done)
        done = number
    return seconds


if __name__ == "__main__":
    _, kind, width, started, *numbers = sys.argv
    print(json.dumps(main(kind, int(width), float(started), list(map(int, numbers)))))
