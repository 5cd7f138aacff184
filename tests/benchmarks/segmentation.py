"""Segmentation: steps and predictions of a small FC-DenseNet against the same by hand with ``nn.Dropout2d``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pyro
import torch

from pyro_dropout import AutoBernoulliDropout
from tests.benchmarks import segmentation_peers as peers
from tests.benchmarks.measure import Row, in_own_process, interleaved

DRAWS, HEIGHT, WIDTH = 20, 360, 480


def segmentation(repeats: int) -> list[Row]:
    with pyro.settings.context(module_local_params=True):
        return list(_rows(max(3, repeats // 3)))


def _rows(repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 112, 112), torch.randint(peers.CLASSES + 1, (4, 112, 112))
    by_hand = peers.hand_written_step(x, y)
    for compiled in (True, False):
        work = f"{'compiled' if compiled else 'SVI'} step of FC-DenseNet with Concrete masks / by hand with Dropout2d"
        yield interleaved(work, peers.step(x, y, compiled), by_hand, "≤ 1.25", repeats, 2)
    learned, fixed = peers.step(x, y, True), peers.step(x, y, True, AutoBernoulliDropout)
    yield interleaved("the compiled step: learned rates / fixed ones", learned, fixed, "", repeats, 2)
    size = {"height": HEIGHT, "width": WIDTH, "draws": DRAWS}
    work = f"{DRAWS} draws of an image of {HEIGHT} × {WIDTH}, mean probabilities and entropies / raw loop"
    ours, loop = peers.streamed(x, **size), peers.raw_loop(x, **size)
    yield interleaved(work, ours, loop, "≤ 1.1", max(3, repeats // 2), 1)
    pairs = [[in_own_process(name, **size)[0] for name in ("streamed", "raw_loop")] for _ in range(3)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median([a / b for a, b in pairs])
    yield Row("the same: peak memory", f"{mine:.4g} MiB more", f"{theirs:.4g} MiB more", f"{ratio:.3g}", "≤ 1.3")
