"""Results of long runs: kept in files as they come, so that a second run computes what is missing; their errors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
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
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(json.dumps({"settings": settings, "found": found}, indent=1))
    written.replace(path)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which of one value is not known: NaN."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)
