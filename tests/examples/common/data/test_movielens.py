"""Which films people liked: what is staged is Liang's, what is downloaded becomes the same."""

import io
import zipfile

import numpy as np
import pytest

from examples.common.data import load_movielens, movielens
from tests.examples.staged import staged


@staged
def test_choices_are_those_of_the_split_of_users():
    matrix, users, items = load_movielens()
    assert matrix.shape == (6034, 3497)
    assert matrix.nnz == 575_228
    assert (matrix.data == 1).all()
    assert (users.min(), users.max(), items.min(), items.max()) == (1, 6040, 1, 3952)
    number = np.diff(matrix.indptr)
    assert number.min() == 5
    order = np.random.RandomState(98765).permutation(6034)
    assert (np.sum(number[order[:4834]]), np.sum(number[order[-600:]])) == (462_827, 44_266 + 10_761)
    assert np.bincount(matrix[order[:4834]].indices, minlength=3497).min() == 1  # each film by a training user


def archive(ratings):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("ml-1m/ratings.dat", "".join(f"{u}::{i}::{r}::978300760\n" for u, i, r in ratings))
    return content.getvalue()


@pytest.mark.usefixtures("anything")
def test_what_is_downloaded(downloads, monkeypatch):
    """Of eight users one liked too few; of the others two are held out, and what only they chose is left out."""
    monkeypatch.setattr(movielens, "HELD_OUT", 1)
    monkeypatch.setattr(movielens, "FEWEST", 2)
    rng = np.random.default_rng(0)
    liked = {user: sorted(rng.choice(np.arange(10, 30), 4, replace=False).tolist()) for user in range(2, 9)}
    liked[1] = [10]
    ratings = [(u, i, int(rng.integers(4, 6))) for u, chosen in liked.items() for i in chosen]
    ratings += [(u, 31, 3) for u in liked]
    found = downloads({"ml-1m.zip": archive(ratings)})
    for _ in range(2):
        matrix, users, items = load_movielens()
        assert users.tolist() == list(range(2, 9))
        training = users[np.random.RandomState(98765).permutation(7)[:-2]]
        assert items.tolist() == sorted({i for u in training for i in liked[u]})
        for user, row in zip(users, matrix.toarray(), strict=True):
            assert items[row == 1].tolist() == [i for i in liked[user] if i in items]
    assert len(found.urls) == 1


def test_other_choices_are_refused_and_not_kept(downloads, tmp_path):
    ratings = [(u, i, 5) for u in range(1301) for i in range(5)]
    downloads({"ml-1m.zip": archive(ratings)})
    with pytest.raises(ValueError, match="has not the content of movielens"):
        load_movielens()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
