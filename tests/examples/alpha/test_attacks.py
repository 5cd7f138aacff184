"""Adversarial images, cut down; detection and claims from results that are known."""

import matplotlib.image
import numpy as np
import pytest

from examples.alpha import attacks
from examples.alpha.attacks_tables import claims, confident_zeros, detection, detection_error
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path, capsys):
    arguments = ["--quick", "--outputs", str(tmp_path)]
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


def network(alpha, right, entropy):
    """The same at all strengths and steps but the first, where all is right and entropy is 0.1."""
    n = len(right)
    steps = [0, 5, 10, 20, 40, 100]
    first = ([True] * n, [0.1 + 0.001 * i for i in range(n)])
    untargeted = [row(0.05 * i, *(first if i == 0 else (right, [e + 0.01 * i for e in entropy]))) for i in range(11)]
    targeted = [row(s, *(first if s == 0 else (right, entropy)), key="step") for s in steps]
    return {"alpha": alpha, "untargeted": {"new draws": untargeted}, "targeted": {"new draws": targeted}}


N = 120
HALF = [i % 2 == 0 for i in range(N)]


def test_claims_are_what_results_say():
    found = [
        network(None, [False] * N, [0.05] * N),
        network(0.0, HALF, [0.5] * N),
        network(0.5, HALF, [0.6] * N),
        network(1.0, [i % 4 > 0 for i in range(N)], [0.7] * N),
    ]
    lines = claims(found)
    verdicts = {line.rsplit(": ", 1)[0]: line.rsplit(": ", 1)[1] for line in lines if ": " in line}
    for alpha in ("0", "0.5", "1"):
        assert verdicts[f"* α = {alpha} more accurate than no dropout at η = 0.1"] == "confirmed"
        assert verdicts[f"* α = {alpha} less sure than no dropout after 40 steps"] == "confirmed"
        assert verdicts[f"* entropy of α = {alpha} tells successes at 40 steps"].startswith("confirmed (1.00")
        assert verdicts[f"* entropy of α = {alpha} keeps rising to η = 0.5"].startswith("confirmed")
    assert verdicts["* α = 1 more accurate than α = 0 at η = 0.1"] == "confirmed"
    assert any("the best, α = 1, is right in 75.0 %" in line and "25.0 points above" in line for line in lines)
    weak = [network(None, HALF, [0.5] * N), network(0.0, [False] * N, [0.05] * N), network(1.0, HALF, [0.05] * N)]
    verdicts = dict(line.rsplit(": ", 1) for line in claims(weak) if ": " in line)
    assert verdicts["* α = 0 more accurate than no dropout at η = 0.1"] == "refuted"
    assert verdicts["* α = 1 more accurate than no dropout at η = 0.1"] == "not settled"
    assert verdicts["* entropy of α = 0 tells successes at 40 steps"].startswith("refuted (0.00")


def test_detection_is_among_what_an_attack_turned():
    """Entropy tells those that stay right, not those that were turned."""
    entropy = [5.0 if right else 0.0 for right in HALF]
    found = [network(0.5, HALF, entropy)]
    of_all, _, of_turned, _ = detection(found, 0.5, "targeted", "new draws", 40)
    assert of_all == pytest.approx(0.5)
    assert of_turned == 0.0


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
    assert confident.tolist() == [1, 0, 0, 1]
    assert before.tolist() == [1, 1]
    assert after.tolist() == [1, 4]
