"""Heads of photographs, cut down; methods, PAvPU and claims from predictions that are known."""

import itertools
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from examples.common.arguments import settle
from examples.common.fits import named_by
from examples.lbd import cifar, cifar_training
from examples.lbd.cifar_tables import GRID, WAYS, claims, curve, measured, rates_table
from examples.lbd.cifar_training import METHODS, changed
from models.classification import Classification
from models.regression import mlp
from pyro_dropout import AutoConcreteDropout
from tests.examples.staged import staged


@staged
@pytest.mark.slow
def test_what_is_found_and_written(tmp_path):
    arguments = ["--quick", "--outputs", str(tmp_path)]
    found = cifar.main(arguments)
    assert found.keys() == METHODS.keys()
    for name, runs in found.items():
        assert len(runs) == 2
        for run in runs:
            assert run["step"] == 2 * 4
            for way in ("draws", "mean"):
                assert len(run[way]["test"]["entropy"]) == len(run[way]["test"]["right"]) == 600
                assert len(run[way]["validation"]["entropy"]) == 200
            draws, mean = (run[way]["test"]["entropy"] for way in ("draws", "mean"))
            assert np.allclose(draws, mean, atol=1e-4) == (name == "none")
    text = (tmp_path / "cifar.md").read_text()
    assert all(f"| {name} |" in text for name in WAYS)
    assert matplotlib.image.imread(tmp_path / "cifar.png").std() > 0.01
    cifar.main(arguments)  # read, not trained again
    assert (tmp_path / "cifar.md").read_text() == text


@staged
def test_parts_do_not_share_images(tmp_path, monkeypatch):
    """Heads learn from images that the convolutional part has not seen; others validate, others judge."""
    options = cifar.options_of(["--quick", "--outputs", str(tmp_path)])
    options.images, options.epochs = 50_000, 1
    seen = {}

    class Bytes(torch.nn.Module):
        """Features that tell which image they are of."""

        def forward(self, x):
            return x.flatten(1)[:, ::97]

    def convolutional(options):
        x, _ = cifar_training.images("train")
        seen["convolutional"] = Bytes()(x[: cifar_training.CONVOLUTIONAL])
        return Bytes()

    monkeypatch.setattr(cifar_training, "convolutional_part", convolutional)
    found = cifar_training.featured(options)
    seen |= {part: x for part, (x, _) in found.items()}
    assert {part: len(x) for part, x in seen.items()} == {
        "convolutional": 10_000,
        "train": 10_000,
        "validation": 2000,
        "test": 4000,
    }
    keys = {part: {row.tobytes() for row in x.numpy()} for part, x in seen.items()}
    for one, other in itertools.combinations(keys, 2):
        assert len(keys[one] & keys[other]) < 5, (one, other)  # the set has a few doubles


def test_settings_decide_which_features():
    options = [
        cifar.options_of([*more, "--outputs", "a"]) for more in ([], ["--channels", "8", "8"], ["--images", "9"])
    ]
    names = {named_by(Path("features.pt"), cifar_training.settings_of(each)) for each in options}
    assert len(names) == 3


@staged
def test_lengthscales_are_chosen_by_validation_images(tmp_path, monkeypatch):
    tried = []

    def head(name, lengthscale, seed, options):
        tried.append((name, lengthscale, seed))
        good = {1.0: -1.0, 2.0: -0.5, 4.0: -0.7}[lengthscale]  # of test images the other way round
        ways = {way: prediction([0.1, 0.9], [True, False]) for way in ("draws", "mean")}
        for way in ways.values():
            way["validation"]["log_likelihood"], way["test"]["log_likelihood"] = good, -good
        rate = {"net.2.weight": 0.1, "net.4.weight": 0.3}
        return {**ways, "rates": rate, "rates over training": [rate] * 5}

    monkeypatch.setattr(cifar, "featured", lambda options: None)
    monkeypatch.setattr(cifar, "head", head)
    cifar.main(["--quick", "--lengthscales", "1", "2", "4", "--outputs", str(tmp_path)])
    tuning = [each for each in tried if each[2] == cifar.TUNING_SEED]
    assert len(tuning) == 3 * len(METHODS)
    assert {each[1] for each in tried if each[2] < 2} == {2.0}


def guide_of(name):
    settle(0)
    model = Classification(mlp(5, [4, 4], 3), 10)
    guide = METHODS[name].guide(model)
    guide(torch.zeros(2, 5), torch.tensor([0, 1]))
    return guide


@pytest.mark.parametrize(
    ("name", "shape", "logits"),
    [("fixed", (), 0), ("Concrete", (), 2), ("LBD, a layer", (), 2), ("LBD, a unit", (4,), 2), ("LBD, shared", (), 1)],
)
def test_what_has_a_rate(name, shape, logits):
    """Units of the hidden layers, from one half; features have none."""
    guide = guide_of(name)
    rates = guide.rates()
    assert set(rates) >= {"net.2.weight", "net.4.weight"}
    assert float(rates.get("net.0.weight", torch.tensor(0.0)).max()) == 0.0
    for mask in ("net.2.weight", "net.4.weight"):
        assert rates[mask].shape == shape
        torch.testing.assert_close(rates[mask], torch.full(shape, 0.5))
    learned = [key for key, _ in guide.named_parameters() if "logits" in key]
    assert len(learned) == logits
    assert isinstance(guide, AutoConcreteDropout) == (name == "Concrete")


def test_images_are_flipped_and_shifted():
    x = torch.rand(40, 3, 32, 32)
    moved = changed(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    wide = torch.nn.functional.pad(x, (4, 4, 4, 4))
    found = {
        (flip, down, right): [
            n for n in range(40) if torch.equal(moved[n], each[n, :, down : down + 32, right : right + 32])
        ]
        for flip, each in ((False, wide), (True, torch.nn.functional.pad(x.flip(-1), (4, 4, 4, 4))))
        for down in range(9)
        for right in range(9)
    }
    ways = {way: rows for way, rows in found.items() if rows}
    assert len(ways) == 2
    assert sorted(row for rows in ways.values() for row in rows) == list(range(40))
    assert len({way[1:] for way in ways}) == 1
    assert all(10 < len(rows) < 30 for rows in ways.values())


def prediction(entropy, right):
    part = {"entropy": entropy, "right": right, "accuracy": np.mean(right), "log_likelihood": -1.0}
    return {"validation": {"entropy": [0.0, 1.0]}, "test": part}


def test_pavpu_by_hand():
    """Thresholds from 0 to 1: all uncertain at 0 but what has entropy 0, all certain at 1."""
    values = curve(prediction([0.0, 0.31, 0.52, 0.6], [True, True, False, False]))
    assert len(values) == len(GRID) == 21
    assert values[0] == 75.0  # the first is certain and right, the second uncertain and right
    assert values[10] == 100.0
    assert values[11] == 75.0  # 0.55, of the validation images' range: the third is certain and wrong
    assert values[-1] == 50.0  # the accuracy


def results(of):
    """Of three seeds by method the number of ten images that are right, and entropies that tell them or not."""
    found = {}
    for name in METHODS:
        runs = []
        for seed in range(3):
            ways = {}
            for way in ("draws", "mean"):
                number, tells = of(name, way)
                right = [i < number for i in range(10)]
                entropy = [(0.1 if r == tells else 0.9) + 0.001 * seed for r in right]
                ways[way] = prediction(entropy, right)
            rate = {"net.2.weight": 0.1, "net.4.weight": [0.2, 0.4] if "unit" in name else 0.3}
            runs.append({**ways, "rates": rate, "rates over training": [rate] * 5})
        found[name] = runs
    return found


def test_claims_are_what_results_say():
    order = {"none": 5, "fixed": 6, "LBD, shared": 7, "Concrete": 8, "LBD, a layer": 9, "LBD, a unit": 9}
    found = results(lambda name, way: (order[name], name != "fixed" or way == "mean"))
    lines = claims(found, measured(found))
    assert lines[0] == "LBD has the best accuracy, against Concrete confirmed, MC confirmed, regular confirmed"
    assert lines[1].startswith("LBD has the best PAvPU, against Concrete")
    assert lines[2] == "learned before shared before fixed, accuracy: confirmed, confirmed"
    assert lines[3] == "one rate a unit before one a layer, accuracy: not settled"
    assert lines[4] == "regular dropout has a higher PAvPU than MC: confirmed"
    assert lines[6].startswith("LBD's PAvPU is above that of MC at")
    other = results(lambda name, way: (10 - order[name], True))
    assert claims(other, measured(other))[0].count("refuted") == 3
    assert "| LBD, a unit | 0.100 | 0.300 (0.20 to 0.40) | 0.000 |" in rates_table(found)
