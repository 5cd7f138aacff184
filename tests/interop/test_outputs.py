"""Dropout behind a layer: which it is, that draws are the network's own passes, the way back, and what is refused."""

import copy

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive, from_torch, to_torch
from tests.support.networks import (
    IMAGE,
    PASSES,
    X3D,
    X4,
    DropPath,
    Functions,
    StochasticDepth,
    TiedDropout,
    assert_same_distribution,
    dropout_passes,
    median_of,
    scaled,
)


class Layers(nn.Module):
    """Layers by name, and what the network does with them."""

    def __init__(self, do, **layers):
        super().__init__()
        self.do = do
        for name, layer in layers.items():
            setattr(self, name, layer)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 2)
            if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias)

    def forward(self, x):
        return self.do(self, x)


def vgg_bn():
    """Channels dropped behind a convolution, before batch normalisation; units before the head."""
    return nn.Sequential(
        *(nn.Conv2d(4, 5, 3), nn.Dropout2d(0.3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten()),
        *(nn.Dropout(0.2), nn.Linear(5, 2)),
    )


def densenet(net, x):
    """Two dense layers: what is new is dropped, then joined with what was."""
    for norm, conv, drop in ((net.n1, net.c1, net.d1), (net.n2, net.c2, net.d2)):
        x = torch.cat([x, drop(conv(norm(x).relu()))], 1)
    return net.head(x.mean((2, 3)))


def wide_resnet(net, x):
    out = net.d(net.c1(net.n1(x).relu()))
    return net.head((x + net.c2(net.n2(out).relu())).mean((2, 3)))


def u_net(net, x):
    low = net.d2(net.down(net.d1(net.c1(x)).tanh())).tanh()
    return net.last(torch.cat([net.d3(net.up(low)), x], 1)).flatten(1)


def transformer(net, x):
    """Rates on both of the MLP's dropouts, one mask for all tokens; behind attention's projection too."""
    x = x + net.d1(net.proj(net.qkv(net.first(x)).relu()))
    return (x + net.d3(net.l2(net.d2(F.gelu(net.l1(net.second(x))))))).mean(1)


def convnext(net, x):
    """Channels last, a scale by channel, then stochastic depth before the sum."""
    h = net.norm(net.depthwise(x).permute(0, 2, 3, 1))
    h = net.l2(F.gelu(net.l1(h))).permute(0, 3, 1, 2)
    return net.head((x + net.depth(net.scale.weight.reshape(-1, 1, 1) * h)).mean((2, 3)))


def efficientnet(net, x):
    """A branch that ends in batch normalisation."""
    gate = net.s2(F.silu(net.s1(x.mean((2, 3), keepdim=True)))).sigmoid()
    branch = net.norm(net.conv(x * gate))
    branch = net.depth(branch)
    branch += x
    return net.head(branch.mean((2, 3)))


def attention(net, x):
    return (x + net.drop(net.mha(x, x, x)[0])).mean(1)


class Scaled(nn.Linear):
    """A user's own layer, which is followed into."""

    def __init__(self, ins, outs):
        super().__init__(ins, outs)
        self.gamma = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * self.gamma


def conv(*args, **kwargs):
    return nn.Conv2d(*args, padding=1, **kwargs)


@torch.fx.wrap
def windows(x, qkv, proj, bias, factor):
    """An operation of its own, as torchvision's shifted windows are, that ends in a projection."""
    return (F.linear(F.linear(x, qkv).tanh(), proj, bias) / factor).transpose(1, 2)


def windowed(net, x):
    return (x + net.drop(windows(x, net.qkv.weight, net.proj.weight, net.proj.bias, 2.0).transpose(1, 2))).mean(1)


NETWORKS = {  # the network, its input, rates by mask
    "VGG-BN": (vgg_bn, IMAGE, {"0.output": 0.3, "7.weight": 0.2}),
    "DenseNet": (
        lambda: Layers(
            densenet,
            **{"n1": nn.BatchNorm2d(4), "c1": conv(4, 2, 3), "d1": nn.Dropout2d(0.3), "n2": nn.BatchNorm2d(6)},
            **{"c2": conv(6, 2, 3), "d2": nn.Dropout2d(0.2), "head": nn.Linear(8, 2)},
        ),
        IMAGE,
        {"c1.output": 0.3, "c2.output": 0.2},
    ),
    "wide ResNet": (
        lambda: Layers(
            wide_resnet,
            **{"n1": nn.BatchNorm2d(4), "c1": conv(4, 6, 3), "d": nn.Dropout2d(0.3), "n2": nn.BatchNorm2d(6)},
            **{"c2": conv(6, 4, 3), "head": nn.Linear(4, 2)},
        ),
        IMAGE,
        {"c1.output": 0.3},
    ),
    "U-Net": (
        lambda: Layers(
            u_net,
            **{"c1": conv(4, 4, 3), "d1": nn.Dropout2d(0.2), "down": nn.Conv2d(4, 6, 3), "d2": nn.Dropout2d(0.3)},
            **{"up": nn.ConvTranspose2d(6, 3, 3), "d3": nn.Dropout2d(0.25), "last": nn.Conv2d(7, 1, 5)},
        ),
        IMAGE,
        {"c1.output": 0.2, "down.output": 0.3, "up.output": 0.25},
    ),
    "transformer": (
        lambda: Layers(
            transformer,
            **{"first": nn.LayerNorm(4), "qkv": nn.Linear(4, 5), "proj": nn.Linear(5, 4), "d1": TiedDropout(0.15)},
            **{"second": nn.LayerNorm(4), "l1": nn.Linear(4, 6), "d2": TiedDropout(0.3), "l2": nn.Linear(6, 4)},
            d3=TiedDropout(0.2),
        ),
        X3D,
        {"proj.output": 0.15, "l2.weight": 0.3, "l2.output": 0.2},
    ),
    "ConvNeXt": (
        lambda: Layers(
            convnext,
            **{"depthwise": conv(4, 4, 3, groups=4), "norm": nn.LayerNorm(4), "l1": nn.Linear(4, 6)},
            **{"l2": nn.Linear(6, 4), "scale": nn.Linear(1, 4), "depth": StochasticDepth(0.3), "head": nn.Linear(4, 2)},
        ),
        IMAGE,
        {"l2.output": 0.3},
    ),
    "EfficientNet": (
        lambda: Layers(
            efficientnet,
            **{"s1": nn.Conv2d(4, 2, 1), "s2": nn.Conv2d(2, 4, 1), "conv": conv(4, 4, 3, bias=False)},
            **{"norm": nn.BatchNorm2d(4), "depth": DropPath(0.4), "head": nn.Linear(4, 2)},
        ),
        IMAGE,
        {"norm.output": 0.4},
    ),
    "attention's projection": (
        lambda: Layers(attention, mha=nn.MultiheadAttention(4, 2, batch_first=True), drop=TiedDropout(0.3)),
        X3D,
        {"mha.out_proj.output": 0.3},
    ),
    "a function of weights": (
        lambda: Layers(
            windowed, **{"qkv": nn.Linear(4, 5, bias=False), "proj": nn.Linear(5, 4), "drop": TiedDropout(0.3)}
        ),
        X3D,
        {"proj.output": 0.3},
    ),
    "embedding": (
        lambda: Layers(
            lambda n, x: n.head(n.norm(n.drop(n.words(x))).mean(1)),
            **{"words": nn.Embedding(7, 5), "drop": TiedDropout(0.3), "norm": nn.LayerNorm(5)},
            head=nn.Linear(5, 2),
        ),
        torch.randint(7, (3, 4)),
        {"words.output": 0.3},
    ),
    "group norm": (
        lambda: Layers(
            lambda n, x: n.head(n.drop(n.norm(n.conv(x))).tanh().mean((2, 3))),
            **{"conv": conv(4, 4, 3), "norm": nn.GroupNorm(2, 4), "drop": nn.Dropout2d(0.3), "head": nn.Linear(4, 2)},
        ),
        IMAGE,
        {"norm.output": 0.3},
    ),
    "a concatenation": (
        lambda: Layers(
            lambda n, x: n.last(n.drop(torch.cat([n.a(x), n.b(x).relu()], 1)).tanh()),
            **{"a": nn.Linear(4, 2), "b": nn.Linear(4, 3), "drop": nn.Dropout(0.3), "last": nn.Linear(5, 2)},
        ),
        X4,
        {"a.output": 0.3, "b.output": 0.3},
    ),
    "two in a row": (
        lambda: Layers(
            lambda n, x: n.last(n.d2(n.d1(n.a(x)).relu()).tanh()),
            **{"a": nn.Linear(4, 5), "d1": nn.Dropout(0.3), "d2": nn.Dropout(0.2), "last": nn.Linear(5, 2)},
        ),
        X4,
        {"a.output": 1 - 0.7 * 0.8},
    ),
    "a function of PyTorch": (
        lambda: Layers(
            lambda n, x: n.last(F.dropout(F.linear(x, n.a.weight, n.a.bias), 0.3, n.training).tanh()),
            **{"a": nn.Linear(4, 5), "last": nn.Linear(5, 2)},
        ),
        X4,
        {"a.output": 0.3},
    ),
    "functions alone": (
        lambda: Layers(
            lambda n, x: F.linear(F.dropout(F.linear(x, n.a.weight, n.a.bias).relu(), 0.3, n.training), n.b.weight),
            **{"a": nn.Linear(4, 5), "b": nn.Linear(5, 2, bias=False)},
        ),
        X4,
        {"b.weight": 0.3},
    ),
    "everything by keyword": (
        lambda: Layers(
            lambda n, x: n.last(n.drop(input=torch.cat(tensors=[n.a(x), n.b(x)], axis=1)).tanh()),
            **{"a": nn.Linear(4, 2), "b": nn.Linear(4, 3), "drop": nn.Dropout(0.3), "last": nn.Linear(5, 2)},
        ),
        X4,
        {"a.output": 0.3, "b.output": 0.3},
    ),
    "a layer with a further parameter": (
        lambda: Layers(
            lambda n, x: n.last(n.drop(n.a(x)).tanh()),
            **{"a": Scaled(4, 5), "drop": nn.Dropout(0.3), "last": nn.Linear(5, 2)},
        ),
        X4,
        {"a.output": 0.3},
    ),
    "the last layer": (
        lambda: Layers(lambda n, x: n.drop(n.a(x)), **{"a": nn.Linear(4, 3), "drop": nn.Dropout(0.3)}),
        X4,
        {"a.output": 0.3},
    ),
    "pooling between": (
        lambda: Layers(
            lambda n, x: n.head(F.max_pool2d(n.drop(F.avg_pool2d(n.conv(x), 2)).tanh(), 2).flatten(1)),
            **{"conv": nn.Conv2d(4, 3, 2), "drop": nn.Dropout2d(0.3), "head": nn.Linear(3, 2)},
        ),
        IMAGE,
        {"conv.output": 0.3},
    ),
}


# A dropout of several layers, or several of one, stand elsewhere on the way back; functions have no place for one.
NO_WAY_BACK = {"two in a row", "a concatenation", "everything by keyword", "a function of PyTorch", "functions alone"}


def case(name):
    torch.manual_seed(0)
    make, x, rates = NETWORKS[name]
    pyro.clear_param_store()
    x = torch.randn(x.shape, dtype=torch.float64) if x.is_floating_point() else x
    return scaled(make()).double().eval(), x, rates


@pytest.mark.parametrize("name", NETWORKS)
def test_rates_go_to_the_layers_they_stand_behind_and_draws_are_passes(name):
    """Masks per datum are all data's passes together, draws each datum's; the median is the evaluation mode."""
    net, x, rates = case(name)
    before = copy.deepcopy(net.state_dict())
    model, guide = from_torch(net, x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    found = {mask: rate.item() for mask, rate in guide.rates().items() if rate.any()}
    assert found == pytest.approx(rates)
    net.training = "function" in name and "weights" not in name  # it calls dropout itself
    passes = dropout_passes(net, x, PASSES)
    net.training = False
    draw = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    assert_same_distribution(passes[:, 0], draw.reshape(passes.shape)[:, 0])
    if name not in ("attention's projection",):  # which has no masks per datum
        joint = DropoutPredictive(model, guide=guide, num_samples=PASSES, masks="datum", return_sites=["_RETURN"])
        assert_same_distribution(passes, joint(x)["_RETURN"].reshape(passes.shape))
    if name not in NO_WAY_BACK:
        back = to_torch(model, guide, x)
        torch.testing.assert_close(back.eval()(x), net(x))
        assert_same_distribution(passes, dropout_passes(back, x, PASSES))
    torch.testing.assert_close(median_of(model, guide)(x), net(x))


REFUSED = {
    "of a sum": (lambda n, x: n.a(n.drop(n.a(x) + n.b(x)).tanh()), X4, {}, r"stands behind add \(add\)"),
    "behind what is used too": (
        lambda n, x: (lambda h: n.b(h + n.drop(h)))(n.a(x)),
        X4,
        {},
        r"add \(add\) uses what is behind Linear 'a' too, without the mask",
    ),
    "of what is joined twice": (
        lambda n, x: (lambda h: n.drop(torch.cat([h, h], 1)).tanh())(n.a(x)),
        X4,
        {},
        "draws more than one mask of the outputs of a.weight, which are joined twice",
    ),
    "one of two layers": (
        lambda n, x: n.depth(torch.cat([n.a(x), n.b(x)], 1)) + 1,
        X4,
        {"depth": DropPath(0.5)},
        "has one mask for the outputs of a.weight and b.weight, but each has one of its own",
    ),
    "of attention that is used again": (
        lambda n, x: (lambda o: o[0] - n.depth(o[0]))(n.mha(x, x, x)),
        X3D,
        {"mha": nn.MultiheadAttention(4, 2, batch_first=True), "depth": DropPath(0.5)},
        "uses what getitem .* is of too, without the mask",
    ),
    "with another layer's bias": (
        lambda n, x: n.drop(F.linear(x, n.bare.weight, n.b.bias)) + 1,
        X4,
        {"bare": nn.Linear(4, 4, bias=False)},
        r"stands behind linear \(linear\), with which its mask does not commute either",
    ),
    "of rows whose norm is bounded": (
        lambda n, x: n.drop(n.words(x)) + 1,
        torch.tensor([1, 2, 3]),
        {"words": nn.Embedding(5, 4, max_norm=0.5)},
        "stands behind Embedding 'words', with which its mask does not commute either",
    ),
    "of the input": (lambda n, x: n.a(n.drop(x).tanh()), X4, {}, "stands behind x, with no layer between"),
    "behind an activation": (
        lambda n, x: n.b(n.drop(n.a(x).sigmoid()).tanh()),
        X4,
        {},
        r"stands behind sigmoid \(sigmoid\), with which its mask does not commute either",
    ),
    "of each pixel": (
        lambda n, x: n.norm(n.drop(n.conv(x))),
        IMAGE,
        {"conv": nn.Conv2d(4, 2, 3), "norm": nn.BatchNorm2d(2)},
        "draws a mask for each place or time of what Conv2d 'conv' returns",
    ),
    "of each token": (
        lambda n, x: n.norm(n.drop(n.a(x))),
        X3D,
        {"norm": nn.LayerNorm(4)},
        "draws a mask for each place or time of what Linear 'a' returns",
    ),
    "of a layer that is used twice": (
        lambda n, x: n.drop(n.a(n.a(x).tanh())).tanh(),
        X4,
        {},
        "stands behind a.weight, which the network uses 2 times",
    ),
    "of a computed weight": (
        lambda n, x: n.drop(n.c(x)).tanh(),
        X4,
        {"c": nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))},
        "stands behind c.weight, which is no parameter",
    ),
    "of a recurrent layer": (
        lambda n, x: n.drop2(n.lstm(x)[0]).tanh(),
        X3D,
        {"lstm": nn.LSTM(4, 3, batch_first=True), "drop2": TiedDropout(0.3)},
        "stands behind getitem .*, with which its mask does not commute either",
    ),
    "of a branch for a batch": (
        lambda n, x: x + n.depth(n.a(x)),
        X4,
        {"depth": StochasticDepth(0.3, "batch")},
        r"'depth' drops a branch for all rows of a batch at once \(mode 'batch'\)",
    ),
    "of a branch without scale": (
        lambda n, x: x + n.depth(n.a(x)),
        X4,
        {"depth": DropPath(0.3, scale_by_keep=False)},
        r"'depth' multiplies rows that it keeps by 1 at rate 0.5, where a dropout posterior has 1 / \(1 - 0.5\)",
    ),
    "of units and of a branch": (
        lambda n, x: x + n.depth(n.drop(n.a(x)).tanh() * 0 + n.drop2(n.b(x))),
        X4,
        {"depth": StochasticDepth(0.3), "drop2": nn.Dropout(0.2)},
        "stands behind add",
    ),
    "of units, then of the branch": (
        lambda n, x: x + n.depth(n.drop(n.a(x))),
        X4,
        {"depth": StochasticDepth(0.3)},
        "'depth' is a second mask of the outputs of a.weight, one of units and one of all together",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mask_of_outputs_is_named(name):
    do, x, layers, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        from_torch(Functions(do, **layers).eval(), x)


def test_weight_decay_counts_the_bias_among_what_is_dropped():
    """MC eq. 12 with the keep of all masks of a parameter."""
    net, x, _ = case("transformer")
    model, _ = from_torch(net, x, weight_decay=0.01, size=1000)
    scales = {name: 1 / slot.prior.base_dist.scale.flatten()[0] ** 2 for name, slot in model._slots.items()}
    assert scales["l2.weight"].item() == pytest.approx(10 * 0.7 * 0.8, rel=1e-5)
    assert scales["l2.bias"].item() == pytest.approx(10 * 0.8, rel=1e-5)
    assert scales["l1.bias"].item() == pytest.approx(10.0, rel=1e-5)


def test_a_bias_without_a_posterior_cannot_share_a_mask():
    net, x, _ = case("the last layer")
    prior = pyro.distributions.Normal(0.0, 1.0)
    with pytest.raises(ValueError, match=r"a dropout masks a.bias, but prior gives no distribution for it"):
        from_torch(net, x, prior=lambda name, _: None if name == "a.bias" else prior)


def test_given_rates_stand_beside_masks_of_outputs():
    net, x, _ = case("VGG-BN")
    _, guide = from_torch(net, x, rate={"0": 0.1})
    found = {mask: round(rate.item(), 3) for mask, rate in guide.rates().items() if rate.any()}
    assert found == {"0.weight": 0.1, "0.output": 0.3, "7.weight": 0.2}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_layers_that_the_package_made_get_a_dropout_behind_them(norm):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    units = {"0": "output", "1": "output", "3": "both"}
    module = BayesianModule(net)
    rate = {"0.output": 0.5, "1.output": 0.2, "3.weight": 0.25, "3.output": 0.1}
    guide, x = AutoBernoulliDropout(module, rate=rate, units=units), torch.randn(3, 3, 4, 4)
    guide(x)
    back = to_torch(module, guide, x)
    kinds = [[type(part) for part in layer] for layer in (back[0], back[1], back[3])]
    assert kinds == [
        [nn.Conv2d, nn.Dropout2d],
        [norm, nn.Dropout2d],
        [nn.Sequential, nn.Dropout],
    ] or kinds == [[nn.Conv2d, nn.Dropout2d], [nn.BatchNorm2d, nn.Dropout2d], [nn.Dropout, nn.Linear]]
    draws = DropoutPredictive(module, guide=guide, num_samples=PASSES, masks="datum", return_sites=["_RETURN"])(x)
    assert_same_distribution(dropout_passes(back, x, PASSES), draws["_RETURN"])
    guide = AutoBernoulliDropout(module, rate=0.3, units={"0": "branch"})
    pyro.clear_param_store()
    guide(x)
    with pytest.raises(ValueError, match=r"0.output switches several outputs at once \(stochastic depth\)"):
        to_torch(module, guide, x)


@pytest.mark.parametrize("rate", [0.01, 0.99])
def test_stochastic_depth_at_a_rate_that_seldom_shows_both_outcomes(rate):
    x = torch.randn(400, 4)
    net = Functions(lambda n, x: x + n.depth(n.a(x)), depth=DropPath(rate)).eval()
    _, guide = from_torch(net, x)
    assert guide.rates()["a.output"].item() == pytest.approx(rate)


def test_both_sides_of_a_convolution_come_back_and_words_do_not():
    module = BayesianModule(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.Flatten()))
    guide, x = AutoBernoulliDropout(module, rate=0.2, units="both"), torch.randn(4, 1, 3, 3)
    guide(x)
    back = to_torch(module, guide, x)
    draws = DropoutPredictive(module, guide=guide, num_samples=PASSES, masks="datum", return_sites=["_RETURN"])(x)
    assert_same_distribution(dropout_passes(back, x, PASSES), draws["_RETURN"])
    words = BayesianModule(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)), event_dim=1)
    pyro.clear_param_store()
    guide, x = AutoBernoulliDropout(words, rate=0.2), torch.randint(5, (4, 3))
    guide(x)
    with pytest.raises(ValueError, match=r"Embedding '0' has rate 0\.2"):
        to_torch(words, guide, x)
