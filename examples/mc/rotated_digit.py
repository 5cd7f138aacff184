"""The rotated digit (MC section 5.2, figure 4): what a hundred functions say of a 1 that is turned, and of test digits.

Caffe's LeNet, trained as the authors' files have it (SGD with momentum, weight decay on weights and biases, dropout
before the last layer), becomes a dropout posterior; its functions see each 1 of the test set at twelve angles from 0 to
165 degrees, turned both ways. The paper shows one digit and does not say which, so that each claim is a share of all.

Training goes on from its last checkpoint. ``python -m examples.mc.rotated_digit --help``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import rotate
from torch import Tensor, nn
from tqdm import tqdm

from examples.common.arguments import add_outputs, add_seed, count, parsed, script, settle
from examples.common.data import load_mnist
from examples.common.results import whole
from examples.mc.rotated_digit_tables import angles_table, claims_table, draw, measures_table, referral_table
from models.classification import caffe_lenet
from pyro_dropout import DropoutPredictive, from_torch
from pyro_dropout.metrics import (
    expected_entropy,
    least_confidence,
    mutual_information,
    predictive_entropy,
    predictive_log_likelihood,
    variation_ratio,
)

ANGLES = np.arange(12) * 15.0
BATCH, DECAY, MOMENTUM, EVERY = 64, 5e-4, 0.9, 1000
AT_ONCE = 2000  # images whose functions are in memory together
OVERLAP, WIDE, SURE, MODES = 0.0, 0.9, 0.9, 5 / 9  # of claims 2 to 5; a uniform's bimodality coefficient


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = script("mc.rotated_digit", __doc__)
    parser.add_argument("--steps", type=count, default=100_000, help="of training (default 100,000)")
    parser.add_argument("--draws", type=count, default=100, help="functions (default 100)")
    parser.add_argument("--digits", type=count, default=1135, help="test ones to turn (default all 1,135)")
    parser.add_argument("--test-images", type=count, default=10_000, help="(default all)")
    add_seed(parser)
    add_outputs(parser, default="outputs/rotated_digit")
    return parsed(parser, arguments, {"steps": 300, "draws": 8, "digits": 10, "test_images": 200})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = options_of(arguments)
    settle(options.seed)
    x, y = images("test")
    net = trained(options)
    predict = posterior(net, x[:2], options)
    ones = x[y == 1][: options.digits]
    claims = {turn: claims_of(*turned(predict, net, ones, sign)) for turn, sign in (("left", 1), ("right", -1))}
    found = {"claims": claims, "test": test_scores(predict, net, x[: options.test_images], y[: options.test_images])}
    shown = next(iter(np.flatnonzero(claims["left"]["all three"])), 0)
    inputs, _ = turned(predict, net, ones[shown : shown + 1], 1)
    picture = draw(turn(ones[shown], 1), inputs[:, 0], ANGLES, options.outputs / "rotated_digit.png")
    tables = [claims_table(claims), angles_table(claims, ANGLES), measures_table(found["test"])]
    text = "\n\n".join([*tables, referral_table(found["test"])])
    print(f"\n{text}\n")
    with whole(options.outputs / "rotated_digit.md") as file:
        file.write_text(f"{options.steps:,} steps, {options.draws} functions, digit {shown} shown\n\n{text}\n")
    for path in (options.outputs / "rotated_digit.md", picture):
        print(f"written to {path}")
    return found


# Training


def images(part: str) -> tuple[Tensor, Tensor]:
    """Pixels divided by 256, as the authors' files have it."""
    x, y = (torch.from_numpy(array) for array in load_mnist(part))
    return x.unsqueeze(1) / 256, y.long()


def trained(options: argparse.Namespace) -> nn.Module:
    """The network after so many steps, from a checkpoint on where there is one."""
    net, path = caffe_lenet(), options.outputs / f"lenet-seed-{options.seed}.pt"
    optimiser = torch.optim.SGD(
        [
            {"params": [p for name, p in net.named_parameters() if name.endswith(kind)], "twice": kind == "bias"}
            for kind in ("weight", "bias")
        ],
        lr=0.01,
        momentum=MOMENTUM,
        weight_decay=DECAY,
    )
    done = load(path, net, optimiser, options.steps)
    rows = batches(60_000, options.seed, done)
    x, y = images("train") if done < options.steps else (torch.empty(0), torch.empty(0))
    for step in tqdm(range(done, options.steps), initial=done, total=options.steps, desc="training", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = (0.02 if group["twice"] else 0.01) * (1 + 1e-4 * step) ** -0.75
        batch = next(rows)
        optimiser.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        optimiser.step()
        if (step + 1) % EVERY == 0 or step + 1 == options.steps:
            save(path, net, optimiser, step + 1)
    return net.eval()


def batches(number: int, seed: int, done: int) -> Iterator[Tensor]:
    """Rows of each step, which only the seed and the step decide."""
    step = done
    while True:
        yield torch.randint(number, (BATCH,), generator=torch.Generator().manual_seed(seed * 10**7 + step))
        step += 1


def save(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "rng": torch.get_rng_state()}
    with whole(path) as file:
        torch.save(state, file)


def load(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> int:
    """Steps that a checkpoint has; one that has more than are asked for is of another run and is not taken."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["step"] > steps:
        print(f"{path} has {state['step']:,} steps, more than {steps:,}: training starts anew")
        return 0
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def posterior(net: nn.Module, example: Tensor, options: argparse.Namespace) -> DropoutPredictive:
    """The network's dropout posterior (MC eq. 12), as functions that are the same for all images."""
    module, guide = from_torch(net, example, weight_decay=DECAY, size=60_000)
    predict = DropoutPredictive(
        module, guide=guide, num_samples=options.draws, return_sites=["_RETURN"], seed=options.seed
    )
    return predict.draw(example)


# Turned digits


def turn(digit: Tensor, sign: int) -> Tensor:
    """A digit at all angles, ``[angles, 1, 28, 28]``: bilinear, with zeros from outside."""
    turned = [rotate(digit[0].numpy(), sign * angle, reshape=False, order=1) for angle in ANGLES]
    return torch.from_numpy(np.stack(turned)).unsqueeze(1)


def softmax_inputs(predict: DropoutPredictive, x: Tensor) -> Tensor:
    """Of each function, ``[draws, images, classes]``."""
    return torch.cat([predict(part)["_RETURN"].reshape(-1, len(part), 10) for part in x.split(AT_ONCE)], 1)


def turned(predict: DropoutPredictive, net: nn.Module, ones: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Softmax inputs of all functions ``[draws, digits, angles, classes]``, and of the mean network."""
    x = torch.cat([turn(one, sign) for one in ones])
    inputs = softmax_inputs(predict, x).unflatten(1, (len(ones), -1))
    with torch.no_grad():
        mean = torch.cat([net(part) for part in x.split(AT_ONCE)]).unflatten(0, (len(ones), -1))
    return inputs, mean


def claims_of(inputs: Tensor, mean_inputs: Tensor) -> dict[str, np.ndarray]:
    """Whether each digit shows what the paper says, and its measures by angle."""
    outputs = inputs.softmax(-1)
    mean = outputs.mean(0)  # [digits, angles, classes]
    predicted = mean.argmax(-1)
    is_other = (predicted != 1) & (predicted != 7)
    other_before = is_other.cumsum(1) > 0
    one = (predicted[:, 0] == 1) & ((predicted == 7) & other_before).any(1)
    top = inputs.mean(0).argmax(-1, keepdim=True)
    own = inputs.gather(-1, top.expand(len(inputs), *top.shape)).squeeze(-1)  # of the class with the largest mean
    others = inputs.scatter(-1, top.expand(len(inputs), *top.shape), -torch.inf).amax(-1)
    crosses = own.amin(0) - others.amax(0) < OVERLAP
    share = outputs.gather(-1, top.expand(len(inputs), *top.shape)).squeeze(-1)
    wide = share.amax(0) - share.amin(0) > WIDE
    sure = mean_inputs.softmax(-1).amax(-1) > SURE
    two = ~crosses[:, 0] & crosses[:, 1:].any(1)
    three = wide[:, 1:].any(1)
    labels = torch.distributions.Categorical(outputs).sample()
    return {
        "1": one.numpy(),
        "2": two.numpy(),
        "3": three.numpy(),
        "3, where the mean network is sure": (wide & sure)[:, 1:].any(1).numpy(),
        "all three": (one & two & three).numpy(),
        "4": (bimodality(own) < MODES).float().mean(1).numpy(),
        "5": ((predicted != 1) & (mean.amax(-1) > SURE)).any(1).numpy(),
        "5, of a 7": (mean[..., 7] > SURE).any(1).numpy(),
        "variation ratio": variation_ratio(labels).numpy(),
        "predictive entropy": predictive_entropy(outputs).numpy(),
        "mutual information": mutual_information(outputs).numpy(),
        "expected entropy": expected_entropy(outputs).numpy(),
        "predicted": predicted.numpy(),
    }


def bimodality(values: Tensor) -> Tensor:
    """Sarle's coefficient over draws, (skewness² + 1) / kurtosis: a normal's is 1/3, a uniform's 5/9."""
    z = (values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-12)
    return (z.pow(3).mean(0).square() + 1) / z.pow(4).mean(0).clamp_min(1e-12)


# Test images


def test_scores(predict: DropoutPredictive, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """Of each image: errors and log-likelihoods of both averages, and all measures."""
    inputs = softmax_inputs(predict, x)
    with torch.no_grad():
        mean_inputs = torch.cat([net(part) for part in x.split(AT_ONCE)])
    outputs, rows = inputs.softmax(-1), torch.arange(len(y))
    mean = outputs.mean(0)
    labels = torch.distributions.Categorical(outputs).sample()
    return {
        "error": (mean.argmax(-1) != y).numpy(),
        "error, weights averaged": (mean_inputs.argmax(-1) != y).numpy(),
        "log-likelihood": predictive_log_likelihood(inputs.log_softmax(-1)[:, rows, y]).numpy(),
        "log-likelihood, weights averaged": mean_inputs.log_softmax(-1)[rows, y].numpy(),
        "variation ratio": variation_ratio(labels).numpy(),
        "predictive entropy": predictive_entropy(outputs).numpy(),
        "mutual information": mutual_information(outputs).numpy(),
        "expected entropy": expected_entropy(outputs).numpy(),
        "1 - largest mean": least_confidence(outputs).numpy(),
    }


if __name__ == "__main__":
    main()
