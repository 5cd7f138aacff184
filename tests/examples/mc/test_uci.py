"""The table of the papers' regression results, cut down."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.optimize
import scipy.stats
import torch

from examples.common.data import UCI, load_uci
from examples.mc import uci
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout
from tests.examples.staged import staged

pytestmark = staged
CUT = ["--epochs", "0.002", "--draws", "20", "--splits", "2", "--backend", "eager"]
OPTIONS = argparse.Namespace(
    splits=2,
    draws=20,
    layers=1,
    epochs=0.002,
    lengthscales=uci.LENGTHSCALES,
    restarts=1,
    backend="eager",
    output=Path("outputs/uci"),
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def results(name, method, layers=1, splits=2, folder="outputs/uci"):
    return json.loads(Path(folder, f"{name}-{method}-{layers}-layers-{splits}-splits.json").read_text())["found"]


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
    found = results("yacht", "mc")
    assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
    out = capsys.readouterr().out
    assert "| yacht | -" in out
    assert "| -1.250 ± 0.015 |" in out
    monkeypatch.setattr(uci, "fit", None)  # what is there is not computed again
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT])
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("method", "kinds"), [("mc", ["log_likelihood"]), ("concrete", ["log_likelihood", "after_m_step"])]
)
def test_results_are_in_the_units_of_the_response(method, kinds, monkeypatch):
    """Ten times the response has a tenth of the density; precisions of the grid are in its units, too."""
    data = load_uci("yacht")
    own, found = uci.SETS["yacht"], []
    for factor in (1.0, 10.0):
        changed = UCI(data.x * 3 + 1, factor * data.y - 7, data.train, data.test)
        monkeypatch.setattr(uci, "load_uci", lambda _, changed=changed: changed)
        grid = tuple(precision / factor**2 for precision in own.precisions)
        monkeypatch.setitem(uci.SETS, "yacht", own._replace(precisions=grid))
        uci.main(["--dataset", "yacht", "--method", method, *CUT, "--output", str(factor)])
        found.append(results("yacht", method, folder=str(factor)))
    ours, tenfold = found
    for kind in kinds:
        assert np.allclose(np.array(ours[kind]) - math.log(10), tenfold[kind], atol=1e-3), kind
    assert np.allclose(10 * np.array(ours["rmse"]), tenfold["rmse"], rtol=1e-3)


def test_test_rows_change_nothing_but_the_scores():
    """Neither weights nor standardisation know of them."""
    data = load_uci("yacht")
    x, y = data.x.copy(), data.y.copy()
    x[data.test[0]] += 100.0
    y[data.test[0]] += 5.0
    found = []
    for own in (data, data._replace(x=x), data._replace(y=y)):
        pyro.set_rng_seed(0)
        runs = [(data.train[0], data.test[0], {"lengthscale": 1.0})]
        found += uci.fit("yacht", own, runs, "concrete", (1.0,), OPTIONS)[0]
    assert found[0]["rates"] == found[1]["rates"] == found[2]["rates"]
    assert abs(found[1]["rmse"][0] - found[0]["rmse"][0]) > 0.5
    assert abs(found[2]["rmse"][0] - found[0]["rmse"][0]) > 0.5


def test_scores_of_a_network_that_is_known():
    """f = x w + b without a mask, so that all are exact: of the noise as it is, and of the best."""
    torch.manual_seed(3)  # w is -0.99
    model = Regression(1, 40, (), precision=4.0)
    guide = AutoBernoulliDropout(model, rate=lambda name: 0.0)
    x, y = torch.randn(60, 1), torch.randn(60)
    guide(x, y)
    mean = (x @ guide.median(x)["net.0.weight"].T + guide.median(x)["net.0.bias"])[:, 0].detach()
    kinds = ["log_likelihood", "rmse", "after_m_step"]
    found = uci.scored(model, guide, (x[:40], y[:40]), (x[40:], y[40:]), kinds, draws=3)
    normal = scipy.stats.norm(mean[40:], 0.5)
    assert found["log_likelihood"] == pytest.approx(normal.logpdf(y[40:]).mean(), rel=1e-4)
    assert found["rmse"] == pytest.approx(float((mean - y)[40:].square().mean().sqrt()), rel=1e-4)
    tau = float(uci.last_m_step(mean[None, :40], y[:40]))
    normal = scipy.stats.norm(mean[40:], tau**-0.5)
    assert found["after_m_step"] == pytest.approx(normal.logpdf(y[40:]).mean(), rel=1e-4)


def test_the_error_is_that_of_the_mean_of_draws():
    """Masks of rate 0.5 on two units: single draws are far off, their mean is not."""
    torch.manual_seed(0)
    model = Regression(2, 40, (), precision=4.0)
    guide = AutoBernoulliDropout(model, rate=0.5)
    x = torch.randn(40, 2)
    guide(x, x[:, 0])
    median = guide.median(x)
    mean = (x @ median["net.0.weight"].T + median["net.0.bias"])[:, 0].detach()
    found = uci.scored(model, guide, (x, mean), (x, mean), ["rmse", "log_likelihood"], draws=2000)
    deviation = (x * median["net.0.weight"]).square().sum(-1).mean().sqrt().item()  # of a draw
    assert found["rmse"] < 5 * deviation / 2000**0.5
    assert found["log_likelihood"] > scipy.stats.norm(0, 0.5).logpdf(0.0) - 5 * deviation**2


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
    """Of two lengths and three lengthscales; splits choose apart, and what failed is not chosen. Of restarts the one of
    the lowest loss counts."""
    calls = []

    def fit(name, data, runs, method, lengths, options, choosing=False, training=None):
        calls.append([values["lengthscale"] for _, _, values in runs])
        if choosing:
            early, late = np.zeros(6), np.zeros(6)
            early[2], late[2], late[4] = 1.0, 0.5, 2.0  # split 0: early, third; split 1: late, second
            late[5] = math.nan
            return [{"score": score} for score in (early, late)], 6.0
        losses = [[0.0, 5.0, math.nan, 3.0, 2.0, 1.0], [5.0, 1.0, 2.0, math.nan, 1.0, 0.0]]
        return [
            {"loss": losses[i], "log_likelihood": [base + i for i in range(6)]} for i, base in enumerate((10.0, 20.0))
        ], 4.0

    monkeypatch.setattr(uci, "fit", fit)
    found = uci.run("yacht", "concrete", argparse.Namespace(**{**vars(OPTIONS), "restarts": 3}))
    assert calls == [[*uci.LENGTHSCALES] * 2, [uci.LENGTHSCALES[2]] * 3 + [uci.LENGTHSCALES[1]] * 3]
    assert found["log_likelihood"] == [10.0, 25.0]
    assert found["seconds"] == 5.0  # a split
    assert [values["steps"] for values in found["chosen"]] == [uci.EARLY, 1.0]


def test_the_learning_rate_comes_down_at_each_end(monkeypatch):
    rates = [uci.Decay([4, 12])(chunk) for chunk in range(13)]
    assert rates[:3] == rates[4:9:2] == [1.0] * 3
    assert rates[3] == pytest.approx(0.1)
    assert rates[4:9] == [1.0] * 5
    assert rates[10] == pytest.approx(0.1)

    seen = []
    whole = uci.ReplicatedSVI.scan

    def scan(svi, *args):
        seen.append({o.optimizer.param_groups[0]["lr"] for o in svi.optims[0].optim_objs.values()})
        return whole(svi, *args)

    monkeypatch.setattr(uci.ReplicatedSVI, "scan", scan)
    monkeypatch.setattr(uci, "CHUNK", 2)
    data = load_uci("yacht")
    runs = [(data.train[0], data.test[0], {"lengthscale": 1.0})]
    epochs = 8 * 2 * 32 / (len(data.train[0]) * uci.SETS["yacht"].epochs)
    options = argparse.Namespace(**{**vars(OPTIONS), "epochs": epochs})
    (early, late), _ = uci.fit("yacht", data, runs, "concrete", (0.5, 1.0), options)
    assert early["rates"] != late["rates"]
    falls = [1e-2, 1e-2, 1e-2, 1e-3]  # before the first step there is no optimiser
    assert [rate for rates in seen[1:] for rate in rates] == pytest.approx((falls * 2)[1:])


@pytest.mark.parametrize("at", [4, 6])
def test_training_that_is_interrupted_goes_on(at, monkeypatch, tmp_path, capsys):
    """At the first of two ends, before it was scored, and after it: scores and rates as if nothing had been."""
    data = load_uci("yacht")
    runs = [(data.train[0], data.test[0], {"lengthscale": scale}) for scale in (0.1, 1.0)]
    epochs = 8 * 2 * 32 / (len(data.train[0]) * uci.SETS["yacht"].epochs)  # eight chunks
    options = argparse.Namespace(**{**vars(OPTIONS), "epochs": epochs})
    monkeypatch.setattr(uci, "CHUNK", 2)
    monkeypatch.setattr(uci, "SAVING", 0.0)

    def fit(seed):
        pyro.set_rng_seed(seed)
        return uci.fit("yacht", data, runs, "concrete", (0.5, 1.0), options, training=tmp_path / "yacht.pt")

    whole, _ = fit(0)
    assert not list(tmp_path.iterdir())
    calls = []
    scan = uci.ReplicatedSVI.scan

    def interrupted(svi, *args):
        calls.append(len(calls))
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return scan(svi, *args)

    monkeypatch.setattr(uci.ReplicatedSVI, "scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(0)
    saved = torch.load(tmp_path / "yacht.pt", weights_only=True)
    saved["values"]["seconds"] += 1e6
    torch.save(saved, tmp_path / "yacht.pt")
    again, seconds = fit(5)
    assert seconds > 1e6
    assert len(calls) == 8 + 1
    assert f"goes on after {2 * at} of 16 steps" in capsys.readouterr().out
    for ours, theirs in zip(again, whole, strict=True):
        assert ours["rates"][1] == pytest.approx(theirs["rates"][1])
        for kind in ("loss", "log_likelihood", "after_m_step", "rmse"):
            assert ours[kind] == pytest.approx(theirs[kind], rel=1e-4), kind
    assert not list(tmp_path.iterdir())


def test_networks_that_fail_are_not_a_number(monkeypatch):
    """One whose prediction overflows, one that died in training: the other remains."""
    data = load_uci("yacht")
    x = data.x.copy()
    x[data.test[0][0]] = 1e300
    data = UCI(x, data.y, np.stack([np.setdiff1d(np.arange(308), data.test[0])[:200]] * 3), data.test)
    runs = [
        (data.train[0], rows, {"lengthscale": 1.0}) for rows in (data.test[0], data.train[0][:5], data.train[0][:5])
    ]
    whole = uci.ReplicatedSVI.scan

    def scan(svi, *args):
        losses = whole(svi, *args)
        svi.alive[1] = False
        return losses

    monkeypatch.setattr(uci.ReplicatedSVI, "scan", scan)
    with pytest.warns(UserWarning, match="yacht network"):
        (found,), _ = uci.fit("yacht", data, runs, "network", (1.0,), OPTIONS)
    assert [math.isnan(v) for v in found["log_likelihood"]] == [True, True, False]


@pytest.mark.slow
def test_processes_share_the_work(tmp_path, capsys):
    given = ["--dataset", "yacht", "boston", "--method", "alpha0", "alpha1", *CUT, "--splits", "1"]
    tables = []
    for processes in ("1", "2"):
        uci.main([*given, "--processes", processes, "--output", str(tmp_path / processes)])
        lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        tables.append([cells[:8] + cells[9:] for cells in lines])  # without the seconds
    assert len(tables[0]) == 2 * 4 + 4  # with heads and lines
    assert tables[0] == tables[1]


def test_methods_are_compared_on_the_same_splits(monkeypatch, capsys):
    """The differences 0.1 and 0.3 have the error 0.1, whatever single splits are like; of the M-step where it is."""
    known = {"rmse": [1.0, 1.0], "rates": [{"layer": 0.1}] * 2, "epochs": 1.0, "seconds": 1.0, "date": "2026-11-21"}
    scores = {
        "mc": {"log_likelihood": [-3.0, -1.0]},
        "network": {"log_likelihood": [-2.9, -0.7]},
        "disarm": {"log_likelihood": [-3.0, -1.0], "after_m_step": [-4.0, -2.0]},
    }
    monkeypatch.setattr(uci, "run", lambda name, method, options: {**known, **scores[method]})
    uci.main(["--dataset", "yacht", "--method", *scores])
    out = capsys.readouterr().out
    assert "| set | mc | network less mc | disarm less mc |" in out
    assert "| yacht | -2.000 ± 1.000 | 0.200 ± 0.100 | -1.000 ± 0.000 |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--restarts", "0"], "--restarts: must be a whole number, at least 1, but found 0"),
        (["--processes", "0"], "--processes: must be a whole number, at least 1, but found 0"),
        (["--splits", "0"], "must be a whole number, at least 1, but found 0"),
        (["--splits", "21"], "boston has 20, but found 21"),
        (["--epochs", "0"], "--epochs: must be a positive number, but found 0"),
        (["--epochs", "nan"], "must be a positive number, but found nan"),
        (["--lengthscales", "1", "long"], "--lengthscales: must be a positive number, but found long"),
        (["--draws", "1.5"], "--draws: must be a whole number, at least 1, but found 1.5"),
        (["--layers", "3"], "layers"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        uci.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", [*uci.METHODS, "alpha"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_method_runs(method, layers):
    uci.main(["--dataset", "boston", "--method", method, "--layers", str(layers), *CUT])
    for own in uci.ALPHAS if method == "alpha" else [method]:
        found = results("boston", own, layers)
        assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
        assert len(found["rates"][0]) == layers + 1
