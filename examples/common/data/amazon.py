"""Reviews as counts of words (entropic dropout, figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.datasets import load_svmlight_files
from sklearn.feature_extraction import DictVectorizer

from examples.common.data._loading import GITHUB, Table, Verify, load

CATEGORIES = ("books", "dvd", "electronics", "kitchen")
FULL = f"{GITHUB}/RyosukeOzaki/Logistic-Regression/9ec5348a0cd608863ef3bf9ee5d1c4c57baf81c8/processed_acl"
TOP = f"{GITHUB}/GRAAL-Research/domain_adversarial_neural_network/74eec5e0ae06bd6614bce048abba492c16a633e3/data"
SHA256 = {
    "books_labelled_full.npz": "d895ca65833c5af675a46e2bbbb7dc928fed0e8268b9caca8a5e39878947ac1b",
    "dvd_labelled_full.npz": "cb3316c739efda546dd75c0c4fa558afd366b2349a72dbab43a2880d63b7b740",
    "electronics_labelled_full.npz": "5da671bbdd168089f89107e2d6cf1a3dbe977611d5ad404b454bf68c0b7c6840",
    "kitchen_labelled_full.npz": "b1d889009834e04f2b0e6fa4745214d4ad09826b25c0edda92a1514a4044045f",
    "books_top5000.npz": "454e52c9f5caf26720de9f0df88b2cdebe0567390d4a45e6cf2dd6f98b562b80",
    "dvd_top5000.npz": "aebb44f3716e0dc60e4810fec3649f58ac3556c50efd0c926e6484b29a2806e5",
    "electronics_top5000.npz": "e425d3a320f5ab9e89eb2cbd58fd577f8542119d9f6f1391b01b2cdcdb6ed0b2",
    "kitchen_top5000.npz": "72abf7e1fde0173b26010c0b60ab7f1db8ca3c69fd57f755983bbbe14e9c011d",
}


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
        file, convert = f"{category}_labelled_full.npz", _convert_reviews
        urls = [f"{FULL}/{category}/{part}.review" for part in ("positive", "negative")]
    elif features == "top5000":
        file, convert = f"{category}_top5000.npz", _convert_svmlight
        urls = [f"{TOP}/{category}_{part}.svmlight" for part in ("train", "test")]
    else:
        raise ValueError(f"features must be full or top5000, but found {features!r}")
    return load(f"amazon/{file}", urls, SHA256[file], convert, _read)


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
    _write(made, x, labels, vocab_utf8=np.frombuffer(vocabulary, np.uint8))


def _convert_svmlight(raw: list[Path], made: Path) -> None:
    x_train, y_train, x_test, y_test = load_svmlight_files(raw, n_features=5000, dtype=np.int32, zero_based=True)
    _write(made, scipy.sparse.vstack([x_train, x_test], format="csr"), np.concatenate([y_train, y_test]) > 0)


def _write(made: Path, x: Any, y: Any, **names: np.ndarray) -> None:
    x.sort_indices()
    y = np.asarray(y, dtype=np.uint8)
    np.savez_compressed(made, data=x.data, indices=x.indices, indptr=x.indptr, shape=x.shape, y=y, **names)


def _read(file: Path, verify: Verify) -> Table:
    with np.load(file) as stored:
        # Not the vocabulary, whose characters beyond ASCII depend on who decoded the source.
        content = [stored[key].astype("<i8") for key in ("shape", "indptr", "indices", "data", "y")]
        names = stored["vocab_utf8"].tobytes().decode().split("\n") if "vocab_utf8" in stored else []
    verify(b"".join(part.tobytes() for part in content))
    shape, indptr, indices, data, y = content
    arrays = data.astype(np.float32), indices.astype(np.int32), indptr.astype(np.int32)
    return Table(scipy.sparse.csr_array(arrays, shape=tuple(shape)), y, names)
