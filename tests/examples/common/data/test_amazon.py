"""The reviews: what is staged is what was meant, converters read the sources' formats."""

import numpy as np
import pytest

from examples.common.data import load_amazon
from examples.common.data.amazon import SHA256, parse_reviews
from tests.examples.staged import staged

REVIEWS = {
    "positive.review": "good:2 very_good:1 #label#:positive\na:b:3 good:1 #label#:positive\n",
    "negative.review": "caf\xe9:1 bad:1 very\x1a:2 #label#:negative\n",
}
SVMLIGHT = {"dvd_train.svmlight": "-1 0:3 4999:1\n1 7:2\n", "dvd_test.svmlight": "1 1:1 2:61\n"}


def encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode("latin-1") for name, text in files.items()}


@staged
@pytest.mark.parametrize(
    ("category", "columns", "rows"),
    [("books", 195887, 6465), ("dvd", 188778, 5586), ("electronics", 111407, 7681), ("kitchen", 93474, 7945)],
)
def test_amazon(category, columns, rows):
    full, top = load_amazon(category), load_amazon(category, "top5000")
    assert full.x.shape == (2000, columns)
    assert len(full.names) == columns
    assert (full.y == np.repeat([1, 0], 1000)).all()
    assert top.x.shape == (rows, 5000)
    assert (top.y[:2000].sum(), top.names) == (1000, [])
    assert full.x.dtype == top.x.dtype == np.float32
    # The features of the smaller set are among those of the larger: so are their sums over the same documents.
    sums = top.x[:2000].sum(0)
    assert set(sums[sums > 300]) <= set(full.x.sum(0))


@staged
def test_sources_convert_to_what_is_staged(downloads):
    """From lines in the sources' formats, shuffled inside as theirs are."""
    x, y, names = load_amazon("kitchen")
    names = np.array(names)
    rows = np.split(np.arange(x.nnz), x.indptr[1:-1])
    files = {"positive.review": "", "negative.review": ""}
    for row, label in zip(rows, np.where(y, "positive", "negative"), strict=True):
        pairs = zip(names[x.indices[row[::-1]]], x.data[row[::-1]], strict=True)
        files[f"{label}.review"] += " ".join(f"{token}:{count:.0f}" for token, count in pairs) + f" #label#:{label}\n"
    found = downloads({name: text.encode() for name, text in files.items()})
    again = load_amazon("kitchen")
    assert abs(again.x - x).sum() == 0
    assert again.names == names.tolist()
    assert load_amazon("kitchen").x.nnz == x.nnz
    assert len(found.urls) == 2  # the second time is from the cache


def test_lines_of_reviews():
    lines = ["good:2 a:b:1 #label#:positive\n", "bad:1 #label#:negative\n"]
    assert list(parse_reviews(lines)) == [({"good": 2, "a:b": 1}, 1), ({"bad": 1}, 0)]
    with pytest.raises(ValueError, match="must end with its label, but found 'good:2'"):
        list(parse_reviews(["good:2"]))


@pytest.mark.usefixtures("anything")
def test_reviews(downloads):
    found = downloads(encoded(REVIEWS))
    x, y, names = load_amazon("books")
    assert names == ["a:b", "bad", "caf�", "good", "very\x1a", "very_good"]
    assert x.toarray().tolist() == [[0, 0, 0, 2, 0, 1], [3, 0, 0, 1, 0, 0], [0, 1, 1, 0, 2, 0]]
    assert y.tolist() == [1, 1, 0]
    assert [url.split("/")[-3:] for url in found.urls] == [
        ["processed_acl", "books", "positive.review"],
        ["processed_acl", "books", "negative.review"],
    ]


@pytest.mark.usefixtures("anything")
def test_svmlight(downloads):
    downloads(encoded(SVMLIGHT))
    x, y, names = load_amazon("dvd", "top5000")
    assert x.shape == (3, 5000)
    assert {(row, column): x[row, column] for row, column in zip(*x.nonzero(), strict=True)} == {
        (0, 0): 3, (0, 4999): 1, (1, 7): 2, (2, 1): 1, (2, 2): 61
    }  # fmt: skip
    assert (y.tolist(), names) == ([0, 1, 1], [])


def test_other_content_is_refused_and_not_kept(downloads, tmp_path):
    downloads(encoded(REVIEWS))
    with pytest.raises(ValueError, match=r"positive.review and .*negative.review has not the content of") as error:
        load_amazon("books")
    assert f"should be {SHA256['books_labelled_full.npz']}, but is" in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
