"""Layers that run after ``forward`` has returned, as under checkpointing, see the values of their own call."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)

KINDS = {"reentrant": True, "not reentrant": False}


class Checkpointed(nn.Module):
    """Three layers, of which the second's activations are computed anew in the backward pass."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(self.second, nn.Tanh(), nn.Linear(8, 8))
        self.reentrant = reentrant

    def forward(self, x):
        h = self.first(x).tanh()
        h = self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.third(h.tanh())


class Model(pyro.nn.PyroModule):
    """The network, called some times, each on its own output."""

    def __init__(self, reentrant, calls=1):
        super().__init__()
        self.net, self.calls = BayesianModule(Checkpointed(reentrant), event_dim=1), calls

    def forward(self, x, y):
        out = x
        for _ in range(self.calls):
            out = self.net(out)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(out[..., 0], 0.1), obs=y)


def data():
    x = torch.randn(20, 3)
    return x, x.sum(1)


def gradients(reentrant, make_guide, loss, calls=1):
    """The loss, the gradients of all parameters by name, and the module."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = Model(reentrant, calls)
    guide = make_guide(model)
    x, y = data()
    loss.set_up(model, guide, x, y)
    torch.manual_seed(1)
    value = loss.loss_and_grads(model, guide, x, y)
    return value, {name: p.grad for name, p in guide.named_parameters()}, model.net


def check_at_rest(net):
    """What guides start from stands in the network."""
    torch.manual_seed(0)
    for name, parameter in Checkpointed().named_parameters():
        layer, attribute = net._slots[name].owners[0]
        assert torch.equal(layer._buffers[attribute], parameter)
        assert net._slots[name].value is layer._buffers[attribute]


GUIDES = {
    "fixed": AutoBernoulliDropout,
    "concrete": AutoConcreteDropout,
    "hard": partial(AutoBernoulliDropout, learnable=True),
    "normal": AutoNormal,
}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("guide", GUIDES)
def test_gradients_are_those_without_checkpointing(guide, masks, calls):
    results = [gradients(how, GUIDES[guide], TraceDropout_ELBO(masks=masks), calls) for how in (None, False)]
    (expected, by_name, _), (value, found, net) = results
    assert value == expected
    assert found.keys() == by_name.keys()
    for name, gradient in by_name.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
    check_at_rest(net)


@pytest.mark.parametrize("loss", [TraceDropout_ELBO, partial(RenyiDropout_ELBO, 0.5)])
@pytest.mark.parametrize("guide", GUIDES)
def test_each_of_several_runs_has_its_own_values(guide, loss):
    results = [gradients(how, GUIDES[guide], loss(3, vectorize_particles=False)) for how in (None, False)]
    (expected, by_name, _), (value, found, net) = results
    assert value == expected
    for name, gradient in by_name.items():
        torch.testing.assert_close(found[name], gradient)
    check_at_rest(net)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # where a guide is set up
def test_reentrant_checkpoints_are_right_where_weights_are_parameters():
    loss = TraceDropout_ELBO(masks="draw")
    _, expected, _ = gradients(None, AutoBernoulliDropout, loss)
    _, found, net = gradients(True, AutoBernoulliDropout, TraceDropout_ELBO(masks="draw"))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    check_at_rest(net)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # where a guide is set up
@pytest.mark.parametrize("guide", ["concrete", "hard", "normal"])
def test_reentrant_checkpoints_are_refused_where_weights_are_computed(guide):
    with pytest.raises(ValueError, match="a second time"):
        gradients(True, GUIDES[guide], TraceDropout_ELBO(masks="draw"))


def test_many_dense_networks_at_once_are_refused():
    with pytest.raises(ValueError, match="cannot be checkpointed"):
        gradients(False, AutoNormal, TraceDropout_ELBO(3))


class Noisy(nn.Module):
    """A block whose own noise comes after a mask has been drawn."""

    def __init__(self, preserve=None):
        super().__init__()
        self.first, self.second, self.preserve = nn.Linear(3, 8), nn.Linear(8, 1), preserve

    def forward(self, x):
        h = self.first(x).tanh()
        if self.preserve is None:
            return self.block(h)
        return checkpoint(self.block, h, use_reentrant=False, preserve_rng_state=self.preserve)

    def block(self, h):
        out = self.second(h).tanh()
        return out * torch.rand(out.shape)


def noisy_gradients(preserve, masks, guide_class=AutoConcreteDropout):
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = BayesianModule(Noisy(preserve))

    def model(x, y):
        mean = net(x)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    guide = guide_class(model, rate=0.4)
    guide(*(arguments := data()))
    loss = TraceDropout_ELBO(masks=masks)
    loss._independent = True  # the trial would meet the refusal first
    torch.manual_seed(1)
    loss.loss_and_grads(model, guide, *arguments)
    return torch.cat([p.grad.flatten() for p in guide.parameters()])


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_a_blocks_own_noise_is_the_same_again(masks):
    torch.testing.assert_close(noisy_gradients(True, masks), noisy_gradients(None, masks))


def test_masks_that_would_differ_when_they_are_drawn_again_are_refused():
    with pytest.raises(NotImplementedError, match="preserve_rng_state=True"):
        noisy_gradients(False, "datum")


def test_a_module_that_is_checkpointed_as_a_whole_is_refused():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        mean = checkpoint(net, x, use_reentrant=False)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    guide = AutoBernoulliDropout(model)
    with pytest.raises(NotImplementedError, match="inside of the network, not the BayesianModule"):
        TraceDropout_ELBO().loss_and_grads(model, guide, *data())


LAZY = {"function": lambda h: lambda: h, "iterator": iter, "generator": lambda h: (k for k in h), "module": nn.Identity}


@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_what_would_run_layers_later_is_refused(lazy):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            return {"mean": self.layer(x), "later": lazy(x)}

    with pytest.raises(TypeError, match="would run its layers later"):
        BayesianModule(Lazy())(torch.zeros(2, 3))


def test_a_backward_pass_that_fails_leaves_the_initial_values():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no way back")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            return Fails.apply(self.layer(x))

    torch.manual_seed(0)
    net = BayesianModule(Net())
    slot = net._slots["layer.weight"]
    initial = slot.value.clone()
    with pytest.raises(RuntimeError, match="no way back"):
        (net(torch.ones(2, 3).requires_grad_())).sum().backward()
    assert torch.equal(slot.value, initial)
    net.double()
    assert torch.equal(slot.value, initial.double())
    assert slot.value is net.net.layer.weight
    with torch.no_grad():
        net(torch.ones(2, 3).double())
    assert torch.equal(net.net.layer.weight, initial.double())


@pytest.mark.slow
def test_compiled_steps_checkpoint_too():
    def trained(reentrant):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = Model(reentrant)
        guide = AutoBernoulliDropout(model)
        loss = TraceDropout_ELBO(masks="draw")
        svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss, progress=False)
        arguments = data()
        for _ in range(3):
            svi.step(*arguments)
        return {name: p.detach().clone() for name, p in guide.named_parameters()}

    expected = trained(None)
    for name, value in trained(False).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(("make", "masks"), [(Checkpointed, "datum"), (Noisy, "draw")])
def test_compiled_steps_in_which_layers_draw_again_run_eagerly(make, masks):
    net = BayesianModule(make(make is Noisy))

    def model(x, y):
        mean = net(x)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    loss = TraceDropout_ELBO(masks=masks)
    svi = CompiledSVI(model, AutoBernoulliDropout(model), pyro.optim.Adam({}), loss, progress=False)
    with pytest.warns(UserWarning, match="runs everything eagerly.*draws again in a backward pass"):
        svi.step(*data())
