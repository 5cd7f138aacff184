"""The gradient example: its exact gradients agree, its tables and pictures come out, and they say what they should."""

import matplotlib.image
import pytest
import torch

from examples.lbd.gradient_estimators import METHODS, Toy, main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("gradients") / "made when missing"
    arguments = ["--grid", "3", "--steps", "5", "--max-width", "32", "--outputs", str(outputs)]
    return main(arguments), outputs


def test_closed_form_is_enumeration():
    toy, logits = Toy.random(units=6, points=50), torch.randn(6)
    torch.testing.assert_close(toy.exact(logits), toy.enumerated(logits))


def test_hard_masks_are_unbiased_and_concrete_is_not(run):
    grid = run[0]["grid"]
    assert list(grid) == list(METHODS)
    for name, (bias, deviation, _) in grid.items():
        errors = bias.abs() / (deviation / 200**0.5).clamp_min(1e-9)
        assert (errors.max() > 5) == name.startswith("Concrete")


def test_disarm_has_the_smallest_error_of_the_toy(run):
    error = {name: result[2].square().mean() for name, result in run[0]["grid"].items()}
    assert error["DisARM"] == min(error.values())
    assert error["ARM"] < error["REINFORCE"] / 2


def test_noise_of_hard_masks_grows_with_width_and_that_of_concrete_does_not(run):
    ratios = run[0]["widths"]
    for name in ("REINFORCE", "ARM", "DisARM"):
        assert ratios[name][-1] > 1.5 * ratios[name][0]
    assert ratios["Concrete 0.5"][-1] < 1.5 * ratios["Concrete 0.5"][0]


def test_traces_follow_the_exact_gradient(run):
    traces = run[0]["traces"]
    assert all(trace.shape == (5, 2) for trace in traces.values())
    assert (traces["DisARM"] - traces["exact"]).abs().max() < 0.01


def test_pictures(run):
    for name in ("grid", "traces", "widths"):
        image = matplotlib.image.imread(run[1] / f"gradient_estimators_{name}.png")
        assert image.std() > 0.01
