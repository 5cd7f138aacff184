"""Handwritten digits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.common.data._loading import Verify, load

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist"
SHA256 = {
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}


class Images(NamedTuple):
    """Images ``x [n, height, width]`` of bytes, 0 to 255, and their labels ``y [n]``."""

    x: np.ndarray
    y: np.ndarray


def load_mnist(part: str) -> Images:
    """Handwritten digits, 60,000 images of 28 × 28 bytes for training and 10,000 to test (LeCun et al. 1998).

    :param part: train or test.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be train or test, but found {part!r}")
    files = (f"{'t10k' if part == 'test' else part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    return Images(*(load(f"mnist/{file}", [f"{MIRROR}/{file}"], SHA256[file], _keep, _read) for file in files))


def _keep(raw: list[Path], made: Path) -> None:
    raw[0].replace(made)


def _read(file: Path, verify: Verify) -> np.ndarray:
    content = gzip.decompress(file.read_bytes())
    verify(content)
    dimensions = content[3]  # after two zeros and the type, which is bytes; then their sizes
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
