"""The digits: what is staged is what was meant, the converter reads the source's format."""

import gzip

import numpy as np
import pytest

from examples.common.data import load_mnist
from tests.examples.staged import staged


@staged
@pytest.mark.parametrize(
    ("part", "counts"),  # published with the set
    [
        ("train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist(part, counts):
    x, y = load_mnist(part)
    assert x.shape == (sum(counts), 28, 28)
    assert x.dtype == y.dtype == np.uint8
    assert np.bincount(y).tolist() == counts
    assert x.mean() / 255 == pytest.approx(0.1307 if part == "train" else 0.1325, abs=1e-4)


@pytest.mark.usefixtures("anything")
def test_idx(downloads):
    images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 9, 0])
    files = {"train-images-idx3-ubyte.gz": images, "train-labels-idx1-ubyte.gz": labels}
    found = downloads({name: gzip.compress(content) for name, content in files.items()})
    for _ in range(2):
        x, y = load_mnist("train")
        assert (x.tolist(), y.tolist()) == ([[[1, 2, 3]], [[4, 5, 255]]], [9, 0])
        x[0], y[0] = 0, 0  # not read-only
    assert [url.rsplit("/", 1)[1] for url in found.urls] == list(files)


def test_other_images_are_refused_and_not_kept(downloads, tmp_path):
    downloads({"train-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x07")})
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has not the content of mnist/train-images-idx3"):
        load_mnist("train")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
