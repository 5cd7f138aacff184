"""What ``cifar`` trains: one convolutional part, then heads of its features with one kind of dropout each."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.common.arguments import settle
from examples.common.data import load_cifar10
from examples.common.fits import Data, Recipe, fitted, mean_inputs, named_by, scores, softmax_inputs
from examples.common.results import whole
from models.classification import Classification
from models.regression import mlp
from models.vision import vgg_features
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO
from pyro_dropout.metrics import predictive_entropy

RATE, BATCH = 0.5, 100
CONVOLUTIONAL = 10_000  # training images that the convolutional part has seen; heads learn from the others
VALIDATION = 2000  # of the held-out images; the others and the test images judge


class Method(NamedTuple):
    """How units of the head are dropped.

    :param learned: what learns rates: ``"concrete"`` or ``"hard"`` masks.
    :param each: what has a rate: ``"layer"``, ``"unit"`` or ``"network"``.
    """

    rate: float = RATE
    learned: str | None = None
    each: str = "layer"

    def guide(self, model: Any) -> Any:
        def rate(mask: str) -> float:  # after each of the hidden layers; features themselves are not dropped
            return 0.0 if mask == "net.0.weight" else self.rate

        ways = {"per_unit": self.each == "unit", "shared": self.each == "network"}
        if self.learned == "concrete":
            return AutoConcreteDropout(model, rate, **ways)
        return AutoBernoulliDropout(model, rate, learnable=self.learned == "hard", **ways)


METHODS = {
    "none": Method(0.0),
    "fixed": Method(),  # regular dropout and MC dropout are one network, predicted from in two ways
    "Concrete": Method(learned="concrete"),
    "LBD, a layer": Method(learned="hard"),
    "LBD, a unit": Method(learned="hard", each="unit"),
    "LBD, shared": Method(learned="hard", each="network"),
}


# The convolutional part


def images(part: str) -> Data:
    """Standardised by colour."""
    x, y = (torch.from_numpy(array) for array in load_cifar10(part))
    x = x.permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
    return (x - mean[:, None, None]) / deviation[:, None, None], y.long()


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that decides features."""
    return {"epochs": options.epochs, "channels": list(options.channels), "images": options.images}


def convolutional_part(options: argparse.Namespace) -> nn.Module:
    """Trained on the first training images, flipped and shifted, from its last epoch on where there is a file."""
    torch.manual_seed(0)
    features = vgg_features(options.channels)
    net = nn.Sequential(features, nn.Linear(4 * options.channels[-1], 10))
    x, y = (t[: min(CONVOLUTIONAL, options.images)] for t in images("train"))
    steps = len(x) // BATCH
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * steps)
    parts = {"net": net, "optimiser": optimiser, "schedule": schedule}
    path, done = named_by(options.outputs / "features.pt", settings_of(options)), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        done = state.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(state[name])  # type: ignore[attr-defined]
    for epoch in tqdm(range(done, options.epochs), initial=done, total=options.epochs, desc="features", disable=None):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(x), generator=generator)[: steps * BATCH].split(BATCH)
        for rows in order:
            optimiser.zero_grad()
            F.cross_entropy(net(changed(x[rows], generator)), y[rows]).backward()
            optimiser.step()
            schedule.step()
        with whole(path) as file:
            torch.save({**{name: part.state_dict() for name, part in parts.items()}, "epoch": epoch + 1}, file)  # type: ignore[attr-defined]
    return features.eval()


def changed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images flipped, each batch shifted by up to four pixels."""
    flips = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flips[:, None, None, None], x.flip(-1), x)
    down, right = torch.randint(9, (2,), generator=generator).tolist()
    return F.pad(x, (4, 4, 4, 4))[..., down : down + 32, right : right + 32]


def featured(options: argparse.Namespace) -> dict[str, Data]:
    """Features of the images that heads learn from, of validation and of test; from a file where there is one."""
    path = named_by(options.outputs / "features-of-images.pt", settings_of(options))
    if not path.exists():
        net = convolutional_part(options)
        found = {}
        for part in ("train", "held-out", "test"):
            x, y = images(part)
            x, y = (t[CONVOLUTIONAL:] if part == "train" else t for t in (x, y))
            x, y = x[: options.images], y[: options.images]
            with torch.no_grad():
                found[part] = torch.cat([net(some) for some in x.split(500)]), y
        with whole(path) as file:
            torch.save(found, file)
    found = torch.load(path, weights_only=True)
    (x, y), (x_test, y_test) = found["held-out"], found["test"]
    first = min(VALIDATION, len(x) // 2)
    return {
        "train": found["train"],
        "validation": (x[:first], y[:first]),
        "test": (torch.cat([x[first:], x_test]), torch.cat([y[first:], y_test])),
    }


# Heads


def head(name: str, lengthscale: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a head predicts: by draws together, and by the mean network."""
    settle(seed)
    data, method = featured(options), METHODS[name]
    x = data["train"][0]

    def make() -> tuple[Any, Any]:
        model = Classification(mlp(x.shape[1], [options.width] * 2, 10), len(x), lengthscale)
        return model, method.guide(model)

    def look(model: Any, guide: Any, ended: bool) -> dict[str, Any]:
        rates = {mask: rate.tolist() for mask, rate in guide.rates().items()}
        return {"rates": rates, **(predictions(model, guide, data, options.draws) if ended else {})}

    steps = options.head_epochs * (len(x) // BATCH)
    recipe = Recipe(steps, BATCH, every=max(1, steps // 10), seed=seed, backend=options.backend)
    about = {"width": options.width, "lengthscale": lengthscale, "draws": options.draws, "of": settings_of(options)}
    path = options.outputs / f"head-{name.replace(', ', '-').replace(' ', '-')}-{lengthscale:g}-seed-{seed}.pt"
    history = fitted(path, make, TraceDropout_ELBO(), data["train"], recipe, look, about).history
    return {**history[-1], "rates over training": [seen["rates"] for seen in history]}


def predictions(model: Any, guide: Any, data: dict[str, Data], draws: int) -> dict[str, Any]:
    """By way of predicting and part of the data: scores, entropies, what is right."""
    found: dict[str, Any] = {}
    for part in ("validation", "test"):
        x, y = data[part]
        ways = {"draws": softmax_inputs(model, guide, x, draws), "mean": mean_inputs(model, guide, x)}
        for way, inputs in ways.items():
            probs = inputs.softmax(-1)
            found.setdefault(way, {})[part] = {
                **scores(inputs, y),
                "entropy": predictive_entropy(probs).tolist(),
                "right": (probs.mean(0).argmax(-1) == y).tolist(),
            }
    return found
