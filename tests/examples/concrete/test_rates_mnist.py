"""Learned rates on digits, cut down; networks of the paper; claims from histories that are known."""

import matplotlib.image
import pyro.poutine as poutine
import pytest
import torch

from examples.common.arguments import settle
from examples.concrete import rates_mnist
from examples.concrete.rates_mnist_runs import ALL, ARMS, FIXED, LENGTHSCALES, SIZES, STARTS, Run, parts, runs_of
from examples.concrete.rates_mnist_tables import CLAIMS, draw, rows_of, tables
from pyro_dropout import AutoConcreteDropout
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path):
    found = rates_mnist.main(["--quick", "--outputs", str(tmp_path)])
    assert [run.start for run in found] == [0.1, *STARTS]
    for history in found.values():
        assert history[-1]["step"] == ALL // 128
        assert len(history) > 20
        assert len(history[-1]["rates"]) == 4
        assert history[-1]["test"]["accuracy"] > 0.9
        moved = [abs(a - b) for a, b in zip(history[0]["rates"], history[-1]["rates"], strict=True)]
        assert max(moved) > 0.001
        assert len(history[-1]["wrong"]) == round(200 * (1 - history[-1]["test"]["accuracy"]))
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


def history(rates, accuracy=0.986, density=-0.05, wrong=(), before=None):
    scores = {"accuracy": accuracy, "log_likelihood": density}
    end = {"step": 20, "seconds": 60.0, "rates": rates, "test": scores, "validation": scores, "wrong": list(wrong)}
    return [{**end, "step": step, "rates": before or rates} for step in range(1, 20)] + [end]


def published():
    """All that the paper claims."""
    found = {}
    for seed in range(3):
        jitter = 0.001 * seed
        for size in SIZES:
            share = size / ALL
            rates = [0.3 * (1 - share) + 0.01 + jitter, 0.3 * (1 - share) + 0.02 + jitter, 0.4, 0.45 + jitter]
            for equal in ("epochs", "steps"):
                found[Run(size=size, equal=equal if size < ALL else "epochs", seed=seed)] = history(rates)
    for width in (64, 128, 256, 1024):
        found[Run(width=width)] = history([0.01, width / 30000, width / 1500, width / 1500])
    for lengthscale in LENGTHSCALES:
        worse = 0.0 if lengthscale == 1e-2 else 0.01
        found.setdefault(Run(lengthscale=lengthscale), history([0.01] * 4, 0.98 - worse, -0.1 - worse))
    found[Run(lengthscale=1e-2)] = history([0.01, 0.02, 0.4, 0.45], wrong=range(140))
    for i, fixed in enumerate(FIXED):
        found[Run(fixed=fixed)] = history([0.0] * 4, 0.97 + 0.001 * i, wrong=range(10, 155))
    for start in STARTS:
        found[Run(start=start)] = history([0.01, 0.02, 0.4, 0.47])
    found[Run(decayed=True)] = history([0.01, 0.02, 0.4, 0.45], 0.9845)
    found[Run(cnn=True, lengthscale=0.1)] = history([0.012, 0.039, 0.478, 0.055])
    return found


def test_claims_of_what_the_paper_has():
    found = published()
    size = CLAIMS["size"](found)
    assert len(size) == 8
    for line in size:
        assert ("falls" in line and ": confirmed" in line) == ("image" in line.split("falls")[0] or "hidden 1" in line)
    assert sum("to 0 (below 0.05): confirmed" in line for line in size) == 4
    assert all("confirmed" in line for line in CLAIMS["width"](found))
    assert CLAIMS["lengthscale"](found)[0].startswith("l = 0.01 is the best, by validation images: confirmed")
    par = CLAIMS["fixed"](found)[1]
    assert par.startswith(f"on par with the best fixed rates by validation, {FIXED[-1]}: confirmed (5 ± 5 images")
    assert CLAIMS["start"](found) == [
        "largest difference between where rates end, by layer: 0.000, 0.000, 0.000, 0.020"
    ]
    assert CLAIMS["decay"](found)[0].endswith(": confirmed (98.45 ± 0.12 %)")
    assert CLAIMS["cnn"](found)[0].endswith(": 0.012, 0.039, 0.478, 0.055")


def test_claims_of_the_opposite():
    found = published()
    for run in [run for run in found if run.size == ALL and run.width == 512 and not run.fixed]:
        found[run] = history([0.6, 0.6, 0.6, 0.6], 0.98, wrong=range(300))
    assert all("refuted" in line for line in CLAIMS["size"](found))
    assert "refuted" in CLAIMS["width"](found)[0]
    assert "refuted" in CLAIMS["decay"](found)[0]
    assert ": refuted (-155 ± 12" in CLAIMS["fixed"](found)[1]
    for lengthscale in LENGTHSCALES:
        found[Run(lengthscale=lengthscale)] = history([0.1] * 4, 0.9 - lengthscale / 10, -0.1 - lengthscale)
    assert "refuted (accuracy 0.0001" in CLAIMS["lengthscale"](found)[0]


def test_tables_show_every_arm(tmp_path):
    found = published()
    run = Run(start=0.5)
    found[run] = history([0.5] * 4, before=[0.4, 0.5, 0.5, 0.5])
    text = tables(found, ARMS)
    assert "| from 0.5 | 0.500 | 0.500 | 0.500 | 0.500 | 0.100 | 98.60 | -0.0500 | 60 |" in text
    assert "| 2,500, equal epochs | 0.296 ± 0.001 |" in text
    assert text.count("nan") == 0
    assert matplotlib.image.imread(draw(found, tmp_path / "a.png")).std() > 0.01
