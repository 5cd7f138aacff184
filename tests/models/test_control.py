"""Values of actions and dynamics: against sums by hand, data that grow, functions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, init_to_median
from torch.func import functional_call

from models.control import Dynamics, QNetwork, functions
from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    CompiledSVI,
    DropoutPredictive,
    ReplicatedSVI,
    TraceDropout_ELBO,
    init_to_module,
)

RATE, SIZE, BATCH = 0.3, 700, 16


def experiences(*shape):
    torch.manual_seed(1)
    return torch.randn(*shape, BATCH, 3), torch.randint(2, (*shape, BATCH)), torch.randn(*shape, BATCH)


def q_model(size=SIZE):
    torch.manual_seed(0)
    return QNetwork((3, 2), size, lengthscale=2.0)


def set_up(model, *data, kind=AutoBernoulliDropout, rate=0.0, **options):
    guide = kind(model, lambda site: rate if site == "net.2.weight" else 0.0, **options)
    guide(*data)
    return guide


@pytest.mark.filterwarnings("ignore:.*rate 0 at every site")
def test_the_loss_of_values_by_hand():
    model, (state, action, target) = q_model(), experiences()
    guide = set_up(model, state, action, target)
    values = mlp_of(guide)(state)
    wrong = values[torch.arange(BATCH), action] - target
    likelihood = SIZE / BATCH * (0.5 * wrong.square() + 0.5 * math.log(2 * math.pi)).sum()
    prior = sum(dist.Normal(0.0, 0.5).log_prob(value).sum() for value in guide.median().values())
    found = TraceDropout_ELBO().loss(model, guide, state, action, target)
    assert found == pytest.approx((likelihood - prior).item(), rel=1e-5)


def mlp_of(guide):
    values = {name.removeprefix("net."): value for name, value in guide.median().items()}
    return lambda x: functional_call(mlp(3, (50, 50), 2), values, x)


class Plate(QNetwork):
    """The same in Pyro's own words, for a size that does not change."""

    def forward(self, state, action, target):
        chosen = self.net(state).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", int(self.size), subsample_size=len(state)):
            pyro.sample("obs", dist.Normal(chosen, 1.0), obs=target)


@pytest.mark.parametrize("masks", ["draw", "datum"])
def test_a_batch_stands_for_as_many_data_as_there_are(masks):
    data, loss = experiences(), TraceDropout_ELBO(masks=masks)
    models = q_model(), Plate((3, 2), SIZE, 2.0)
    guide = set_up(models[0], *data, kind=AutoConcreteDropout, rate=RATE)
    for size in (SIZE, 5 * SIZE):
        found = []
        for model in models:
            model.size.fill_(size)
            pyro.set_rng_seed(5)
            found.append(loss.loss(model, guide, *data))
        assert found[0] == pytest.approx(found[1], rel=1e-6)


def dynamics():
    torch.manual_seed(0)
    return Dynamics(3, 2, SIZE, hidden=(8,))


CASES = {
    "values": (q_model, experiences),
    "dynamics": (dynamics, lambda *n: (torch.randn(*n, BATCH, 3), torch.ones(*n, BATCH, 2))),
}


@pytest.mark.parametrize("case", CASES)
def test_data_grow_with_nothing_compiled_anew(case):
    make, data_of = CASES[case]
    data, still = data_of(), pyro.optim.SGD({"lr": 0.0})
    init = init_to_module(fallback=init_to_median)

    def made():
        model = make()
        return model, AutoDelta(model, init_loc_fn=init)

    with pyro.settings.context(module_local_params=True):
        model, guide = made()
        svi = CompiledSVI(model, guide, still, TraceDropout_ELBO(), backend="eager", progress=False)
        svi.step(*data), svi.step(*data)
        program = svi._latest
        for size in (5 * SIZE, 9 * SIZE):
            model.size.fill_(size)
            expected = TraceDropout_ELBO().loss(model, guide, *data)
            assert svi.step(*data) == pytest.approx(expected, rel=1e-6)
        assert svi._latest is program
    svi = ReplicatedSVI(made, [{}] * 2, still, seeds=[0, 0], backend="eager", progress=False)
    both = [t.expand(2, *t.shape) for t in data]
    svi.step(*both), svi.step(*both)
    svi.models[1].size.fill_(9 * SIZE)
    assert svi.step(*both)[1].item() == pytest.approx(expected, rel=1e-6)
    assert svi.step(*both)[0] < 0.5 * expected


def test_dynamics_learn_a_noise_for_each_variable():
    """Of a system that is linear, with more noise in its second variable."""
    pyro.set_rng_seed(0)
    x = torch.randn(400, 3)
    noise = torch.tensor([0.1, 0.5])
    y = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1) + noise * torch.randn(400, 2)
    with pyro.settings.context(module_local_params=True):
        model = Dynamics(3, 2, 400, hidden=(32,), lengthscale=0.1)
        guide = AutoConcreteDropout(model, 0.05)
        svi = CompiledSVI(
            model, guide, pyro.optim.Adam({"lr": 0.02}), TraceDropout_ELBO(), backend="eager", progress=False
        )
        svi.scan(x.expand(1500, -1, -1), y.expand(1500, -1, -1))
        found = guide.median()["precision"].rsqrt()
        assert found == pytest.approx(noise, rel=0.2)
        mean = DropoutPredictive(model, guide=guide, num_samples=30).moments(x)["mean"]
        assert mean.mean.shape == (400, 2)


def test_functions_are_those_of_networks():
    nets, x = [mlp(3, (5, 4), 2) for _ in range(2)], torch.randn(2, 6, 3)
    layers = [
        (torch.stack([net[i].weight for net in nets]), torch.stack([net[i].bias for net in nets])) for i in (0, 2, 4)
    ]
    masks = [None, torch.randint(3, (2, 6, 5)).float(), torch.randint(3, (2, 1, 4)).float()]
    found = functions(layers, masks, x)
    for r, net in enumerate(nets):
        for row in range(6):
            hidden = net[0](x[r, row]).relu() * masks[1][r, row]
            expected = net[4](net[2](hidden).relu() * masks[2][r, 0])
            torch.testing.assert_close(found[r, row], expected)
