"""A rate of 0 is no mask: the weight is deterministic, wherever and however it is used."""

import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Predictive
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    ReplicatedSVI,
    TraceDropout_ELBO,
)

F64, ROWS = torch.float64, 5


class Last(nn.Module):
    """Some layer, then a linear one that has the mask."""

    def __init__(self, layer, width, read):
        super().__init__()
        self.layer, self.last, self.read = layer, nn.Linear(width, 1), read

    def forward(self, x):
        return self.last(self.read(self.layer, x))


def tokens(layer, x):
    return layer(x.long().abs() % 7).flatten(1)


def over_time(layer, x):
    return layer(x.reshape(len(x), 2, 2))[0][:, -1]


def attended(layer, x):
    h = x.reshape(len(x), 2, 2)
    return layer(h, h, h)[0].flatten(1)


LAYERS = {
    "embedding": (lambda: nn.Embedding(7, 3), 12, tokens),
    "bag": (lambda: nn.EmbeddingBag(7, 3), 3, tokens),
    "lstm": (lambda: nn.LSTM(2, 3, batch_first=True), 3, over_time),
    "gru, both ways": (lambda: nn.GRU(2, 3, batch_first=True, bidirectional=True), 6, over_time),
    "attention": (lambda: nn.MultiheadAttention(2, 2, batch_first=True), 4, attended),
    "bilinear": (lambda: nn.Bilinear(2, 2, 3), 3, lambda layer, x: layer(x[:, :2], x[:, 2:])),
    "convolution": (lambda: nn.Conv1d(1, 3, 2), 9, lambda layer, x: layer(x[:, None]).flatten(1)),
}


class Model(pyro.nn.PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = BayesianModule(net, event_dim=1)

    def forward(self, x, y=None):
        mean = self.net(x)[..., 0]
        with pyro.plate("data", len(x)):
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def case(name, rate=0.4):
    make, width, read = LAYERS[name]
    torch.manual_seed(0)
    model = Model(Last(make(), width, read).to(F64))
    guide = AutoBernoulliDropout(model, rate=lambda site: rate if "last" in site else 0.0)
    x = torch.randint(-3, 4, (ROWS, 4)).to(F64)
    guide(x, x[:, 0])
    return model, guide, x


@pytest.mark.parametrize("name", LAYERS)
def test_masks_per_datum_ask_nothing_of_other_layers(name):
    """The loss is that of the enumerated masks of the last layer, with the layer before it as it is."""
    model, guide, x = case(name)
    loss = TraceDropout_ELBO(num_particles=4000)
    with torch.no_grad():
        found = loss.loss(model, guide, x, x[:, 0])
        net = model.net.net
        h = net.read(net.layer, x)
        keep, width = 0.6, h.shape[1]
        codes = torch.arange(2**width)[:, None] >> torch.arange(width) & 1
        weights = (keep**codes * (1 - keep) ** (1 - codes)).to(F64).prod(1)
        mean = (h[:, None] * codes / keep) @ net.last.weight[0] + net.last.bias
        expected = -(dist.Normal(mean, 0.5).log_prob(x[:, :1]) * weights).sum()
        trace = poutine.trace(guide).get_trace(x, x[:, 0])
        constant = loss.loss(model, guide, x[:1], x[:1, 0])
        one = -(dist.Normal(mean[:1], 0.5).log_prob(x[:1, :1]) * weights).sum()
    assert "net.layer.weight.mask" not in trace.nodes
    assert abs(found - constant - (expected - one).item()) < 0.05 * abs(expected.item())


@pytest.mark.parametrize("name", LAYERS)
def test_draws_run_at_once(name):
    model, guide, x = case(name)
    calls = []
    predict = DropoutPredictive(model, guide=guide, num_samples=6).draw(x)
    predict(x)
    hook = model.net._modules["net"].register_forward_hook(lambda m, args, out: calls.append(len(out)))
    together = predict(x)["mean"]
    assert max(calls) == 6 * ROWS
    hook.remove()
    samples = {n: v.dense() if hasattr(v, "dense") else v for n, v in predict.posterior_samples.items()}
    in_turn = Predictive(model, samples)(x)["mean"]
    torch.testing.assert_close(together.reshape(6, ROWS), in_turn.reshape(6, ROWS))


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_a_guide_that_never_drops_says_so_once(make):
    net = BayesianModule(nn.Linear(3, 1))
    guide = make(net, rate=0.0)
    with pytest.warns(UserWarning, match=r"has rate 0 at every site \(weight\).*give rate"):
        guide(torch.zeros(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide(torch.zeros(2, 3))
        make(BayesianModule(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))), rate=lambda n: 0.1 * ("1" in n))(
            torch.zeros(2, 3)
        )


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_a_rate_that_is_0_no_longer(way):
    """Set between steps, of a compiled one too: from then on there are masks."""
    model, guide, x = case("convolution", rate=0.0001)
    adam = pyro.optim.SGD({"lr": 0.0})
    make = SVI if way == "eager" else lambda *a, **k: CompiledSVI(*a, backend="eager", progress=False, **k)
    svi = make(model, guide, adam, loss=TraceDropout_ELBO())
    before = [svi.step(x, x[:, 0]) for _ in range(5)]
    guide.rate_buffers.net.layer.weight.fill_(0.9)
    after = [svi.step(x, x[:, 0]) for _ in range(5)]
    assert max(before) - min(before) < 1e-9
    assert len({round(loss, 6) for loss in after}) > 1
    guide.rate_buffers.net.layer.weight.fill_(0.0)
    again = [svi.step(x, x[:, 0]) for _ in range(5)]
    assert max(again) - min(again) < 1e-9


def test_replicates_of_which_some_drop():
    """Rates 0 and 0.5 in one graph; 0 in all, and then no longer."""

    def make(rate):
        torch.manual_seed(0)
        model = Model(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
        return model, AutoBernoulliDropout(model, rate=lambda site: rate if "0" in site else 0.0)

    def spread(rates, change=None):
        each = [{"rate": rate} for rate in rates]
        svi = ReplicatedSVI(make, each, pyro.optim.SGD({"lr": 0.0}), backend="eager", progress=False)
        for _ in range(3):
            svi.step(x, x[..., 0])
        if change is not None:
            svi.guides[change].rate_buffers.net._modules["0"].weight.fill_(0.8)
        return (torch.stack([svi.step(x, x[..., 0]) for _ in range(10)]).std(0) > 1e-6).tolist()

    x = torch.randn(3, ROWS, 4)
    assert spread([0.0, 0.5, 0.0]) == [False, True, False]
    assert spread([0.5, 0.0, 0.5]) == [True, False, True]
    assert spread([0.0, 0.0, 0.0]) == [False, False, False]
    assert spread([0.0, 0.0, 0.0], change=2) == [False, False, True]
    assert spread([0.0, 0.0, 0.0], change=0) == [True, False, False]
