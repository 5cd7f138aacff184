"""How a set gets from the user's folder, or from its source into the cache: loaded, downloaded, checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

VARIABLE = "PYRO_DROPOUT_DATA"
GITHUB = "https://raw.githubusercontent.com"

Verify = Callable[[bytes], None]


class Table(NamedTuple):
    """Covariates ``x [n, p]``, an array or sparse; response ``y [n]``; the covariates' names, if they have any."""

    x: Any
    y: np.ndarray
    names: list[str]


def load(
    name: str,
    urls: list[str],
    sha256: str,
    convert: Callable[[list[Path], Path], None],
    read: Callable[[Path, Verify], Any],
) -> Any:
    """A set from the user's folder or from the cache; what is downloaded gets there only if its content is right.

    :param name: its file in the folder.
    :param sha256: of its content, as ``read`` hands it to the function that verifies it.
    :param convert: makes the file from what is at ``urls``.
    """
    if given := os.environ.get(VARIABLE):
        file = Path(given) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file}: the environment variable {VARIABLE} must name a folder that has {name}, or be "
                f"unset to download {' and '.join(urls)}"
            )
        return read(file, partial(verify, name=name, sha256=sha256, origin=str(file)))
    pooch = _pooch(name)
    file = Path(pooch.os_cache("pyro_dropout")) / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / file.name
            convert([_download(pooch, url, folder, name) for url in urls], made)
            read(made, partial(verify, name=name, sha256=sha256, origin=" and ".join(urls)))
            made.replace(file)
    return read(file, partial(verify, name=name, sha256=sha256, origin=str(file)))


def verify(content: bytes, name: str, sha256: str, origin: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{origin} has not the content of {name}: its SHA-256 should be {sha256}, but is {found}")


def _pooch(name: str) -> ModuleType:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"downloads need pooch (pip install pooch); without it the environment variable {VARIABLE} must name a "
            f"folder that has {name}"
        ) from error
    return pooch


def _download(pooch: ModuleType, url: str, folder: str, name: str) -> Path:
    try:
        return Path(pooch.retrieve(url, None, fname=url.rsplit("/", 1)[1], path=folder, progressbar=True))
    except OSError as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}); without a network the environment variable {VARIABLE} must name "
            f"a folder that has {name}"
        ) from error
