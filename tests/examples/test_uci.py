"""The table of the papers' regression results, cut down."""

import argparse
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

    def fit(name, data, runs, *args, **kwargs):
        seen.append((data, runs))
        return whole(name, data, runs, *args, **kwargs)

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


def test_early_stopping_is_chosen_by_validation_rows(monkeypatch):
    """Of two lengths and three lengthscales, by the density after the last M-step; splits choose apart."""
    calls = []

    def fit(name, data, runs, method, lengths, options, choosing=False):
        calls.append([values["lengthscale"] for _, _, values in runs])
        if len(calls) == 1:
            early, late = np.zeros(6), np.zeros(6)
            early[2], late[2], late[4] = 1.0, 0.5, 2.0  # split 0: early, third; split 1: late, second
            return [{"after_m_step": after} for after in (early, late)]
        return [{"log_likelihood": [base, base + 1], "rmse": [0.0, 0.0]} for base in (10.0, 20.0)]

    monkeypatch.setattr(uci, "fit", fit)
    options = argparse.Namespace(splits=2, draws=20, layers=1, epochs=1.0, backend="eager")
    found = uci.run("yacht", "concrete", options)
    assert calls == [[*uci.LENGTHSCALES] * 2, [uci.LENGTHSCALES[2], uci.LENGTHSCALES[1]]]
    assert found["log_likelihood"] == [10.0, 21.0]
    assert [values["steps"] for values in found["chosen"]] == [uci.EARLY, 1.0]


def test_the_learning_rate_comes_down_at_each_end():
    rates = [uci.Decay([4, 12])(chunk) for chunk in range(13)]
    assert rates[:3] == rates[4:9:2] == [1.0] * 3
    assert rates[3] == pytest.approx(0.1)
    assert rates[4:9] == [1.0] * 5
    assert rates[10] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(1.0)


def test_processes_that_write_at_once_lose_nothing(monkeypatch):
    def run(name, method, options):
        with open("outputs/uci.json", "w") as file:
            json.dump({"another": {}}, file)
        return {"log_likelihood": [0.0], "rmse": [0.0], "rates": [{"w": 0.1}], "seconds": 0.0, "date": ""}

    os.mkdir("outputs")
    monkeypatch.setattr(uci, "run", run)
    uci.main(["--dataset", "yacht", *CUT])
    assert len(results()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", uci.METHODS)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_method_runs(method, layers):
    uci.main(["--dataset", "boston", "--method", method, "--layers", str(layers), *CUT])
    (found,) = results().values()
    assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
    assert len(found["rates"][0]) == layers + 1
