"""A member of each of torchvision's families converts exactly, or is refused by a sentence that can be acted upon."""

import re

import pytest
import torch
from torch import nn

from tests.support.conversions import Case, convert
from tests.support.vision import CASES

PASSES = 9  # as many as anywhere; attention has products of its own, and functions that end in a projection are tried
TOLERANCE = 1e-5  # of float32, relative to the largest output; the deepest networks come to a tenth of it


def check(case, size):
    outcome = convert(case, size)
    assert outcome.passes <= PASSES
    if case.refused:
        assert re.search(case.refused, outcome.sentence), outcome.sentence
    else:
        assert not outcome.sentence
        assert outcome.masked == outcome.expected
        assert outcome.deviation < TOLERANCE
        assert outcome.effect > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}{'' if case.rate is None else ' with rate'}")
def test_converts_exactly_or_is_refused_at_two_sizes(case, which):
    pytest.importorskip("torchvision", reason="torchvision is an extra: .[vision]")
    check(case, case.sizes[which])


# The check itself, on a network that needs no torchvision


def small(size):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 6, 3, groups=2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, 5), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, *head, nn.Linear(5, 2)).eval()


def none(size):
    return nn.Sequential(*(layer for layer in small(size) if not isinstance(layer, nn.Dropout | nn.Dropout2d)))


SMALL = Case("small", small, {"4.weight": "3", "8.weight": "7", "11.weight": "10"}, sizes=(5, 8))


@pytest.mark.parametrize("size", SMALL.sizes)
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        SMALL._replace(make=none, refused="no active dropout"),
        SMALL._replace(make=none, rate=0.3),
        SMALL._replace(rate=0.3, refused="masks already"),
    ],
)
def test_a_small_network_converts_exactly_or_is_refused(case, size):
    check(case, size)


def twice(size):
    return nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Dropout2d(0.4), nn.Conv2d(3, 3, 1)).eval()


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        (Case("masks of the other", twice, {"1.weight": "3", "4.weight": "0"}, sizes=(3, 5)), "deviation"),
        (Case("one too few", twice, {"1.weight": "0"}, sizes=(3, 5)), "KeyError"),
        (SMALL._replace(dropouts={**SMALL.dropouts, "0.weight": "3"}), "Extra items"),
        (SMALL._replace(rate=0.3), "not 'rate gives"),
        (SMALL._replace(output=lambda out: torch.zeros_like(out) + 1), "effect"),
    ],
)
def test_what_does_not_convert_exactly_is_seen(case, seen):
    with pytest.raises((AssertionError, KeyError)) as error:
        check(case, case.sizes[0])
    assert seen in f"{error.type.__name__}: {error.value}"
