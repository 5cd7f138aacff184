"""What the claims of CD section 4.3 and appendix D.1 come to, by repeats and by images that networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from examples.common.verdicts import CONFIRMED, NOT_SETTLED, REFUTED, alike, interval, larger
from examples.concrete.rates_mnist_runs import ALL, LENGTHSCALES, SIZES, STARTS, WIDTHS, Run
from examples.concrete.rates_mnist_tables import LAYERS, Found, like, rates

NEAR_ZERO, LITTLE = 0.05, 0.1  # of rates
ACCURACY, NEAR, ON_PAR = 98.6, 0.4, 0.2  # published, in %; points


def claims(found: Found, arms: Sequence[str]) -> str:
    """By 95 % intervals, over repeats where rates are meant, over images where scores are: of these networks."""
    return "Claims\n\n" + "\n".join(f"* {claim}" for arm in arms for claim in CLAIMS[arm](found))


def size_claims(found: Found) -> list[str]:
    """Figure 5: rates fall as data grow; of the first two weight layers to 0, of the last two they vary little."""
    lines = []
    for how in ("epochs", "steps"):
        few, many = Run(size=SIZES[0], equal=how), Run()
        seeds = [run.seed for run in like(found, few) if many._replace(seed=run.seed) in found]
        if not seeds:
            continue
        first, last = (np.array([found[run._replace(seed=s)][-1]["rates"] for s in seeds]) for run in (few, many))
        for layer, name in enumerate(LAYERS):
            fall, end = first[:, layer] - last[:, layer], last[:, layer]
            if layer < 2:
                says = f"falls {larger(fall)}, to 0 (below {NEAR_ZERO}) {larger(NEAR_ZERO - end)}"
            else:
                says = f"varies little (by less than {LITTLE}) {alike(fall, LITTLE)}"
            course = f"{first[:, layer].mean():.3f} to {end.mean():.3f}"
            lines.append(f"rate of {name} from {SIZES[0]:,} to {ALL:,} images, equal {how}: {says} ({course})")
        sizes = [(size, Run(size=size, equal=how if size < ALL else "epochs")) for size in SIZES]
        near = [larger(NEAR_ZERO - rates(found, run)[:, :2].max(1)) for size, run in sizes if like(found, run)]
        verdict = CONFIRMED if near[-1] == CONFIRMED and set(near[:3]) == {REFUTED} else NOT_SETTLED
        verdict = REFUTED if near[0] == CONFIRMED or near[-1] == REFUTED else verdict
        lines.append(
            f"both first rates reach 0 only with many images, equal {how}: {verdict} (below {NEAR_ZERO} at "
            f"{', '.join(f'{size:,} {says}' for (size, _), says in zip(sizes, near, strict=False))})"
        )
    return lines


def width_claims(found: Found) -> list[str]:
    """Figure 6: the image's rate near 0 at every width, the others' rise with it."""
    runs = [Run(width=width) for width in WIDTHS if len(like(found, Run(width=width))) > 1]
    near = [larger(NEAR_ZERO - rates(found, run)[:, 0]) for run in runs]
    verdict = CONFIRMED if set(near) == {CONFIRMED} else REFUTED if REFUTED in near else NOT_SETTLED
    lines = [f"rate of the image near 0 (below {NEAR_ZERO}) at every width that is repeated: {verdict}"]
    seeds = [seed for seed in range(10) if all(run._replace(seed=seed) in found for run in runs)] if runs else []
    for layer, name in list(enumerate(LAYERS))[1:]:
        ends = np.array([[found[run._replace(seed=s)][-1]["rates"][layer] for run in runs] for s in seeds])
        slopes = [np.polyfit(np.log2([run.width for run in runs]), end, 1)[0] for end in ends]
        course = ", ".join(
            f"{rates(found, Run(width=w))[:, layer].mean():.3f}" for w in WIDTHS if like(found, Run(width=w))
        )
        lines.append(f"rate of {name} rises with width, slope over repeated widths: {larger(slopes)} ({course})")
    return lines


def paired(found: Found, one: Run, other: Run, part: str, measure: str) -> np.ndarray:
    """Differences by image, means of the repeats that both have."""
    seeds = [run.seed for run in like(found, one) if other._replace(seed=run.seed) in found]
    pairs = [[found[run._replace(seed=s)][-1][part][measure] for run in (one, other)] for s in seeds]
    return np.mean([np.subtract(*(np.array(values, float) for values in pair)) for pair in pairs], 0)


def lengthscale_claims(found: Found) -> list[str]:
    """Figure 11: l = 0.01 balances accuracy and log-likelihood, both of which depend on l."""
    others = [
        Run(lengthscale=each) for each in LENGTHSCALES if Run(lengthscale=each) in found and each != Run().lengthscale
    ]
    lines = []
    for measure, name, factor in (("right", "accuracy", 100), ("density", "log-likelihood", 1)):
        differences = [factor * paired(found, Run(), run, "validation", measure) for run in others]
        says = ", ".join(
            f"{run.lengthscale:g} {larger(d)} ({d.mean():+.3f})" for run, d in zip(others, differences, strict=True)
        )
        depends = any(larger(d) != NOT_SETTLED for d in differences)
        lines.append(f"{name} of validation images depends on l: {CONFIRMED if depends else NOT_SETTLED}")
        lines.append(f"l = 0.01 has the better {name} than l = {says}")
    return lines


def fixed_claims(found: Found) -> list[str]:
    """On par with tuned rates."""
    fixed = [run for run in found if run.fixed]
    tuned = max(fixed, key=lambda run: found[run][-1]["validation"]["accuracy"])
    ahead = 100 * paired(found, Run(), tuned, "test", "right")
    low, high = interval(ahead)
    says = f"{ahead.mean():+.2f} points, {low:+.2f} to {high:+.2f}"
    return [
        f"on par with the best fixed rates by validation, {tuned.fixed}, within {ON_PAR} points: "
        f"{alike(ahead, ON_PAR)} ({says}); better: {larger(ahead)}",
        published(found, Run()),
    ]


def published(found: Found, run: Run) -> str:
    """The accuracy of the paper, by test images."""
    right = 100 * np.mean([found[each][-1]["test"]["right"] for each in like(found, run)], 0)
    low, high = interval(right)
    verdict = alike(right - ACCURACY, NEAR)
    return f"{ACCURACY} %, within {NEAR} points: {verdict} ({right.mean():.2f} %, {low:.2f} to {high:.2f})"


def start_claims(found: Found) -> list[str]:
    runs = [Run(start=start) for start in (Run().start, *STARTS) if Run(start=start) in found]
    ends = np.array([rates(found, run)[0] for run in runs])
    return [f"largest difference between where rates end, by layer: {', '.join(f'{d:.3f}' for d in np.ptp(ends, 0))}"]


def decay_claims(found: Found) -> list[str]:
    return [f"with a learning rate that goes down, {published(found, Run(decayed=True))}"]


def cnn_claims(found: Found) -> list[str]:
    runs = like(found, Run(cnn=True, lengthscale=0.1))
    ends, right = (
        np.mean([found[run][-1]["rates"] for run in runs], 0),
        [found[run][-1]["test"]["right"] for run in runs],
    )
    low, high = interval(100 * np.mean(right, 0))
    return [
        f"rates of the authors' later network, 0.012, 0.039, 0.478, 0.055: {', '.join(f'{e:.3f}' for e in ends)}",
        f"its accuracy, 98.92 %, with tuned rates 98.98 %: {100 * np.mean(right):.2f} % ({low:.2f} to {high:.2f})",
    ]


CLAIMS: dict[str, Callable[[Found], list[str]]] = {
    "size": size_claims,
    "width": width_claims,
    "lengthscale": lengthscale_claims,
    "fixed": fixed_claims,
    "start": start_claims,
    "decay": decay_claims,
    "cnn": cnn_claims,
}
