"""Training of classifiers: batches, the state that an interrupted run goes on from, scores by hand."""

import itertools

import numpy as np
import pytest
import scipy.special
import torch

from examples.common import fits
from examples.common.arguments import settle
from examples.common.fits import Recipe, batches, fitted, mean_inputs, scores, softmax_inputs
from models.classification import Classification
from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout, TraceDropout_ELBO

RECIPE = Recipe(steps=25, batch=8, every=10, seed=3, backend="eager")


@pytest.fixture(autouse=True)
def _settled():
    threads = torch.get_num_threads()
    settle(0)
    yield
    torch.set_num_threads(threads)


def data():
    torch.manual_seed(1)
    x = torch.randn(50, 4)
    return x, (x.sum(-1) > 0).long()


def make():
    model = Classification(mlp(4, [6], 3), 50)
    return model, AutoBernoulliDropout(model, rate=0.2, learnable=True)


def look(model, guide, ended):
    return {"rate": float(guide.rates()["net.0.weight"]), "ended": ended}


def test_epochs_take_all_data_once_in_other_orders():
    rows = batches(50, 8, seed=0, first=0, last=18)
    assert rows.shape == (18, 8)
    for epoch in rows.split(6):
        assert len(epoch.unique()) == 48
    assert not torch.equal(rows[:6], rows[6:12])
    for first, last in itertools.combinations(range(19), 2):  # whatever the parts
        assert torch.equal(batches(50, 8, 0, first, last), rows[first:last])
    assert not torch.equal(batches(50, 8, 1, 0, 18), rows)
    assert batches(5, 8, 0, 0, 2).shape == (2, 5)  # fewer than a batch


def test_a_look_after_each_part_and_at_the_end(tmp_path):
    fit = fitted(tmp_path / "made" / "a.pt", make, TraceDropout_ELBO(), data(), RECIPE, look)
    assert [seen["step"] for seen in fit.history] == [10, 20, 25]
    assert [seen["ended"] for seen in fit.history] == [False, False, True]
    assert fit.history[0]["rate"] != fit.history[-1]["rate"]
    assert all(seen["loss"] > 0 for seen in fit.history)
    assert fit.history[0]["seconds"] <= fit.history[-1]["seconds"]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole.pt", make, TraceDropout_ELBO(), data(), RECIPE, look)
    seen = []

    def interrupted(model, guide, ended):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return look(model, guide, ended)

    path = tmp_path / "a.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(path, make, TraceDropout_ELBO(), data(), RECIPE, interrupted)
    resumed = fitted(path, make, TraceDropout_ELBO(), data(), RECIPE, look)
    assert [s["step"] for s in resumed.history] == [10, 20, 25]
    for ours, theirs in zip(resumed.guide.parameters(), whole.guide.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    monkeypatch.setattr(fits, "CompiledSVI", None)  # nothing is trained any more
    again = fitted(path, make, TraceDropout_ELBO(), data(), RECIPE, look)
    assert again.history == resumed.history
    assert again.guide.rates() == resumed.guide.rates()


def test_running_statistics_go_on_too(tmp_path):
    """They are the network's: no guide has them."""

    def with_norm():
        layers = (torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        model = Classification(torch.nn.Sequential(*layers), 50)
        rate = {"net.0.weight": 0.2, "net.3.weight": 0.2}
        return model, AutoBernoulliDropout(model, rate=lambda site: rate.get(site, 0.0))

    def run(path, look=lambda model, guide, ended: {}):
        return fitted(path, with_norm, TraceDropout_ELBO(masks="draw"), data(), RECIPE, look)

    def interrupted(model, guide, ended):
        if ended:
            raise KeyboardInterrupt
        return {}

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.pt", interrupted)
    buffers = dict(whole.model.named_buffers())
    assert any(name.endswith("running_mean") and (buffer != 0).all() for name, buffer in buffers.items())
    for other in (run(tmp_path / "a.pt"), run(tmp_path / "whole.pt")):  # resumed, and read
        for name, buffer in other.model.named_buffers():
            torch.testing.assert_close(buffer, buffers[name])
        x = data()[0]
        ours, theirs = (mean_inputs(fit.model.eval(), fit.guide, x) for fit in (other, whole))
        torch.testing.assert_close(ours, theirs)


def test_a_learning_rate_that_goes_down(tmp_path, monkeypatch):
    """By chunk, to the last of them; also after an interruption. All starts anew where it was not decayed."""
    monkeypatch.setattr(fits, "CHUNK", 5)
    recipe, rates = RECIPE._replace(optimiser="decayed", learning_rate=0.5), []

    class Watched(fits.CompiledSVI):
        def scan(self, *args):
            losses = super().scan(*args)
            rates.append(
                {group["lr"] for each in self.optim.optim_objs.values() for group in each.optimizer.param_groups}
            )
            if len(rates) == 4 and stops:
                raise KeyboardInterrupt
            return losses

    monkeypatch.setattr(fits, "CompiledSVI", Watched)
    stops = False
    whole = fitted(tmp_path / "whole.pt", make, TraceDropout_ELBO(), data(), recipe)
    assert all(len(each) == 1 for each in rates)
    assert [min(each) for each in rates] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    stops = True
    rates.clear()
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "a.pt", make, TraceDropout_ELBO(), data(), recipe)
    stops = False
    rates.clear()
    resumed = fitted(tmp_path / "a.pt", make, TraceDropout_ELBO(), data(), recipe)
    assert len(rates) == 3  # from step 10
    for ours, theirs in zip(resumed.guide.parameters(), whole.guide.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_state_of_other_settings_is_neither_taken_nor_lost(tmp_path):
    def fit(recipe=RECIPE, prior=1):
        return fitted(tmp_path / "a.pt", make, TraceDropout_ELBO(), data(), recipe, look, {"prior": prior}).history

    first, other, third = fit(), fit(RECIPE._replace(learning_rate=0.5)), fit(prior=2)
    assert len(list(tmp_path.iterdir())) == 3
    assert other[-1]["rate"] != first[-1]["rate"] == third[-1]["rate"]
    assert fit() == fit(RECIPE._replace(backend="inductor")) == first  # how steps run decides nothing
    assert len(list(tmp_path.iterdir())) == 3


def test_a_step_of_sgd_is_of_the_mean_loss(tmp_path):
    """As PyTorch's: Pyro's loss is of all 50 data."""
    recipe = Recipe(steps=1, batch=50, optimiser="sgd", learning_rate=0.1, backend="eager")

    def plain():
        model = Classification(mlp(4, [6], 3), 50, 0.5)
        return model, AutoBernoulliDropout(model, rate=0.0, learnable=False)

    x, y = data()
    found = fitted(tmp_path / "a.pt", plain, TraceDropout_ELBO(), (x, y), recipe).guide.median(x)
    settle(0)
    net = mlp(4, [6], 3)
    penalty = sum(0.5 * 0.5**2 * p.square().sum() for p in net.parameters()) / 50
    (torch.nn.functional.cross_entropy(net(x), y) + penalty).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[f"net.{name}"], p - 0.1 * p.grad, rtol=1e-4, atol=1e-6)


def test_scores_by_numpy(tmp_path):
    (x, y), fit = data(), fitted(tmp_path / "a.pt", make, TraceDropout_ELBO(), data(), RECIPE)
    inputs = softmax_inputs(fit.model, fit.guide, x, draws=7)
    assert inputs.shape == (7, 50, 3)
    assert torch.equal(inputs, softmax_inputs(fit.model, fit.guide, x, draws=7))
    probs = scipy.special.softmax(inputs.double().numpy(), -1).mean(0)
    found = scores(inputs, y)
    assert found["accuracy"] == (probs.argmax(-1) == y.numpy()).mean()
    assert found["log_likelihood"] == pytest.approx(np.log(probs[np.arange(50), y]).mean(), rel=1e-5)
    sure = torch.full((2, 1, 3), -500.0)  # far below the least float32
    sure[..., 0] = 0.0
    assert scores(sure, torch.tensor([1]))["log_likelihood"] == pytest.approx(-500, rel=1e-6)


def test_the_mean_network_by_hand(tmp_path):
    x, fit = data()[0], fitted(tmp_path / "a.pt", make, TraceDropout_ELBO(), data(), RECIPE)
    w = fit.guide.median(x)
    hidden = torch.relu(x @ w["net.0.weight"].T + w["net.0.bias"])
    expected = hidden @ w["net.2.weight"].T + w["net.2.bias"]
    torch.testing.assert_close(mean_inputs(fit.model, fit.guide, x)[0], expected)
