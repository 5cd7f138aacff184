"""Recommendation by a semi-implicit autoencoder (LBD sections 2.3 and 3.3, table 2) on MovieLens-1M.

A multinomial autoencoder with one hidden layer on either side of a latent; methods differ in the dropout of its inputs,
the films that a user liked. The posterior of the latent is then a mixture over masks, which V further masks bound.

========================= ============================================================================================
``VAE``                   no dropout
``VAE + Drop``            rate 0.5, the mask known to the bound (V = 0): Liang et al. (2018)
``SIVAE + Drop``          the same rate, the bound of the mixture with V = 2
``SIVAE + CDrop``         a learned rate for each film by relaxed masks, V = 2
``SIVAE + LBDrop``        by hard masks and DisARM, V = 2; also with V = 0, as the authors' code learns rates
``DAE``                   no latent
popularity, EASE          two baselines without a network: how many users chose a film; a linear model of films
========================= ============================================================================================

Users are split as Liang et al. split theirs: training, 600 to validate, 600 to test, of whom a fifth of the films is
to be found from the others. Measures are means over test users of several splits, differences by user. β rises to
0.2; what is tested is the epoch whose mean predictions have the best NDCG@100 of validation users. Predictions by the
mean of the latent without masks, and by draws of masks and latents. The paper's data sets are larger (ML-20M,
Netflix, MSD): its numbers are not these.

Training goes on from its last state. ``python -m examples.lbd.sivae --help``
"""

from __future__ import annotations

import argparse
from typing import Any

from examples.common.arguments import add_backend, add_outputs, count, parsed, positive, script
from examples.common.engines import add_engine, spread
from examples.common.results import whole
from examples.lbd.sivae_tables import draw, tables
from examples.lbd.sivae_training import ACTIVATIONS, NAMES, result


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = script("lbd.sivae", __doc__)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, help="(default all)")
    parser.add_argument("--splits", type=count, default=5, help="of users, each with a seed of its own (default 5)")
    parser.add_argument("--users", type=count, default=6034, help="at most (default all)")
    parser.add_argument("--held-out", type=count, default=600, help="users to validate, and to test (default 600)")
    parser.add_argument("--epochs", type=count, default=60, help="(default 60; published 100 or 200)")
    parser.add_argument("--batch", type=count, default=200, help="users of a step (default 200; published 500)")
    parser.add_argument("--hidden", type=count, default=600, help="(default 600)")
    parser.add_argument("--latent", type=count, default=200, help="(default 200)")
    parser.add_argument("--beta", type=positive, default=0.2, help="where β ends (default 0.2)")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="tanh", help="(default tanh)")
    parser.add_argument("--draws", type=count, default=50, help="of a prediction (default 50)")
    parser.add_argument("--processes", type=count, default=1, help="that share the networks (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/sivae")
    quick = {
        "splits": 2,
        "users": 500,
        "held_out": 100,
        "epochs": 2,
        "batch": 150,
        "hidden": 16,
        "latent": 4,
        "draws": 3,
    }
    return parsed(parser, arguments, {**quick, "backend": "eager"})


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    options = options_of(arguments)
    tasks = [(name, split) for split in range(options.splits) for name in options.methods]
    found = spread(result, tasks, options)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    for (name, _), each in zip(tasks, found, strict=True):
        results[name].append(each)
    text = tables(results, options.beta)
    print(f"\n{text}\n")
    with whole(options.outputs / "sivae.md") as file:
        file.write_text(text + "\n")
    picture = draw(results, options.outputs / "sivae.png")
    for path in (options.outputs / "sivae.md", picture):
        print(f"written to {path}")
    return results


if __name__ == "__main__":
    main()
