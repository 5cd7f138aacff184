"""Scores and calibration of regressions against closed forms, scipy and torchmetrics."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torchmetrics.regression import ContinuousRankedProbabilityScore

from pyro_dropout.metrics import calibration_error, crps, interval_coverage, interval_score, quantile_coverage


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_coverage_of_draws_from_the_truth_is_the_nominal_one(probability):
    draws, target = torch.randn(2000, 3000), torch.randn(3000)
    error = (probability * (1 - probability) / 3000) ** 0.5
    assert interval_coverage(draws, target, probability) == pytest.approx(probability, abs=5 * error)


def test_interval_score_by_hand_and_against_scipy_quantiles():
    draws = torch.arange(5.0, dtype=torch.float64).unsqueeze(-1).expand(5, 3)  # central half: ranks 1.5 to 4.5
    assert interval_score(draws, torch.tensor([2.0, 0.25, 4.0]), 0.5).tolist() == [3.0, 3 + 4 * 0.25, 3 + 4 * 0.5]
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    low, high = np.quantile(x.numpy(), [0.1, 0.9], axis=0, method="weibull")  # of mean F(q) = p
    expected = [
        h - lo + 10 * max(lo - t, 0) + 10 * max(t - h, 0) for lo, h, t in zip(low, high, y.numpy(), strict=True)
    ]
    np.testing.assert_allclose(interval_score(x, y, 0.8), expected)


def test_interval_score_is_best_for_the_true_quantiles():
    y, z = torch.randn(4000, dtype=torch.float64), torch.randn(2000, 1, dtype=torch.float64).expand(2000, 4000)
    truth, *others = (
        interval_score(scale * z + shift, y, 0.8) for scale, shift in ((1, 0), (0.7, 0), (1.4, 0), (1, 0.4))
    )
    for other in others:
        difference = other - truth
        assert difference.mean() > 5 * difference.std() / len(y) ** 0.5


def test_crps_is_the_area_between_distribution_functions():
    """Half the squared energy distance of scipy, which integrates (F - G)²; and torchmetrics' double sum."""
    x, y = torch.randn(30, 8, dtype=torch.float64) + 100, torch.randn(8, dtype=torch.float64) + 100
    expected = [stats.energy_distance(x[:, n].numpy(), [y[n].item()]) ** 2 / 2 for n in range(8)]
    np.testing.assert_allclose(crps(x, y), expected, rtol=1e-10)
    metric = ContinuousRankedProbabilityScore()
    assert crps(x, y).mean().item() == pytest.approx(metric(x.T, y).item(), rel=1e-6)


def test_crps_of_normal_draws_is_the_closed_form():
    """Gneiting & Raftery 2007: σ [z (2Φ(z) - 1) + 2φ(z) - π^-½], which is also the mean of fair scores of few draws."""
    mean, scale, y = 1.0, 2.0, torch.tensor([0.0, 1.5, 7.0], dtype=torch.float64)
    z = (y.numpy() - mean) / scale
    exact = scale * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - math.pi**-0.5)
    many = mean + scale * torch.randn(200_000, 1, dtype=torch.float64).expand(-1, 3)
    np.testing.assert_allclose(crps(many, y), exact, rtol=0.01)
    few = mean + scale * torch.randn(4, 60_000, dtype=torch.float64)
    for k in range(3):
        scores = crps(few, y[k].expand(60_000), fair=True)
        assert abs(scores.mean() - exact[k]) < 5 * scores.std() / 60_000**0.5
        biased = crps(few, y[k].expand(60_000))
        # of the mean over T² pairs T are of a draw with itself: E|X - X'| / 2 is taken (1 - 1/T) times
        assert (biased - exact[k]).mean().item() == pytest.approx(scale * math.pi**-0.5 / 4, rel=0.05)


def test_quantiles_are_numpys():
    """At probabilities that are those of a draw, k / (T + 1), the share is a count."""
    x, y, p = torch.randn(17, 50), torch.randn(50), np.array([1, 6, 9, 17]) / 18
    expected = (y.numpy() <= np.quantile(x.numpy(), p, axis=0, method="weibull")).mean(1)
    np.testing.assert_allclose(quantile_coverage(x, y, p), expected, atol=1e-6)


@pytest.mark.parametrize("t", [1, 2, 10, 50, 200])
def test_draws_of_the_truth_have_the_nominal_coverage_whatever_their_number(t):
    """A target from where its draws are from has any rank among them equally often: the mean over ranks is exact."""
    draws = torch.arange(1.0, t + 1, dtype=torch.float64).unsqueeze(-1).expand(t, t + 1)
    target = torch.arange(t + 1.0, dtype=torch.float64) + 0.5
    p = torch.tensor([0.01, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.975])
    torch.testing.assert_close(quantile_coverage(draws, target, p), p.double())
    for probability in (0.1, 0.5, 0.8, 0.9, 0.99):
        assert interval_coverage(draws, target, probability) == pytest.approx(probability, abs=1e-12)
    assert calibration_error(draws, target) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.999, 0.001]])
@pytest.mark.parametrize("t", [1, 3, 6])
def test_discrete_forecasts_of_the_truth_have_the_nominal_coverage(t, probabilities):
    """All tuples of draws and target, by their probability; ties count in part."""
    tuples = torch.cartesian_prod(*[torch.arange(len(probabilities))] * (t + 1)).T
    weight = torch.tensor(probabilities, dtype=torch.float64)[tuples].prod(0)
    for p in (0.05, 0.3, 0.5, 0.9):
        shares = torch.tensor(
            [
                [quantile_coverage(c[:-1, None], c[-1:], p).item(), interval_coverage(c[:-1, None], c[-1:], p)]
                for c in tuples.T
            ]
        )
        np.testing.assert_allclose(weight @ shares.double(), [p, p], atol=1e-6)


def test_perfect_forecasts_of_counts_are_calibrated():
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, size=6000)
    draws, y = torch.tensor(rng.poisson(rate, (50, 6000))), torch.tensor(rng.poisson(rate))
    assert calibration_error(draws, y) < 3 / (6 * 6000) ** 0.5
    assert calibration_error(2 * draws, y) > 0.1
    error = (0.9 * 0.1 / 6000) ** 0.5
    assert interval_coverage(draws, y, 0.9) == pytest.approx(0.9, abs=5 * error)


def test_calibration_error_of_the_truth_is_small_and_of_half_the_noise_the_closed_form():
    draws, target = torch.randn(2000, 4000), torch.randn(4000)
    p = np.arange(1, 20) / 20
    # E[(f(p) - p)²] = p (1 - p) / N with 2,000 draws for the quantiles of each point
    assert calibration_error(draws, target) < 3 * math.sqrt((p * (1 - p)).mean() / 4000)
    exact = np.sqrt(np.mean((stats.norm.cdf(0.5 * stats.norm.ppf(p)) - p) ** 2))
    assert calibration_error(0.5 * draws, target) == pytest.approx(exact, abs=5 * 0.5 / 4000**0.5)
    assert calibration_error(0.5 * draws, target, [0.5]) < 0.05  # the median is right


def test_more_draws_than_torch_quantile_takes():
    draws = torch.arange(17_000_000.0).unsqueeze(-1)
    assert interval_coverage(draws, torch.tensor([8e6]), 0.5) == 1.0
    assert interval_score(draws, torch.tensor([8e6]), 0.5).item() == pytest.approx(8.5e6)


def test_labelled_targets_are_matched_by_name():
    rng = np.random.default_rng(0)
    draws = xr.DataArray(rng.normal(size=(2, 50, 3, 3)), dims=("chain", "draw", "a", "b"))
    y = xr.DataArray(rng.normal(size=(3, 3)), dims=("b", "a"))
    xr.testing.assert_allclose(crps(draws, y), crps(draws, y.transpose("a", "b")))


def test_labelled_draws_and_counts():
    draws = xr.DataArray(
        np.random.default_rng(0).poisson(4, (2, 30, 5)),
        dims=("chain", "draw", "point"),
        coords={"point": list("abcde")},
    )
    y = xr.DataArray(np.arange(5), dims="point")
    score = crps(draws, y)
    assert list(score.point) == list("abcde")
    np.testing.assert_allclose(score[2], stats.energy_distance(draws[..., 2].values.ravel(), [2]) ** 2 / 2, rtol=1e-5)
    assert interval_score(draws, y, 0.5).dims == ("point",)
    assert 0 <= calibration_error(draws, y) <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval_coverage(torch.tensor([[math.nan]]), torch.zeros(1), 0.5), "draws has 1 NaN"),
        (lambda: interval_coverage(torch.zeros(5, 2), torch.zeros(3), 0.5), r"\(5, 2\) do not match .* \(3,\)"),
        (lambda: interval_coverage(torch.zeros(5, 2), torch.zeros(2), 50), r"in \(0, 1\), but found 50"),
        (lambda: crps(torch.zeros(5, 2), torch.tensor([0.0, math.inf])), "target has 1 NaN or infinite"),
        (lambda: crps(torch.zeros(1, 2), torch.zeros(2), fair=True), "two draws or more"),
        (lambda: interval_score(torch.tensor(1.0), torch.tensor(1.0), 0.5), "draws on its first dimension"),
        (lambda: quantile_coverage(torch.zeros(5, 2), torch.zeros(2), [0.1, 1.0]), r"in \(0, 1\), but found \[0.1"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
