"""The photographs: what is staged is the original's, what is downloaded becomes the same."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from examples.common.data import cifar10, load_cifar10
from tests.examples.staged import staged


@staged
@pytest.mark.parametrize(
    ("part", "number", "sha256"),  # of the original's images, as its bytes have them, height, width and colour
    [
        ("train", 20_000, "74493c77aca7915c5811a5d387566a9b045abbdd45f6636b12a6590eb540193c"),
        ("held-out", 5000, "b0c63b26b82cb07676b937c64ecaf10acbd6015732fd15ffd83a53ae9877d74e"),
        ("test", 1000, "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f"),
    ],
)
def test_images_are_the_originals(part, number, sha256):
    x, y = load_cifar10(part)
    assert x.shape == (number, 32, 32, 3)
    assert x.dtype == y.dtype == np.uint8
    assert hashlib.sha256(x.tobytes()).hexdigest() == sha256
    if part == "test":
        assert np.bincount(y).tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]


def original(images, labels):
    """As its publisher has it: a byte of the label, then planes of red, green and blue."""
    records = [bytes([y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(images, labels, strict=True)]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
            data = b"".join(records[2 * i : 2 * i + 2])
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


@pytest.mark.usefixtures("anything")
def test_what_is_downloaded(downloads, monkeypatch):
    """Ten images to train, two to test, in pictures of one by two."""
    monkeypatch.setattr(cifar10, "ROWS", 1)
    monkeypatch.setattr(cifar10, "COLUMNS", 2)
    parts = {"train": ("train", 0, 4), "held-out": ("train", 8, 10), "test": ("test", 0, 2)}
    monkeypatch.setattr(cifar10, "PARTS", parts)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(12, 32, 32, 3), dtype=np.uint8), np.arange(12, dtype=np.uint8)
    found = downloads({"cifar-10-binary.tar.gz": original(images, labels)})
    for _ in range(2):
        for part, rows in (("train", slice(0, 4)), ("held-out", slice(8, 10)), ("test", slice(10, 12))):
            x, y = load_cifar10(part)
            np.testing.assert_array_equal(x, images[rows])
            np.testing.assert_array_equal(y, labels[rows])
    assert len(found.urls) == 2  # for images and for labels


def test_other_images_are_refused_and_not_kept(downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "PARTS", {"train": ("train", 0, 0), "test": ("test", 0, 0)})
    monkeypatch.setattr(cifar10.np, "concatenate", lambda arrays: np.zeros((0, 32, 32, 3), np.uint8))
    downloads({"cifar-10-binary.tar.gz": original(np.zeros((12, 32, 32, 3), np.uint8), np.zeros(12, np.uint8))})
    with pytest.raises(ValueError, match="has not the content of cifar10"):
        load_cifar10("train")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="train, held-out, test, but found 'validation'"):
        load_cifar10("validation")
