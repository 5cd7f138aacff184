"""The loader: errors say what to do, and nothing of a wrong content is kept."""

import sys

import pytest

from examples.common.data import (
    CATEGORIES,
    VARIABLE,
    load_amazon,
    load_co2,
    load_mnist,
    load_qspr,
    load_solar,
    load_uci,
)


def test_other_content_in_the_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "qspr").mkdir()
    (tmp_path / "qspr" / "aminoacids.csv").write_text("AA,PIE,DDGTS\nAla,0.23,8.5\n")
    with pytest.raises(ValueError, match=r"aminoacids.csv has not the content of qspr/aminoacids.csv"):
        load_qspr()


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
