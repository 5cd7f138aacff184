"""What people do with a classifier's uncertainty next: images referred, other images found, probabilities mended, sets.

Networks of ``rates_mnist`` (three hidden layers of 512 units, 50,000 images): without dropout, with fixed rates, with
learned ones; predicted by draws together or by the mean network.

============ =========================================================================================================
referral     risk against coverage: the error of the others where the most uncertain images are given to a person
other images AUROC of test digits against photographs in grey (CIFAR-10), and digits (no 0, no 8) by a quarter turn
temperature  fitted on 5,000 held-out images: log-likelihood and calibration error of test images before and after
sets         split-conformal, from 5,000 other held-out images: coverage, size and emptiness on test images
============ =========================================================================================================

``python -m examples.concrete.decisions --help``
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from examples.common.arguments import add_backend, add_outputs, count, parsed, script
from examples.common.data import load_cifar10
from examples.common.fits import mean_inputs, scores, softmax_inputs
from examples.common.results import whole
from examples.concrete.rates_mnist_runs import Run, parts, trained
from pyro_dropout.calibration import conformal_threshold, fit_temperature
from pyro_dropout.metrics import least_confidence, mutual_information, predictive_entropy, risk_coverage

NETWORKS = {"no dropout": Run(fixed=(0.0, 0.0)), "fixed rates": Run(fixed=(0.2, 0.5)), "learned rates": Run()}
BINS, COVERAGES, REFERRED = 15, (0.9, 0.99, 0.999), (0.0, 0.01, 0.02, 0.05)
OTHER = ("photographs", "turned digits")

Data = dict[str, tuple[Tensor, Tensor]]  # by part images and labels
Inputs = dict[str, Tensor]  # by part softmax inputs [draws, N, classes]


def main(arguments: list[str] | None = None) -> str:
    parser = script("concrete.decisions", __doc__)
    parser.add_argument("--epochs", type=count, default=100, help="of 50,000 images (default 100)")
    parser.add_argument("--draws", type=count, default=50, help="of a prediction (default 50)")
    parser.add_argument("--test-images", type=count, default=10_000, help="of each kind at most (default all)")
    add_backend(parser)
    add_outputs(parser, default="outputs/rates_mnist")  # where the networks are
    options = parsed(parser, arguments, {"epochs": 1, "draws": 5, "test_images": 300, "backend": "eager"})
    data = images(options.test_images)
    inputs = {}
    for name, run in NETWORKS.items():
        for way, found in predicted(run, data, options).items():
            inputs[f"{name}, {way}" if run.fixed != (0.0, 0.0) else name] = found
    tables = [
        referral_table(inputs, data),
        others_table(inputs),
        temperature_table(inputs, data),
        sets_table(inputs, data),
    ]
    text = "\n\n".join(tables)
    print(f"\n{text}\n")
    path = options.outputs / "decisions.md"
    with whole(path) as file:
        file.write_text(text + "\n")
    print(f"written to {path}")
    return text


def images(number: int) -> Data:
    """Two halves of the held-out images, test images, and images of no digit."""
    _, (x, y), test = parts(Run(), 10_000)
    photographs = torch.from_numpy(load_cifar10("held-out").x[:number]).float().mean(-1) / 255
    grey = F.interpolate(photographs.unsqueeze(1), (28, 28), mode="bilinear", antialias=True).flatten(1)
    other = test[0][(test[1] != 0) & (test[1] != 8)]  # which a quarter turn leaves what they are
    turned = other[:number].unflatten(1, (28, 28)).rot90(1, (-2, -1)).flatten(1)
    nothing = torch.zeros(0, dtype=torch.long)
    return {
        "temperature": (x[:5000], y[:5000]),
        "sets": (x[5000:], y[5000:]),
        "test": (test[0][:number], test[1][:number]),
        "photographs": (grey, nothing),
        "turned digits": (turned, nothing),
    }


def predicted(run: Run, data: Data, options: argparse.Namespace) -> dict[str, Inputs]:
    """By way of predicting."""
    model, guide, _ = trained(run, options)
    found = {"mean": {part: mean_inputs(model, guide, x) for part, (x, _) in data.items()}}
    if run.fixed != (0.0, 0.0):
        found["draws"] = {part: softmax_inputs(model, guide, x, options.draws) for part, (x, _) in data.items()}
    return found


def measures(inputs: Tensor) -> dict[str, Tensor]:
    """What is large where a label is uncertain, with enough digits to order those that are certain."""
    probs = inputs.double().softmax(-1)
    found = {"entropy": predictive_entropy(probs), "1 - largest": least_confidence(probs)}
    return {**found, "mutual information": mutual_information(probs)} if len(inputs) > 1 else found


def referral_table(inputs: dict[str, Inputs], data: Data) -> str:
    shares = " | ".join(f"{100 * share:g} %" for share in REFERRED)
    lines = ["Error in % of test images kept, by the share that is referred; mean over all shares (AURC) in %", ""]
    lines += [f"| network | measure | {shares} | AURC |", "| --- " * (3 + len(REFERRED)) + "|"]
    for name, found in inputs.items():
        wrong = found["test"].softmax(-1).mean(0).argmax(-1) != data["test"][1]
        for measure, values in measures(found["test"]).items():
            curve = risk_coverage(values, wrong)
            kept = [round((1 - share) * len(wrong)) - 1 for share in REFERRED]
            cells = [f"{100 * curve.risk[k]:.2f}" for k in kept]
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} | {100 * curve.area:.4f} |")
    return "\n".join(lines)


def others_table(inputs: dict[str, Inputs]) -> str:
    lines = ["AUROC of images of no digit against test digits", "", f"| network | measure | {' | '.join(OTHER)} |"]
    lines += ["| --- " * 4 + "|"]
    for name, found in inputs.items():
        inside = measures(found["test"])
        for measure, values in inside.items():
            cells = [f"{auroc(values, measures(found[part])[measure]):.4f}" for part in OTHER]
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def auroc(inside: Tensor, outside: Tensor) -> float:
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    return float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


def temperature_table(inputs: dict[str, Inputs], data: Data) -> str:
    lines = [f"Test images before and after a temperature; calibration error (ECE, {BINS} bins) in %", ""]
    lines += ["| network | temperature | accuracy in % | log-likelihood | ECE |", "| --- " * 5 + "|"]
    y = data["test"][1]
    for name, found in inputs.items():
        temperature = fit_temperature(found["temperature"], data["temperature"][1])
        pair = (found["test"], found["test"] / temperature)
        judged = [scores(each, y) for each in pair]
        errors = [multiclass_calibration_error(e.softmax(-1).mean(0), y, 10, BINS).item() for e in pair]
        accuracy = ", ".join(f"{100 * each['accuracy']:.2f}" for each in judged)
        density = ", ".join(f"{each['log_likelihood']:.4f}" for each in judged)
        ece = ", ".join(f"{100 * error:.2f}" for error in errors)
        lines.append(f"| {name} | {temperature:.3f} | {accuracy} | {density} | {ece} |")
    return "\n".join(lines)


def sets_table(inputs: dict[str, Inputs], data: Data) -> str:
    lines = [
        "Split-conformal sets of test images: coverage in % ± standard error, mean number of labels, share of empty",
        "",
    ]
    lines += [f"| network | {' | '.join(f'asked: {100 * each:g} %' for each in COVERAGES)} |"]
    lines += ["| --- " * (1 + len(COVERAGES)) + "|"]
    y = data["test"][1]
    for name, found in inputs.items():
        cells = []
        for coverage in COVERAGES:
            # In single precision many are 1, and sets with the same threshold hold more than they must.
            held_out, test = (found[part].double().softmax(-1) for part in ("sets", "test"))
            threshold = conformal_threshold(held_out, data["sets"][1], coverage)
            sets = test.mean(0) >= threshold
            held = sets[torch.arange(len(y)), y].double().mean().item()
            error = (coverage * (1 - coverage) * (1 / len(y) + 1 / len(data["sets"][1]))) ** 0.5  # both random
            size, empty = sets.sum(-1).double().mean(), (~sets.any(-1)).double().mean()
            cells.append(f"{100 * held:.2f} ± {100 * error:.2f}, {size:.2f}, {100 * empty:.1f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
