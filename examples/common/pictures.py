"""Pictures of the examples: drawn without a window, written to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")  # no window needed


def panels(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[plt.Figure, Any]:
    """A figure of this size and its axes, ``[rows, columns]``; ``kwargs`` are other arguments of ``subplots``."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)


def save(figure: plt.Figure, path: Path, dpi: int = 120, **kwargs: Any) -> Path:
    """Writes a figure, in a folder that is made where it is missing, and closes it.

    :param kwargs: other arguments of ``savefig``.
    :returns: the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, **kwargs)
    plt.close(figure)
    return path
