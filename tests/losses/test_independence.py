"""Masks per datum are refused where a datum's likelihood depends on other data's masks, and only there."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from models.classification import Classification, lenet
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    RenyiDropout_ELBO,
    ReplicatedSVI,
    TraceDropout_ELBO,
)
from tests.support.enumeration import all_masks
from tests.support.mixers import MIXERS, OTHERS, ROWS, Mixer
from tests.support.scenarios import assert_same_mean

F64 = torch.float64
GUIDES = {
    "fixed": lambda model, rate: AutoBernoulliDropout(model, rate=rate),
    "learned": lambda model, rate: AutoBernoulliDropout(model, rate=rate, learnable=True),
    "relaxed": lambda model, rate: AutoConcreteDropout(model, rate=rate),
}
LOSSES = [TraceDropout_ELBO, lambda: TraceDropout_ELBO(3), lambda: RenyiDropout_ELBO(0.5, 3)]


class Model(PyroModule):
    """Regression, with something done to the network's output by the model itself."""

    def __init__(self, net, after=None):
        super().__init__()
        self.net, self.after = BayesianModule(net), after

    def forward(self, x, y=None):
        mean = self.net(x)[..., 0]
        mean = mean if self.after is None else self.after(mean)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def data(rows=ROWS):
    torch.manual_seed(1)
    return torch.randn(rows, 3, dtype=F64), torch.randn(rows, dtype=F64)


def rate_of_weights(site):
    return 0.3 if site in ("net.first.weight", "net.second.weight", "net.weight") else 0.0


@pytest.mark.parametrize("loss", LOSSES, ids=["one particle", "three particles", "alpha"])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", MIXERS)
def test_networks_that_mix_rows_are_refused(name, guide, loss):
    torch.manual_seed(3)
    model, (x, y) = Model(Mixer(MIXERS[name]()).double()), data()
    guide = GUIDES[guide](model, rate_of_weights)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"site 'obs' depends on the masks of other data: rows meet .*masks=\"draw\""):
        svi.step(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize("way", ["SVI", "compiled", "replicates"])
def test_a_network_that_mixes_rows_in_another_mode_is_refused_there(way):
    """Trained in evaluation mode, validated, and then set to training."""
    torch.manual_seed(3)
    x, y = data()

    def make():
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
        model = Model(net).eval()
        return model, AutoBernoulliDropout(model, rate=0.3)

    adam = pyro.optim.Adam({"lr": 0.1})
    if way == "replicates":
        svi = ReplicatedSVI(make, [{}, {}], adam, backend="eager", progress=False)
        (model, _), (guide, _), x, y = svi.models, svi.guides, x.expand(2, -1, -1), y.expand(2, -1)
    else:
        model, guide = make()
        kwargs = {"backend": "eager", "progress": False} if way == "compiled" else {}
        svi = (CompiledSVI if way == "compiled" else SVI)(model, guide, adam, TraceDropout_ELBO(), **kwargs)
    for _ in range(3):
        svi.step(x, y)
    statistics = model.net.net[1].running_mean.clone()
    before = [p.detach().clone() for p in guide.parameters()]
    for each in getattr(svi, "models", [model]):
        each.train()
    with pytest.raises(ValueError, match="BatchNorm1d, whose statistics are of the batch"):
        svi.step(x, y)
    assert torch.equal(model.net.net[1].running_mean, statistics)
    assert all(map(torch.equal, before, guide.parameters()))
    for each in getattr(svi, "models", [model]):
        each.eval()
    svi.step(x, y)
    assert not all(map(torch.equal, before, guide.parameters()))


def test_a_loss_that_has_looked_can_be_copied():
    torch.manual_seed(3)
    model, (x, y) = Model(nn.Linear(3, 1).double()), data()
    loss = TraceDropout_ELBO()
    loss.loss(model, AutoBernoulliDropout(model, rate=0.3), x, y)
    assert pickle.loads(pickle.dumps(loss)).masks == copy.deepcopy(loss).masks == "datum"


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_not(name, guide):
    torch.manual_seed(3)
    model, (x, y) = Model(Mixer(OTHERS[name]()).double()), data()
    guide = GUIDES[guide](model, rate_of_weights)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO()).step(x, y))


@pytest.mark.parametrize(
    ("after", "place"),
    [
        (lambda mean: mean.roll(1, -1), "behind the network's layers"),
        (lambda mean: mean[..., [0, 0, 1, 2, 3]], "behind the network's layers"),
        (lambda mean: mean.cumsum(-1), "behind the network's layers"),
        (lambda mean: mean - mean.mean(-1, keepdim=True), "behind the network's layers"),
    ],
    ids=["rolled", "picked by an index", "running sum", "centred"],
)
def test_models_that_mix_rows_are_refused(after, place):
    model, (x, y) = Model(nn.Linear(3, 1).double(), after), data()
    guide = AutoBernoulliDropout(model, rate=0.3)
    with pytest.raises(ValueError, match=place):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


def test_the_layer_is_named():
    model, (x, y) = Model(Mixer(lambda h: h).double()), data()
    model.net = BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double())
    guide = AutoBernoulliDropout(model, rate=0.3)
    with pytest.raises(ValueError, match=r"BatchNorm1d, whose statistics are of the batch \(in evaluation mode"):
        TraceDropout_ELBO().loss(model, guide, x, y)
    model.eval()
    assert math.isfinite(TraceDropout_ELBO().loss(model, guide, x, y))


def test_batch_norm_keeps_its_statistics():
    norm = nn.BatchNorm1d(4)
    model, (x, y) = Model(nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 1)).double()), data()
    guide = AutoBernoulliDropout(model, rate=0.3)
    inner = model.net._modules["net"][1]
    with pytest.raises(ValueError, match="BatchNorm1d"):
        TraceDropout_ELBO().set_up(model, guide, x, y)
    before = inner.num_batches_tracked.clone(), inner.running_mean.clone()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        TraceDropout_ELBO().set_up(model, guide, x, y)
    assert torch.equal(inner.num_batches_tracked, before[0])
    assert torch.equal(inner.running_mean, before[1])


def test_masks_that_drop_nothing_may_meet():
    torch.manual_seed(3)
    model, (x, y) = Model(Mixer(MIXERS["attention"]()).double()), data()
    assert math.isfinite(TraceDropout_ELBO().loss(model, AutoBernoulliDropout(model, rate=0.0), x, y))


def test_one_row_tells_nothing_and_the_next_batch_does():
    torch.manual_seed(3)
    model, (x, y) = Model(Mixer(MIXERS["attention"]()).double()), data()
    guide, loss = AutoBernoulliDropout(model, rate=0.3), TraceDropout_ELBO()
    assert math.isfinite(loss.loss(model, guide, x[:1], y[:1]))
    with pytest.raises(ValueError, match="masks of other data"):
        loss.loss(model, guide, x, y)


def test_it_is_looked_at_once():
    model, (x, y) = Model(nn.Linear(3, 1).double()), data()
    guide, loss, calls = AutoBernoulliDropout(model, rate=0.3), TraceDropout_ELBO(), []
    loss.loss(model, guide, x, y)
    model.net._modules["net"].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        loss.loss(model, guide, x, y)
    assert len(calls) == 3


@pytest.mark.parametrize("masks", ["draw"])
def test_the_gradient_of_a_rate_is_then_right(masks):
    """Rows rolled by one behind a linear layer: the rate's gradient by enumeration of the function's masks."""
    (x, y), net = data(), nn.Linear(3, 1).double()
    model = Model(net, lambda mean: mean.roll(1, -1))
    guide = AutoBernoulliDropout(model, rate=0.3, learnable=True)
    guide(x, y)
    named = dict(guide.named_parameters())
    loc, bias = named["locs.net.weight_unconstrained"], named["rest.net.bias_unconstrained"]
    logit = named["logits.net.weight_unconstrained"]
    z, keep = all_masks(3), torch.sigmoid(logit)
    weights = torch.where(z > 0, keep, 1 - keep).prod(1)
    mean = (x @ (loc * z / keep).T + bias).roll(1, 0)  # [rows, masks]
    likelihood = (dist.Normal(mean, 0.5).log_prob(y[:, None]) @ weights).sum()
    entropy = -3 * (keep * keep.log() + (1 - keep) * (1 - keep).log()).sum()
    exact = torch.autograd.grad(0.5 * (loc.square() / keep).sum() - entropy - likelihood, logit)[0]
    loss, gradients = TraceDropout_ELBO(20, masks=masks), []
    for _ in range(200):
        guide.zero_grad()
        loss.loss_and_grads(model, guide, x, y)
        gradients.append(logit.grad.clone())
    assert_same_mean(torch.stack(gradients), exact)


def test_the_papers_networks_pass():
    x, y = torch.randn(6, 3), torch.randn(6)
    pyro.settings.set(module_local_params=True)
    for precision in ("latent", "network", "parameter"):
        model = Regression(3, 6, hidden=(5, 5), precision=precision)
        assert math.isfinite(TraceDropout_ELBO().loss(model, AutoConcreteDropout(model), x, y))
    images, labels = torch.randn(6, 1, 28, 28), torch.arange(6) % 3
    model = Classification(lenet(classes=3, width=2), size=6)
    assert math.isfinite(TraceDropout_ELBO().loss(model, AutoConcreteDropout(model), images, labels))


def test_two_networks_in_a_plate_and_a_latent_for_each_datum_pass():
    class Networks(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = BayesianModule(nn.Linear(3, 1).double(), event_dim=1)

        def forward(self, x, y=None):
            with pyro.plate("networks", 2, dim=-2):
                mean = self.net(x).squeeze(-1)
                with pyro.plate("data", x.shape[-2], dim=-1):
                    offset = pyro.sample("offset", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                    return pyro.sample("obs", dist.Normal(mean + offset, 0.5), obs=y)

    model = Networks()
    x, y = torch.randn(2, 4, 3, dtype=F64), torch.randn(2, 4, dtype=F64)
    assert math.isfinite(TraceDropout_ELBO().loss(model, AutoBernoulliDropout(model, rate=0.3), x, y))
