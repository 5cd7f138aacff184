"""Networks with dropout layers as dropout posteriors: equal in distribution and in evaluation, or a named error."""

import copy
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from scipy import stats
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    DropoutPredictive,
    TraceDropout_ELBO,
    from_torch,
    to_torch,
)
from pyro_dropout.nn import lengthscale_of, weight_decay_of
from tests.support.scenarios import assert_same_mean

PASSES = 2000


class LeNet(nn.Module):
    """Channels dropped before the second convolution, units before both linear layers, one by a function."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 3)
        self.drop = nn.Dropout2d(0.3)
        self.fc1, self.fc2 = nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(self.drop(F.relu(self.conv1(x))), 2)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(x.view(x.size(0), -1), 0.2, training=self.training)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training))


def orders():
    """Dropout before ReLU, after it, twice in a row, on the input, and a rate of 0."""
    return nn.Sequential(
        *(
            nn.Dropout(0.1),
            nn.Linear(6, 8),
            nn.Dropout(0.4),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.LeakyReLU(),
            nn.Dropout(0.3),
        ),
        *(nn.Dropout(0.2), nn.Linear(8, 7), nn.Dropout(0.0), nn.ReLU(), nn.Linear(7, 2)),
    )


class Residual(nn.Module):
    """Batch normalisation, a skip connection, channels dropped before a convolution and before pooling."""

    def __init__(self, dropout=nn.Dropout2d):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop = dropout(0.3)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Dropout2d(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        for norm in (self.norm, self.norm1, self.norm2):
            (
                nn.init.uniform_(norm.running_mean),
                nn.init.uniform_(norm.running_var, 0.5, 2),
                nn.init.uniform_(norm.weight),
            )

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.norm1(self.conv1(x)).relu()
        return self.head((x + self.norm2(self.conv2(self.drop(y)))).relu())


class TiedDropout(nn.Module):
    """One mask for all times of ``[batch, time, features]``."""

    def __init__(self, p):
        super().__init__()
        self.mask = nn.Dropout1d(p)

    def forward(self, x):
        return self.mask(x.mT).mT


class Encoder(nn.Module):
    """A Transformer encoder layer with projections of its own, a dropout before each."""

    def __init__(self, dropout=TiedDropout, attention=0.0):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)
        self.drops = nn.ModuleList(dropout(0.1 * (i + 1)) for i in range(6))
        self.attention = attention

    def forward(self, x):
        h = self.first(x)
        q, k, v = (layer(drop(h)) for layer, drop in zip((self.q, self.k, self.v), self.drops, strict=False))
        share = ((q @ k.mT) / 6**0.5).softmax(-1)
        x = x + self.o(self.drops[3](F.dropout(share, self.attention, self.training) @ v))
        return x + self.down(self.drops[5](self.up(self.drops[4](self.second(x))).relu()))


class Recurrent(nn.Module):
    """Gal & Ghahramani's input masks, tied over time, and dropout on what is read off."""

    def __init__(self, mask=TiedDropout, **options):
        super().__init__()
        self.drop, self.lstm = mask(0.3), nn.LSTM(4, 5, batch_first=True, **options)
        self.out = nn.Sequential(nn.Dropout(0.4), nn.Linear(10 if options.get("bidirectional") else 5, 2))

    def forward(self, x):
        return self.out(self.lstm(self.drop(x))[0][:, -1])


NETWORKS = {
    "lenet": (LeNet, (1, 16, 16)),
    "orders": (orders, (6,)),
    "residual": (Residual, (2, 6, 6)),
    "encoder": (Encoder, (5, 6)),
    "lstm": (Recurrent, (6, 4)),
}
RATES = {
    "lenet": {"conv2.weight": 0.3, "fc1.weight": 0.2, "fc2.weight": 0.5},
    "orders": {"1.weight": 0.1, "4.weight": 0.4, "8.weight": 1 - 0.7 * 0.8},
    "residual": {"conv2.weight": 0.3, "head.3.weight": 0.2},
    "encoder": {f"{name}.weight": 0.1 * (i + 1) for i, name in enumerate(("q", "k", "v", "o", "up", "down"))},
    "lstm": {"lstm.weight_ih_l0": 0.3, "out.1.weight": 0.4},
}


def scaled(net):
    """Weights large enough for dropout to show in every output."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    return net


def case(name, rows=3):
    make, shape = NETWORKS[name]
    return scaled(make()).double().eval(), torch.randn(rows, *shape).double()


def dropout_passes(net, x, n):
    """Outputs ``[n, *out]`` of passes with dropout alone in training mode."""
    net = copy.deepcopy(net).eval()
    for part in net.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.train()
    if isinstance(net, LeNet):
        net.training = True  # its own dropout functions; it has no other use of it
    with torch.no_grad():
        return torch.stack([net(x) for _ in range(n)])


def assert_same_distribution(a, b):
    """Each output by Kolmogorov and Smirnov's test, all pairs of outputs by their mean products.

    Rounded, as outputs of few masks have few values, which rounding errors would tell apart.
    """
    a, b = a.flatten(1).double().round(decimals=5), b.flatten(1).double().round(decimals=5)
    assert bool((a.std(0) > 1e-3).all())
    smallest = min(stats.ks_2samp(a[:, k], b[:, k]).pvalue for k in range(a.shape[1]))
    assert smallest > 1e-4 / a.shape[1], smallest
    center = torch.cat([a, b]).mean(0)
    first, second = a[:, :30] - center[:30], b[:, :30] - center[:30]
    assert_same_mean(first, second)
    assert_same_mean(first.unsqueeze(1) * first.unsqueeze(2), second.unsqueeze(1) * second.unsqueeze(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_in_evaluation_and_in_distribution(name):
    net, x = case(name)
    before = copy.deepcopy(net.state_dict())
    model, guide = from_torch(net, x)
    rates = {site: rate.item() for site, rate in guide.rates().items() if rate > 0}
    assert rates == pytest.approx(RATES[name])
    median = poutine.condition(model, data=guide.median())
    model.eval()
    torch.testing.assert_close(median(x), net(x))
    model.train()
    predict = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])
    draws = predict(x)["_RETURN"].reshape(PASSES, len(x), -1)
    passes = dropout_passes(net, x, PASSES).reshape(PASSES, len(x), -1)
    for datum in range(len(x)):
        assert_same_distribution(passes[:, datum], draws[:, datum])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["lenet", "orders", "residual", "encoder"])
def test_masks_per_datum_are_the_joint_distribution_of_a_batch(name):
    net, x = case(name)
    model, guide = from_torch(net, x)
    options = {"num_samples": PASSES, "return_sites": ["_RETURN"]}
    draws = DropoutPredictive(model, guide=guide, masks="datum", **options)(x)["_RETURN"]
    passes = dropout_passes(net, torch.cat([x[:1]] * 3), PASSES)
    functions = DropoutPredictive(model, guide=guide, **options)(torch.cat([x[:1]] * 3))["_RETURN"]
    assert_same_distribution(dropout_passes(net, x, PASSES), draws)
    torch.testing.assert_close(functions, functions[:, :1].expand_as(functions))  # one function, other than a pass
    assert not torch.allclose(passes, passes[:, :1].expand_as(passes))


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    """The plain network has the same passes; the original class takes its state."""
    net, x = case(name)
    model, guide = from_torch(net, x)
    back = to_torch(model, guide, x).eval()
    torch.testing.assert_close(back(x), net(x))
    assert not any(isinstance(part, PyroModule) for part in back.modules())
    assert_same_distribution(dropout_passes(net, x, PASSES), dropout_passes(back, x, PASSES))
    if name != "lenet":  # whose dropout functions became layers
        fresh = NETWORKS[name][0]().double().eval()
        fresh.load_state_dict(back.state_dict())
        torch.testing.assert_close(fresh(x), net(x))
        old, new = ([p.p for p in n.modules() if isinstance(p, nn.modules.dropout._DropoutNd)] for n in (net, back))
        assert sum(p > 0 for p in new) == len(RATES[name])
        assert name == "orders" or new == pytest.approx(old)  # two in a row became one
    (back(x).sum()).backward()
    assert all(p.grad is not None for p in back.parameters())


class Labels(PyroModule):
    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x, y=None):
        logits = self.net(x)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


@pytest.mark.parametrize("guide", [partial(AutoBernoulliDropout, learnable=True), AutoConcreteDropout])
def test_training_goes_on_with_learned_rates(guide):
    net, x = case("lenet", rows=40)
    y = torch.randint(3, (40,))
    pyro.settings.set(module_local_params=True)
    model, guide = from_torch(net, x[:2], lambda module: Labels(module, 40), guide=guide, weight_decay=0.1, size=40)
    elbo = TraceDropout_ELBO(num_particles=4)(model, guide)
    first = elbo(x, y)
    sites = {f"net.{site}": rate for site, rate in RATES["lenet"].items()}
    assert {n: r.item() for n, r in guide.rates().items() if r > 0} == pytest.approx(sites)
    torch.testing.assert_close(guide.median()["net.fc1.weight"], net.fc1.weight.detach())
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = elbo(x, y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < first.item()
    assert all(abs(guide.rates()[site] - rate) > 1e-3 for site, rate in sites.items())
    back = to_torch(model.net, guide, x[:2]).eval()
    conditioned = poutine.trace(poutine.condition(model, data=guide.median())).get_trace(x)
    torch.testing.assert_close(back(x).log_softmax(-1), conditioned.nodes["obs"]["fn"].logits)


@pytest.mark.parametrize("loss", ["cross-entropy", "half squared error", "MSELoss"])
def test_weight_decay_becomes_the_prior(loss):
    """The gradient of the KL, per datum and unit of the training loss, is the weight decay's, λ times the parameter.

    MC eq. 12, which follows in the paper's own form.
    """
    n, decay, keep, tau = 30, 0.07, 0.8, 2.5
    precision = {"cross-entropy": 1.0, "half squared error": tau, "MSELoss": tau / 2}[loss]
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(1 - keep), nn.Linear(5, 1)).double().eval()
    model, _ = from_torch(net, torch.randn(2, 3).double(), weight_decay=decay, size=n, precision=precision)
    sites = poutine.trace(model).get_trace(torch.randn(2, 3).double())
    for name, parameter in net.named_parameters():
        own = keep if name == "3.weight" else 1.0
        loc = parameter.detach().clone().requires_grad_()
        prior = sites.nodes[name]["fn"]
        kl = -own * prior.log_prob(loc / own)  # of kept weights; that of dropped ones is constant
        (slope,) = torch.autograd.grad(kl, loc)
        torch.testing.assert_close(slope / (n * precision), decay * parameter.detach())
    # the paper's own form, unscaled M = loc / keep with λ_MC ‖M‖², λ_MC / keep² = decay / 2
    length, lam = lengthscale_of(decay, n, keep, precision), decay / 2 * keep**2
    assert precision == pytest.approx(keep * length**2 / (2 * n * lam))
    assert weight_decay_of(length, n, keep, precision) == pytest.approx(decay)


def test_a_layer_that_the_package_made_gets_a_dropout_before_it():
    module = BayesianModule(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    guide, x = AutoBernoulliDropout(module, rate={"0.weight": 0.5, "3.weight": 0.25}), torch.randn(3, 3, 4, 4)
    guide(x)
    net = to_torch(module, guide, x)
    assert isinstance(net[0][0], nn.Dropout2d)
    assert (net[0][0].p, net[3][0].p) == (0.5, 0.25)
    draws = DropoutPredictive(module, guide=guide, num_samples=PASSES, masks="datum", return_sites=["_RETURN"])(x)
    assert_same_distribution(dropout_passes(net, x, PASSES), draws["_RETURN"])


def test_recurrent_dropout_is_a_rate_of_the_recurrent_weight():
    """Gal & Ghahramani's second mask, on the state, tied over time: against steps written out."""
    lstm = nn.LSTM(3, 4, batch_first=True)
    module = BayesianModule(lstm, event_dim=2)
    guide, x = AutoBernoulliDropout(module, rate={"weight_ih_l0": 0.3, "weight_hh_l0": 0.5}), torch.randn(2, 6, 3)
    guide(x)
    predict = DropoutPredictive(module, guide=guide, num_samples=5)
    weights = predict.draw(x).posterior_samples
    cell = nn.LSTMCell(3, 4)
    for k in range(5):
        one = {name: value[k] for name, value in weights.items()}
        expected, _ = poutine.condition(module, data=one)(x)
        masks = {name: one[name].mask / one[name].keep for name in ("weight_ih_l0", "weight_hh_l0")}
        cell.load_state_dict({name: lstm.get_parameter(f"{name}_l0") for name in cell.state_dict()})
        h = c = torch.zeros(2, 4)
        for t in range(6):
            h, c = cell(x[:, t] * masks["weight_ih_l0"], (h * masks["weight_hh_l0"], c))
            torch.testing.assert_close(h, expected[:, t])


class Functions(nn.Module):
    """What a network may do, chosen by name."""

    def __init__(self, do, **layers):
        super().__init__()
        self.do, self.a, self.b, self.drop = do, nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.do(self, x)


def branching(net, x):
    return net.a(x) if x.sum() > 0 else net.b(x)


X4, X3D, IMAGE = torch.randn(3, 4), torch.randn(3, 5, 4), torch.randn(3, 4, 5, 5)
ERRORS = {
    "after the weights": (lambda n, x: n.drop(n.a(x)), X4, {}, "Dropout 'drop' is followed by the network's output"),
    "before batch norm": (
        lambda n, x: n.a(n.norm(n.drop(x))),
        X4,
        {"norm": nn.BatchNorm1d(4)},
        "Dropout 'drop' is followed by BatchNorm1d 'norm', with which its mask does not commute",
    ),
    "before GELU": (lambda n, x: n.a(F.gelu(n.drop(x))), X4, {}, "Dropout 'drop' is followed by gelu"),
    "before sigmoid": (lambda n, x: n.a(n.drop(x).sigmoid()), X4, {}, r"is followed by sigmoid \(sigmoid\)"),
    "before addition": (lambda n, x: n.a(x + n.drop(x)), X4, {}, "Dropout 'drop' is followed by add"),
    "plus a number": (lambda n, x: n.a(n.drop(x) + 1), X4, {}, "Dropout 'drop' is followed by add"),
    "one for two weights": (
        lambda n, x: (lambda h: n.a(h) + n.b(h))(n.drop(x)),
        X4,
        {},
        "Dropout 'drop' feeds a.weight, b.weight at once, which share its mask",
    ),
    "one weight used twice": (
        lambda n, x: n.a(n.a(n.drop(x))),
        X4,
        {},
        r"feeds a.weight, which the network uses 2 times",
    ),
    "for each time": (
        lambda n, x: n.a(n.drop(x)),
        X3D,
        {},
        "mask for each place or time, but Linear 'a' has one weight",
    ),
    "for each pixel": (
        lambda n, x: n.conv(n.drop(x)),
        IMAGE,
        {"conv": nn.Conv2d(4, 2, 3)},
        r"Dropout 'drop' draws a mask for each place .* Conv2d 'conv' .*nn.Dropout2d",
    ),
    "pixels before pooling": (
        lambda n, x: n.conv(F.max_pool2d(n.drop(x), 2)),
        IMAGE,
        {"conv": nn.Conv2d(4, 2, 2)},
        "Dropout 'drop' is followed by .*max_pool2d",
    ),
    "channels then flatten": (
        lambda n, x: n.wide(n.drop2(x).flatten(1)),
        IMAGE,
        {"wide": nn.Linear(100, 2), "drop2": nn.Dropout2d(0.3)},
        "Dropout2d 'drop2' switches several input units of Linear 'wide' together",
    ),
    "channels of a vector": (
        lambda n, x: n.a(n.drop1(x)),
        X4,
        {"drop1": nn.Dropout1d(0.3)},
        r"Dropout1d 'drop1' masks channels, but its input has shape \(3, 4\)",
    ),
    "always on": (
        lambda n, x: n.a(F.dropout(x, 0.2)),
        X4,
        {},
        r"dropout \(dropout\) drops units in evaluation mode too",
    ),
    "another network in training": (
        lambda n, x: n.a(x) if n.training else n.b(x),
        X4,
        {},
        "Linear 'a' differs between training and evaluation",
    ),
    "noise in training": (
        lambda n, x: n.a(x + torch.randn_like(x) if n.training else x),
        X4,
        {},
        "differs between training and evaluation",
    ),
    "noise": (lambda n, x: n.a(x + torch.randn_like(x)), X4, {}, r"randn_like \(randn_like\) draws random numbers"),
    "data-dependent": (branching, X4, {}, "the forward of Functions cannot be followed"),
    "alpha dropout": (
        lambda n, x: n.a(n.alpha(x)),
        X4,
        {"alpha": nn.AlphaDropout(0.1)},
        "AlphaDropout 'alpha' has dropout",
    ),
    "everything": (lambda n, x: n.a(n.all(x)), X4, {"all": nn.Dropout(1.0)}, "Dropout 'all' drops everything"),
    "fused attention": (
        lambda n, x: n.mha(x, x, x)[0],
        X3D,
        {"mha": nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)},
        "MultiheadAttention 'mha' has dropout inside it",
    ),
    "fused encoder": (
        lambda n, x: n.layer(x),
        X3D,
        {"layer": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)},
        "TransformerEncoderLayer 'layer' has dropout inside it",
    ),
    "attention function": (
        lambda n, x: n.a(F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if n.training else 0.0)),
        X3D,
        {},
        "scaled_dot_product_attention .* differs between training and evaluation",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_dropout_that_is_no_mask_of_a_weight_is_named(name):
    """PITFALLS 15: nothing is missed, nothing in between."""
    do, x, layers, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        from_torch(Functions(do, **layers), x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Encoder(nn.Dropout), "Dropout 'drops.0' draws a mask for each place or time, but Linear 'q' has one weight"),
        (Encoder(attention=0.1), r"dropout \(dropout\) is followed by matmul"),
        (Recurrent(nn.Dropout), "Dropout 'drop' draws a mask for each place or time, but LSTM 'lstm' has one weight"),
        (Recurrent(num_layers=2, dropout=0.2), "LSTM 'lstm' has dropout inside it"),
        (Recurrent(bidirectional=True), "'drop.mask' feeds LSTM 'lstm', which shares it between directions"),
        (Residual(nn.Dropout), r"Dropout 'drop' draws a mask for each place or time, but Conv2d 'conv2'"),
    ],
)
def test_the_usual_networks_with_other_dropout_are_named_errors(net, message):
    shape = (2, 6, 6) if isinstance(net, Residual) else (5, 6) if isinstance(net, Encoder) else (6, 4)
    with pytest.raises(ValueError, match=message):
        from_torch(net, torch.randn(3, *shape))


class Words(nn.Module):
    """Embedding and decoder share a weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.drop = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Dropout(0.5)
        self.decoder = nn.Linear(6, 10)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.drop(self.hidden(self.embedding(x)).relu()))


def merged(net, x):
    return net.a(net.drop(x.reshape(-1, 4))).reshape(x.shape)


def in_place(net, x):
    h = net.b(x)
    return net.a(net.off(h)) + h


def frames(net, x):
    return net.conv(net.drop2(x.flatten(0, 1))).flatten(1)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (Words(), torch.randint(10, (4,)), r"'drop' feeds embedding.weight, which the network uses 2 times"),
        (Functions(merged), X3D, "'drop' draws a mask for each place or time, but Linear 'a' has one weight"),
        (
            Functions(frames, drop2=nn.Dropout2d(0.3), conv=nn.Conv2d(2, 1, 3)),
            torch.randn(3, 4, 2, 5, 5),
            "'drop2' draws a mask for each place or time, but Conv2d 'conv'",
        ),
        (
            Functions(in_place, off=nn.Dropout(0.5, inplace=True)),
            X4,
            r"Dropout 'off' drops in place what add \(add\) uses too",
        ),
        (
            Functions(lambda n, x: n.a(n.drop(x)) + n.a.weight.sum()),
            X4,
            "feeds a.weight, which the network uses 2 times",
        ),
        (
            nn.Sequential(nn.Dropout(0.5), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
            X4,
            r"Dropout '0' feeds 1.weight, which is no parameter \(but computed, or a buffer\)",
        ),
    ],
)
def test_a_mask_that_is_not_the_weights_own_is_named(net, x, message):
    with pytest.raises(ValueError, match=message):
        from_torch(net, x)


def test_a_network_in_training_mode_keeps_its_statistics_and_its_modes():
    """Only shapes of the example matter; functional dropout takes another way."""
    pyro.settings.set(module_local_params=True)
    for do in (lambda n, x: n.a(n.drop(n.norm(x))), lambda n, x: n.a(F.dropout(n.norm(x), 0.3, n.training))):
        net = Functions(do, norm=nn.BatchNorm1d(4))
        nn.init.uniform_(net.norm.running_mean)
        net.train()
        net.b.eval()
        model, guide = from_torch(net, torch.zeros(2, 4))
        torch.testing.assert_close(model.net.norm.running_mean, net.norm.running_mean)
        assert [model.net.get_submodule(name).training for name in ("", "norm", "a")] == [True, True, True]
        x = torch.randn(20, 4)
        median = poutine.condition(model.eval(), data=guide.median())(x)
        torch.testing.assert_close(median, copy.deepcopy(net).eval()(x))


def test_two_networks_do_not_share_weights_by_name():
    nets = [orders() for _ in range(2)]
    from_torch(nets[0], torch.randn(2, 6))
    for model in (None, lambda module: Labels(module, 5)):
        with pytest.raises(ValueError, match=r"global store has AutoBernoulliDropout.locs.1.weight.* of another guide"):
            from_torch(nets[1], torch.randn(2, 6), model)
    pyro.clear_param_store()
    guide = from_torch(nets[1], torch.randn(2, 6))[1]
    assert torch.equal(guide.median()["1.weight"], nets[1][1].weight)


def test_a_dropout_whose_weight_gets_no_prior_is_not_lost():
    with pytest.raises(
        ValueError, match=r"a dropout masks 1.weight, 4.weight, 8.weight, but prior gives no distribution"
    ):
        from_torch(orders(), torch.randn(2, 6), prior=lambda name, _: dist.Normal(0.0, 1.0) if "bias" in name else None)


def test_one_mask_for_several_uses_is_more_than_dropout_layers_can_do():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    for net in (tied, Functions(lambda n, x: n.a(n.a(x)))):
        module = BayesianModule(net, event_dim=1)
        guide = AutoBernoulliDropout(module, rate=0.4)
        guide(X4)
        with pytest.raises(ValueError, match="has one mask wherever the network uses it"):
            to_torch(module, guide, X4)
    module = BayesianModule(Functions(merged), event_dim=2)
    guide = AutoBernoulliDropout(module, rate={"a.weight": 0.4, "b.weight": 0.0})
    guide(X3D)
    with pytest.raises(ValueError, match=r"'a' has rate 0.4 for inputs of shape \(15, 4\)"):
        to_torch(module, guide, X3D)


def test_a_network_of_one_layer():
    module = BayesianModule(nn.Linear(4, 2))
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(X4)
    assert [type(part) for part in to_torch(module, guide, X4)] == [nn.Dropout, nn.Linear]


def test_a_layer_whose_dropout_is_off_needs_none():
    model, guide = from_torch(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval(), X3D)
    assert not any(rate.any() for rate in guide.rates().values())
    assert isinstance(model, BayesianModule)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_torch(orders(), torch.randn(1, 6)), "two rows of data or more"),
        (lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.1), "give size, the number of data points"),
        (lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.0, size=9), "must be positive, but found 0.0"),
        (
            lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.1, size=9, prior=dist.Normal(0.0, 1.0)),
            "prior or weight_decay, not both",
        ),
        (
            lambda: to_torch(
                BayesianModule(orders()), from_torch(nn.Linear(2, 1), torch.randn(2, 2))[1], torch.randn(2, 6)
            ),
            "the guide has no 1.weight",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_dropout_layer_cannot_do():
    x = torch.randn(3, 5, 4)
    module = BayesianModule(nn.Sequential(nn.Linear(4, 2)), event_dim=2)
    guide = AutoBernoulliDropout(module, rate=0.1)
    guide(x)
    with pytest.raises(ValueError, match=r"Linear '0' has rate 0.1 for inputs of shape \(3, 5, 4\)"):
        to_torch(module, guide, x)
    guide = AutoBernoulliDropout(module, rate=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    guide(x)
    with pytest.raises(ValueError, match=r"0.weight has a rate for each unit"):
        to_torch(module, guide, x)
    module = BayesianModule(Functions(lambda n, x: F.linear(x, n.a.weight)))
    guide, x = AutoBernoulliDropout(module, rate={"a.weight": 0.5, "b.weight": 0.0}), torch.randn(2, 4)
    guide(x)
    with pytest.raises(ValueError, match=r"'a' has rate 0.5 for inputs of shape \(\)"):
        to_torch(module, guide, x)
