"""The posterior checks: runs that agree and runs that do not, every guide in every table, pictures."""

import contextlib
import io
import math
import os

import arviz as az
import matplotlib.image
import numpy as np
import pytest
import torch

from examples.data import VARIABLE
from examples.posterior_checks import Fit, main, r_hat, rates_as_draws

# ArviZ 0.23 calls Matplotlib 3.11 and pandas 3.1 in ways that will end; estimates of tiny runs are what they are
pytestmark = [
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Pareto.*:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:The inplace keyword in DataFrame.sort_values:DeprecationWarning"
    ),  # of az.compare
]
needs_data = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"the environment variable {VARIABLE} is not set")
GUIDES = ["rate 0.1", "Concrete", "learned hard", "AutoNormal", "NUTS"]


def run(*options):
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = main(list(options))
    torch.set_num_threads(threads)
    return results, printed.getvalue()


def runs_of(values):
    return az.from_dict(posterior={"mean": np.asarray(values)})


def test_r_hat_tells_runs_that_agree_from_runs_that_do_not():
    rng = np.random.default_rng(0)
    same = rng.normal(size=(3, 200, 4))
    assert r_hat(runs_of(same), "mean")["largest"] < 1.05
    apart = same + np.array([0.0, 3.0, 6.0])[:, None, None] * np.array([1.0, 0.0, 0.0, 0.0])
    found = r_hat(runs_of(apart), "mean")
    assert found["largest"] > 2
    assert found["median"] < 1.05


def test_rates_are_those_of_the_second_half_of_training():
    fits = [Fit(None, None, 5, list(range(10)), {"a": [10.0 * k + i for i in range(10)]}) for k in range(3)]
    values = rates_as_draws(fits).posterior["a"].values
    np.testing.assert_array_equal(values, [[10.0 * k + i for i in range(5, 10)] for k in range(3)])


@pytest.mark.slow
@needs_data
def test_regression_compares_all_guides(tmp_path):
    options = "--only regression --steps 120 --draws 60 --restarts 2 --warmup 8 --nuts-draws 12"
    results, printed = run(*options.split(), "--outputs", str(tmp_path))
    found = results.regression
    assert list(found.scores) == GUIDES == list(found.loo)
    assert set(found.comparison.index) <= set(GUIDES)
    assert len(found.comparison) >= 3
    spread = 16.7  # of the target, MPa
    for score in found.scores.values():
        assert 4 < score["RMSE"] < 1.3 * spread
        assert 0 < score["CRPS"] < score["RMSE"]
        assert 0 <= score["in 50 %"] <= score["in 90 %"] <= 1
    assert set(found.r_hat) > set(GUIDES)
    assert {"Concrete, net.0.weight", "learned hard, net.2.weight"} <= set(found.r_hat)
    corrected = found.approximate["log p - log q"]
    assert math.isfinite(corrected["elpd_loo"])
    assert "loo_approximate" not in printed
    for picture in results.pictures:
        assert matplotlib.image.imread(picture).std() > 0.01


@needs_data
def test_uncertainty_tells_held_out_digits_from_known_ones(tmp_path):
    results, _ = run(*["--only", "classification", "--steps", "200", "--draws", "30", "--outputs"], str(tmp_path))
    found = results.classification
    for name in ("rate 0.1", "Concrete"):
        assert found.scores[name]["accuracy"] > 0.85
        for measure in ("entropy", "mutual information"):
            assert found.auroc[name][measure] > 0.6
    assert len(results.pictures) == 1


def test_one_run_has_no_r_hat(capsys):
    with pytest.raises(SystemExit):
        main(["--restarts", "1"])
    assert "must be 2 or more" in capsys.readouterr().err
