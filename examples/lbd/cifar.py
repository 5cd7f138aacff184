"""Dropouts of a classifier of photographs (LBD section 3.2.1, table 1 and figure 2a), at a size that two cores allow.

The paper fine-tunes a VGG19 whose two hidden linear layers of 4,096 units have dropout; methods differ in these alone.
So here one small VGG is trained on half of the images that are staged, and its features are kept; heads with two hidden
layers learn from features of the other half, several of each method, which start alike and see the same batches. This
is not end to end, and there is no pretrained network: it settles the order of methods, not the published numbers.

============= ========================================================================================================
``none``      no dropout
``regular``   rate 0.5, predicted by the mean network
``MC``        the same network, predicted by draws
``Concrete``  learned rates of relaxed masks, one for each layer
``LBD``       learned rates of hard masks by DisARM, one for each layer, for each unit, or one for all (shared)
============= ========================================================================================================

The lengthscale of the prior is chosen for each method by the log-likelihood of validation images, with a seed of its
own. PAvPU (LBD eq. 9) is the mean over thresholds of figure 2a: predictive entropies between the smallest and the
largest of validation images. Test images are the 1,000 that are staged and 3,000 that no network has seen.

Training goes on from its last state. ``python -m examples.lbd.cifar --help``
"""

from __future__ import annotations

import argparse
from typing import Any

from examples.common.arguments import add_backend, add_outputs, count, parsed, positive, script
from examples.common.engines import add_engine, spread
from examples.common.results import whole
from examples.lbd.cifar_tables import draw, tables
from examples.lbd.cifar_training import METHODS, featured, head

TUNING_SEED = 1000


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = script("lbd.cifar", __doc__)
    parser.add_argument("--epochs", type=count, default=40, help="of the convolutional part (default 40)")
    parser.add_argument("--head-epochs", type=count, default=40, help="of a head (default 40)")
    parser.add_argument("--channels", type=count, nargs="+", default=[32, 64, 128, 256], help="(default 32 to 256)")
    parser.add_argument("--width", type=count, default=512, help="of a head's hidden layers (default 512)")
    parser.add_argument(
        "--lengthscales", type=positive, nargs="+", default=[1.0, 3.0, 10.0, 30.0], help="(default four)"
    )
    parser.add_argument("--seeds", type=count, default=5, help="heads of each method (default 5)")
    parser.add_argument("--draws", type=count, default=50, help="of a prediction (default 50, published 10)")
    parser.add_argument("--images", type=count, default=50_000, help="of each part at most (default all)")
    parser.add_argument("--processes", type=count, default=1, help="that share the heads (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/cifar")
    quick = {"epochs": 1, "head_epochs": 2, "channels": [4, 8, 8, 8], "width": 16, "lengthscales": [1.0]}
    return parsed(parser, arguments, {**quick, "seeds": 2, "draws": 5, "images": 400, "backend": "eager"})


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    options = options_of(arguments)
    featured(options)  # once, before heads of several processes ask for it
    tuning = [(name, each) for name in METHODS for each in options.lengthscales]
    tuned = spread(head, [(*pair, TUNING_SEED) for pair in tuning], options)
    densities = {
        pair: result["draws"]["validation"]["log_likelihood"] for pair, result in zip(tuning, tuned, strict=True)
    }
    best = {name: max(options.lengthscales, key=lambda each, n=name: densities[n, each]) for name in METHODS}
    for name in METHODS:  # regular dropout is predicted by the mean network
        by_mean = max(
            options.lengthscales,
            key=lambda each, n=name: tuned[tuning.index((n, each))]["mean"]["validation"]["log_likelihood"],
        )
        print(f"{name}: lengthscale {best[name]:g} by draws, {by_mean:g} by the mean network")
    tasks = [(name, seed) for seed in range(options.seeds) for name in METHODS]
    found = spread(head, [(name, best[name], seed) for name, seed in tasks], options)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for (name, _), result in zip(tasks, found, strict=True):
        results[name].append(result)
    text = tables(results, best)
    print(f"\n{text}\n")
    with whole(options.outputs / "cifar.md") as file:
        file.write_text(text + "\n")
    picture = draw(results, options.outputs / "cifar.png")
    for path in (options.outputs / "cifar.md", picture):
        print(f"written to {path}")
    return results


if __name__ == "__main__":
    main()
