"""Two records in time: carbon dioxide at Mauna Loa, and the irradiance of the sun (MC dropout, figures 2 and 3)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io

from examples.common.data._loading import GITHUB, Verify, load

CO2 = f"{GITHUB}/jamesrobertlloyd/gpss-research/2a64958a018f1668f7b8eedf33c4076a63af7868/data/tsdl/03-mauna2003.mat"
CO2_SHA256 = "cd3995d6baf7cd40048cae7de12c967f3807d2203b29ee78554d59554a4400f7"
SOLAR = "https://www.ncei.noaa.gov/pub/data/paleo/climate_forcing/solar_variability/lean2000_irradiance.txt"
SOLAR_SHA256 = "31007840f1416a37ae945cb29c55a33dc16452dd95d49ba9626ac31e92fee0f7"


class Series(NamedTuple):
    """Values ``y [n]`` at times ``t [n]``, in years."""

    t: np.ndarray
    y: np.ndarray


def load_co2() -> Series:
    """Carbon dioxide at Mauna Loa, ppm, monthly 1958 to 2003 (Keeling & Whorf 2004), 545 months, some missing.

    The first 272 are those of Gal & Ghahramani (2016).
    """
    read = partial(_read, column=1, digits=2)
    return load("co2/mauna_loa_monthly_545.csv", [CO2], CO2_SHA256, _convert_mat, read)


def load_solar() -> Series:
    """Total solar irradiance, W/m², yearly 1610 to 2000, reconstructed, with its background (Lean 2000), 391 years."""
    read = partial(_read, column=2, digits=4)
    return load("solar/lean2004_tsi_391.csv", [SOLAR], SOLAR_SHA256, _convert_lean, read)


def _convert_mat(raw: list[Path], made: Path) -> None:
    stored = scipy.io.loadmat(raw[0])  # values without their mean
    rows = zip(stored["X"].ravel(), stored["y"].ravel() + 342.16289048, strict=True)
    made.write_text("\n".join(["decimal_year,co2_ppm", *(f"{t},{y:.2f}" for t, y in rows)]))


def _convert_lean(raw: list[Path], made: Path) -> None:
    rows = (line.split() for line in raw[0].read_text().splitlines())
    rows = (row for row in rows if len(row) == 3 and re.fullmatch(r"\d{4}\.5", row[0]))
    made.write_text("\n".join(["year,tsi_11yr_cycle,tsi_11yr_cycle_plus_background", *map(",".join, rows)]))


def _read(file: Path, verify: Verify, column: int, digits: int) -> Series:
    table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    # Of too few columns any will do: the content is wrong.
    t, y = table[:, 0], table[:, min(column, table.shape[1] - 1)]
    verify(np.rint([t * 1e4, y * 10.0**digits]).astype("<i8").tobytes())
    return Series(t, y)
