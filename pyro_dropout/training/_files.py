"""Files of states: how they are named and read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from pyro_dropout._checks import said

FORMAT = "pyro_dropout 1"


def checked_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, but found {said(path)}")
    return Path(path)


def read_state(path: Path, map_location: Any) -> dict[str, Any]:
    """Of parts and random numbers, and the values beside them."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be that of a checkpoint, but {path} is no file")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, KeyError, EOFError, RuntimeError, TypeError) as error:
        to = "" if map_location is None else f" with map_location={map_location!r}"
        raise ValueError(f"{path} cannot be read as a checkpoint{to}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of save_checkpoint")
    return state
