"""What ``rates_mnist`` shows: rates and scores by arm, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.concrete.rates_mnist_runs import ALL, FIXED, LENGTHSCALES, SIZES, STARTS, WIDTHS, Run

Found = dict[Run, list[dict[str, Any]]]  # by network what was seen of it
LAYERS = ("image", "hidden 1", "hidden 2", "hidden 3")  # whose units are masked


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
    return "\n\n".join(table(found, TITLES[arm], rows_of(arm)) for arm in arms)


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
    for axis, ticks in ((by_size, SIZES), (by_width, WIDTHS)):
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.minorticks_off()
    by_lengthscale.legend([line for line in over.lines if not line.get_label().startswith("_")], LAYERS)
    over.set(xlabel="steps", ylabel="rate of dropping a unit", ylim=(0, None), title=f"{ALL:,} images, width 512")
    by_size.set(xlabel="training images", title="equal epochs, dashed: equal steps")
    by_width.set(xlabel="units of hidden layers")
    by_lengthscale.set(xlabel="prior lengthscale / √K")
    return save(figure, path)


def _run(arm: str, value: Any) -> Run:
    if arm == "steps":
        return Run(size=value, equal="steps" if value < ALL else "epochs")
    return Run(**{arm: value})
