"""The loader: what is staged is what was meant, converters read the sources' formats, and errors say what to do."""

import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from examples.common import data
from examples.common.data import (
    CATEGORIES,
    UCI_SPLITS,
    VARIABLE,
    load_amazon,
    load_co2,
    load_mnist,
    load_qspr,
    load_solar,
    load_uci,
    parse_reviews,
)

staged = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"the environment variable {VARIABLE} is not set")

REVIEWS = {
    "positive.review": "good:2 very_good:1 #label#:positive\na:b:3 good:1 #label#:positive\n",
    "negative.review": "caf\xe9:1 bad:1 very\x1a:2 #label#:negative\n",
}
SVMLIGHT = {"dvd_train.svmlight": "-1 0:3 4999:1\n1 7:2\n", "dvd_test.svmlight": "1 1:1 2:61\n"}


class Downloads:
    """A stand-in for pooch, with some files at the end of their addresses."""

    def __init__(self, cache: Path, files: dict[str, bytes]) -> None:
        self.cache, self.files, self.urls = cache, files, []

    def os_cache(self, project: str) -> Path:
        return self.cache / project

    def retrieve(self, url: str, known_hash: None, fname: str, path: str, progressbar: bool) -> str:
        self.urls.append(url)
        if fname not in self.files:
            raise OSError("no route to host")
        file = Path(path, fname)
        file.write_bytes(self.files[fname])
        return str(file)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """A function that makes these files the ones on the network, without a folder of data."""

    def offer(files: dict[str, bytes]) -> Downloads:
        stand_in = Downloads(tmp_path, files)
        monkeypatch.setitem(sys.modules, "pooch", stand_in)
        monkeypatch.delenv(VARIABLE, raising=False)
        return stand_in

    return offer


@pytest.fixture
def anything(monkeypatch):
    """No content is wrong."""
    monkeypatch.setattr(data, "_verify", lambda *args: None)


def encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode("latin-1") for name, text in files.items()}


# What is staged


@staged
def test_amino_acids():
    x, y, names = load_qspr()
    assert x.shape == (19, 7)
    assert names == ["PIE", "PIF", "DGR", "SAC", "MR", "Lam", "Vol"]
    correlations = np.corrcoef(x.T)  # published with the set
    assert correlations[0, 1] == pytest.approx(0.97, abs=0.005)
    assert correlations[3, 6] == pytest.approx(0.99, abs=0.005)
    assert y[:3].tolist() == [8.5, 8.2, 8.5]


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
def test_series():
    co2, solar = load_co2(), load_solar()
    assert co2.t.shape == co2.y.shape == (545,)
    assert co2.y[0] == 315.71  # March 1958, NOAA
    # Gal & Ghahramani's data: the first 272, without their linear trend, standardised.
    with np.load(Path(os.environ[VARIABLE]) / "co2/gal_co2_regression.npz") as published:
        month = np.arange(272)
        rest = co2.y[:272] - np.polyval(np.polyfit(month, co2.y[:272], 1), month)
        assert np.allclose(rest / rest.std(), published["train_y"].ravel(), atol=1e-6)
    assert (solar.t == np.arange(1610, 2001) + 0.5).all()
    assert solar.y[0] == 1364.7338


@staged
def test_series_convert_to_what_is_staged(downloads):
    co2, solar = load_co2(), load_solar()
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"X": co2.t[:, None], "y": co2.y[:, None] - 342.16289048})
    lean = "Lean 2000\n\nYEAR 11yrCYCLE 11yrCYCLE+BKGRND\n" + "\n".join(
        f"  {t:.1f}  1365.0000  {y:.4f}" for t, y in zip(*solar, strict=True)
    )
    downloads({"03-mauna2003.mat": mat.getvalue(), "lean2000_irradiance.txt": lean.encode()})
    for again, staged in ((load_co2(), co2), (load_solar(), solar)):
        assert np.allclose(again.t, staged.t)
        assert np.allclose(again.y, staged.y)


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
    staged = load_uci("yacht")
    table = np.column_stack([staged.x, staged.y]).tolist()
    files = {"data": "\n".join(" ".join(map(repr, row)) for row in table)}
    files |= {"index_features": "0\n1\n2\n3\n4\n5\n", "index_target": "6\n"}
    found = downloads({f"{name}.txt": text.encode() for name, text in files.items()})
    for again in (load_uci("yacht"), load_uci("yacht")):
        assert all((one == other).all() for one, other in zip(again, staged, strict=True))
    assert len(found.urls) == 3  # the second time is from the cache


@staged
@pytest.mark.parametrize(
    ("part", "counts"),  # published with the set
    [
        ("train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist(part, counts):
    x, y = load_mnist(part)
    assert x.shape == (sum(counts), 28, 28)
    assert x.dtype == y.dtype == np.uint8
    assert np.bincount(y).tolist() == counts
    assert x.mean() / 255 == pytest.approx(0.1307 if part == "train" else 0.1325, abs=1e-4)


# Formats


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


@pytest.mark.usefixtures("anything")
def test_table_of_amino_acids(downloads):
    downloads({"aminoacids.csv.gz": gzip.compress(b"AA;PIE;PIF;DDGTS\r\nAla;0.23;-0.31;8.5\r\n")})
    x, y, names = load_qspr()
    assert (x.tolist(), y.tolist(), names) == ([[0.23, -0.31]], [8.5], ["PIE", "PIF"])


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


@pytest.mark.usefixtures("anything")
def test_idx(downloads):
    images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 9, 0])
    files = {"train-images-idx3-ubyte.gz": images, "train-labels-idx1-ubyte.gz": labels}
    found = downloads({name: gzip.compress(content) for name, content in files.items()})
    for _ in range(2):
        x, y = load_mnist("train")
        assert (x.tolist(), y.tolist()) == ([[[1, 2, 3]], [[4, 5, 255]]], [9, 0])
        x[0], y[0] = 0, 0  # not read-only
    assert [url.rsplit("/", 1)[1] for url in found.urls] == list(files)


# What goes wrong


def test_other_content_is_refused_and_not_kept(downloads, tmp_path):
    downloads(encoded(REVIEWS))
    with pytest.raises(ValueError, match=r"positive.review and .*negative.review has not the content of") as error:
        load_amazon("books")
    assert f"should be {data.SHA256['amazon/books_labelled_full.npz']}, but is" in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_content_in_the_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "qspr").mkdir()
    (tmp_path / "qspr" / "aminoacids.csv").write_text("AA,PIE,DDGTS\nAla,0.23,8.5\n")
    with pytest.raises(ValueError, match=r"aminoacids.csv has not the content of qspr/aminoacids.csv"):
        load_qspr()


@staged
@pytest.mark.parametrize(
    ("load", "name"), [(load_co2, "co2/mauna_loa_monthly_545"), (load_solar, "solar/lean2004_tsi_391")]
)
def test_other_series_are_refused(load, name, monkeypatch, tmp_path):
    lines = (Path(os.environ[VARIABLE]) / f"{name}.csv").read_text().splitlines()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / name).parent.mkdir()
    for changed in (lines[:-1], [*lines[:-1], "2004.5,400.0,400.0"], [line.split(",")[0] for line in lines]):
        (tmp_path / f"{name}.csv").write_text("\n".join(changed))
        with pytest.raises(ValueError, match="has not the content of"):
            load()


def test_other_images_are_refused_and_not_kept(downloads, tmp_path):
    downloads({"train-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x07")})
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has not the content of mnist/train-images-idx3"):
        load_mnist("train")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "load",
    [
        load_qspr,
        lambda: load_amazon("books"),
        lambda: load_amazon("books", "top5000"),
        lambda: load_uci("yacht"),
        lambda: load_mnist("test"),
        load_co2,
        load_solar,
    ],
)
def test_file_missing_in_the_folder(load, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=rf"nowhere.* {VARIABLE} must name a folder .* download https://"):
        load()


def test_without_a_network(downloads, tmp_path):
    downloads({})
    with pytest.raises(ConnectionError, match=rf"csv.gz could not be downloaded \(no route to host\).* {VARIABLE}"):
        load_qspr()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install pooch.* {VARIABLE} must name a folder"):
        load_qspr()


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="books, dvd, electronics, kitchen, but found 'music'"):
        load_amazon("music")
    with pytest.raises(ValueError, match="full or top5000, but found 'all'"):
        load_amazon(CATEGORIES[0], "all")
    with pytest.raises(ValueError, match=r"bostonHousing, concrete, .*, yacht, but found 'boston'"):
        load_uci("boston")
    with pytest.raises(ValueError, match="train or test, but found 'valid'"):
        load_mnist("valid")
