"""The same names of either ArviZ give what they say, of data whose answers are known."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

from examples.common.arviz_versions import as_chains, compare, elpd, from_arrays, leave_one_out, loo_pit, names, psis

# how ArviZ 0.23 calls pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")

RNG = np.random.default_rng(0)
MEAN, DRAWS = 0.3, 40_000


@pytest.fixture
def conjugate():
    """Normal data of unknown mean and variance 1 under a flat prior: what is left out has a normal density."""
    y = RNG.normal(MEAN, 1.0, size=20)
    mean = RNG.normal(y.mean(), 20**-0.5, size=(1, DRAWS, 1))
    groups = from_arrays(
        {
            "posterior": {"mean": mean[..., 0]},
            "log_likelihood": {"obs": scipy.stats.norm.logpdf(y, mean, 1.0)},
            "posterior_predictive": {"obs": RNG.normal(mean, 1.0, size=(1, DRAWS, 20))},
            "observed_data": {"obs": y},
        }
    )
    without = (y.sum() - y) / 19
    return groups, y, scipy.stats.norm(without, (1 + 1 / 19) ** 0.5)


def test_leave_one_out_and_its_probabilities_are_those_of_the_normal(conjugate):
    groups, y, exact = conjugate
    loo = leave_one_out(groups)
    assert elpd(loo) == pytest.approx(exact.logpdf(y).sum(), abs=0.05)
    assert loo.n_data_points == 20
    assert (loo.pareto_k.values < 0.7).all()
    np.testing.assert_allclose(loo_pit(groups, "obs"), exact.cdf(y), atol=0.02)
    density = groups["log_likelihood"]["obs"].values[0].T
    log_weights, k = psis(density)
    np.testing.assert_allclose(logsumexp(log_weights, -1), 0.0, atol=1e-10)
    np.testing.assert_allclose(logsumexp(log_weights + density, -1), exact.logpdf(y), atol=0.02)
    assert k.shape == (20,)


def test_a_comparison_has_the_better_first_by_one_name_of_columns(conjugate):
    groups, _, _ = conjugate
    worse = from_arrays({name: {k: v.values for k, v in groups[name].data_vars.items()} for name in names(groups)})
    worse["log_likelihood"]["obs"] = worse["log_likelihood"]["obs"] - 1.0
    table = compare({"worse": leave_one_out(worse), "better": leave_one_out(groups)})
    assert list(table.index) == ["better", "worse"]
    assert table["elpd"]["better"] == pytest.approx(table["elpd"]["worse"] + 20.0)
    assert np.isfinite(table[["se", "dse"]].astype(float)).all(axis=None)


@pytest.mark.parametrize("runs", [1, 3])
def test_runs_become_chains_and_data_stay(runs):
    values = RNG.normal(size=(runs, 1, 5, 2))
    groups = [from_arrays({"posterior": {"w": v}, "observed_data": {"obs": np.arange(4.0)}}) for v in values]
    joined = as_chains(groups)
    assert names(joined) == ["posterior", "observed_data"]
    np.testing.assert_array_equal(joined["posterior"]["w"], values[:, 0])
    assert joined["posterior"]["w"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(joined["posterior"]["chain"], np.arange(runs))
    np.testing.assert_array_equal(joined["observed_data"]["obs"], np.arange(4.0))


@pytest.mark.parametrize("draws", [10, 200])
def test_draws_that_are_few_or_the_same_have_no_estimate(draws):
    density = np.repeat(RNG.normal(size=(1, 1, 6)), draws, 1)
    if draws == 10:
        density = RNG.normal(size=(1, 10, 6))
    predicted = RNG.normal(size=(1, draws, 6))
    groups = from_arrays(
        {
            "posterior": {"a": RNG.normal(size=(1, draws))},
            "log_likelihood": {"obs": density},
            "posterior_predictive": {"obs": predicted},
            "observed_data": {"obs": predicted[0, 0]},
        }
    )
    loo = leave_one_out(groups)
    assert loo.n_data_points == 6
    assert not (loo.pareto_k.values < 0.7).any()
    assert loo_pit(groups, "obs").shape == (6,)
