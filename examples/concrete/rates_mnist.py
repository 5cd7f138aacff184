"""Which rates Concrete dropout learns on MNIST (CD section 4.3 and appendix D.1; figures 5, 6 and 11).

Three hidden layers of 512 units with a learned rate before each of the four weight layers, the image included; prior
lengthscale 0.01 √K of a layer with K inputs. One thing at a time is changed:

================ =====================================================================================================
``size``         2,500 to 50,000 training images, for as many epochs each, and for as many steps each: with fewer steps
                 the rates of small sets have moved less from where they started, whatever the posterior.
``width``        64 to 1,024 units.
``lengthscale``  1e-4 to 2.
``fixed``        hard masks at fixed rates, of the image and of hidden layers, with the same prior.
``start``        rates that start at 0.02 and 0.5 instead of 0.1: whether they end where others do.
``decay``        a learning rate that goes down to 0, which all others have at 0.001.
``cnn``          the network of a later notebook of the authors: two convolutions, prior precision l² = 0.01. Theirs
                 has twice this KL, relaxes masks of images at temperature 2/3 and learns by Adadelta.
================ =====================================================================================================

Rates are noted twenty times over training, so that the tables can say whether they still move at the end. 10,000 images
validate, of which the best lengthscale and the best fixed rates are the choice; test images are the usual 10,000.

Training goes on from its last state. ``python -m examples.concrete.rates_mnist --help``
"""

from __future__ import annotations

import argparse
from typing import Any

from examples.common.arguments import add_backend, add_outputs, count, parsed, script
from examples.common.engines import add_engine, spread
from examples.common.results import whole
from examples.concrete.rates_mnist_claims import claims
from examples.concrete.rates_mnist_runs import ARMS, Run, history, runs_of
from examples.concrete.rates_mnist_tables import draw, tables


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = script("concrete.rates_mnist", __doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="(default all)")
    parser.add_argument("--epochs", type=count, default=100, help="of 50,000 images (default 100)")
    parser.add_argument(
        "--repeats", type=count, default=3, help="of sizes, widths to 512 and decay; others once (default 3)"
    )
    parser.add_argument("--draws", type=count, default=50, help="of a prediction (default 50, published 200)")
    parser.add_argument("--test-images", type=count, default=10_000, help="(default all)")
    parser.add_argument("--processes", type=count, default=1, help="that share the networks (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/rates_mnist")
    quick = {"epochs": 1, "repeats": 1, "draws": 5, "test_images": 200, "arms": ["start"], "backend": "eager"}
    return parsed(parser, arguments, quick)


def main(arguments: list[str] | None = None) -> dict[Run, list[dict[str, Any]]]:
    options = options_of(arguments)
    runs = list(dict.fromkeys(run for arm in options.arms for run in runs_of(arm, options.repeats)))
    runs.sort(key=lambda run: run.seed)  # one of everything first
    histories = spread(history, [(run,) for run in runs], options)
    found = dict(zip(runs, histories, strict=True))
    text = f"{tables(found, options.arms)}\n\n{claims(found, options.arms)}"
    print(f"\n{text}\n")
    with whole(options.outputs / "rates_mnist.md") as file:
        file.write_text(text + "\n")
    picture = draw(found, options.outputs / "rates_mnist.png")
    for path in (options.outputs / "rates_mnist.md", picture):
        print(f"written to {path}")
    return found


if __name__ == "__main__":
    main()
