"""The regression sets: what is staged is what was meant, the converter reads the source's format."""

import numpy as np
import pytest

from examples.common.data import UCI_SPLITS, load_uci
from tests.examples.staged import staged


@staged
@pytest.mark.parametrize(
    ("name", "rows", "columns"),  # as published
    [
        ("bostonHousing", 506, 13),
        ("concrete", 1030, 8),
        ("energy", 768, 8),
        ("kin8nm", 8192, 8),
        ("naval-propulsion-plant", 11934, 16),
        ("power-plant", 9568, 4),
        ("protein-tertiary-structure", 45730, 9),
        ("wine-quality-red", 1599, 11),
        ("yacht", 308, 6),
    ],
)
def test_uci(name, rows, columns):
    x, y, train, test = load_uci(name)
    assert (x.shape, y.shape) == ((rows, columns), (rows,))
    assert (x.dtype, y.dtype, train.dtype, test.dtype) == (np.float64, np.float64, np.int64, np.int64)
    assert (len(train), train.shape[1]) == (UCI_SPLITS[name], round(0.9 * rows))
    each = np.sort(np.concatenate([train, test], axis=1), axis=1)
    assert (each == np.arange(rows)).all()


@staged
def test_uci_sources_convert_to_what_is_staged(downloads):
    original = load_uci("yacht")
    table = np.column_stack([original.x, original.y]).tolist()
    files = {"data": "\n".join(" ".join(map(repr, row)) for row in table)}
    files |= {"index_features": "0\n1\n2\n3\n4\n5\n", "index_target": "6\n"}
    found = downloads({f"{name}.txt": text.encode() for name, text in files.items()})
    for again in (load_uci("yacht"), load_uci("yacht")):
        assert all((one == other).all() for one, other in zip(again, original, strict=True))
    assert len(found.urls) == 3  # the second time is from the cache


@pytest.mark.usefixtures("anything")
def test_uci_columns_and_splits(downloads):
    rows = [[i, 10.0 * i, i / 4, -1.0] for i in range(20)]
    files = {"data": "\n".join("  ".join(map(str, row)) for row in rows), "index_features": "2\n0", "index_target": "1"}
    downloads({f"{name}.txt": text.encode() for name, text in files.items()})
    x, y, train, test = load_uci("energy")
    assert x.tolist() == [[row[2], row[0]] for row in rows]
    assert y.tolist() == [row[1] for row in rows]
    assert (train.shape, test.shape) == ((20, 18), (20, 2))
    assert len(np.unique(train, axis=0)) == 20
    assert all(sorted([*one, *other]) == list(range(20)) for one, other in zip(train, test, strict=True))
