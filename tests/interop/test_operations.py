"""What an operation does to a mask: followed and equal in distribution, or refused by name, for each in the lists."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.networks import IMAGE, X3D, X4, Functions, assert_same_distribution, dropout_passes, scaled

PASSES = 2000


def rates(net, x):
    return {s: round(r.item(), 6) for s, r in from_torch(net, x)[1].rates().items() if r > 0}


def unpacked(net, h):
    _, b = h.chunk(2, -1)
    return net.two(-b)


FOLLOWED = {  # several tensors: behind each the mask goes on
    "chunk": lambda n, x: n.two(n.drop(x).chunk(2, -1)[0]) + n.a(x)[:, :2],
    "the last chunk": lambda n, x: n.two(torch.chunk(n.drop(x), 2, dim=1)[-1]),
    "split": lambda n, x: n.two(n.drop(x).split(2, -1)[1]),
    "split by sizes": lambda n, x: n.two(torch.split(n.drop(x), [2, 1, 1], -1)[0]),
    "tensor_split": lambda n, x: n.two(n.drop(x).tensor_split(2, dim=-1)[0]),
    "unbind": lambda n, x: n.two(n.drop(x).unflatten(1, (2, 2)).unbind(1)[1]),
    "unpacked": lambda n, x: unpacked(n, n.drop(x)),
    "tuples of tuples": lambda n, x: n.two(n.drop(x).chunk(4, -1)[1:][0].expand(-1, 1).chunk(1, -1)[0].mT.mT),
    "getitem": lambda n, x: n.two(n.drop(x)[..., 2:]),
    "an index": lambda n, x: n.two(n.drop(x)[:, n.index]),
    "narrow": lambda n, x: n.two(n.drop(x).narrow(1, 1, 2)),
    "select": lambda n, x: n.two(n.drop(x).unflatten(1, (2, 2)).select(1, 0)),
    "flip": lambda n, x: n.a(n.drop(x).flip(1)),
    "scaled by a size": lambda n, x: n.a(n.drop(x) / x.shape[-1] ** 0.5),
}


def functions(do, **layers):
    net = Functions(do, two=nn.Linear(2, 2), **layers)
    net.register_buffer("index", torch.tensor([3, 1]))
    return scaled(net).double().eval()


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_mask_is_followed_through_several_tensors(name):
    net, x = functions(FOLLOWED[name]), torch.randn(2, 4).double()
    if name == "tuples of tuples":
        net.two = nn.Linear(1, 2).double()
    model, guide = from_torch(net, x)
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    for row in range(2):
        passes = dropout_passes(net, x, PASSES)[:, row]
        assert_same_distribution(passes, draws.reshape(PASSES, 2, -1)[:, row])


def test_parts_of_one_mask_may_be_masks_of_several_weights():
    """Their entries are independent; where they are shared it is refused."""

    def do(net, x):
        a, b = net.drop(x).chunk(2, -1)
        return net.two(a) + net.other(b)

    net, x = functions(do, other=nn.Linear(2, 2)), torch.randn(2, 4).double()
    model, guide = from_torch(net, x)
    assert {s for s, r in guide.rates().items() if r > 0} == {"two.weight", "other.weight"}
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    passes = dropout_passes(net, x, PASSES)
    for row in range(2):
        assert_same_distribution(passes[:, row], draws.reshape(PASSES, 2, -1)[:, row])
    net = functions(lambda n, x: (lambda h: n.two(h[:, :2]) + n.other(h[:, 1:3]))(n.drop(x)), other=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"feeds other.weight, two.weight at once, which share its mask"):
        from_torch(net, x)


def overwritten(net, x):
    h = net.b(x)
    return net.a(F.leaky_relu(net.drop(h), -0.5, True)) + h


REFUSED = {  # after a dropout: what is done, the input, and the name in the message
    "sort": (lambda n, x: n.a(n.drop(x).sort(-1)[0]), X4, "sort"),
    "topk": (lambda n, x: n.a(n.drop(x).topk(4, -1).values), X4, "topk"),
    "max with indices": (lambda n, x: n.a(n.drop(x).max(0)[0].expand(3, 4)), X4, "max"),
    "moments": (lambda n, x: n.a(torch.stack(torch.var_mean(n.drop(x), -1) * 2, -1)), X4, "var_mean"),
    "a number": (lambda n, x: n.a(x * n.drop(x).sum().item()), X4, "sum"),
    "joined": (lambda n, x: n.a(torch.cat(n.drop(x).chunk(2, -1), -1)), X4, "cat"),
    "all parts at once": (lambda n, x: n.a(torch.cat(n.drop(x).unflatten(1, (2, 2)).unbind(1), -1)), X4, "cat"),
    "places of data": (lambda n, x: n.a(n.drop(x)[:, x[0].argsort()]), X4, "getitem"),
    "twice an input": (lambda n, x: (lambda h: F.linear(h, n.a.weight, h[0]))(n.drop(x)), X4, r"linear|weight"),
    "input and bias": (lambda n, x: (lambda h: F.linear(h, n.a.weight, h))(n.drop(x)), X4, "followed by linear"),
    "a weight of data": (lambda n, x: F.linear(x, n.drop(x)), X4, "linear"),
    "the other argument": (lambda n, x: n.a(x.to(n.drop(x))), X4, "to"),
    "the state": (lambda n, x: n.rnn(x, n.drop(x[:, 0]).unsqueeze(0))[0], X3D, "rnn"),
    # what depends on the number of dimensions: PyTorch takes the rows for channels
    "average of rows": (lambda n, x: n.a(F.avg_pool1d(n.drop(x), 3, 1, 1)), X4, "avg_pool1d"),
    "maximum of rows": (lambda n, x: n.a(F.max_pool1d(n.drop(x), 3, 1, 1)), X4, "max_pool1d"),
    "AvgPool1d": (lambda n, x: n.a(n.pool1(n.drop(x))), X4, "takes the rows of"),
    "AdaptiveMaxPool1d": (lambda n, x: n.a(n.adaptive(n.drop(x))), X4, "AdaptiveMaxPool1d"),
    "a pool of channels": (lambda n, x: n.flat(n.pool2(n.drop1(x)).flatten(1)), X3D, "MaxPool2d"),
    "padded channels": (lambda n, x: n.flat(n.pad(n.drop1(x)).flatten(1)[:, :5]), X3D, "ZeroPad2d"),
    "unbatched convolution": (lambda n, x: n.rows(n.drop(x)), X4, "Conv1d 'rows' takes the rows"),
    "convolution function": (lambda n, x: F.conv1d(n.drop(x), n.rows.weight), X4, "conv1d .* takes the rows"),
    "unbatched recurrent": (lambda n, x: n.rnn(n.drop(x))[0], X4, "GRU 'rnn' takes the rows"),
    "indices of a pool": (
        lambda n, x: n.flat(F.max_pool1d(n.drop1(x), 1, return_indices=True)[0].flatten(1)[:, :5]),
        X3D,
        "max_pool1d",
    ),
    # what depends on arguments
    "integers": (lambda n, x: n.a(n.drop(x).to(torch.int32).float()), X4, r"to \("),
    "integers by keyword": (lambda n, x: n.a(n.drop(x).to(dtype=torch.long).float()), X4, r"to \("),
    "bits": (lambda n, x: n.a(n.drop(x).view(torch.int32).view(torch.float32)), X4, "view"),
    "rounded": (lambda n, x: n.a(torch.div(n.drop(x), 0.5, rounding_mode="floor")), X4, "div"),
    "divided by": (lambda n, x: n.a(2 / (n.drop(x) + 3)), X4, "add"),
    "hidden by a size": (lambda n, x: (lambda h: n.a(x * h.size(0) + h.norm()))(n.drop(x)), X4, "norm"),
    # what is overwritten
    "in place": (overwritten, X4, r"leaky_relu .* overwrites, in evaluation mode, what add"),
    "the data": (lambda n, x: n.a(n.drop(x).relu_()), X4, "overwrites, in evaluation mode, its input x"),
}
LAYERS = {
    "rnn": lambda: nn.GRU(4, 4, batch_first=True),
    "pool1": lambda: nn.AvgPool1d(3, 1, 1),
    "pool2": lambda: nn.MaxPool2d((1, 4)),
    "adaptive": lambda: nn.AdaptiveMaxPool1d(4),
    "pad": lambda: nn.ZeroPad2d(1),
    "rows": lambda: nn.Conv1d(3, 3, 1),
    "flat": lambda: nn.Linear(5, 2),
    "drop1": lambda: nn.Dropout1d(0.3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_mask_does_not_commute_with_is_refused_by_name(name):
    do, x, message = REFUSED[name]
    net = Functions(do, **{layer: make() for layer, make in LAYERS.items()})
    net(x.clone())
    with pytest.raises(ValueError, match=message):
        from_torch(net, x)


def test_what_asks_for_sizes_alone_is_no_use_of_the_mask():
    def do(net, x):
        h = net.drop(x)
        zeros = torch.zeros_like(h) + h.new_ones(x.size(0), h.size(1)) * h.dim() * h.shape[0]
        return net.a(h) + zeros.to(h.dtype)

    assert rates(Functions(do), X4) == {"a.weight": 0.3}


@pytest.mark.parametrize(
    ("pool", "x"),
    [
        (nn.AvgPool1d(2), X3D),
        (nn.AdaptiveAvgPool2d(2), IMAGE),
        (nn.ReplicationPad1d(1), X3D),
        (nn.CircularPad2d(1), IMAGE),
        (nn.Upsample(scale_factor=2), IMAGE),
    ],
)
def test_pools_with_the_dimensions_that_they_are_for_keep_channels(pool, x):
    drop, conv = (nn.Dropout1d(0.3), nn.Conv1d(5, 2, 1)) if x.dim() == 3 else (nn.Dropout2d(0.3), nn.Conv2d(4, 2, 1))
    net, x = scaled(nn.Sequential(drop, pool, conv)).double().eval(), torch.randn(x.shape).double()
    model, guide = from_torch(net, x)
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    passes = dropout_passes(net, x, PASSES)
    assert_same_distribution(passes[:, 0], draws.reshape(passes.shape)[:, 0])


def test_an_overwritten_tensor_that_nobody_else_reads_is_no_obstacle():
    """Nor is one that is read before."""

    def do(net, x):
        h = net.b(x)
        early = h.sum(-1, keepdim=True)
        return net.a(net.drop(h).relu_()) + early

    assert rates(Functions(do), X4) == {"a.weight": 0.3}


@pytest.mark.parametrize("path", ["drop", "act", "a"])
def test_a_hook_may_do_anything(path):
    net = Functions(lambda n, x: n.a(n.act(n.drop(x))), act=nn.ReLU())
    net.get_submodule(path).register_forward_hook(lambda layer, args, out: out + 1)
    with pytest.raises(ValueError, match=f"'{path}' has a forward hook"):
        from_torch(net, X4)
