"""The networks of ``rates_mnist``: what each is, how it is trained, what is noted of it."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch

from examples.common.arguments import settle
from examples.common.fits import Data, Fitted, Recipe, digits, fitted, scores, softmax_inputs
from models.classification import Classification, digit_cnn
from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO
from pyro_dropout.metrics import predictive_log_likelihood

BATCH, LOOKS, ALL = 128, 20, 50_000
SIZES = (2500, 5000, 12_500, 25_000, ALL)
WIDTHS = (64, 128, 256, 512, 1024)
LENGTHSCALES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 2.0)
FIXED = ((0.0, 0.0), (0.0, 0.2), (0.1, 0.2), (0.1, 0.4), (0.2, 0.5))  # of the image, of hidden layers
STARTS = (0.02, 0.5)
ARMS = ("size", "width", "lengthscale", "fixed", "start", "decay", "cnn")


class Run(NamedTuple):
    """One network.

    :param equal: ``"epochs"`` or ``"steps"``, of those that all images have.
    :param decayed: the learning rate goes down to 0.
    :param fixed: rates of the image and of hidden layers, where they are not learned.
    """

    size: int = ALL
    width: int = 512
    lengthscale: float = 1e-2
    equal: str = "epochs"
    fixed: tuple[float, float] | None = None
    start: float = 0.1
    cnn: bool = False
    decayed: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        what = "cnn" if self.cnn else f"width-{self.width}-lengthscale-{self.lengthscale:g}"
        how = f"fixed-{self.fixed[0]}-{self.fixed[1]}" if self.fixed else f"start-{self.start:g}"
        how += "-decayed" * self.decayed
        return f"size-{self.size}-{self.equal}-{what}-{how}-seed-{self.seed}"

    def steps(self, epochs: int) -> int:
        return epochs * ((self.size if self.equal == "epochs" else ALL) // BATCH)

    def make(self) -> tuple[Any, Any]:
        if self.cnn:
            model = Classification(digit_cnn(), self.size, self.lengthscale)
            return model, AutoConcreteDropout(model, rate=self.start)
        net = mlp(784, [self.width] * 3, 10)
        model = Classification(net, self.size, self.lengthscale, scaled=True)
        if not self.fixed:
            return model, AutoConcreteDropout(model, rate=self.start)
        of_image, of_hidden = self.fixed
        rate = {f"net.{i}.weight": of_hidden if i else of_image for i in range(0, len(net), 2)}
        return model, AutoBernoulliDropout(model, rate=rate, learnable=False)


def runs_of(arm: str, repeats: int) -> list[Run]:
    """The networks of one arm; the one that all have in common first."""
    seeds = range(repeats)
    base = Run()
    of_arm = {
        "size": [base._replace(size=n, equal=how, seed=s) for s in seeds for how in ("epochs", "steps") for n in SIZES],
        "width": [base._replace(width=w, seed=s) for s in seeds for w in WIDTHS if w <= 512 or s == 0],
        "lengthscale": [base._replace(lengthscale=each) for each in LENGTHSCALES],
        "fixed": [base, *(base._replace(fixed=rates) for rates in FIXED)],
        "start": [base, *(base._replace(start=rate) for rate in STARTS)],
        "decay": [base._replace(seed=s, decayed=decayed) for s in seeds for decayed in (False, True)],
        "cnn": [Run(cnn=True, lengthscale=0.1)],
    }[arm]
    # All images are as many epochs as steps.
    return list(dict.fromkeys(run._replace(equal="epochs") if run.size == ALL else run for run in of_arm))


def history(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates over training, and scores of validation and test at its end."""
    return trained(run, options).history


def trained(run: Run, options: argparse.Namespace) -> Fitted:
    settle(run.seed)
    train, validation, test = parts(run, options.test_images)
    steps = run.steps(20 if run.cnn and options.epochs > 20 else options.epochs)
    recipe = Recipe(
        steps,
        BATCH,
        every=max(1, steps // LOOKS),
        optimiser="decayed" if run.decayed else "adam",
        seed=run.seed,
        backend=options.backend,
    )

    def look(model: Any, guide: Any, ended: bool) -> dict[str, Any]:
        rates = [float(rate) for rate in guide.rates().values()]
        return {"rates": rates, **(scored(model, guide, validation, test, options.draws) if ended else {})}

    about = {**run._asdict(), "draws": options.draws, "test_images": options.test_images}
    path = options.outputs / f"{run.name}.pt"
    return fitted(path, run.make, TraceDropout_ELBO(), train, recipe, look, about)


def parts(run: Run, test_images: int) -> tuple[Data, Data, Data]:
    """Training images in an order that is the same for all runs, validation and test images."""
    (x, y), test = digits("train", flat=not run.cnn), digits("test", flat=not run.cnn)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = rows[: run.size], rows[ALL:][:test_images]
    return (x[train], y[train]), (x[validation], y[validation]), (test[0][:test_images], test[1][:test_images])


def scored(model: Any, guide: Any, validation: Data, test: Data, draws: int) -> dict[str, Any]:
    """Accuracies and log-likelihoods, and both by image, which differences of networks are paired by."""
    found: dict[str, Any] = {}
    for part, (x, y) in {"validation": validation, "test": test}.items():
        inputs = softmax_inputs(model, guide, x, draws)
        log_probs = predictive_log_likelihood(inputs.log_softmax(-1).movedim(-1, 1))  # [classes, N], of all draws
        density = log_probs[y, torch.arange(len(y))]
        by_image = {
            "right": (log_probs.argmax(0) == y).int().tolist(),
            "density": [round(d, 4) for d in density.tolist()],
        }
        found[part] = {**scores(inputs, y), **by_image}
    return found
