"""Grid search and cross-validation of a dropout network, all networks in one compiled step.

Rates and prior lengthscales of MC dropout on a UCI regression set, each pair in 5-fold cross-validation inside the
training part of the set's first published split: 4 x 4 x 5 networks of one hidden layer of 50 units, ``ReplicatedSVI``
training all of them at once. Then the pair with the best mean log-likelihood of left-out points is trained on the whole
training part, in five restarts (again at once), and scored on test points.

The rates of a Bernoulli guide are buffers and the prior's scale is a tensor: that is why replicates may differ in them.

What comes out. On concrete small rates win and lengthscales hardly differ; the best pair, 0.005 and 0.1, has a test
log-likelihood of -3.14 on the one split (restarts from -3.36 to -3.04). Takes two to three minutes.
``python -m examples.start.grid_search --help``
"""

from __future__ import annotations

import argparse
import itertools
import time

import pyro
import torch
from torch import Tensor

from examples.common.arguments import add_backend, script
from examples.common.data import UCI_SPLITS, load_uci
from examples.common.standardised import Scaling
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive, ReplicatedSVI

RATES = (0.005, 0.01, 0.05, 0.1)
LENGTHSCALES = (0.1, 0.5, 1.0, 2.0)
CHUNK = 100  # steps between messages


def main(arguments: list[str] | None = None) -> None:
    parser = script("start.grid_search", __doc__)
    parser.add_argument("--dataset", choices=list(UCI_SPLITS), default="concrete")
    parser.add_argument("--steps", type=int, default=3000, help="of each network (default 3000)")
    parser.add_argument("--batch", type=int, default=64, help="data of a step (default 64)")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (default 5)")
    parser.add_argument("--restarts", type=int, default=5, help="of the best pair (default 5)")
    parser.add_argument("--draws", type=int, default=200, help="of each prediction (default 200)")
    add_backend(parser)
    options = parser.parse_args(arguments)
    pyro.set_rng_seed(0)

    data = load_uci(options.dataset)
    x, y = (torch.as_tensor(a, dtype=torch.float32) for a in (data.x, data.y))
    train, test = (torch.as_tensor(rows[0], dtype=torch.long) for rows in (data.train, data.test))
    folds = torch.randperm(len(train))[: len(train) // options.folds * options.folds].reshape(options.folds, -1)
    pairs = list(itertools.product(RATES, LENGTHSCALES))
    runs = [(pair, fold) for pair in pairs for fold in range(options.folds)]
    parts = [(train[torch.cat([*folds[:f], *folds[f + 1 :]])], train[folds[f]]) for _, f in runs]

    start = time.perf_counter()
    scores = fit([pair for pair, _ in runs], x, y, parts, options).reshape(len(RATES), len(LENGTHSCALES), -1)
    print(f"\n{len(runs)} networks in {time.perf_counter() - start:.0f} s")
    means, errors = scores.mean(-1), scores.std(-1) / options.folds**0.5
    print(f"\nlog-likelihood of left-out points, mean over {options.folds} folds ± standard error\n")
    print("rate     " + "".join(f"lengthscale {scale:<6}" for scale in LENGTHSCALES))
    for rate, row, error in zip(RATES, means, errors, strict=True):
        print(f"{rate:<9}" + "".join(f"{m:7.3f} ± {e:5.3f}  " for m, e in zip(row, error, strict=True)))
    best = pairs[int(means.argmax())]
    held_out = fit([best] * options.restarts, x, y, [(train, test)] * options.restarts, options)
    print(f"\nbest: rate {best[0]}, lengthscale {best[1]}; log-likelihood of test points {held_out.mean():.3f}")
    print(f"(restarts from {held_out.min():.3f} to {held_out.max():.3f})")


def fit(
    pairs: list[tuple[float, float]],
    x: Tensor,
    y: Tensor,
    parts: list[tuple[Tensor, Tensor]],
    options: argparse.Namespace,
) -> Tensor:
    """Trains one network for each pair and part, and returns its log-likelihood of a left-out point."""
    size = len(parts[0][0])

    def make(rate: float, lengthscale: float) -> tuple[Regression, AutoBernoulliDropout]:
        model = Regression(x.shape[1], size, (50,), lengthscale)
        return model, AutoBernoulliDropout(model, rate=rate)

    rows = torch.stack([rows for rows, _ in parts])
    inputs, target = Scaling.of(x[rows], dim=1), Scaling.of(y[rows], dim=1)
    x_train, y_train = inputs(x[rows]), target(y[rows])

    hyperparameters = [{"rate": rate, "lengthscale": lengthscale} for rate, lengthscale in pairs]
    svi = ReplicatedSVI(make, hyperparameters, pyro.optim.Adam({"lr": 1e-2}), backend=options.backend)
    each = torch.arange(len(pairs))[:, None, None]
    for done in range(0, options.steps, CHUNK):
        steps = min(CHUNK, options.steps - done)
        batches = torch.randint(size, (len(pairs), steps, min(options.batch, size)))
        losses = svi.scan(x_train[each, batches], y_train[each, batches])
        print(f"\rstep {done + steps} of {options.steps}: mean loss {losses[:, -1].mean():.1f}", end="", flush=True)

    scores = []
    for r, (model, guide) in enumerate(zip(svi.models, svi.guides, strict=True)):
        _, new = parts[r]
        predict = DropoutPredictive(model, guide=guide, num_samples=options.draws, progress=False)
        density = predict.log_likelihood(inputs[r](x[new]), target[r](y[new]))["obs"]
        density = density - target.deviation[r].log()  # in the units of the target
        scores.append(density.mean())
    return torch.stack(scores)


if __name__ == "__main__":
    main()
