"""The rotated digit, cut down: claims from inputs that are known, training that goes on, what is written."""

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from examples.mc import rotated_digit
from examples.mc.rotated_digit import ANGLES, bimodality, claims_of, trained, turn
from models.classification import caffe_lenet
from tests.examples.staged import staged

CUT = ["--quick", "--steps", "30", "--digits", "4", "--test-images", "60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("rotated") / "made when missing"
    arguments = [*CUT, "--outputs", str(outputs)]
    return rotated_digit.main(arguments), outputs, arguments


@staged
def test_what_is_found_and_written(run):
    found, outputs, _ = run
    for claims in found["claims"].values():
        assert claims["predicted"].shape == claims["mutual information"].shape == (4, 12)
        assert claims["1"].shape == claims["4"].shape == (4,)
        assert (claims["mutual information"] >= -1e-6).all()
    assert all(len(values) == 60 for values in found["test"].values())
    assert found["test"]["error"].mean() < 0.6  # a tenth would be right by chance
    text = (outputs / "rotated_digit.md").read_text()
    assert text.startswith("30 steps, 8 functions")
    assert matplotlib.image.imread(outputs / "rotated_digit.png").std() > 0.01


@staged
def test_training_goes_on_where_it_was_interrupted(run, tmp_path, monkeypatch):
    """Bit by bit; one that is complete is read, one of more steps is not taken."""
    options = rotated_digit.options_of(run[2])
    whole = trained(options)
    options.outputs = tmp_path
    monkeypatch.setattr(rotated_digit, "EVERY", 10)
    save = rotated_digit.save

    def interrupted(path, net, optimiser, step):
        save(path, net, optimiser, step)
        if step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(rotated_digit, "save", interrupted)
    rotated_digit.settle(0)
    with pytest.raises(KeyboardInterrupt):
        trained(options)
    monkeypatch.setattr(rotated_digit, "save", save)
    resumed = trained(options)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    options.steps = 5
    assert any((a != b).any() for a, b in zip(trained(options).parameters(), whole.parameters(), strict=True))


@staged
def test_steps_are_the_authors(tmp_path):
    """By hand: momentum 0.9, weight decay on all, a rate that falls by the inverse law, twice that for biases."""
    options = rotated_digit.options_of([*CUT, "--outputs", str(tmp_path), "--steps", "40"])
    rotated_digit.settle(0)
    net = caffe_lenet()
    x, y = rotated_digit.images("train")
    moments = [torch.zeros_like(p) for p in net.parameters()]
    for step in range(40):
        rows = torch.randint(60_000, (64,), generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, v, g in zip(net.parameters(), moments, gradients, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p)
                p -= (0.01 if p.dim() > 1 else 0.02) / (1 + 0.0001 * step) ** 0.75 * v
    rotated_digit.settle(0)
    for found, expected in zip(trained(options).parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_network_is_caffes():
    """Caffe's LeNet: 0.43 million weights, no non-linearity after convolutions, dropout before the last layer."""
    net = caffe_lenet()
    assert sum(p.numel() for p in net.parameters() if p.dim() > 1) == 430_500
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert net[7].p == 0.5
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


def test_digits_are_turned_by_equal_steps():
    digit = torch.zeros(1, 28, 28)
    digit[0, 4:24, 13:15] = 1
    left, right = turn(digit, 1), turn(digit, -1)
    assert left.shape == (12, 1, 28, 28)
    assert torch.equal(left[0], digit)
    torch.testing.assert_close(left[6, 0], digit[0].rot90(1), atol=1e-5, rtol=0)  # a quarter
    torch.testing.assert_close(left, right.flip(-1), atol=1e-4, rtol=0)  # as the digit is symmetric
    assert len(ANGLES) == 12
    assert ANGLES[-1] == 165


def inputs_of(classes, spread, gap=10.0):
    """Softmax inputs ``[draws, 1, angles, 10]``: a class leads by a gap, functions differ by a spread."""
    x = torch.zeros(40, 1, 12, 10)
    noise = torch.linspace(-1, 1, 40)
    for i, (c, s) in enumerate(zip(classes, spread, strict=True)):
        x[:, 0, i, c] = gap + s * noise
    return x


def test_claims_are_what_inputs_say():
    course = [1] * 5 + [5] * 2 + [7] * 5
    quiet, wide = [0.1] * 12, [0.1] * 5 + [16.0] * 2 + [0.1] * 5
    shows = claims_of(inputs_of(course, wide), inputs_of(course, wide)[0])
    assert all(shows[c].item() for c in ("1", "2", "3", "all three", "5", "5, of a 7"))
    assert shows["3, where the mean network is sure"].item() == bool(
        inputs_of(course, wide)[0][0, 5].softmax(-1).max() > 0.9
    )
    assert (shows["predicted"] == course).all()
    calm = claims_of(inputs_of(course, quiet), inputs_of(course, quiet)[0])
    assert calm["1"].item()
    assert not any(calm[c].item() for c in ("2", "3", "all three"))
    back = claims_of(inputs_of([1] * 5 + [7] * 7, wide), inputs_of(course, wide)[0])
    assert not back["1"].item()  # no other class between
    last = claims_of(inputs_of([1] * 12, wide), inputs_of(course, wide)[0])
    assert not last["5"].item()
    unsure = claims_of(inputs_of(course, [16.0] * 12), inputs_of(course, wide)[0])
    assert not unsure["2"].item()  # at the first image they are not apart


def test_bimodality_of_known_distributions():
    torch.manual_seed(0)
    values = torch.stack([torch.randn(200_000), torch.rand(200_000), torch.randint(2, (200_000,)) * 2.0 - 1], 1)
    np.testing.assert_allclose(bimodality(values).numpy(), [1 / 3, 5 / 9, 1.0], atol=0.01)
