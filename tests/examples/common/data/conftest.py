"""A network for the loader that has what a test puts there."""

import sys
from pathlib import Path

import pytest

from examples.common.data import VARIABLE, _loading


class Downloads:
    """A stand-in for pooch, with some files at the end of their addresses."""

    def __init__(self, cache: Path, files: dict[str, bytes]) -> None:
        self.cache, self.files, self.urls = cache, files, []

    def os_cache(self, project: str) -> Path:
        return self.cache / project

    def retrieve(self, url: str, known_hash: None, fname: str, path: str, progressbar: bool) -> str:
        self.urls.append(url)
        if fname not in self.files:
            raise OSError("no route to host")
        file = Path(path, fname)
        file.write_bytes(self.files[fname])
        return str(file)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """A function that makes these files the ones on the network, without a folder of data."""

    def offer(files: dict[str, bytes]) -> Downloads:
        stand_in = Downloads(tmp_path, files)
        monkeypatch.setitem(sys.modules, "pooch", stand_in)
        monkeypatch.delenv(VARIABLE, raising=False)
        return stand_in

    return offer


@pytest.fixture
def anything(monkeypatch):
    """No content is wrong."""
    monkeypatch.setattr(_loading, "verify", lambda *args, **kwargs: None)
