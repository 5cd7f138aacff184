"""Training and scores of the papers' regression results: known answers, and trainings cut short."""

import argparse
import math

import numpy as np
import pyro
import pytest
import scipy.optimize
import scipy.stats
import torch

from examples.common.data import UCI, load_uci
from examples.common.schedules import Decay
from examples.mc import uci_training
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout
from tests.examples.staged import staged

pytestmark = staged
OPTIONS = argparse.Namespace(draws=20, layers=1, epochs=0.002, backend="eager")


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
        found += uci_training.fit("yacht", own, runs, "concrete", (1.0,), OPTIONS)[0]
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
    found = uci_training.scored(model, guide, (x[:40], y[:40]), (x[40:], y[40:]), kinds, draws=3)
    normal = scipy.stats.norm(mean[40:], 0.5)
    assert found["log_likelihood"] == pytest.approx(normal.logpdf(y[40:]).mean(), rel=1e-4)
    assert found["rmse"] == pytest.approx(float((mean - y)[40:].square().mean().sqrt()), rel=1e-4)
    tau = float(uci_training.last_m_step(mean[None, :40], y[:40]))
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
    found = uci_training.scored(model, guide, (x, mean), (x, mean), ["rmse", "log_likelihood"], draws=2000)
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
    assert uci_training.last_m_step(means, y).item() == pytest.approx(math.exp(best), rel=1e-5)


def test_the_learning_rate_comes_down_at_each_end(monkeypatch):
    rates = [Decay([4, 12])(chunk) for chunk in range(13)]
    assert rates[:3] == rates[4:9:2] == [1.0] * 3
    assert rates[3] == pytest.approx(0.1)
    assert rates[4:9] == [1.0] * 5
    assert rates[10] == pytest.approx(0.1)

    seen = []
    whole = uci_training.ReplicatedSVI.scan

    def scan(svi, *args):
        seen.append({o.optimizer.param_groups[0]["lr"] for o in svi.optims[0].optim_objs.values()})
        return whole(svi, *args)

    monkeypatch.setattr(uci_training.ReplicatedSVI, "scan", scan)
    monkeypatch.setattr(uci_training, "CHUNK", 2)
    data = load_uci("yacht")
    runs = [(data.train[0], data.test[0], {"lengthscale": 1.0})]
    epochs = 8 * 2 * 32 / (len(data.train[0]) * uci_training.SETS["yacht"].epochs)
    options = argparse.Namespace(**{**vars(OPTIONS), "epochs": epochs})
    (early, late), _ = uci_training.fit("yacht", data, runs, "concrete", (0.5, 1.0), options)
    assert early["rates"] != late["rates"]
    falls = [1e-2, 1e-2, 1e-2, 1e-3]  # before the first step there is no optimiser
    assert [rate for rates in seen[1:] for rate in rates] == pytest.approx((falls * 2)[1:])


@pytest.mark.parametrize("at", [4, 6])
def test_training_that_is_interrupted_goes_on(at, monkeypatch, tmp_path, capsys):
    """At the first of two ends, before it was scored, and after it: scores and rates as if nothing had been."""
    data = load_uci("yacht")
    runs = [(data.train[0], data.test[0], {"lengthscale": scale}) for scale in (0.1, 1.0)]
    epochs = 8 * 2 * 32 / (len(data.train[0]) * uci_training.SETS["yacht"].epochs)  # eight chunks
    options = argparse.Namespace(**{**vars(OPTIONS), "epochs": epochs})
    monkeypatch.setattr(uci_training, "CHUNK", 2)
    monkeypatch.setattr(uci_training, "SAVING", 0.0)

    def fit(seed):
        pyro.set_rng_seed(seed)
        return uci_training.fit("yacht", data, runs, "concrete", (0.5, 1.0), options, training=tmp_path / "yacht.pt")

    whole, _ = fit(0)
    assert not list(tmp_path.iterdir())
    calls = []
    scan = uci_training.ReplicatedSVI.scan

    def interrupted(svi, *args):
        calls.append(len(calls))
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return scan(svi, *args)

    monkeypatch.setattr(uci_training.ReplicatedSVI, "scan", interrupted)
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
    whole = uci_training.ReplicatedSVI.scan

    def scan(svi, *args):
        losses = whole(svi, *args)
        svi.alive[1] = False
        return losses

    monkeypatch.setattr(uci_training.ReplicatedSVI, "scan", scan)
    with pytest.warns(UserWarning, match="yacht network"):
        (found,), _ = uci_training.fit("yacht", data, runs, "network", (1.0,), OPTIONS)
    assert [math.isnan(v) for v in found["log_likelihood"]] == [True, True, False]
