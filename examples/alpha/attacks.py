"""Adversarial images of dropout networks (BBα section 5.3, figures 6 and 7), and whether uncertainty finds them.

Three hidden layers of 1,000 units with dropout of rate 0.5 before every layer, at α = 0, 0.5 and 1, and the same
network without dropout. Two attacks on test images, both along the sign of a gradient: one step away from the label
that is predicted (Goodfellow et al. 2015), and a hundred small ones towards class 0 (Kurakin et al. 2016).

Masks are drawn anew for each gradient and each prediction, so that an attack sees the predictive distribution through
noise, and noise alone can make an attack fail (Athalye et al. 2018). Two attacks beside it do not have this: on the
*same* functions at each call, which then predict too, and along the gradient of the mean network, whose images are then
predicted by drawn functions.

Libraries of attacks take a network in evaluation mode, one function; through a predictive distribution of several an
attack is ten lines (``gradient_sign``).

Training goes on from its last state, and what was measured of a network is not computed again.
``python -m examples.alpha.attacks --help``
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from examples.alpha.attacks_claims import claims
from examples.alpha.attacks_tables import curves, pictures, tables
from examples.alpha.gradient_sign import Functions, drawn_anew, drawn_once, iterated, mean_network, predictive, step
from examples.alpha.networks import EPOCH, Network
from examples.common.arguments import add_backend, add_outputs, count, parsed, script, settle
from examples.common.engines import add_engine, spread
from examples.common.fits import Data, Fitted, Recipe, digits, scores, softmax_inputs
from examples.common.results import kept, whole
from pyro_dropout.metrics import mutual_information, predictive_entropy

NETWORKS = (None, 0.0, 0.5, 1.0)  # α, None without dropout
STRENGTHS = [0.05 * i for i in range(11)]  # of one step
SIZE, TARGET = 0.01, 0  # of one of many
STEPS = [0, 1, 2, 5, *range(10, 101, 10)]  # after which they are looked at
AT_ONCE = 250  # images that have drawn functions in common


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = script("alpha.attacks", __doc__)
    parser.add_argument("--epochs", type=count, default=20, help="of training (default 20)")
    parser.add_argument("--repeats", type=count, default=2, help="networks of each kind (default 2)")
    parser.add_argument("--width", type=count, default=1000, help="of hidden layers (default 1,000)")
    parser.add_argument("--images", type=count, default=60_000, help="of training (default all 60,000)")
    parser.add_argument("--test-images", type=count, default=1000, help="to attack (default 1,000)")
    parser.add_argument("--draws", type=count, default=10, help="of a gradient and of a prediction (default 10)")
    parser.add_argument("--processes", type=count, default=1, help="that share the networks (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/alpha_attacks")
    quick = {"epochs": 6, "repeats": 1, "width": 40, "images": 2560, "test_images": 60, "backend": "eager"}
    return parsed(parser, arguments, quick)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    options = options_of(arguments)
    tasks = [(alpha, seed) for seed in range(options.repeats) for alpha in NETWORKS]
    found = spread(attacked, tasks, options)
    text = f"{tables(found)}\n\n{claims(found)}"
    print(f"\n{text}\n")
    with whole(options.outputs / "attacks.md") as file:
        file.write_text(text + "\n")
    drawn = [curves(found, options.outputs / "attacks.png"), *pictures(found, options.outputs)]
    for path in (options.outputs / "attacks.md", *drawn):
        print(f"written to {path}")
    return found


def trained(alpha: float | None, seed: int, options: argparse.Namespace) -> Fitted:
    """One network."""
    settle(seed)
    x, y = digits("train")
    train = x[: options.images], y[: options.images]
    epoch = max(1, min(EPOCH, options.images // 128))
    recipe = Recipe(options.epochs * epoch, seed=seed, backend=options.backend)

    network = Network(f"{options.width},{options.width},{options.width}", alpha)
    return network.trained(train, recipe, options.outputs)


# What attacks do


def attacked(alpha: float | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured of one network."""
    fit = trained(alpha, seed, options)
    images, draws = options.test_images, options.draws if alpha is not None else 1
    settings = {"alpha": alpha, "seed": seed, "width": options.width, "epochs": options.epochs, "draws": draws}
    settings |= {"train": options.images, "images": images, "strengths": STRENGTHS, "steps": STEPS, "of": "log odds"}

    def compute() -> dict[str, Any]:
        x, y = digits("test")
        any_digit, no_zero = (x[:images], y[:images]), (x[y != TARGET][:images], y[y != TARGET][:images])
        kinds = attacks_on(fit, draws, alpha is None)
        seven = int((no_zero[1] == 7).nonzero()[0])
        return {
            "alpha": alpha,
            "test": scores(softmax_inputs(fit.model, fit.guide, x, draws), y),
            "untargeted": {kind: untargeted(*pair, any_digit) for kind, pair in kinds.items()},
            "targeted": {kind: targeted(*pair, no_zero, seven) for kind, pair in kinds.items()},
        }

    name = "none" if alpha is None else f"{alpha:g}"
    return kept(options.outputs / f"attacks-alpha-{name}-seed-{seed}.json", settings, compute)


def attacks_on(fit: Fitted, draws: int, without_dropout: bool) -> dict[str, tuple[Functions, Functions]]:
    """By kind: what gradients go through, and what predicts."""
    model, guide = fit.model, fit.guide
    mean = mean_network(model, guide)
    if without_dropout:
        return {"new draws": (mean, mean)}
    anew, once = drawn_anew(model, guide, draws), drawn_once(model, guide, draws)
    return {"new draws": (anew, anew), "same draws": (once, once), "mean network": (mean, anew)}


def untargeted(through: Functions, predict: Functions, data: Data) -> list[dict[str, Any]]:
    """By strength of one step."""
    x, y = data
    seven = int((y == 7).nonzero()[0])
    found = []
    for strength in STRENGTHS:
        attacked = parts(lambda part, size=strength: step(through, part, size), x)
        shown = attacked[seven].mul(255).byte().tolist()
        found.append({"strength": strength, **measured(predict, attacked, y), "shown": seven, "image": shown})
    return found


def targeted(through: Functions, predict: Functions, data: Data, seven: int) -> list[dict[str, Any]]:
    """By number of small steps, with how far the images are from a training image of the target class."""
    x, y = data
    train, labels = digits("train")
    zeros = train[labels == TARGET]
    found = []
    paths = [iterated(through, part, SIZE, TARGET, STEPS[-1]) for part in x.split(AT_ONCE)]
    for number in range(STEPS[-1] + 1):
        now = torch.cat([next(path) for path in paths]) if number else x
        if number in STEPS:
            nearest = torch.cdist(now, zeros).amin(1).tolist()
            shown = now[seven].mul(255).byte().tolist()
            found.append(
                {"step": number, **measured(predict, now, y), "nearest": nearest, "shown": seven, "image": shown}
            )
    return found


def parts(function: Any, x: Tensor) -> Tensor:
    """Some images at a time, so that not all have the functions in common."""
    return torch.cat([function(part) for part in x.split(AT_ONCE)])


@torch.no_grad()
def measured(predict: Functions, x: Tensor, y: Tensor) -> dict[str, list[Any]]:
    """Of each image."""
    log_probs = torch.cat([predict(part) for part in x.split(AT_ONCE)], 1)
    mean = predictive(log_probs)
    return {
        "right": (mean.argmax(-1) == y).tolist(),
        "target": (mean.argmax(-1) == TARGET).tolist(),
        "confidence": mean.amax(-1).exp().tolist(),
        "entropy": predictive_entropy(log_probs.exp()).tolist(),
        "information": mutual_information(log_probs.exp()).tolist(),
    }


if __name__ == "__main__":
    main()
