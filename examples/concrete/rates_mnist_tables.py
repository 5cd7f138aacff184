"""What ``rates_mnist`` shows: rates and scores by arm, the claims of CD section 4.3, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.verdicts import CONFIRMED, NOT_SETTLED, REFUTED, larger
from examples.concrete.rates_mnist_runs import ALL, FIXED, LENGTHSCALES, SIZES, STARTS, WIDTHS, Run

Found = dict[Run, list[dict[str, Any]]]  # by network what was seen of it
LAYERS = ("image", "hidden 1", "hidden 2", "hidden 3")  # whose units are masked
NEAR_ZERO = 0.05


def like(found: Found, run: Run) -> list[Run]:
    """The repeats of a network."""
    return [other for other in found if other._replace(seed=0) == run._replace(seed=0)]


def rates(found: Found, run: Run, point: int = -1) -> np.ndarray:
    """``[repeats, layers]``."""
    return np.array([found[each][point]["rates"] for each in like(found, run)])


def table(found: Found, title: str, rows: Sequence[tuple[str, Run]]) -> str:
    """Rates by layer, what the last fifth of training still changed, scores of test images."""
    lines = [title, "", f"| | {' | '.join(LAYERS)} | last change | accuracy in % | log-likelihood | seconds |"]
    lines += ["| --- " * (5 + len(LAYERS)) + "|"]
    for name, run in rows:
        if not like(found, run):
            continue
        histories = [found[each] for each in like(found, run)]
        end = rates(found, run)
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(layer)) for layer in end.T] or [""] * len(LAYERS)
        back = max(1, len(histories[0]) // 5)
        before = rates(found, run, -1 - min(back, len(histories[0]) - 1))
        change = f"{np.abs(end - before).max():.3f}"
        accuracy = "{:.2f} ± {:.2f}".format(*mean_and_error([100 * h[-1]["test"]["accuracy"] for h in histories]))
        density = "{:.4f} ± {:.4f}".format(*mean_and_error([h[-1]["test"]["log_likelihood"] for h in histories]))
        seconds = f"{np.mean([h[-1]['seconds'] for h in histories]):.0f}"
        lines.append(f"| {name} | {' | '.join([*cells, change, accuracy, density, seconds])} |")
    return "\n".join(lines).replace(" ± nan", "")


def rows_of(arm: str) -> list[tuple[str, Run]]:
    base = Run()
    return {
        "size": [
            (f"{size:,}, equal {how}", base._replace(size=size, equal=how if size < ALL else "epochs"))
            for how in ("epochs", "steps")
            for size in SIZES
        ],
        "width": [(f"width {width:,}", base._replace(width=width)) for width in WIDTHS],
        "lengthscale": [(f"l = {each:g}", base._replace(lengthscale=each)) for each in LENGTHSCALES],
        "fixed": [
            ("learned", base),
            *((f"{image:g}, {hidden:g}", base._replace(fixed=(image, hidden))) for image, hidden in FIXED),
        ],
        "start": [(f"from {start:g}", base._replace(start=start)) for start in sorted((base.start, *STARTS))],
        "decay": [("constant", base), ("decayed", base._replace(decayed=True))],
        "cnn": [("cnn", Run(cnn=True, lengthscale=0.1))],
    }[arm]


TITLES = {
    "size": "By training images",
    "width": "By width",
    "lengthscale": "By prior lengthscale l √K",
    "fixed": "Learned rates, and fixed ones of hard masks (image, hidden layers)",
    "start": "By where rates start",
    "decay": "Learning rate of Adam: constant, and going down to 0",
    "cnn": "Two convolutions, 20 epochs; masks of the image's one channel, 32 channels, 9,216 and 128 units",
}


def tables(found: Found, arms: Sequence[str]) -> str:
    lines = [table(found, TITLES[arm], rows_of(arm)) for arm in arms]
    return "\n\n".join([*lines, "Claims\n\n" + "\n".join(f"* {claim}" for arm in arms for claim in CLAIMS[arm](found))])


# Claims, each by the networks that were trained


def size_claims(found: Found) -> list[str]:
    """Figure 5: rates fall as data grow; of the first two weight layers to 0, of the last two they vary little."""
    lines = []
    for how in ("epochs", "steps"):
        few, all_ = Run(size=SIZES[0], equal=how), Run()
        seeds = [run.seed for run in like(found, few) if all_._replace(seed=run.seed) in found]
        if not seeds:
            continue
        first, last = (np.array([found[run._replace(seed=s)][-1]["rates"] for s in seeds]) for run in (few, all_))
        for layer, name in enumerate(LAYERS):
            fall = first[:, layer] - last[:, layer]
            end = last[:, layer].mean()
            near = "" if layer > 1 else f"; to 0 (below {NEAR_ZERO}): {CONFIRMED if end < NEAR_ZERO else REFUTED}"
            lines.append(
                f"rate of {name} falls from {SIZES[0]:,} to {ALL:,} images, equal {how}: {larger(fall)} "
                f"({first[:, layer].mean():.3f} to {end:.3f}){near}"
            )
    return lines


def width_claims(found: Found) -> list[str]:
    """Figure 6: the image's rate near 0 at every width, the others' rise with it."""
    runs = [Run(width=width) for width in WIDTHS if like(found, Run(width=width))]
    of_image = [rates(found, run)[:, 0].mean() for run in runs]
    lines = [
        f"rate of the image near 0 (below {NEAR_ZERO}) at every width: "
        f"{CONFIRMED if max(of_image) < NEAR_ZERO else REFUTED} ({', '.join(f'{rate:.3f}' for rate in of_image)})"
    ]
    for layer, name in list(enumerate(LAYERS))[1:]:
        means = [rates(found, run)[:, layer].mean() for run in runs]
        rises = np.diff(means) > 0
        verdict = CONFIRMED if rises.all() else REFUTED if not rises.any() else NOT_SETTLED
        lines.append(f"rate of {name} rises with width: {verdict} ({', '.join(f'{mean:.3f}' for mean in means)})")
    return lines


def lengthscale_claims(found: Found) -> list[str]:
    """Figure 11: l = 0.01 balances accuracy and log-likelihood, both of which depend on l."""
    runs = [Run(lengthscale=each) for each in LENGTHSCALES if Run(lengthscale=each) in found]
    best = {
        measure: max(runs, key=lambda run, m=measure: found[run][-1]["validation"][m]).lengthscale  # type: ignore[misc]
        for measure in ("accuracy", "log_likelihood")
    }
    verdict = CONFIRMED if set(best.values()) == {1e-2} else REFUTED if 1e-2 not in best.values() else NOT_SETTLED
    return [
        f"l = 0.01 is the best, by validation images: {verdict} (accuracy {best['accuracy']:g}, log-likelihood "
        f"{best['log_likelihood']:g})"
    ]


def fixed_claims(found: Found) -> list[str]:
    """98.6 %, as with tuned rates."""
    fixed = [run for run in found if run.fixed]
    tuned = max(fixed, key=lambda run: found[run][-1]["validation"]["accuracy"])
    ours, theirs = (set(found[run][-1]["wrong"]) for run in (Run(), tuned))
    only_ours, only_theirs = len(ours - theirs), len(theirs - ours)
    ahead, error = only_theirs - only_ours, max(1.0, (only_ours + only_theirs) ** 0.5)
    verdict = REFUTED if abs(ahead) > 2 * error else CONFIRMED
    accuracy = [100 * found[run][-1]["test"]["accuracy"] for run in like(found, Run())]
    return [
        f"98.6 %: {np.mean(accuracy):.2f} ± 0.12 % (of 10,000 images)",
        f"on par with the best fixed rates by validation, {tuned.fixed}: {verdict} ({ahead} ± {error:.0f} images right "
        "that those are not)",
    ]


def start_claims(found: Found) -> list[str]:
    runs = [Run(start=start) for start in (Run().start, *STARTS) if Run(start=start) in found]
    ends = np.array([rates(found, run)[0] for run in runs])
    return [f"largest difference between where rates end, by layer: {', '.join(f'{d:.3f}' for d in np.ptp(ends, 0))}"]


def decay_claims(found: Found) -> list[str]:
    """Of the accuracy that is published, by the better training."""
    accuracy = [100 * found[run][-1]["test"]["accuracy"] for run in like(found, Run(decayed=True))]
    reached = CONFIRMED if np.mean(accuracy) > 98.6 - 2 * 0.12 else REFUTED
    return [f"98.6 %, within two standard errors of 10,000 images: {reached} ({np.mean(accuracy):.2f} ± 0.12 %)"]


def cnn_claims(found: Found) -> list[str]:
    ends = rates(found, Run(cnn=True, lengthscale=0.1)).mean(0)
    return [f"rates of the authors' later network, 0.012, 0.039, 0.478, 0.055: {', '.join(f'{e:.3f}' for e in ends)}"]


CLAIMS: dict[str, Callable[[Found], list[str]]] = {
    "size": size_claims,
    "width": width_claims,
    "lengthscale": lengthscale_claims,
    "fixed": fixed_claims,
    "start": start_claims,
    "decay": decay_claims,
    "cnn": cnn_claims,
}


# The figure


def draw(found: Found, path: Path) -> Path:
    """Rates over training of the network that all have in common, and at the end by images, width and lengthscale."""
    figure, axes = panels(1, 4, 14, 3.2, sharey=True)
    over, by_size, by_width, by_lengthscale = axes[0]
    base = Run()
    for layer, name in enumerate(LAYERS):
        colour = f"C{layer}"
        for run in like(found, base):
            steps = [seen["step"] for seen in found[run]]
            over.plot(
                steps, [seen["rates"][layer] for seen in found[run]], color=colour, label=None if run.seed else name
            )
        for axis, arm, values, style in (
            (by_size, "size", SIZES, "-"),
            (by_size, "steps", SIZES, "--"),
            (by_width, "width", WIDTHS, "-"),
            (by_lengthscale, "lengthscale", LENGTHSCALES, "-"),
        ):
            runs = {value: _run(arm, value) for value in values}
            known = {value: rates(found, run)[:, layer] for value, run in runs.items() if like(found, run)}
            axis.errorbar(
                list(known),
                [v.mean() for v in known.values()],
                [v.std() for v in known.values()],
                ls=style,
                color=colour,
                marker=".",
            )
            if len(known) > 1:
                axis.set_xscale("log")
    over.legend()
    over.set(xlabel="steps", ylabel="rate of dropping a unit", ylim=(0, None), title=f"{ALL:,} images, width 512")
    by_size.set(xlabel="training images", title="equal epochs, dashed: equal steps")
    by_width.set(xlabel="units of hidden layers")
    by_lengthscale.set(xlabel="prior lengthscale / √K")
    return save(figure, path)


def _run(arm: str, value: Any) -> Run:
    if arm == "steps":
        return Run(size=value, equal="steps" if value < ALL else "epochs")
    return Run(**{arm: value})
