"""What the claims of BBα section 5.3 come to, by images that are the same for all networks."""

from __future__ import annotations

import itertools

import numpy as np

from examples.alpha.attacks_tables import (
    AT,
    LATER,
    PLAIN,
    STEP,
    SURE,
    Found,
    by_repeat,
    detection,
    detection_error,
    name_of,
    networks,
    pooled,
)
from examples.common.verdicts import CONFIRMED, NOT_SETTLED, REFUTED, alike, interval, larger

STRENGTHS = (0.0, AT, LATER, 0.3, 0.4, 0.5)


def claims(found: Found) -> str:
    """With 95 % intervals over images: of these networks, not of others trained alike."""
    alphas = [alpha for alpha in networks(found) if alpha is not None]
    lines = [*untargeted(found, alphas), *targeted(found, alphas), *told(found, alphas)]
    return "Claims (95 % intervals over images, of these networks)\n\n" + "\n".join(f"* {line}" for line in lines)


def less(found: Found, attack: str, at: float, measure: str, one: float | None, other: float | None) -> np.ndarray:
    """Differences of two networks, ``[repeats, images]``."""
    mine, theirs = (by_repeat(found, alpha, attack, PLAIN, at, measure) for alpha in (one, other))
    return mine - theirs


def untargeted(found: Found, alphas: list[float]) -> list[str]:
    lines = []
    for alpha in alphas:
        verdict = judged(less(found, "untargeted", AT, "right", alpha, None))
        lines.append(f"{name_of(alpha)} more accurate than no dropout at η = {AT}: {verdict}")
    for alpha in alphas[:-1]:
        verdict = judged(less(found, "untargeted", AT, "right", alphas[-1], alpha))
        lines.append(f"{name_of(alphas[-1])} more accurate than {name_of(alpha)} at η = {AT}: {verdict}")
    right = {alpha: pooled(found, alpha, "untargeted", PLAIN, AT, "right") for alpha in networks(found)}
    best = max(alphas, key=lambda alpha: right[alpha].mean())
    low, times, high = ratio_interval(right[best], right[None])
    verdict = CONFIRMED if low > 2 and high < 4 else REFUTED if high < 2 or low > 4 else NOT_SETTLED
    lines.append(
        f"{name_of(best)}, the best, nearly 3 times as accurate as no dropout at η = {AT}, between 2 and 4: {verdict} "
        f"({times:.2f}, {low:.2f} to {high:.2f})"
    )
    ahead = 100 * (right[best] - right[0.0])
    low, high = interval(ahead)
    verdict = alike(ahead - 20, 5)
    lines.append(f"and about 20 points before α = 0, within 5: {verdict} ({ahead.mean():.1f}, {low:.1f} to {high:.1f})")
    plain = confidently_wrong(found, None, "untargeted", LATER)
    for alpha in (None, *alphas):
        wrong = confidently_wrong(found, alpha, "untargeted", LATER)
        low, high = (100 * bound for bound in interval(wrong.mean(0)))
        lines.append(
            f"{name_of(alpha)} wrong with confidence above {SURE} at η = {LATER}: {100 * wrong.mean():.1f} % of images "
            f"({low:.1f} to {high:.1f})"
            + ("" if alpha is None else f"; fewer than no dropout: {judged(plain - wrong)}")
        )
    for alpha in alphas:
        course = [by_repeat(found, alpha, "untargeted", PLAIN, at, "entropy") for at in STRENGTHS]
        rises = [judged(after - before) for before, after in itertools.pairwise(course)]
        verdict = CONFIRMED if set(rises) == {CONFIRMED} else REFUTED if REFUTED in rises else NOT_SETTLED
        shown = ", ".join(f"{entropy.mean():.2f}" for entropy in course)
        lines.append(f"entropy of {name_of(alpha)} keeps rising to η = 0.5: {verdict} ({shown})")
    return lines


def targeted(found: Found, alphas: list[float]) -> list[str]:
    lines = []
    for alpha in alphas:
        verdict = judged(less(found, "targeted", 20, "right", alpha, None))
        lines.append(f"{name_of(alpha)} resists longer than no dropout, right after 20 steps: {verdict}")
        fewer = confidently_wrong(found, None, "targeted", STEP) - confidently_wrong(found, alpha, "targeted", STEP)
        lines.append(
            f"{name_of(alpha)} less often wrong with confidence after {STEP} steps: {judged(fewer)} "
            f"({100 * fewer.mean():.1f} points)"
        )
    return lines


def told(found: Found, alphas: list[float]) -> list[str]:
    """Whether entropy tells images on which an attack succeeds from what they were."""
    lines = []
    for alpha in alphas:
        for attack, at in (("untargeted", AT), ("targeted", STEP)):
            area, error = detection(found, alpha, attack, PLAIN, at)[2], detection_error(found, alpha, attack, at)
            verdict = CONFIRMED if area > 0.5 + 2 * error else REFUTED if area < 0.5 - 2 * error else NOT_SETTLED
            where = f"η = {at}" if attack == "untargeted" else f"{at} steps"
            lines.append(
                f"entropy of {name_of(alpha)} tells successes at {where}: {verdict} ({area:.2f} ± {error:.2f})"
            )
    return lines


def judged(differences: np.ndarray) -> str:
    """Whether they are positive, ``[repeats, images]``: by the mean over images, and in every repeat."""
    verdict, signs = larger(differences.mean(0)), set(np.sign(differences.mean(1)))
    return verdict if len(signs) == 1 else NOT_SETTLED


def confidently_wrong(found: Found, alpha: float | None, attack: str, at: float) -> np.ndarray:
    """Of each image, ``[repeats, images]``."""
    right, confidence = (by_repeat(found, alpha, attack, PLAIN, at, m) for m in ("right", "confidence"))
    return ((right == 0) & (confidence > SURE)).astype(float)


def ratio_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Of two means of the same images, and the ratio: 95 % of a thousand resamples."""
    rows = np.random.default_rng(0).integers(len(one), size=(1000, len(one)))
    ratios = one[rows].mean(1) / np.maximum(other[rows].mean(1), 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(one.mean() / max(other.mean(), 1e-9)), float(high)
