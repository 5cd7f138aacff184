"""What ``attacks`` shows: accuracy and uncertainty by strength and by step, detection, and the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.verdicts import interval

Found = list[dict[str, Any]]  # of each network
PLAIN = "new draws"  # the published attack
KINDS = (PLAIN, "same draws", "mean network")
SURE = 0.9  # of confidence
AT, LATER, STEP = 0.1, 0.2, 40  # strengths and the step that the text speaks of


def name_of(alpha: float | None) -> str:
    return "no dropout" if alpha is None else f"α = {alpha:g}"


def networks(found: Found) -> list[float | None]:
    return list(dict.fromkeys(each["alpha"] for each in found))


def by_repeat(found: Found, alpha: float | None, attack: str, kind: str, at: float, measure: str) -> np.ndarray:
    """A measure at one strength or step, ``[repeats, images]``."""
    runs = [each[attack][kind] for each in found if each["alpha"] == alpha and kind in each[attack]]
    key = "strength" if attack == "untargeted" else "step"
    rows = [row for run in runs for row in run if abs(row[key] - at) < 1e-9]
    return np.array([row[measure] for row in rows], float)


def pooled(found: Found, alpha: float | None, attack: str, kind: str, at: float, measure: str) -> np.ndarray:
    """By image, its mean over repeats."""
    return by_repeat(found, alpha, attack, kind, at, measure).mean(0)


def cell(values: np.ndarray, factor: float = 1.0, digits: int = 2) -> str:
    return "" if not len(values) else "{0:.{2}f} ± {1:.{2}f}".format(*mean_and_error(factor * values), digits)


def tables(found: Found) -> str:
    return "\n\n".join(
        [
            test_table(found),
            strengths_table(found),
            steps_table(found),
            detection_table(found, "untargeted", (0.05, AT, LATER, 0.5)),
            detection_table(found, "targeted", (10, STEP, 100)),
            distance_table(found),
        ]
    )


def test_table(found: Found) -> str:
    lines = [
        "Before any attack, all test images; mean over repeats",
        "",
        "| | accuracy in % | log-likelihood |",
        "| --- " * 3 + "|",
    ]
    for alpha in networks(found):
        runs = [each["test"] for each in found if each["alpha"] == alpha]
        accuracy, density = ([run[m] for run in runs] for m in ("accuracy", "log_likelihood"))
        lines.append(f"| {name_of(alpha)} | {100 * np.mean(accuracy):.2f} | {np.mean(density):.3f} |")
    return "\n".join(lines)


def kinds_of(found: Found, alpha: float | None) -> list[str]:
    return [kind for kind in KINDS if any(kind in each["untargeted"] for each in found if each["alpha"] == alpha)]


def strengths_table(found: Found) -> str:
    shown = (0.0, 0.05, AT, LATER, 0.3, 0.5)
    lines = [
        "One step away from the label predicted: accuracy in %, and mean predictive entropy in nats, by strength η",
        "",
    ]
    heads = [f"{what} at {at:g}" for what in ("right", "entropy") for at in shown]
    lines += [f"| network | attack on | {' | '.join(heads)} |"]
    lines += ["| --- " * (2 + 2 * len(shown)) + "|"]
    for alpha in networks(found):
        for kind in kinds_of(found, alpha):
            right = [cell(pooled(found, alpha, "untargeted", kind, at, "right"), 100, 1) for at in shown]
            entropy = [f"{pooled(found, alpha, 'untargeted', kind, at, 'entropy').mean():.2f}" for at in shown]
            lines.append(f"| {name_of(alpha)} | {kind} | {' | '.join([*right, *entropy])} |")
    return "\n".join(lines)


def steps_table(found: Found) -> str:
    shown = (0, 5, 10, 20, STEP, 100)
    lines = [
        "Steps of 0.01 towards class 0: accuracy in %, share classified as 0 in %, mean entropy in nats, by steps",
        "",
    ]
    heads = [f"{what} {at}" for what in ("right at", "0 at", "entropy at") for at in shown]
    lines += [f"| network | attack on | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    for alpha in networks(found):
        for kind in kinds_of(found, alpha):
            cells = [
                f"{factor * pooled(found, alpha, 'targeted', kind, at, measure).mean():.{digits}f}"
                for measure, factor, digits in (("right", 100, 1), ("target", 100, 1), ("entropy", 1, 2))
                for at in shown
            ]
            lines.append(f"| {name_of(alpha)} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def auroc(clean: np.ndarray, attacked: np.ndarray) -> float:
    """How well a measure tells attacked images from clean ones."""
    if not len(clean) or not len(attacked):
        return np.nan
    return float(roc_auc_score(np.r_[np.zeros(len(clean)), np.ones(len(attacked))], np.r_[clean, attacked]))


def detection(found: Found, alpha: float | None, attack: str, kind: str, at: float) -> list[float]:
    """AUROC of entropy and of mutual information: all images, those on which the attack succeeds.

    That is an image that was right and is wrong; of the targeted attack one that is taken for the target.
    """

    def of(measure: str, where: float) -> np.ndarray:
        return by_repeat(found, alpha, attack, kind, where, measure).flatten()

    succeeds = successes(found, alpha, attack, kind, at).flatten()
    measures = ("entropy", "information")
    return [auroc(of(m, 0)[rows], of(m, at)[rows]) for rows in (slice(None), succeeds) for m in measures]


def successes(found: Found, alpha: float | None, attack: str, kind: str, at: float) -> np.ndarray:
    def of(measure: str, where: float) -> np.ndarray:
        return by_repeat(found, alpha, attack, kind, where, measure) > 0

    return of("target", at) if attack == "targeted" else of("right", 0) & ~of("right", at)


def detection_error(found: Found, alpha: float | None, attack: str, at: float) -> float:
    """Standard error of the AUROC of entropy among successes, two pictures of each image (Hanley & McNeil 1982)."""
    area = detection(found, alpha, attack, PLAIN, at)[2]
    number = int(successes(found, alpha, attack, PLAIN, at).any(0).sum())  # repeats have the same images
    if number < 2:
        return np.nan
    both_clean, both_attacked = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (number - 1) * (both_clean + both_attacked - 2 * area**2)
    return float(np.sqrt(spread) / number)


def detection_table(found: Found, attack: str, shown: tuple[float, ...]) -> str:
    what = "strength" if attack == "untargeted" else "step"
    lines = [
        f"AUROC of attacked images against the same before, {attack}; of all / of those on which it succeeds",
        "",
    ]
    heads = [f"{measure} at {what} {at:g}" for at in shown for measure in ("entropy", "information")]
    lines += [f"| network | attack on | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    for alpha in networks(found):
        for kind in kinds_of(found, alpha):
            cells = []
            for at in shown:
                entropy, information, of_turned, information_of_turned = detection(found, alpha, attack, kind, at)
                cells += [f"{entropy:.2f} / {of_turned:.2f}"]
                cells += [f"{information:.2f} / {information_of_turned:.2f}" if alpha is not None else ""]
            lines.append(f"| {name_of(alpha)} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def distance_table(found: Found) -> str:
    """Whether what is taken for a 0 has become one."""
    last = last_step(found)
    lines = [
        f"Images taken for a 0 with probability above {SURE} after {last} steps: share, and distance to the nearest 0",
        "of the training set, before and after; of those that the network without dropout takes for one too, how much",
        "nearer they are than its own, with a 95 % interval",
        "",
        "| network | share in % | before | after | nearer |",
    ]
    lines += ["| --- " * 5 + "|"]
    for alpha in networks(found):
        sure, before, after = confident_zeros(found, alpha)
        both, nearer = sure & confident_zeros(found, None)[0], ""
        if alpha is not None and both.sum() > 1:
            d = (confident_zeros(found, None)[2] - after)[both]
            nearer = "{:.2f} ({:.2f} to {:.2f}), {} images".format(d.mean(), *interval(d), both.sum())
        cells = [cell(sure.astype(float), 100, 1), cell(before[sure]), cell(after[sure]), nearer]
        lines.append(f"| {name_of(alpha)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def last_step(found: Found) -> int:
    return max(row["step"] for row in found[0]["targeted"][PLAIN])


def confident_zeros(found: Found, alpha: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which images these are in every repeat, and the mean distances of all, before and after."""
    last = last_step(found)

    def of(measure: str, at: float) -> np.ndarray:
        return by_repeat(found, alpha, "targeted", PLAIN, at, measure)

    sure = ((of("confidence", last) > SURE) & (of("target", last) > 0)).all(0)
    return sure, of("nearest", 0).mean(0), of("nearest", last).mean(0)


# Figures


def curves(found: Found, path: Path) -> Path:
    figure, axes = panels(2, 2, 9, 6.4)
    for row, (attack, key) in zip(axes, (("untargeted", "strength"), ("targeted", "step")), strict=True):
        for axis, (measure, name) in zip(row, (("right", "accuracy"), ("entropy", "predictive entropy")), strict=True):
            for i, alpha in enumerate(networks(found)):
                for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
                    if kind not in kinds_of(found, alpha):
                        continue
                    run = next(each[attack][kind] for each in found if each["alpha"] == alpha)
                    where = [point[key] for point in run]
                    values = [pooled(found, alpha, attack, kind, at, measure).mean() for at in where]
                    label = name_of(alpha) if kind == PLAIN else None
                    axis.plot(where, values, style, color=f"C{i}", label=label)
            axis.set(xlabel="strength of one step" if attack == "untargeted" else "steps towards 0", ylabel=name)
            if attack == "targeted":
                axis.set_xscale("symlog", linthresh=1)
    axes[0][0].legend(title="dashed: same draws\ndotted: mean network")
    return save(figure, path)


def pictures(found: Found, folder: Path) -> list[Path]:
    """One 7 under both attacks, with what each network says of it."""
    written = []
    for attack, key in (("untargeted", "strength"), ("targeted", "step")):
        first = {alpha: next(e[attack][PLAIN] for e in found if e["alpha"] == alpha) for alpha in networks(found)}
        shown = [i for i, row in enumerate(first[None]) if attack == "untargeted" or row["step"] % 10 == 0]
        figure, axes = panels(len(first), len(shown), 1.0 * len(shown), 1.35 * len(first))
        for line, (alpha, run) in zip(axes, first.items(), strict=True):
            for axis, i in zip(line, shown, strict=True):
                row, image = run[i], run[i]["shown"]
                axis.imshow(np.array(row["image"]).reshape(28, 28), cmap="gray_r", vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
                axis.set_title(
                    f"{row[key]:g}: {row['confidence'][image]:.2f}, H {row['entropy'][image]:.2f}", fontsize=5
                )
                colour = "green" if row["right"][image] else "red"
                for spine in axis.spines.values():
                    spine.set_color(colour)
            line[0].set_ylabel(name_of(alpha))
        written.append(save(figure, folder / f"attacks_{attack}.png", dpi=200))
    return written
