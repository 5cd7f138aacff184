"""Digits, some held out of training: which measure of uncertainty tells them from known ones (``posterior_checks``)?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import Predictive
from sklearn.metrics import roc_auc_score
from torch import Tensor

from examples.common.arviz_versions import leave_one_out
from examples.common.data import load_mnist
from examples.common.pictures import panels, save
from examples.start.checks import Table, compare, loo_summary, optional
from examples.start.posterior_fits import fit
from examples.start.posterior_tables import report
from models.classification import Classification, lenet
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, from_pyro_svi
from pyro_dropout.metrics import expected_entropy, mutual_information, pavpu, predictive_entropy, variation_ratio

IMAGES, BATCH, TEST_IMAGES, LOO_IMAGES, MOST_DRAWS = 10_000, 100, 1000, 500, 100


@dataclass(frozen=True)
class ClassificationResults:
    """``auroc`` says how well a measure of uncertainty tells held-out classes from known ones."""

    scores: Table
    auroc: Table
    loo: Table
    comparison: Any


def load_digits(part: str, images: int, held_out: list[int]) -> tuple[Tensor, Tensor]:
    """Random images and labels: known classes are counted from 0, held-out ones are -1 and not for training."""
    x, y = (torch.from_numpy(array) for array in load_mnist(part))
    known = torch.tensor([c for c in range(10) if c not in held_out])
    labels = torch.full((10,), -1)
    labels[known] = torch.arange(len(known))
    y = labels[y.long()]
    rows = (y >= 0).nonzero().squeeze(1) if part == "train" else torch.arange(len(y))
    rows = rows[torch.randperm(len(rows))[:images]]
    return x[rows].unsqueeze(1) / 255, y[rows]


def classification_guides(model: Callable) -> dict[str, Callable]:
    """The image itself, the one channel that the first convolution has, is never dropped."""

    def rate(site: str) -> float:
        return 0.0 if site == "net.0.weight" else 0.1

    return {"rate 0.1": AutoBernoulliDropout(model, rate), "Concrete": AutoConcreteDropout(model, rate)}


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        rows = torch.randint(len(x), (BATCH,))
        yield x[rows], y[rows]


def uncertainties(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each image; mutual information is the part of the entropy that is about the weights."""
    return {
        "entropy": predictive_entropy(drawn["probs"]),
        "expected entropy": expected_entropy(drawn["probs"]),
        "mutual information": mutual_information(drawn["probs"]),
        "variation ratio": variation_ratio(drawn["obs"]),
    }


def score_classes(probs: Tensor, y: Tensor, entropy: Tensor) -> dict[str, float]:
    """Of test images of known classes, from draws of the classes' probabilities."""
    mean = probs.mean(0)
    correct = mean.argmax(-1) == y
    scores = {
        "accuracy": correct.float().mean().item(),
        "log-likelihood": mean.gather(-1, y.unsqueeze(-1)).log().mean().item(),
        "PAvPU": pavpu(entropy, correct).item(),  # at the mean entropy
    }
    metrics = optional("torchmetrics.functional.classification", "the calibration of classes", "torchmetrics")
    if metrics is not None:
        error = metrics.multiclass_calibration_error(mean, y, num_classes=probs.shape[-1], norm="l2")
        scores["calibration"] = error.item()
    return scores


def run_classification(args: argparse.Namespace) -> tuple[ClassificationResults, list[Path]]:
    pyro.set_rng_seed(args.seed)
    x, y = load_digits("train", IMAGES, args.held_out)
    x_test, y_test = load_digits("test", TEST_IMAGES, args.held_out)
    known, draws = y_test >= 0, min(args.draws, MOST_DRAWS)
    model = Classification(lenet(classes=10 - len(args.held_out), width=8), size=len(x))
    scores, auroc, loos, found = {}, {}, {}, {}
    for name, guide in classification_guides(model).items():
        done = fit(model, guide, batches(x, y), args, f"digits, {name}")
        drawn = Predictive(model, guide=guide, num_samples=draws, parallel=True)(x_test)
        drawn = {"probs": drawn["probs"].squeeze(1), "obs": drawn["obs"]}
        found[name] = uncertainties(drawn)
        auroc[name] = {measure: float(roc_auc_score(~known, value)) for measure, value in found[name].items()}
        scores[name] = score_classes(drawn["probs"][:, known], y_test[known], found[name]["entropy"][known])
        part = x[:LOO_IMAGES], y[:LOO_IMAGES]
        loos[name] = leave_one_out(from_pyro_svi(done, model_args=part, num_samples=draws))
    loo = {name: loo_summary(estimate) for name, estimate in loos.items()}
    results = ClassificationResults(scores, auroc, loo, compare(loos))
    report(results)
    picture = args.outputs / "posterior_checks_classes.png"
    figure = plot_classes(found["Concrete"], known, auroc["Concrete"], args.held_out)
    return results, [save(figure, picture, dpi=110)]


def plot_classes(found: dict[str, Tensor], known: Tensor, auroc: dict[str, float], held_out: list[int]) -> plt.Figure:
    """Entropy and mutual information of images of known and of held-out classes."""
    figure, (axes,) = panels(1, 2, 12, 4.5, sharey=True)
    for axis, measure in zip(axes, ("entropy", "mutual information"), strict=True):
        edges = np.linspace(0, found[measure].max().item(), 40)
        for rows, label in ((known, "known classes"), (~known, f"held-out classes {', '.join(map(str, held_out))}")):
            axis.hist(found[measure][rows], edges, density=True, alpha=0.6, label=label)
        axis.set(title=f"{measure}: AUROC {auroc[measure]:.3f}", xlabel="nats", yscale="log")
    axes[0].set_ylabel("density of test images")
    axes[0].legend()
    return figure
