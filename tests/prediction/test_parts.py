"""Prediction in parts: what the whole gives, within the bytes given, or a named error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive
from pyro_dropout._memory import PeakMemory
from pyro_dropout.prediction import predictive
from tests.support.predictions import DRAWS, SMALL, count_runs, fitted
from tests.support.scenarios import assert_same_mean, double_mlp, regression_data


def test_parts_give_what_the_whole_gives():
    model, guide, x, y = fitted()
    whole = DropoutPredictive(model, guide=guide, num_samples=DRAWS).draw(x)
    parts = DropoutPredictive(model, posterior_samples=whole.posterior_samples, max_memory=SMALL)
    calls, hook = count_runs(model)
    mean = parts(x)["mean"]
    assert len(calls) > 12  # six of them to find out about shapes and bytes
    hook.remove()
    torch.testing.assert_close(mean, whole(x)["mean"])
    for a, b in zip(parts.moments(x)["obs"], whole.moments(x)["obs"], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(parts.log_likelihood(x, y)["obs"], whole.log_likelihood(x, y)["obs"])


def test_guides_whose_draws_do_not_fit_are_drawn_in_blocks(monkeypatch):
    """Dense weights: a draw has 41 numbers, and half of the memory holds a few hundred of them."""
    model, guide, x, _ = fitted(guide=AutoNormal)
    truth = DropoutPredictive(model, guide=guide, num_samples=4000, seed=0)
    blocks = DropoutPredictive(model, guide=guide, num_samples=4000, max_memory=400_000)
    numbers = []
    drawn = predictive.drawn
    monkeypatch.setattr(predictive, "drawn", lambda _, number, *args: numbers.append(number) or drawn(_, number, *args))
    mean = blocks(x)["mean"]
    assert sum(numbers[-5:]) < sum(numbers) < 6000  # some to find out
    assert max(numbers) < 1500
    assert_same_mean(mean, truth(x)["mean"])
    assert_same_mean((mean - mean.mean(0)) ** 2, truth.moments(x)["obs"].epistemic)
    moments = DropoutPredictive(model, guide=guide, num_samples=4000, max_memory=400_000).moments(x)["mean"]
    assert_same_mean(mean, moments.mean)


@pytest.mark.parametrize(
    ("guide", "memory"),
    [
        pytest.param(AutoBernoulliDropout, 100_000, marks=pytest.mark.slow),
        (AutoBernoulliDropout, 1_000_000),
        (AutoNormal, 100_000),
        pytest.param(AutoNormal, 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_no_more_bytes_than_given(guide, memory):
    model, guide, x, _ = fitted(Regression(3, 2000, hidden=(50, 50)).double(), guide, n=2000)
    predict = DropoutPredictive(model, guide=guide, num_samples=50, max_memory=memory)
    if isinstance(guide, AutoNormal) and memory == 100_000:
        with pytest.raises(ValueError, match=r"needs about [\d,]+ bytes, but max_memory leaves 50,000"):
            predict.moments(x)
        return
    with PeakMemory() as used:
        predict.moments(x)
    result = 4 * 2 * 2000 * 8  # of two sites, four numbers per datum
    assert used.peak < memory + result + 4 * 2000 * 8  # and what the last division takes
    assert used.peak > 0.3 * memory  # which is made use of
    assert 30 * memory < 50 * 2000 * 50 * 8  # one layer's activations of all


def test_a_bound_that_nothing_fits_into_raises():
    model, guide, x, _ = fitted()
    message = r"one draw of the guide for all data needs about [\d,]+ bytes, but max_memory leaves 150 for it"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(model, guide=guide, num_samples=10, max_memory=300)(x)
    message = r"one draw of the model for 3 data needs about [\d,]+ bytes, but max_memory leaves 300 for it"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(model, guide=guide, num_samples=10, max_memory=300, masks="datum")(x)


def test_memory_that_grows_faster_than_the_data():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net(x).squeeze(-1) + 0 * torch.cdist(x, x).amax()
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(2000)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x[:5], y[:5])
    with PeakMemory() as used:
        DropoutPredictive(model, guide=guide, num_samples=4, max_memory=10**6).moments(x)
    assert used.peak < 10 * 10**6  # all data at once: 32 MB


RSS = """
import sys, torch, pyro
from pathlib import Path
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive

def status(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
x = torch.randn(1000, 13)
model = Regression(13, 1000, (1024, 1024))
guide = AutoBernoulliDropout(model, rate=0.1)
guide(x, x[:, 0])
DropoutPredictive(model, guide=guide, num_samples=3, max_memory=50 * 2**20).moments(x[:50])  # libraries load
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
DropoutPredictive(model, guide=guide, num_samples=int(sys.argv[1]), max_memory=100 * 2**20).moments(x)
print((status("VmHWM") - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell a process's peak memory")
def test_the_process_grows_by_no_more_than_the_bound():
    """As the operating system counts, with the allocator's losses: activations of all draws would take 400 MiB."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", RSS, "50"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    x, y = (t.cuda() for t in regression_data(500))
    model = Regression(3, 500, hidden=(50,)).double().cuda()
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    predict = DropoutPredictive(model, guide=guide, num_samples=100, max_memory=10**6, seed=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    moments = predict.moments(x)
    assert torch.cuda.max_memory_allocated() - before < 2 * 10**6
    assert moments["obs"].mean.is_cuda
    np.testing.assert_allclose(predict(x)["mean"].mean(0).cpu(), moments["obs"].mean.cpu())


# Which arguments and sites are of the data


def test_data_by_name():
    """An argument as long as the data that is none of them."""

    def model(x, table, y=None):
        factor = pyro.sample("factor", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            w = pyro.deterministic("w", factor * table.sum() * x[..., 0], event_dim=0)
            return pyro.sample("obs", dist.Normal(w, 1.0), obs=y)

    x, table = torch.randn(30, 2), torch.arange(30.0)
    samples = {"factor": torch.ones(5)}
    predict = DropoutPredictive(model, samples, return_sites=["w"], max_memory=3000, data=[0])
    torch.testing.assert_close(predict(x, table)["w"], (435 * x[:, 0]).expand(5, 30))
    torch.testing.assert_close(predict(x, table=table)["w"], (435 * x[:, 0]).expand(5, 30))
    with pytest.raises(ValueError, match=r"data names the arguments \['z'\], but found tensors at \[0, 1\]"):
        DropoutPredictive(model, samples, data=["z"])(x, table)


def whole_batch(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
    mean = (x @ w.mT).squeeze(-1)
    pyro.deterministic("total", mean.sum())
    pyro.deterministic("pairs", mean.unsqueeze(-1) * mean, event_dim=2)
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def test_sites_that_parts_of_the_data_do_not_add_up_to():
    samples = {"w": torch.randn(50, 1, 3)}
    x = torch.randn(40, 3)
    message = r"site 'pairs' has shape \(2, 2\) or \(3, 3\) .* data=\(\) to take them whole"
    with pytest.raises(ValueError, match=message):
        DropoutPredictive(whole_batch, samples, parallel=False)(x)
    with pytest.raises(ValueError, match=r"site 'total' of shape .* has no dimension that grows with the data"):
        DropoutPredictive(whole_batch, samples, parallel=False, return_sites=["total"], max_memory=2000)(x)
    found = DropoutPredictive(whole_batch, samples, parallel=False, data=(), max_memory=10**6)(x)
    torch.testing.assert_close(found["total"].flatten(), (samples["w"].squeeze(1) @ x.T).sum(-1))
    with pytest.raises(ValueError, match="one draw of the model for all data needs"):
        DropoutPredictive(whole_batch, samples, parallel=False, data=(), max_memory=2000)(x)


def test_sites_of_another_length_than_the_data_need_them_whole():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        pyro.deterministic("steps", mean.diff(dim=-1))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(20)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"'steps' has shape \(1,\) or \(2,\) .* data=\(\) to take them whole"):
        DropoutPredictive(model, guide=guide, num_samples=4)(x)
    assert DropoutPredictive(model, guide=guide, num_samples=4, data=())(x)["steps"].shape == (4, 1, 19)


def test_a_model_that_mixes_data_is_not_taken_in_parts():
    net = BayesianModule(double_mlp())

    def model(x, y=None):
        mean = net((x - x.mean(0)) / x.std(0)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(900)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"'obs' has another distribution for a datum with other data .* data=\(\)"):
        DropoutPredictive(model, guide=guide, num_samples=4, max_memory=SMALL).moments(x)
    whole = DropoutPredictive(model, guide=guide, num_samples=4, max_memory=10**6, data=(), seed=0).moments(x)
    enough = DropoutPredictive(model, guide=guide, num_samples=4, seed=0).moments(x)  # no parts, nothing to refuse
    torch.testing.assert_close(whole["obs"].mean, enough["obs"].mean)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("masks", ["draw", "datum"])
def test_no_size_of_outputs_hides_that_data_are_mixed(scale, masks):
    """Sorted data, so that the rows looked at are nearly alike, and outputs of any size."""

    class Set(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 1)

        def forward(self, x):
            return scale * self.last(x - x.mean(0, keepdim=True))

    torch.manual_seed(0)
    net = BayesianModule(Set().double())

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = regression_data(900)
    x = x.sort(0).values
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"other data beside it|mixes rows"):
        DropoutPredictive(model, guide=guide, num_samples=4, masks=masks, max_memory=SMALL).moments(x)


def test_mixed_tokens_are_found_by_values():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(11, 4), nn.Linear(4, 1)

        def forward(self, x):
            return 1e-3 * self.last(self.words(x).mean(1)).softmax(0)

    torch.manual_seed(0)
    net = BayesianModule(Bag().double(), event_dim=1)

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    x, y = torch.randint(11, (900, 5)), torch.zeros(900, dtype=torch.float64)
    guide = AutoBernoulliDropout(model, rate=lambda site: 0.3 if "last" in site else 0.0)
    guide(x, y)
    with pytest.raises(ValueError, match="other data beside it"):
        DropoutPredictive(model, guide=guide, num_samples=4, max_memory=SMALL).moments(x)


def test_a_model_that_takes_its_data_whole_says_so():
    """A tensor of the model's own has all rows: a graph, a mask of missing outputs."""
    net = BayesianModule(double_mlp())
    x, y = regression_data(20)
    seen = torch.rand(20) < 0.5

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    with pytest.raises(ValueError, match=r"does not run on 2 of the 20 rows of \[0, 1\] alone .*data=\(\) to"):
        DropoutPredictive(model, guide=guide, num_samples=4).log_likelihood(x, y)
    assert not DropoutPredictive(model, guide=guide, num_samples=4, data=()).log_likelihood(x, y)["obs"][~seen].any()
