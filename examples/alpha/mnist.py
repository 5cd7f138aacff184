"""α = 0, 0.5 and 1 on MNIST (BBα section 5.2, figures 4 and 5): accuracy and log-likelihood by epochs.

Two networks: two hidden layers of 100 units, and two convolutions before one of 100. Dropout of rate 0.5 is before
every linear layer, of the image too; convolutions have none, and run once for the ten draws that the loss takes.
Networks of one repeat start alike and see the same batches, so that differences between α are paired.

The published runs had 500 epochs by plain SGD, ``--optimiser sgd --epochs 500``; by default 100 epochs by Adam, whose
curves show that they are enough.

Training goes on from its last state. ``python -m examples.alpha.mnist --help``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from examples.alpha.networks import EPOCH, Network
from examples.common.arguments import add_backend, add_outputs, count, parsed, positive, script, settle
from examples.common.engines import add_engine, spread
from examples.common.fits import Recipe, digits, scores, softmax_inputs
from examples.common.pictures import panels, save
from examples.common.results import mean_and_error, whole
from examples.common.verdicts import alike, interval, larger

ALPHAS = (0.0, 0.5, 1.0)
MEASURES = {"accuracy": (100, "accuracy in %"), "log_likelihood": (1, "log-likelihood of a label")}
RATES = {"adam": 1e-3, "sgd": 1e-2}

Curves = dict[float, list[list[dict[str, float]]]]  # by α, of each repeat


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = script("alpha.mnist", __doc__)
    parser.add_argument("--network", choices=("mlp", "cnn"), default="mlp", help="(default %(default)s)")
    parser.add_argument("--epochs", type=count, default=100, help="of training (default 100)")
    parser.add_argument("--every", type=count, default=10, help="epochs between points of a curve (default 10)")
    parser.add_argument("--repeats", type=count, default=5, help="networks of each α (default 5)")
    parser.add_argument("--optimiser", choices=tuple(RATES), default="adam", help="(default %(default)s)")
    parser.add_argument("--images", type=count, default=60_000, help="of training (default all 60,000)")
    parser.add_argument("--test-images", type=count, default=10_000, help="(default all)")
    parser.add_argument("--draws", type=count, default=100, help="of the test (default 100)")
    parser.add_argument("--precision", type=positive, default=0.1, help="of the prior, l² (default 0.1)")
    parser.add_argument("--processes", type=count, default=1, help="that share the networks (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/alpha_mnist")
    quick = {"epochs": 3, "every": 1, "repeats": 2, "images": 1280, "test_images": 500, "draws": 10, "backend": "eager"}
    options = parsed(parser, arguments, quick)
    tasks = [(alpha, seed) for seed in range(options.repeats) for alpha in ALPHAS]
    found = spread(curve, tasks, options)
    curves: Curves = {alpha: [] for alpha in ALPHAS}
    for (alpha, _), seen in zip(tasks, found, strict=True):
        curves[alpha].append(seen)
    text = "\n\n".join([scores_table(curves, options), differences_table(curves), flat_table(curves), times(curves)])
    print(f"\n{text}\n")
    name = f"alpha_mnist_{options.network}_{options.optimiser}"
    with whole(options.outputs / f"{name}.md") as file:
        file.write_text(text + "\n")
    picture = draw(curves, options.outputs / f"{name}.png")
    for path in (options.outputs / f"{name}.md", picture):
        print(f"written to {path}")
    return {"curves": curves, "text": text}


def curve(alpha: float, seed: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Scores of one network over its epochs."""
    settle(seed)
    network = Network("100,100" if options.network == "mlp" else "cnn", alpha, options.precision)
    train, test = (digits(part, network.flat) for part in ("train", "test"))
    train = tuple(t[: options.images] for t in train)
    test = tuple(t[: options.test_images] for t in test)
    epoch = max(1, min(EPOCH, options.images // 128))
    recipe = Recipe(
        options.epochs * epoch,
        every=options.every * epoch,
        optimiser=options.optimiser,
        learning_rate=RATES[options.optimiser],
        seed=seed,
        backend=options.backend,
    )

    def look(model: Any, guide: Any, ended: bool) -> dict[str, float]:
        return scores(softmax_inputs(model, guide, test[0], options.draws), test[1])

    looked = {"draws": options.draws, "test_images": options.test_images}
    history = network.trained(train, recipe, options.outputs, look=look, about=looked).history
    return [{**seen, "epoch": seen["step"] // epoch} for seen in history]


# What it shows


def of(curves: Curves, alpha: float, measure: str, point: int = -1) -> np.ndarray:
    """A measure of each repeat at one point of the curves."""
    return MEASURES[measure][0] * np.array([seen[point][measure] for seen in curves[alpha]])


def scores_table(curves: Curves, options: argparse.Namespace) -> str:
    last = next(iter(curves.values()))[0][-1]
    lines = [
        f"{options.network}, {last['epoch']} epochs by {options.optimiser}, {options.repeats} repeats, "
        f"{options.images:,} images, {options.draws} draws of {options.test_images:,} test images",
        "",
    ]
    lines += [f"| α | {' | '.join(name for _, name in MEASURES.values())} | loss |", "| --- " * 4 + "|"]
    for alpha in curves:
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(of(curves, alpha, m))) for m in MEASURES]
        loss = mean_and_error([seen[-1]["loss"] for seen in curves[alpha]])[0]
        lines.append(f"| {alpha:g} | {' | '.join(cells)} | {loss:.0f} |")
    return "\n".join(lines)


def differences_table(curves: Curves) -> str:
    """Paired by repeat, with 95 % intervals, and what the claims come to."""
    lines = ["Paired differences, with 95 % intervals", "", "| | accuracy in % | log-likelihood |", "| --- " * 3 + "|"]
    for one, other in ((0.5, 0.0), (0.5, 1.0), (1.0, 0.0)):
        cells = []
        for measure in MEASURES:
            d = of(curves, one, measure) - of(curves, other, measure)
            cells.append("{:.3f} ({:.3f} to {:.3f})".format(d.mean(), *interval(d)))
        lines.append(f"| {one:g} - {other:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *claims(curves)])


def claims(curves: Curves) -> list[str]:
    """Figure 4: α = 0.5 most accurate, as likely as α = 1, α = 0 worst. Figure 5: α = 0 before 1, as good as 0.5."""

    def less(one: float, other: float, measure: str) -> np.ndarray:
        return of(curves, one, measure) - of(curves, other, measure)

    accuracy, density = MEASURES
    gap = abs(less(1.0, 0.0, density).mean())
    lines = [f"* α = 0.5 more accurate than α = {a:g}: {larger(less(0.5, a, accuracy))}" for a in (0.0, 1.0)]
    alike_one, alike_zero = (alike(less(0.5, a, density), 0.25 * gap) for a in (1.0, 0.0))
    lines += [f"* α = 0.5 as likely as α = 1, within a quarter of what α = 1 and 0 are apart: {alike_one}"]
    lines += [f"* α = 0.5 as likely as α = 0, in the same sense: {alike_zero}"]
    accurate = alike(less(0.5, 0.0, accuracy), 0.1)
    lines += [f"* α = 0.5 as accurate as α = 0, within 0.1 points: {accurate}"]
    for measure, name in ((accuracy, "accurate"), (density, "likely")):
        lines += [f"* α = 0 less {name} than α = {a:g}: {larger(less(a, 0.0, measure))}" for a in (0.5, 1.0)]
    return lines


def flat_table(curves: Curves) -> str:
    """How much the last fifth of the curves still changes."""
    points = len(next(iter(curves.values()))[0])
    back = max(1, points // 5)
    lines = ["Change over the last fifth of training, mean ± standard error", ""]
    lines += [f"| α | {' | '.join(name for _, name in MEASURES.values())} |", "| --- " * 3 + "|"]
    for alpha in curves:
        changes = [of(curves, alpha, m) - of(curves, alpha, m, -1 - min(back, points - 1)) for m in MEASURES]
        lines.append(f"| {alpha:g} | {' | '.join('{:.3f} ± {:.3f}'.format(*mean_and_error(c)) for c in changes)} |")
    return "\n".join(lines)


def times(curves: Curves) -> str:
    steps = next(iter(curves.values()))[0][-1]["step"]
    seconds = [seen[-1]["seconds"] for repeats in curves.values() for seen in repeats]
    return f"{steps:,} steps take {np.mean(seconds):.0f} s of one thread, {1000 * np.mean(seconds) / steps:.1f} ms each"


def draw(curves: Curves, path: Path) -> Path:
    figure, axes = panels(1, 2, 9, 3.4)
    for axis, (measure, (factor, name)) in zip(axes[0], MEASURES.items(), strict=True):
        for alpha, repeats in curves.items():
            epochs = [seen["epoch"] for seen in repeats[0]]
            values = factor * np.array([[seen[measure] for seen in run] for run in repeats])
            mean, error = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            axis.plot(epochs, mean, label=f"α = {alpha:g}")
            axis.fill_between(epochs, mean - error, mean + error, alpha=0.3)
        axis.set(xlabel="epochs", ylabel=name)
        axis.legend()
    return save(figure, path)


if __name__ == "__main__":
    main()
