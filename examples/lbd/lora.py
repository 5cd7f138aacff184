"""Low-rank adapters of a vision transformer whose ranks are dropped by learned hard masks, against dropout per token.

A small transformer reads digits row by row. It is trained on upright ones; then the images are turned by a quarter,
where it does little better than guessing, and adapters of all its projections (LoRA, Hu et al. 2021) learn from a
thousand of them, while the base stays as it is. Four ways to drop the ranks of the adapters are compared:

============= ========================================================================================================
``none``      never.
``per token`` ``nn.Dropout`` at rate 0.1 between the two matrices of an adapter: another mask for each token.
``tied``      hard masks at rate 0.1, one for all tokens of an image.
``learned``   the same, with a rate for each rank that DisARM learns (Boluki et al. 2020).
============= ========================================================================================================

All start from the same adapters, see the same batches, minimise under the same prior and take the same number of steps
by Adam. Its learning rate, the same for all, is the one of three whose log-likelihood of validation images, mean over
the four, is best; the table says whose own best is another. Predictions are by 50 draws together, or by the mean
network: PyTorch's evaluation mode, the guide's median. Standard errors and paired differences are over seeds, which
decide images, adapters and batches; the base network and the test images are the same for all.

Nothing in the objective rewards a small network: a rank is dropped for good only where data say so, and a rank that
does nothing has the rate that its entropy likes best, one half.

Results go to a file each in ``outputs/lora/``, and what is there is not computed again: an interrupted run goes on.
All of it takes 12 minutes on one core.
``python -m examples.lbd.lora --help``
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from examples.common.arguments import add_outputs, count, positive, script, settle
from examples.common.results import kept, whole
from examples.lbd.lora_tables import (
    Results,
    by_prediction,
    differences_table,
    draw,
    rates_table,
    scores_table,
    tuning_table,
    verdict,
)
from examples.lbd.lora_training import (
    BASE_IMAGES,
    BATCH,
    VALIDATION_IMAGES,
    Data,
    Method,
    Size,
    adapted,
    scored,
    scores,
    to_adapt,
    train_base,
    turned,
    upright,
)
from models.transformer import VisionTransformer

RATE = 0.1
METHODS = {
    "none": Method(),
    "per token": Method(RATE),
    "tied": Method(RATE, tied=True),
    "learned": Method(RATE, tied=True, learned=True),
}
TUNING_SEED, TUNING_DRAWS = 1000, 10  # no seed of a comparison


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = script("lbd.lora", __doc__)
    parser.add_argument("--seeds", type=count, default=5, help="adaptations of each method (default 5)")
    parser.add_argument("--images", type=count, default=1000, help="turned ones to learn from (default 1,000)")
    parser.add_argument("--steps", type=count, default=1200, help="of an adaptation (default 1,200)")
    parser.add_argument("--base-steps", type=count, default=2000, help="of the base network (default 2,000)")
    parser.add_argument("--rank", type=count, default=8, help="of each adapter (default 8)")
    parser.add_argument("--draws", type=count, default=50, help="of each prediction (default 50)")
    parser.add_argument("--test-images", type=count, default=2000, help="(default 2,000)")
    parser.add_argument(
        "--learning-rates", type=positive, nargs="+", default=[0.01, 0.02, 0.04], help="to choose from (default three)"
    )
    add_outputs(parser, default="outputs/lora")
    options = parser.parse_args(arguments)
    settle(0)

    train, test = upright("train"), upright("test")
    test = test[0][: options.test_images], test[1][: options.test_images]
    base = base_network(train, options)
    with torch.no_grad():
        alone = {name: scores(base(x).softmax(-1)[None], y) for name, (x, y) in base_tests(test).items()}
    chosen, tuning = tuned(base, train, options)
    found = compared(base, train, turned(test), chosen, options)

    rows = by_prediction(found)
    tables = [
        tuning_table(tuning, chosen),
        scores_table(alone, rows),
        differences_table(rows),
        rates_table(found["learned"]),
    ]
    text = "\n\n".join([*tables, *verdict(rows, found["learned"], RATE)])
    print(f"\n{text}\n")
    with whole(options.outputs / "lora.md") as file:
        file.write_text(text + "\n")
    picture = draw(found["learned"], RATE, options.outputs / "lora_rates.png")
    for path in (options.outputs / "lora.md", picture):
        print(f"written to {path}")
    return {"base": base, "alone": alone, "tuning": tuning, "chosen": chosen, "found": found, "rows": rows}


# Runs


def base_network(train: Data, options: argparse.Namespace) -> nn.Module:
    """Trained, or read from a file."""
    path = options.outputs / f"base-{options.base_steps}.pt"
    if not path.exists():
        net = train_base(train, options.base_steps)
        with whole(path) as file:
            torch.save(net.state_dict(), file)
    base = VisionTransformer().eval()
    base.load_state_dict(torch.load(path, weights_only=True))
    return base


def base_tests(test: Data) -> dict[str, Data]:
    return {"base, upright images": test, "base": turned(test)}


def run(
    base: nn.Module,
    train: Data,
    test: Data,
    name: str,
    learning_rate: float,
    seed: int,
    draws: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Scores and learned rates of one adaptation, read from a file or computed."""
    size = Size(options.images, options.steps, options.rank)

    def compute() -> dict[str, Any]:
        adaptation = adapted(base, to_adapt(train, size.images, seed), METHODS[name], size, learning_rate, seed)
        return {"scores": scored(adaptation, test, draws), "rates": adaptation.rates()}

    settings = {
        **size._asdict(),
        **METHODS[name]._asdict(),
        "learning_rate": learning_rate,
        "batch": BATCH,
        "base_steps": options.base_steps,
        "draws": draws,
        "test_images": len(test[0]),
    }
    kind = f"seed-{seed}" if seed != TUNING_SEED else f"validation-{learning_rate:g}"
    return kept(options.outputs / f"{name.replace(' ', '-')}-{kind}.json", settings, compute)


def tuned(base: nn.Module, train: Data, options: argparse.Namespace) -> tuple[float, dict[str, dict[float, float]]]:
    """The learning rate that is best on validation images, and negative log-likelihoods by method and learning rate."""
    validation = turned(train, slice(BASE_IMAGES, BASE_IMAGES + VALIDATION_IMAGES))
    validation = validation[0][: options.test_images], validation[1][: options.test_images]
    one = partial(run, base, train, validation, seed=TUNING_SEED, draws=TUNING_DRAWS, options=options)
    pairs = [(name, rate) for rate in options.learning_rates for name in METHODS]
    table: dict[str, dict[float, float]] = {name: {} for name in METHODS}
    for name, rate in tqdm(pairs, desc="learning rates", disable=None):
        table[name][rate] = best(one(name=name, learning_rate=rate)["scores"])["nll"]
    means = {rate: np.mean([row[rate] for row in table.values()]) for rate in options.learning_rates}
    return min(means, key=means.__getitem__), table


def compared(
    base: nn.Module, train: Data, test: Data, learning_rate: float, options: argparse.Namespace
) -> dict[str, Results]:
    """All methods at all seeds."""
    one = partial(run, base, train, test, learning_rate=learning_rate, draws=options.draws, options=options)
    found: dict[str, Results] = {name: [] for name in METHODS}
    for seed, name in tqdm([(s, n) for s in range(options.seeds) for n in METHODS], desc="adaptations", disable=None):
        found[name].append(one(name=name, seed=seed))
    return found


def best(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Scores of draws together, or of the one network where there are none."""
    return found.get("draws", found["mean"])


if __name__ == "__main__":
    main()
