"""The amino acids: what is staged is what was meant, the converter reads the source's format."""

import gzip

import numpy as np
import pytest

from examples.common.data import load_qspr
from tests.examples.staged import staged


@staged
def test_amino_acids():
    x, y, names = load_qspr()
    assert x.shape == (19, 7)
    assert names == ["PIE", "PIF", "DGR", "SAC", "MR", "Lam", "Vol"]
    correlations = np.corrcoef(x.T)  # published with the set
    assert correlations[0, 1] == pytest.approx(0.97, abs=0.005)
    assert correlations[3, 6] == pytest.approx(0.99, abs=0.005)
    assert y[:3].tolist() == [8.5, 8.2, 8.5]


@pytest.mark.usefixtures("anything")
def test_table_of_amino_acids(downloads):
    downloads({"aminoacids.csv.gz": gzip.compress(b"AA;PIE;PIF;DDGTS\r\nAla;0.23;-0.31;8.5\r\n")})
    x, y, names = load_qspr()
    assert (x.tolist(), y.tolist(), names) == ([[0.23, -0.31]], [8.5], ["PIE", "PIF"])
