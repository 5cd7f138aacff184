"""The networks of BBα sections 5.2 and 5.3: dropout at rate 0.5 before every linear layer, trained at some α."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from examples.common.fits import Data, Fitted, Recipe, fitted
from models.classification import Classification, digit_cnn
from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout, RenyiDropout_ELBO, TraceDropout_ELBO

PARTICLES, RATE = 10, 0.5
EPOCH = 60_000 // 128  # steps


class Network(NamedTuple):
    """What is trained.

    :param kind: ``"cnn"`` (section 5.2), or widths of hidden layers with a comma between them.
    :param alpha: of the loss; None for the network without dropout, by maximum of the same posterior density.
    :param precision: of the prior of a weight, l².
    """

    kind: str
    alpha: float | None
    precision: float = 0.1

    @property
    def flat(self) -> bool:
        return self.kind != "cnn"

    @property
    def name(self) -> str:
        return "no dropout" if self.alpha is None else f"α = {self.alpha:g}"

    def make(self, size: int) -> tuple[Any, Any]:
        if self.flat:
            net: nn.Sequential = mlp(784, [int(width) for width in self.kind.split(",")], 10)
        else:
            net = digit_cnn((32, 32), 100)
        model = Classification(net, size, self.precision**0.5)
        linear = {f"net.{name}.weight" for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
        masked = set() if self.alpha is None else linear
        return model, AutoBernoulliDropout(model, rate=lambda site: RATE * (site in masked), learnable=False)

    def loss(self) -> TraceDropout_ELBO:
        if self.alpha is None:
            return TraceDropout_ELBO()
        return RenyiDropout_ELBO(self.alpha, PARTICLES, vectorize_particles=True)

    def trained(
        self, data: Data, recipe: Recipe, folder: Path, about: dict[str, Any] | None = None, **kwargs: Any
    ) -> Fitted:
        """From the states of its training on, where there are some."""
        alpha = "none" if self.alpha is None else f"{self.alpha:g}"
        path = folder / f"{self.kind.replace(',', '-')}-alpha-{alpha}-{recipe.optimiser}-seed-{recipe.seed}.pt"
        about = {"precision": self.precision, "particles": PARTICLES, **(about or {})}
        return fitted(path, partial(self.make, len(data[0])), self.loss(), data, recipe, about=about, **kwargs)
