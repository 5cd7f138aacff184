"""Amino acids by their properties (entropic dropout, figure 1a)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from examples.common.data._loading import GITHUB, Table, Verify, load

SOURCE = f"{GITHUB}/SamGG/ropls/3b1912056b23ca4ac3640d1b14ab91c92e7e2b6e/data"
SHA256 = "02992e530d8699a884f8ce1aa37844d1cfa7f9d2b43ff592c4ab36534aa053e5"


def load_qspr() -> Table:
    """19 amino acids: free energy of unfolding (DDGTS) by 7 properties, highly correlated (Wold et al. 2001)."""
    return load("qspr/aminoacids.csv", [f"{SOURCE}/aminoacids.csv.gz"], SHA256, _convert, _read)


def _convert(raw: list[Path], made: Path) -> None:
    made.write_text(gzip.decompress(raw[0].read_bytes()).decode().replace(";", ","))


def _read(file: Path, verify: Verify) -> Table:
    lines = file.read_text().splitlines()
    verify("\n".join(lines).encode())
    header, *rows = (line.split(",") for line in lines)
    values = np.array([row[1:] for row in rows], dtype=np.float64)
    return Table(values[:, :-1], values[:, -1], header[1:-1])
