"""Losses of recurrent networks, with masks per datum and per draw, against all masks enumerated in PyTorch's layers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from tests.support.enumeration import all_masks, kl
from tests.support.scenarios import assert_same_mean

F64, ROWS, TIMES, KEEP = torch.float64, 4, 3, 0.7
LAYERS = {
    "lstm": lambda: nn.LSTM(2, 2, batch_first=True),
    "gru": lambda: nn.GRU(2, 2, batch_first=True),
    "rnn": lambda: nn.RNN(2, 2, batch_first=True),
}
WEIGHTS = ("layer.weight_ih_l0", "layer.weight_hh_l0", "last.weight")


class Last(nn.Module):
    """A recurrent layer, and a linear one on its last output."""

    def __init__(self, layer, rows_first=True):
        super().__init__()
        self.layer, self.last, self.rows_first = layer, nn.Linear(layer.hidden_size, 1), rows_first

    def forward(self, x):
        h = self.layer(x)[0]
        return self.last(h[:, -1] if self.rows_first else h.mean(1))


class Model(PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = BayesianModule(net, event_dim=2)

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def case(name, make=AutoBernoulliDropout, **options):
    torch.manual_seed(0)
    net = Last(LAYERS[name]()).to(F64)
    model, x, y = Model(net), torch.randn(ROWS, TIMES, 2, dtype=F64), torch.randn(ROWS, dtype=F64)
    guide = make(model, rate=1 - KEEP, **options)
    guide(x, y)
    return net, model, guide, (x, y)


def exact(net, x, y):
    """The negative ELBO: dense weights of all 64 masks."""
    named = dict(net.named_parameters())
    z = all_masks(6)
    log_q = (z * math.log(KEEP) + (1 - z) * math.log(1 - KEEP)).sum(1)
    log_p = []
    for masks in z:
        pairs = zip(WEIGHTS, masks.split(2), strict=True)
        dense = named | {name: named[name] * mask / KEEP for name, mask in pairs}
        mean = torch.func.functional_call(net, dense, x).squeeze(-1)
        log_p.append(dist.Normal(mean, 0.5).log_prob(y).sum())
    prior = dist.Normal(0.0, 1.0)
    biases = sum(prior.log_prob(p).sum() for name, p in named.items() if name not in WEIGHTS)
    logit = torch.full((2,), math.log(KEEP / (1 - KEEP)), dtype=F64)
    return kl([named[name] for name in WEIGHTS], [logit] * 3) - biases - (log_q.exp() * torch.stack(log_p)).sum()


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("name", LAYERS)
def test_losses_and_gradients_are_those_of_all_masks(name, masks, learnable):
    net, model, guide, data = case(name, learnable=learnable)
    expected = exact(net, *data)
    gradients = dict(
        zip(dict(net.named_parameters()), torch.autograd.grad(expected, list(net.parameters())), strict=True)
    )
    loss = TraceDropout_ELBO(num_particles=50, masks=masks)
    values, found = [], {name: [] for name in gradients}
    for _ in range(60):
        guide.zero_grad()
        values.append(loss.loss_and_grads(model, guide, *data))
        for name, p in guide.named_parameters():
            for weight in WEIGHTS:
                if weight in name and "locs" in name:
                    found[weight].append(p.grad.clone())
    assert_same_mean(torch.tensor(values, dtype=F64), expected.item())
    for weight in WEIGHTS:
        assert len(found[weight]) == 60
        assert_same_mean(torch.stack(found[weight]), gradients[weight])


def test_masks_per_datum_have_less_noise():
    _, model, guide, data = case("lstm")
    spread = {}
    for masks in ("datum", "draw"):
        loss = TraceDropout_ELBO(masks=masks)
        spread[masks] = torch.tensor([loss.loss(model, guide, *data) for _ in range(300)]).std()
    assert spread["datum"] < spread["draw"]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (TraceDropout_ELBO, {"bidirectional": True}),
        (TraceDropout_ELBO, {"dropout": 0.3}),  # between its layers
        (lambda: RenyiDropout_ELBO(0.5, 3), {"bidirectional": True}),
    ],
)
@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_rows_of_recurrent_networks_are_independent(make, loss, options):
    """What the default losses look for at their first step."""
    torch.manual_seed(0)
    net = Last(nn.GRU(2, 2, 2, batch_first=True, **options))
    net.last = nn.Linear(2 * (1 + net.layer.bidirectional), 1)
    model, x, y = Model(net.to(F64)), torch.randn(ROWS, TIMES, 2, dtype=F64), torch.randn(ROWS, dtype=F64)
    svi = SVI(model, make(model, rate=0.3), pyro.optim.Adam({"lr": 0.01}), loss())
    assert math.isfinite(svi.step(x, y))


@pytest.mark.parametrize("times", [TIMES, ROWS])
def test_data_in_the_place_of_times_are_refused(times):
    """A layer without ``batch_first`` takes rows for times: they depend on each other, and masks are not a datum's."""
    model = Model(Last(nn.LSTM(2, 2), rows_first=False).to(F64))
    x, y = torch.randn(ROWS, times, 2, dtype=F64), torch.randn(ROWS, dtype=F64)
    guide = AutoBernoulliDropout(model, rate=0.3)
    with pytest.raises(ValueError, match='use masks="draw"'):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


def test_compiled_steps_are_the_same():
    for masks in ("datum", "draw"):
        _, model, guide, data = case("lstm")
        losses = []
        for make in (SVI, lambda *args: CompiledSVI(*args, backend="eager", progress=False)):
            svi = make(model, guide, pyro.optim.SGD({"lr": 0.0}), TraceDropout_ELBO(20, masks=masks))
            losses.append(torch.tensor([svi.step(*data) for _ in range(40)]))
        assert_same_mean(*losses)


@pytest.mark.parametrize("name", LAYERS)
def test_kept_draws_are_functions(name):
    """Kept functions give the same for each datum, alone, in parts and with others, and that of their dense weights."""
    net, model, guide, (x, _) = case(name)
    kept = DropoutPredictive(model, guide=guide, num_samples=17).draw(x)
    x = torch.randn(9, TIMES, 2, dtype=F64)
    mean = DropoutPredictive(model, posterior_samples=kept.posterior_samples).moments(x)["obs"].mean
    samples = {n: v.dense() if hasattr(v, "dense") else v for n, v in kept.posterior_samples.items()}
    outs = []
    for k in range(17):
        dense = {
            n: samples[f"net.{n}"].reshape(-1, *p.shape).expand(17, *p.shape)[k] for n, p in net.named_parameters()
        }
        outs.append(torch.func.functional_call(net, dense, x).squeeze(-1))
    torch.testing.assert_close(mean.reshape(9), torch.stack(outs).mean(0))
    torch.testing.assert_close(kept.moments(x[:1])["obs"].mean.reshape(1), torch.stack(outs).mean(0)[:1])
