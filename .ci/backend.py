"""The build backend: setuptools, with source archives that have no tests.

By itself setuptools takes the files of ``tests/`` whose names begin with "test" and nothing that they import, so that
they cannot be collected. The package's own files are all that a wheel needs; who wants tests takes a checkout.
"""

from typing import Any

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.egg_info import manifest_maker

_prune = manifest_maker.prune_file_list


def _prune_tests(self: Any) -> None:
    _prune(self)
    self.filelist.exclude_pattern(None, prefix="tests")
    self.filelist.append(".ci/backend.py")  # wheels are made from the archive, by this file


manifest_maker.prune_file_list = _prune_tests
