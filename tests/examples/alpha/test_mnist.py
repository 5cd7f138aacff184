"""The α study, cut down; networks of the paper; claims from curves that are known."""

import matplotlib.image
import pyro.poutine as poutine
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from examples.alpha import mnist
from examples.alpha.networks import Network
from examples.common.arguments import settle
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path):
    found = mnist.main(["--quick", "--outputs", str(tmp_path)])
    for repeats in found["curves"].values():
        assert [[seen["epoch"] for seen in run] for run in repeats] == [[1, 2, 3]] * 2
        assert all(run[-1]["log_likelihood"] > run[0]["log_likelihood"] for run in repeats)
        assert all(run[-1]["accuracy"] > 0.5 for run in repeats)
    text = (tmp_path / "alpha_mnist_mlp_adam.md").read_text()
    assert text.startswith("mlp, 3 epochs by adam, 2 repeats")
    assert matplotlib.image.imread(tmp_path / "alpha_mnist_mlp_adam.png").std() > 0.01


def test_masks_are_on_the_inputs_of_every_linear_layer():
    """And nowhere else: the paper's convolutions have none."""
    settle(0)
    for kind, masked in (("100,100", {0, 2, 4}), ("cnn", {6, 8})):
        network = Network(kind, 0.5)
        model, guide = network.make(60_000)
        x, y = torch.zeros(2, 784) if network.flat else torch.zeros(2, 1, 28, 28), torch.tensor([0, 1])
        guide(x, y)
        assert network.loss().alpha == 0.5
        prior = poutine.trace(model).get_trace(x).nodes["net.0.weight"]["fn"].base_dist
        assert prior.scale.flatten()[0].item() == pytest.approx(0.1**-0.5)  # l² = 0.1
        rates = {name: float(rate) for name, rate in guide.rates().items() if rate > 0}
        assert rates == {f"net.{i}.weight": 0.5 for i in masked}
        with pytest.warns(UserWarning, match="rate 0 at every site"):
            Network(kind, None).make(60_000)[1](x, y)


class Convolved(TorchDispatchMode):
    """Sizes of the batches that convolutions see."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.convolution.default:
            self.sizes.append(args[0].shape[0])
        return operation(*args, **(kwargs or {}))


def test_convolutions_run_once_for_all_draws():
    settle(0)
    network = Network("cnn", 1.0)
    model, guide = network.make(60_000)
    x, y = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2])
    network.loss().loss(model, guide, x, y)  # sets up
    with Convolved() as seen:
        network.loss().loss_and_grads(model, guide, x, y)
    assert set(seen.sizes) == {3}  # not 30


def curves(accuracies, densities, points=5):
    """Of three repeats, which differ a little; the last points are flat."""
    return {
        alpha: [
            [
                {"step": 10 * p, "epoch": p, "loss": 1.0, "seconds": 1.0}
                | {"accuracy": a + 0.001 * r, "log_likelihood": d + 0.001 * r**2 * (1 + alpha)}
                for p in range(1, points + 1)
            ]
            for r in range(3)
        ]
        for alpha, a, d in zip(mnist.ALPHAS, accuracies, densities, strict=True)
    }


def test_claims_are_what_curves_say():
    published = mnist.claims(curves([0.95, 0.97, 0.96], [-0.3, -0.1, -0.1]))
    assert [line.rsplit(": ", 1)[1] for line in published] == [
        *["confirmed"] * 3,  # 0.5 more accurate than 0 and 1, as likely as 1
        *["refuted"] * 2,  # as likely and as accurate as 0
        *["confirmed"] * 4,  # 0 less accurate and less likely than both
    ]
    opposite = mnist.claims(curves([0.97, 0.95, 0.96], [-0.1, -0.3, -0.5]))
    assert [line.rsplit(": ", 1)[1] for line in opposite] == ["refuted"] * 9
    moved = curves([0.9] * 3, [-0.3] * 3)
    for repeats in moved.values():
        for run in repeats:
            run[-1]["accuracy"] += 0.01
    assert "| 0.5 | 1.000 ± 0.000 | 0.000 ± 0.000 |" in mnist.flat_table(moved)
