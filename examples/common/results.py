"""Results of long runs: kept in files as they come, so that a second run computes what is missing; their errors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def kept(path: Path, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``path`` has for these settings; else what ``compute`` finds, which then goes there, whole or not at all.

    :param settings: all that decides the result, as JSON has it; results of other settings are computed anew.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["settings"] == settings:
            return stored["found"]
        print(f"{path} is of other settings and is computed anew")
    found = compute()
    with whole(path) as file:
        file.write_text(json.dumps({"settings": settings, "found": found}, indent=1))
    return found


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place at ``path`` when it is written: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.{os.getpid()}")
    yield file
    file.replace(path)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which of one value is not known: NaN."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)
