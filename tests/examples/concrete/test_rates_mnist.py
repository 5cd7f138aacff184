"""Learned rates on digits, cut down; networks of the paper; claims from histories that are known."""

import matplotlib.image
import numpy as np
import pyro.poutine as poutine
import pytest
import torch

from examples.common.arguments import settle
from examples.concrete import rates_mnist
from examples.concrete.rates_mnist_claims import CLAIMS
from examples.concrete.rates_mnist_runs import ALL, ARMS, FIXED, LENGTHSCALES, SIZES, STARTS, Run, parts, runs_of
from examples.concrete.rates_mnist_tables import LAYERS, draw, rows_of, tables
from pyro_dropout import AutoConcreteDropout
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "steps", lambda run, epochs: 60)
    found = rates_mnist.main(["--quick", "--outputs", str(tmp_path)])
    assert [run.start for run in found] == [0.1, *STARTS]
    for history in found.values():
        assert [seen["step"] for seen in history] == list(range(3, 61, 3))
        assert len(history[-1]["rates"]) == 4
        assert history[-1]["test"]["accuracy"] > 0.7
        moved = [abs(a - b) for a, b in zip(history[0]["rates"], history[-1]["rates"], strict=True)]
        assert max(moved) > 1e-5
        for part in ("validation", "test"):
            found_of = history[-1][part]
            assert sum(found_of["right"]) / 200 == found_of["accuracy"]
            assert sum(found_of["density"]) / 200 == pytest.approx(found_of["log_likelihood"], abs=1e-4)
    text = (tmp_path / "rates_mnist.md").read_text()
    assert "By where rates start" in text
    assert matplotlib.image.imread(tmp_path / "rates_mnist.png").std() > 0.01


def test_steps_of_sizes():
    """As many epochs, or as many steps as all images have."""
    assert Run(size=2500).steps(100) == 1900
    assert Run(size=2500, equal="steps").steps(100) == Run().steps(100) == 39_000


def test_every_arm_has_the_rows_that_it_shows():
    for arm in ARMS:
        runs = runs_of(arm, repeats=2)
        assert len(set(runs)) == len(runs)
        assert len({run.name for run in runs}) == len(runs)
        assert {run for _, run in rows_of(arm)} <= {run._replace(seed=0) for run in runs}
    assert len([run for run in runs_of("size", 3) if run.size == ALL]) == 3  # epochs and steps are the same there


def test_the_network_and_its_prior():
    """Prior lengthscale 0.01 √K, masks of the image and of three layers, one rate each."""
    settle(0)
    model, guide = Run().make()
    assert isinstance(guide, AutoConcreteDropout)
    guide(torch.zeros(2, 784), torch.tensor([0, 1]))
    assert {name: round(float(rate), 6) for name, rate in guide.rates().items()} == {
        f"net.{i}.weight": 0.1 for i in (0, 2, 4, 6)
    }
    nodes = poutine.trace(model).get_trace(torch.zeros(2, 784)).nodes
    for name, inputs in (("net.0", 784), ("net.2", 512), ("net.6", 512)):
        deviation = nodes[f"{name}.weight"]["fn"].base_dist.scale.flatten()[0].item()
        assert deviation == pytest.approx(100 / inputs**0.5)


@staged
def test_parts_do_not_share_images():
    train, validation, test = parts(Run(), 10_000)
    assert [len(part[0]) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    few = parts(Run(size=2500), 10_000)[0]
    assert torch.equal(few[0], train[0][:2500])  # of the same order
    seen = {image.tobytes() for image in train[0].numpy()}
    shared = sum(image.tobytes() in seen for image in validation[0].numpy())
    assert shared == 0  # the training set of MNIST has no doubles


N = 1000
NOISE = np.random.default_rng(0).normal(size=N)


def part(wrong, density):
    """Of so many images that are wrong, the last ones."""
    by_image = {"right": [int(i < N - wrong) for i in range(N)], "density": (density + 0.01 * NOISE).tolist()}
    return {"accuracy": 1 - wrong / N, "log_likelihood": density, **by_image}


def history(rates, wrong=14, density=-0.05, before=None, validation=None):
    scores = {"test": part(wrong, density), "validation": part(*(validation or (wrong, density)))}
    end = {"step": 20, "seconds": 60.0, "rates": rates, **scores}
    return [{**end, "step": step, "rates": before or rates} for step in range(1, 20)] + [end]


def published():
    """All that the paper claims."""
    found = {}
    for seed in range(3):
        jitter = 0.001 * seed
        for size in SIZES:
            share = size / ALL
            first = 0.3 * (1 - share) + 0.01 + jitter
            for equal in ("epochs", "steps"):
                run = Run(size=size, equal=equal if size < ALL else "epochs", seed=seed)
                found[run] = history([first, first + 0.01, 0.4 + jitter, 0.45 + jitter**2])
        for width in (64, 128, 256):
            rising = [width / 30000 + jitter, width / 1500 - jitter, width / 1500]
            found[Run(width=width, seed=seed)] = history([0.01 + jitter, *rising])
    found[Run(width=1024)] = history([0.01, 0.5, 0.5, 0.5])
    for lengthscale in LENGTHSCALES:
        found.setdefault(Run(lengthscale=lengthscale), history([0.01] * 4, 40, -0.09))
    for i, fixed in enumerate(FIXED):  # the last is best by validation, the first by test images
        found[Run(fixed=fixed)] = history([0.0] * 4, 14 + 10 * i, validation=(60 - 10 * i, -0.05))
    found[Run(fixed=FIXED[-1])] = history([0.0] * 4, 14, validation=(20, -0.05))
    for start in STARTS:
        found[Run(start=start)] = history([0.011, 0.02, 0.4, 0.47])
    found[Run(decayed=True)] = history([0.01, 0.02, 0.4, 0.45], 15)
    found[Run(cnn=True, lengthscale=0.1)] = history([0.012, 0.039, 0.478, 0.055], 11)
    return found


def test_claims_of_what_the_paper_has():
    found = published()
    size = CLAIMS["size"](found)
    assert len(size) == 2 * 5
    for how, lines in (("epochs", size[:5]), ("steps", size[5:])):
        for name, line in zip(LAYERS[:2], lines[:2], strict=True):
            assert line.startswith(
                f"rate of {name} from 2,500 to 50,000 images, equal {how}: falls confirmed, to 0 (below"
            )
            assert ") confirmed (0." in line
        assert all("varies little (by less than 0.1) confirmed" in line for line in lines[2:4])
        assert lines[4].startswith(f"both first rates reach 0 only with many images, equal {how}: confirmed")
    assert [line.count("confirmed") for line in CLAIMS["width"](found)] == [1] * 4
    lengthscale = CLAIMS["lengthscale"](found)
    assert [line.endswith("depends on l: confirmed") for line in lengthscale] == [True, False] * 2
    assert lengthscale[1].count("confirmed (+2.600)") == len(LENGTHSCALES) - 1
    assert lengthscale[3].count("confirmed (+0.040)") == len(LENGTHSCALES) - 1
    par = CLAIMS["fixed"](found)[0]
    assert par.startswith(
        f"on par with the best fixed rates by validation, {FIXED[-1]}, within 0.2 points: confirmed (+0.00"
    )
    assert CLAIMS["start"](found) == [
        "largest difference between where rates end, by layer: 0.001, 0.000, 0.000, 0.020"
    ]
    assert CLAIMS["decay"](found)[0].startswith(
        "with a learning rate that goes down, 98.6 %, within 0.4 points: not settled (98.50"
    )
    assert CLAIMS["cnn"](found)[0].endswith(": 0.012, 0.039, 0.478, 0.055")
    assert "98.90 % (" in CLAIMS["cnn"](found)[1]


def test_claims_of_the_opposite():
    found = published()
    for run in [run for run in found if run.size == ALL and run.width == 512 and not run.fixed and not run.cnn]:
        found[run] = history([0.6 + 0.001 * run.seed] * 4, 60, -0.2)
    size = CLAIMS["size"](found)
    assert all("falls refuted, to 0 (below 0.05) refuted" in line for line in (*size[:2], *size[5:7]))
    assert all("(by less than 0.1) refuted" in line for line in (*size[2:4], *size[7:9]))
    assert all(": refuted (below" in size[i] for i in (4, 9))
    assert CLAIMS["width"](found)[0].endswith("refuted")
    assert "refuted (94.00" in CLAIMS["decay"](found)[0]
    par = CLAIMS["fixed"](found)[0]
    assert "within 0.2 points: refuted (-4.60" in par
    assert par.endswith("better: refuted")
    for seed in range(3):
        for width in (64, 128, 256):
            found[Run(width=width, seed=seed)] = history([0.01, *([20 / width + 0.01 * seed] * 3)])
        found[Run(seed=seed)] = history([0.01] * 4)
    assert [line.count("refuted") for line in CLAIMS["width"](found)[1:]] == [1] * 3
    better = {lengthscale: history([0.1] * 4, 5, -0.01) for lengthscale in LENGTHSCALES[:2]}
    found |= {Run(lengthscale=lengthscale): seen for lengthscale, seen in better.items()}
    assert CLAIMS["lengthscale"](found)[1].count("refuted (-0.900)") == 2


def test_what_two_networks_cannot_tell_is_not_settled():
    """One seed has no error of its rates; images tell accuracies."""
    found = {run: seen for run, seen in published().items() if run.seed == 0}
    assert "not settled" in CLAIMS["size"](found)[0]
    for lengthscale in LENGTHSCALES:
        found[Run(lengthscale=lengthscale)] = history([0.01] * 4)
    assert [line.rsplit(": ", 1)[1] for line in CLAIMS["lengthscale"](found)[::2]] == ["not settled"] * 2


def test_tables_show_every_arm(tmp_path):
    found = published()
    run = Run(start=0.5)
    found[run] = history([0.5] * 4, before=[0.4, 0.5, 0.5, 0.5])
    text = tables(found, ARMS)
    assert "| from 0.5 | 0.500 | 0.500 | 0.500 | 0.500 | 0.100 | 98.60 | -0.0500 | 60 |" in text
    assert "| 2,500, equal epochs | 0.296 ± 0.001 |" in text
    assert text.count("nan") == 0
    assert matplotlib.image.imread(draw(found, tmp_path / "a.png")).std() > 0.01
