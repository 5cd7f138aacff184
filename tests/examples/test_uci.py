"""The table of the papers' regression results, cut down."""

import json
import math
import os

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from examples import uci
from examples.data import UCI, VARIABLE, load_uci

pytestmark = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"the environment variable {VARIABLE} is not set")
CUT = ["--epochs", "0.002", "--draws", "20", "--splits", "2", "--backend", "eager"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def results(path="outputs/uci.json"):
    with open(path) as file:
        return json.load(file)


def test_a_grid_is_searched_on_validation_rows_alone(monkeypatch, capsys):
    seen = []
    whole = uci.fit

    def fit(name, what, data, runs, *args):
        seen.append((data, runs))
        return whole(name, what, data, runs, *args)

    monkeypatch.setattr(uci, "fit", fit)
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT])
    (data, inside), (_, outside) = seen
    assert len(inside) == 2 * 4 * 3
    for i, (train, validation, _) in enumerate(inside):
        stored = data.train[i // 12]
        assert np.array_equal(np.concatenate([train, validation]), stored)
        assert len(validation) == len(stored) // 5
    for split, (train, test, chosen) in enumerate(outside):
        assert np.array_equal(train, data.train[split])
        assert np.array_equal(test, data.test[split])
        assert chosen["rate"] in uci.RATES
        assert chosen["precision"] in uci.SETS["yacht"].precisions
    assert len({tuple(values.items()) for _, _, values in inside[:12]}) == 12
    (found,) = results().values()
    assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
    out = capsys.readouterr().out
    assert "| yacht | -" in out
    assert "| -1.25 ± 0.015 |" in out
    monkeypatch.setattr(uci, "run", None)  # what is there is not computed again
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT])


def test_results_are_in_the_units_of_the_response(monkeypatch):
    data = load_uci("yacht")
    found = []
    for factor in (1.0, 10.0):
        changed = UCI(data.x * 3 + 1, factor * data.y - 7, data.train, data.test)
        monkeypatch.setattr(uci, "load_uci", lambda _, changed=changed: changed)
        uci.main(["--dataset", "yacht", "--method", "concrete", *CUT, "--output", f"{factor}.json"])
        (result,) = results(f"{factor}.json").values()
        found.append(result)
    ours, tenfold = found
    assert np.allclose(np.array(ours["log_likelihood"]) - math.log(10), tenfold["log_likelihood"], atol=1e-3)
    assert np.allclose(10 * np.array(ours["rmse"]), tenfold["rmse"], rtol=1e-3)


def test_the_last_m_step_is_the_mode():
    torch.manual_seed(0)
    means, y = torch.randn(50, 30, dtype=torch.float64), torch.randn(30, dtype=torch.float64)

    def negative(log_precision):
        tau = math.exp(log_precision)
        expected = scipy.stats.norm(means, tau**-0.5).logpdf(y).sum(-1).mean()
        return -expected - scipy.stats.gamma(0.1, scale=1 / 0.01).logpdf(tau)

    best = scipy.optimize.minimize_scalar(negative, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x
    assert uci.last_m_step(means, y).item() == pytest.approx(math.exp(best), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", uci.METHODS)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_method_runs(method, layers):
    uci.main(["--dataset", "boston", "--method", method, "--layers", str(layers), *CUT])
    (found,) = results().values()
    assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
    assert len(found["rates"][0]) == layers + 1
