"""Labels say which entry is which: values are matched by them, or refused; arrays in memory may lie as they like."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

from pyro_dropout.metrics import (
    calibration_error,
    crps,
    interval_coverage,
    interval_score,
    mutual_information,
    pavpu,
    predictive_log_likelihood,
    predictive_moments,
    quantile_coverage,
    risk_coverage,
    uncertainty_thresholds,
)

POINTS = {
    "strings": np.array(list("abcdef")),
    "numbers": np.array([10, 7, 3, 1, 25, 4]),
    "times": pd.date_range("2020-01-01", periods=6).to_numpy(),
}
RNG = np.random.default_rng(0)
SHUFFLED = np.array([4, 0, 5, 2, 1, 3])


def labelled_draws(points, side=1, chains=2):
    values = RNG.normal(size=(chains, 20, len(points), side)) + np.arange(len(points))[:, None]
    coords = {"point": points, "side": np.arange(side), "chain": np.arange(chains), "draw": np.arange(20)}
    return xr.DataArray(values, dims=("chain", "draw", "point", "side"), coords=coords)


@pytest.mark.parametrize("kind", POINTS)
def test_targets_in_another_order_are_matched_by_their_labels(kind):
    """CRPS of each point by scipy, looked up by label."""
    points = POINTS[kind]
    draws = labelled_draws(points)[..., 0]
    y = xr.DataArray(np.arange(6.0) + 0.3, dims="point", coords={"point": points})
    expected = {
        p: stats.energy_distance(draws.values[..., i].ravel(), [i + 0.3]) ** 2 / 2
        for i, p in enumerate(points.tolist())
    }
    for target in (y, y[SHUFFLED], y[::-1], y.sortby("point")):
        for given in (draws, draws[..., SHUFFLED], draws[..., ::-1]):
            found = crps(given, target)
            assert found.point.values.tolist() == given.point.values.tolist()
            np.testing.assert_allclose(found, [expected[p] for p in found.point.values.tolist()], rtol=1e-10)


MEASURES = {
    "crps": lambda d, y: crps(d, y).sortby("point"),
    "interval_score": lambda d, y: interval_score(d, y, 0.5).sortby("point"),
    "interval_coverage": lambda d, y: interval_coverage(d, y, 0.5),
    "quantile_coverage": lambda d, y: quantile_coverage(d, y, [0.2, 0.7]),
    "calibration_error": calibration_error,
    "predictive_moments": lambda d, y: predictive_moments(d, y).aleatoric.sortby("point"),
    "risk_coverage": lambda d, y: risk_coverage(d.mean(("chain", "draw")), y).risk,
    "pavpu": lambda d, y: pavpu(d.mean(("chain", "draw")), y > 3.0, 2.0),
    "pavpu where": lambda d, y: pavpu(d.mean(("chain", "draw")), d.mean(("chain", "draw")) > 2.5, 2.0, where=y > 3.0),
}


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_of_two_arrays_aligns_them(name):
    draws = labelled_draws(POINTS["strings"], side=3)
    dims = ("side", "point")
    y = xr.DataArray(RNG.uniform(0, 6, (3, 6)), dims=dims, coords={"point": POINTS["strings"], "side": np.arange(3)})
    measure = MEASURES[name]
    expected = measure(draws, y)
    for target in (y[:, SHUFFLED], y[::-1, ::-1], y[:, SHUFFLED].transpose("point", "side")):
        np.testing.assert_allclose(measure(draws, target), expected, rtol=1e-12)
    np.testing.assert_allclose(measure(draws[:, :, SHUFFLED], y), expected, rtol=1e-12)
    for wrong, message in (
        (y.assign_coords(point=list("ghijkl")), r"point.*'a'"),
        (y.assign_coords(point=list("abcdeg")), r"point.*'f'"),
        (y.assign_coords(point=list("aacdef")), r"point"),
        (y.isel(point=slice(5)), r"point.*'f'"),
        (y.rename(point="row"), r"row"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(draws, wrong)


def test_draws_are_matched_as_well():
    """A precision with its draws in another order."""
    mean = labelled_draws(POINTS["strings"])
    noise = xr.DataArray(RNG.random((2, 20)), dims=("chain", "draw"), coords={"chain": [0, 1], "draw": np.arange(20)})
    order = RNG.permutation(20)
    # of a mean over draws the order is no matter, of the draws themselves it is
    found = predictive_moments(mean, noise[:, order])
    np.testing.assert_allclose(found.aleatoric, np.full((6, 1), noise.values.mean()))
    with pytest.raises(ValueError, match="draw"):
        predictive_moments(mean, noise.assign_coords(draw=np.arange(1, 21)))
    with pytest.raises(ValueError, match=r"noise_variance.*time"):
        predictive_moments(mean, noise.rename(chain="time"))


def test_labels_on_one_side_alone_match_by_place():
    """As xarray has it: a dimension without coordinates, and arrays without labels."""
    draws = labelled_draws(POINTS["strings"])[..., 0]
    y = xr.DataArray(np.arange(6.0), dims="point")
    expected = crps(draws.values.reshape(-1, 6), np.arange(6.0))
    for target in (y, np.arange(6.0), torch.arange(6.0), pd.Series(np.arange(6.0))):
        np.testing.assert_allclose(crps(draws, target), expected)
    np.testing.assert_allclose(crps(draws.drop_vars("point"), y.assign_coords(point=POINTS["strings"])), expected)
    np.testing.assert_allclose(crps(torch.as_tensor(draws.values).flatten(0, 1), y), expected)


def test_stacked_draws_and_doubled_labels_of_one_order():
    draws = labelled_draws(POINTS["strings"])[..., 0].assign_coords(point=list("aabbcc"))
    y = xr.DataArray(np.arange(6.0), dims="point", coords={"point": list("aabbcc")})
    expected = crps(draws.values.reshape(-1, 6), y.values)
    np.testing.assert_allclose(crps(draws.stack(sample=("chain", "draw")), y), expected)
    with pytest.raises(ValueError, match="point"):
        crps(draws, y[::-1])
    mean = labelled_draws(POINTS["strings"]).stack(sample=("chain", "draw"))
    moments = predictive_moments(mean, abs(mean)[..., ::-1])
    np.testing.assert_allclose(moments.aleatoric, abs(mean).mean("sample"))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[::2],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">f8"),
        lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
    ids=["reversed", "reversed columns", "strided", "fortran", "big-endian", "read-only", "broadcast"],
)
def test_arrays_may_lie_in_memory_as_they_like(view):
    draws, y = RNG.normal(size=(8, 5)), RNG.normal(size=(1, 5))
    plain = np.array(view(draws), dtype=np.float64)
    expected = [stats.energy_distance(plain[:, i], [y[0, i]]) ** 2 / 2 for i in range(5)]
    np.testing.assert_allclose(crps(view(draws), y[0]), expected)
    np.testing.assert_allclose(crps(xr.DataArray(view(draws), dims=("draw", "point")), y[0]), expected)
    np.testing.assert_allclose(crps(plain, y[0][::-1][::-1]), expected)
    np.testing.assert_allclose(predictive_log_likelihood(view(draws)), np.log(np.exp(plain).mean(0)))
    np.testing.assert_allclose(uncertainty_thresholds(view(draws), [0.0, 1.0]), [plain.min(), plain.max()])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crps(xr.Dataset({"a": ("draw", [1.0])}), 1.0), r"draws .*Dataset.*variables.*a"),
        (lambda: crps(np.array([["a"], ["b"]]), [1.0]), "draws must hold numbers, but found .*U1"),
        (lambda: crps(np.zeros((3, 1)), np.array([None])), "target must hold numbers, but found object"),
        (lambda: mutual_information(xr.Dataset({"a": ("draw", [1.0])})), r"probs .*Dataset"),
        (lambda: pavpu(np.array(["a"]), [True]), "uncertainty must hold numbers"),
        (lambda: pavpu(np.ones(1), np.array([None])), "correct must hold numbers"),
    ],
)
def test_what_holds_no_numbers_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
