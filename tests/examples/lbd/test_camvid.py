"""Dropouts in the middle of a segmentation network, cut down; claims from scores that are known."""

import matplotlib.image
import pytest

from examples.lbd import camvid
from examples.lbd.camvid import CONCRETE, FIXED, LBD, MEASURES, NONE, WAYS, claims, rates_table
from tests.examples.staged import staged


@staged
@pytest.mark.slow  # Concrete's, of the same trainer, is a fast one
def test_what_is_found_and_written(tmp_path):
    found = camvid.main(["--quick", "--outputs", str(tmp_path)])
    assert list(found) == [NONE, FIXED, CONCRETE, LBD]
    for dropout, (history,) in found.items():
        assert ("draws" in history[-1]) == (dropout != NONE)
    text = (tmp_path / "lbd_camvid.md").read_text()
    assert all(f"| {name} |" in text for name in WAYS)
    for name in ("lbd_camvid.png", "lbd_camvid_maps.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.01


def known():
    results = {}
    for number, dropout in enumerate((NONE, FIXED, CONCRETE, LBD)):
        of = [{m: 0.5 + 0.1 * number + 0.01 * seed for m in MEASURES[:3]} for seed in range(3)]
        curve = [0.2, 0.4 + 0.1 * number, 0.6]
        scores = [{**each, "PAvPU, stride 1": curve, "PAvPU, stride 2": curve} for each in of]
        rates = {"net.middle.layers.0.masked.output": 0.1 * number, "net.up.0.layers.0.masked.weight": 0.9}
        results[dropout] = [[{"rates": rates, "mean": each, "draws": each}] for each in scores]
    return results


def test_claims():
    lines = claims(known())
    assert lines[0].startswith("1. LBD before Concrete: accuracy confirmed (+10.00")
    assert any(line.startswith("2. Concrete has the higher PAvPU than MC: PAvPU, stride 1 confirmed") for line in lines)
    assert any(line.startswith("3. MC before regular: accuracy not settled (+0.00") for line in lines)
    assert lines[-1] == "4. LBD's curve is above " + ", ".join(
        f"{name}'s at 33 % of thresholds" for name in ("regular", "MC", "Concrete")
    )


def test_rates_are_of_the_middle():
    assert "* LBD: 0.300" in rates_table(known())
