"""Adversarial images, cut down; detection and claims from results that are known."""

import matplotlib.image
import numpy as np
import pytest
import torch

from examples.alpha import attacks
from examples.alpha.attacks_claims import claims, ratio_interval
from examples.alpha.attacks_tables import confident_zeros, detection, detection_error, distance_table
from examples.alpha.networks import Network
from examples.common.arguments import settle
from examples.common.fits import Fitted
from tests.examples.staged import staged


@staged
@pytest.mark.slow
def test_what_is_found_and_written(tmp_path, capsys):
    arguments = ["--quick", "--images", "1280", "--draws", "3", "--outputs", str(tmp_path)]
    found = attacks.main(arguments)
    assert [each["alpha"] for each in found] == list(attacks.NETWORKS)
    for each in found:
        kinds = {"new draws"} if each["alpha"] is None else {"new draws", "same draws", "mean network"}
        assert each["untargeted"].keys() == each["targeted"].keys() == kinds
        for run in each["untargeted"].values():
            assert len(run) == 11
            assert len(run[0]["right"]) == 60
            assert np.mean(run[0]["right"]) > np.mean(run[-1]["right"])
        for run in each["targeted"].values():
            assert np.mean(run[-1]["target"]) > np.mean(run[0]["target"])
            assert run[0]["step"] == 0
    clean, attacked = (np.array(found[0]["untargeted"]["new draws"][i]["image"]) for i in (0, 2))
    assert np.abs(attacked - clean).max() in (25, 26)  # of 255: 0.1
    for name in ("attacks", "attacks_untargeted", "attacks_targeted"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.01
    text = (tmp_path / "attacks.md").read_text()
    attacks.main(arguments)  # read, not computed
    assert (tmp_path / "attacks.md").read_text() == text
    capsys.readouterr()


def row(at, right, entropy, key="strength", **more):
    n = len(right)
    given = {"right": right, "entropy": entropy, "information": entropy, "confidence": [0.5] * n, "target": [False] * n}
    return {key: at, **given, "nearest": [1.0] * n, **more}


def network(alpha, right, entropy, confidence=0.5):
    """The same at all strengths and steps but the first, where all is right and entropy is 0.1."""
    n = len(right)
    steps = [0, 5, 10, 20, 40, 100]
    first = ([True] * n, [0.1 + 0.001 * i for i in range(n)])
    found = {"confidence": [confidence] * n, "target": [not r for r in right]}
    untargeted = [
        row(0.05 * i, *(first if i == 0 else (right, [e + 0.01 * i for e in entropy]))) | (found if i else {})
        for i in range(11)
    ]
    targeted = [row(s, *(first if s == 0 else (right, entropy)), key="step") | (found if s else {}) for s in steps]
    return {"alpha": alpha, "untargeted": {"new draws": untargeted}, "targeted": {"new draws": targeted}}


N = 120
HALF = [i % 2 == 0 for i in range(N)]
MOST = [i % 4 > 0 for i in range(N)]
SEVENTH = [i % 7 == 0 for i in range(N)]
BEST = "α = 1, the best, nearly 3 times as accurate as no dropout at η = 0.1, between 2 and 4"


def verdicts_of(found):
    return dict(line[2:].rsplit(": ", 1) for line in claims(found).splitlines() if ": " in line)


def test_claims_are_what_results_say():
    found = [
        network(None, SEVENTH, [0.05] * N, 0.95),
        network(0.0, HALF, [0.5] * N),
        network(0.5, HALF, [0.6] * N),
        network(1.0, MOST, [0.7] * N),
    ]
    verdicts = verdicts_of(found)
    for alpha in ("0", "0.5", "1"):
        assert verdicts[f"α = {alpha} more accurate than no dropout at η = 0.1"] == "confirmed"
        assert verdicts[f"α = {alpha} less often wrong with confidence after 40 steps"].startswith("confirmed (85.0")
        assert verdicts[f"entropy of α = {alpha} tells successes at 40 steps"].startswith("confirmed (1.00")
        assert verdicts[f"entropy of α = {alpha} keeps rising to η = 0.5"].startswith("confirmed")
    assert verdicts["α = 1 more accurate than α = 0 at η = 0.1"] == "confirmed"
    assert "(5.00, " in verdicts[BEST]  # 90 images against 18
    assert verdicts["and about 20 points before α = 0, within 5"].startswith("not settled (25.0")
    text = claims(found)
    assert "no dropout wrong with confidence above 0.9 at η = 0.2: 85.0 % of images" in text
    assert "α = 1 wrong with confidence above 0.9 at η = 0.2: 0.0 % of images (0.0 to 0.0); fewer" in text


def test_claims_of_the_opposite():
    weak = [
        network(None, HALF, [0.5] * N),
        network(0.0, [False] * N, [0.05] * N, 0.95),
        network(1.0, HALF, [0.05] * N, 0.95),
    ]
    verdicts = verdicts_of(weak)
    assert verdicts["α = 0 more accurate than no dropout at η = 0.1"] == "refuted"
    assert verdicts["α = 1 more accurate than no dropout at η = 0.1"] == "not settled"
    assert verdicts["entropy of α = 0 tells successes at 40 steps"].startswith("refuted (0.00")
    assert verdicts[BEST].startswith("refuted")
    assert verdicts["α = 0 less often wrong with confidence after 40 steps"].startswith("refuted")


def test_repeats_are_the_same_images_and_must_agree():
    """Two repeats in which kinds change places show no difference; three of four are not all."""
    one = [network(None, SEVENTH, [0.1] * N), network(0.0, MOST, [0.1] * N)]
    other = [network(None, MOST, [0.1] * N), network(0.0, SEVENTH, [0.1] * N)]
    key = "α = 0 more accurate than no dropout at η = 0.1"
    assert verdicts_of(one)[key] == verdicts_of([*one, *one])[key] == "confirmed"
    assert verdicts_of(other)[key] == "refuted"
    assert verdicts_of([*one, *other])[key] == "not settled"
    assert verdicts_of([*one, *one, *one, *other])[key] == "not settled"
    twice = detection_error([*one, *one], 0.0, "targeted", 40)
    assert twice == pytest.approx(detection_error(one, 0.0, "targeted", 40))


def test_ratios_are_of_resampled_images():
    rng = np.random.default_rng(0)
    one, other = (rng.random((2, 4000)) < [[0.6], [0.2]]).astype(float)
    low, times, high = ratio_interval(one, other)
    error = 3 * (0.4 / 0.6 / 4000 + 0.8 / 0.2 / 4000) ** 0.5  # by the delta method
    assert low < times < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_what_an_attack_goes_through_and_what_predicts():
    settle(0)
    model, guide = Network("8", 0.5).make(10)
    x = torch.rand(3, 784)
    guide(x, torch.tensor([0, 1, 2]))
    kinds = attacks.attacks_on(Fitted(model, guide, []), 4, without_dropout=False)
    drawn = {kind: [len(f(x)) for f in pair] for kind, pair in kinds.items()}
    assert drawn == {"new draws": [4, 4], "same draws": [4, 4], "mean network": [1, 4]}
    repeats = {kind: [torch.equal(f(x), f(x)) for f in pair] for kind, pair in kinds.items()}
    assert repeats == {"new draws": [False] * 2, "same draws": [True] * 2, "mean network": [True, False]}


def test_detection_is_among_what_an_attack_turned():
    """Entropy tells those that stay right, not those that were turned."""
    entropy = [5.0 if right else 0.0 for right in HALF]
    found = [network(0.5, HALF, entropy)]
    for attack, at in (("untargeted", 0.1), ("targeted", 40)):
        of_all, _, of_turned, _ = detection(found, 0.5, attack, "new draws", at)
        assert of_all == pytest.approx(0.5)
        assert of_turned == 0.0
    confused = next(row for row in found[0]["targeted"]["new draws"] if row["step"] == 40)
    confused["target"] = HALF  # what is wrong is taken for something else: no success
    assert detection(found, 0.5, "targeted", "new draws", 40)[2] == 1.0


def test_errors_of_areas_are_those_of_many_samples():
    """Exponential scores, for which the formula is exact: Hanley & McNeil's model."""
    rng, n, factor = np.random.default_rng(0), 60, 3.0
    areas, errors = [], []
    for _ in range(300):
        clean, attacked = rng.exponential(size=n), factor * rng.exponential(size=n)
        run = network(0.5, [False] * n, attacked.tolist())
        run["untargeted"]["new draws"][0]["entropy"] = clean.tolist()
        run["untargeted"]["new draws"][2]["entropy"] = attacked.tolist()
        areas.append(detection([run], 0.5, "untargeted", "new draws", 0.1)[2])
        errors.append(detection_error([run], 0.5, "untargeted", 0.1))
    assert np.mean(areas) == pytest.approx(factor / (1 + factor), abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.15)


def test_confident_zeros_are_those_of_the_last_step():
    run = network(None, [False] * 4, [0.1] * 4)
    last = run["targeted"]["new draws"][-1]
    last |= {"confidence": [0.95, 0.95, 0.5, 0.95], "target": [True, False, True, True], "nearest": [1, 2, 3, 4]}
    confident, before, after = confident_zeros([run], None)
    assert confident.tolist() == [True, False, False, True]
    assert before.tolist() == [1] * 4
    assert after.tolist() == [1, 2, 3, 4]
    other = network(0.5, [False] * 4, [0.1] * 4)
    other["targeted"]["new draws"][-1] |= {"confidence": [0.95] * 4, "target": [True] * 4, "nearest": [0.5] * 4}
    row = distance_table([run, other]).splitlines()[-1]
    assert row.startswith("| α = 0.5 | 100.0 ± 0.0 | 1.00 ± 0.00 | 0.50 ± 0.00 | 2.00 (")  # of 1 and 4: 0.5 and 3.5
    assert row.endswith(", 2 images |")
