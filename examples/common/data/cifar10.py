"""Small photographs of ten kinds of things, the part of CIFAR-10 that is staged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from examples.common.data._loading import Verify, load
from examples.common.data.mnist import Images

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
IMAGES, LABELS = "cifar10/cifar10_subset_lossless_webp.zip", "cifar10/labels.npz"
SHA256 = {
    IMAGES: "c3933b130bc7bf1efdb383f5acbeff1c68944eb83660bb48f253c869ebda36f1",
    LABELS: "d0114f567637ddfb56ec887627543d3a898c4167ce8628fa3d253669de666b32",
}
# Of the original's images, in its order: its first two batches, the last half of its fifth, a tenth of the test.
PARTS = {"train": ("train", 0, 20_000), "held-out": ("train", 45_000, 50_000), "test": ("test", 0, 1000)}
ROWS, COLUMNS = 40, 25  # of a picture of many


def load_cifar10(part: str) -> Images:
    """Colour images of 32 × 32 pixels of ten classes (Krizhevsky 2009): ``x [n, height, width, 3]`` of bytes.

    :param part: train (20,000 images), held-out (5,000) or test (1,000).
    """
    if part not in PARTS:
        raise ValueError(f"part must be {', '.join(PARTS)}, but found {part!r}")
    images, labels = (
        load(name, [SOURCE], SHA256[name], convert, read)
        for name, convert, read in ((IMAGES, _keep_images, _read_images), (LABELS, _keep_labels, _read_labels))
    )
    kind, first, last = PARTS[part]
    return Images(images[part], labels[kind][first:last])


def _read_images(file: Path, verify: Verify) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as pictures:
        found = {
            part: np.concatenate([_tiles(pictures.read(f"{kind}_{start:05d}.webp")) for start in _starts(first, last)])
            for part, (kind, first, last) in PARTS.items()
        }
    verify(b"".join(images.tobytes() for images in found.values()))
    return found


def _read_labels(file: Path, verify: Verify) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        labels = {"train": stored["y_train"], "test": stored["y_test1000"]}
    verify(b"".join(each.tobytes() for each in labels.values()))
    return labels


def _starts(first: int, last: int) -> range:
    return range(first, last, ROWS * COLUMNS)


def _tiles(content: bytes) -> np.ndarray:
    """Images of one picture, row by row."""
    picture = np.asarray(Image.open(io.BytesIO(content)))
    height, width = picture.shape[0] // ROWS, picture.shape[1] // COLUMNS
    return picture.reshape(ROWS, height, COLUMNS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)


# From the original: bytes of a label and of three colours, image by image


def _keep_images(raw: list[Path], made: Path) -> None:
    original = {kind: images for kind, images, _ in _original(raw[0])}
    with zipfile.ZipFile(made, "w") as pictures:
        for kind, first, last in PARTS.values():
            for start in _starts(first, last):
                tiles = original[kind][start : start + ROWS * COLUMNS]
                height, width = tiles.shape[1:3]
                picture = tiles.reshape(ROWS, COLUMNS, height, width, 3).swapaxes(1, 2)
                content = io.BytesIO()
                Image.fromarray(picture.reshape(ROWS * height, -1, 3)).save(content, "WebP", lossless=True)
                pictures.writestr(f"{kind}_{start:05d}.webp", content.getvalue())


def _keep_labels(raw: list[Path], made: Path) -> None:
    labels = {kind: y for kind, _, y in _original(raw[0])}
    with made.open("wb") as file:
        np.savez(file, y_train=labels["train"], y_test1000=labels["test"][PARTS["test"][1] : PARTS["test"][2]])


def _original(archive: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Images and labels of training and test."""
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    with tarfile.open(archive) as tar:
        for kind, names in batches.items():
            files = [tar.extractfile(f"cifar-10-batches-bin/{name}.bin") for name in names]
            content = b"".join(file.read() for file in files if file is not None)
            records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            yield kind, records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
