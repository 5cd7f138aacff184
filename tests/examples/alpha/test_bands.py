"""The example runs, prints its table and draws its picture, and α = 1 finds the two branches that α = 0 blurs."""

import contextlib
import io
import math

import matplotlib.image
import pytest
import torch

from examples.alpha.bands import TRUTHS, Data, losses, main

FITS = ["α = 0", "α = 0.5", "α = 1", "α = 1, then 0.5"]


def run(folder, *options):
    """Scores of a run, and what it printed."""
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        scores = main([*options, "--outputs", str(folder)])
    torch.set_num_threads(threads)
    return scores, printed.getvalue()


@pytest.mark.parametrize(("name", "networks"), [("bimodal", 1), ("heteroscedastic", 2)])
def test_table_is_printed_and_picture_drawn(name, networks, tmp_path):
    folder = tmp_path / "made" / "when missing"
    scores, printed = run(folder, "--data", name, "--networks", str(networks), "--steps", "8")
    assert list(scores) == ["the truth", *FITS]
    for row, measures in scores.items():
        assert all(value.shape == (networks,) and bool(value.isfinite().all()) for value in measures.values())
        assert all(0 <= share.item() <= 1 for key in measures if key.startswith("in ") for share in measures[key])
        assert any(
            line.startswith(row + " ") and f"{measures['RMSE'].mean():.3f} ±" in line for line in printed.split("\n")
        )
    picture = folder / f"alpha_divergence_{name}.png"
    assert f"wrote {picture}" in printed
    pixels = matplotlib.image.imread(picture)
    assert min(pixels.shape[:2]) > 400
    assert pixels[..., :3].std() > 0.05


@pytest.mark.parametrize("name", TRUTHS)
def test_data_have_the_stated_moments(name):
    data = Data.draw(name, networks=40)
    x, y = data.x, data.y
    if name == "bimodal":
        mean, variance = 5 * (x.sin() + x.cos()), 1 + 25 * (x.sin() - x.cos()).square()
    else:
        mean, variance = 7 * x.sin(), 9 * (x / 2).cos().square()
    squares = ((y - mean) / variance.sqrt()).square()
    assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(squares.numel())


def test_fits_differ_by_alpha_alone():
    by_name = losses(steps=8)
    falling = by_name.pop("α = 1, then 0.5").alpha
    assert [loss.alpha for loss in by_name.values()] == [0.0, 0.5, 1.0]
    assert [falling() for _ in range(8)] == [1.0] * 6 + [0.5] * 2
    assert len({(loss.num_particles, loss.masks) for loss in by_name.values()}) == 1


@pytest.mark.slow
def test_likelihood_of_test_points_gains_from_alpha_one(tmp_path):
    scores, _ = run(tmp_path, "--networks", "3")
    likelihood = {name: measures["log-likelihood"] for name, measures in scores.items()}
    # The best curve with constant noise: the variance around the mean of the branches is 1 + 25 E(sin x - cos x)²
    curve = -0.5 * math.log(2 * math.pi * math.e * (1 + 25))  # E sin x cos x = 0 on [-2, 2]
    assert bool(((likelihood["α = 0"] - curve).abs() < 0.15).all())
    assert bool((likelihood["α = 1"] > likelihood["α = 0"]).all())
    assert likelihood["α = 0"].mean() + 0.4 < likelihood["α = 1"].mean() < likelihood["the truth"].mean()
    assert scores["α = 0"]["from masks"].mean() < 0.1 < 0.8 < scores["α = 1"]["from masks"].mean()
