"""Which films people liked: MovieLens-1M, as Liang et al. (2018) make choices of ratings."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from examples.common.data._loading import Verify, load

NAME = "movielens/ml1m_vaecf_implicit.npz"
SOURCE = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
SHA256 = "b66e06dd1fc6c67f342acac38d9ee847210a43fa4c65fb9c814ab975fd9da363"
LIKED, FEWEST, HELD_OUT, SEED = 4, 5, 600, 98765
PARTS = ("train", "validation_tr", "validation_te", "test_tr", "test_te")


class Choices(NamedTuple):
    """``matrix [users, items]``, 1 where a user chose an item; numbers of users and items in the original."""

    matrix: csr_array
    users: np.ndarray
    items: np.ndarray


def load_movielens() -> Choices:
    """Films that users of MovieLens-1M rated 4 or more (Harper & Konstan 2015): 6,034 users with at least 5 of them.

    The 3,497 films are those that training users chose, in Liang's split of users. The set is for research and may not
    be redistributed.
    """
    return load(NAME, [SOURCE], SHA256, _convert, _read)


def _read(file: Path, verify: Verify) -> Choices:
    with np.load(file) as stored:
        pairs = np.concatenate([stored[part] for part in PARTS]).astype(np.int64)
        of_user, of_item = stored["original_user_id"], stored["unique_sid"]
    users, user = np.unique(of_user[pairs[:, 0]], return_inverse=True)
    items, item = np.unique(of_item[pairs[:, 1]], return_inverse=True)
    matrix = csr_array((np.ones(len(pairs), np.int8), (user, item)), shape=(len(users), len(items)))
    matrix.sort_indices()
    verify(b"".join(part.astype("<u4").tobytes() for part in (users, items, matrix.indptr, matrix.indices)))
    return Choices(matrix, users, items)


def _convert(raw: list[Path], made: Path) -> None:
    with zipfile.ZipFile(raw[0]) as archive:
        lines = archive.read("ml-1m/ratings.dat").decode("latin-1").splitlines()
    ratings = np.array([[int(field) for field in line.split("::")[:3]] for line in lines])
    pairs = ratings[ratings[:, 2] >= LIKED, :2]
    users, number = np.unique(pairs[:, 0], return_counts=True)
    users = users[number >= FEWEST]
    order = users[np.random.RandomState(SEED).permutation(len(users))]
    training = pairs[np.isin(pairs[:, 0], order[: -2 * HELD_OUT])]
    items = np.unique(training[:, 1])
    kept = pairs[np.isin(pairs[:, 0], users) & np.isin(pairs[:, 1], items)]
    places = np.column_stack([np.searchsorted(users, kept[:, 0]), np.searchsorted(items, kept[:, 1])])
    parts = {part: places if part == "train" else places[:0] for part in PARTS}
    with made.open("wb") as file:
        np.savez(file, original_user_id=users, unique_sid=items, **parts)
