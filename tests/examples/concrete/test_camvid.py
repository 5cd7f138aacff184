"""Segmentation, cut down; what is masked, crops, tables and claims from histories that are known."""

import argparse

import matplotlib.image
import numpy as np
import pyro
import pytest
import torch

from examples.common.data.camvid import UNLABELLED
from examples.common.segmentation import CLASSES, SIZES, Crops, Dropout, as_inputs, options_of, trained
from examples.common.segmentation_results import ahead, epochs_of, values
from examples.concrete import camvid
from examples.concrete.camvid import CONCRETE, FIXED, MEASURES, NONE, STARTS, WAYS, claims, rates_table, tables
from models.segmentation import FCDenseNet, Segmentation, has_dropout
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from tests.examples.staged import staged


@staged
@pytest.mark.slow
def test_what_is_found_and_written(tmp_path):
    arguments = ["--quick", "--outputs", str(tmp_path)]
    found = camvid.main(arguments)
    assert list(found) == [NONE, FIXED, *STARTS]
    for dropout, (history,) in found.items():
        assert [seen["step"] for seen in history] == [1, 2]
        assert ("draws" in history[-1]) == (dropout != NONE)
        assert len(history[-1]["rates"]) == 8  # layers and transitions
        learned = any(abs(rate - dropout.rate) > 1e-4 for rate in history[-1]["rates"].values())
        assert learned == (dropout.how == "relaxed")
    text = (tmp_path / "concrete_camvid.md").read_text()
    assert all(f"| {name} |" in text for name in WAYS)
    for name in ("concrete_camvid.png", "concrete_camvid_maps.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.01
    camvid.main(arguments)  # read, not trained again
    assert (tmp_path / "concrete_camvid.md").read_text() == text


@pytest.mark.parametrize(
    ("dropout", "kind", "learned", "masked"),
    [
        (Dropout(0.3), BernoulliMask, False, has_dropout),
        (Dropout(0.3, "relaxed"), ConcreteMask, True, has_dropout),
        (Dropout(0.3, "hard", "middle"), BernoulliMask, True, lambda name: ".middle." in name),
    ],
)
def test_what_is_masked(dropout, kind, learned, masked):
    with pyro.settings.context(module_local_params=True):
        model = Segmentation(FCDenseNet(CLASSES, **SIZES["tiny"]), size=5, ignored=UNLABELLED)
        guide = dropout.guide(model)
        x, y = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
        sites = pyro.poutine.trace(guide).get_trace(x, y).nodes
        rates = {name: float(rate) for name, rate in guide.rates().items() if rate > 0}
        assert list(rates.values()) == pytest.approx([0.3] * len(rates))
        convolutions = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)]
        expected = {name.replace("net.net.", "net.") for name in convolutions if masked(f"{name}.")}
        if dropout.where == "middle":
            assert set(rates) == {f"{name}.output" for name in expected}
            assert sites["net.middle.layers.0.masked.output.mask"]["value"].shape == (4,)
        else:
            assert set(rates) == {f"{name}.weight" for name in expected}
            assert sites["net.middle.layers.1.masked.weight.mask"]["value"].shape == (8 + 2 * 4 + 4,)
        masks = [site["fn"] for name, site in sites.items() if name.endswith(".mask")]
        assert all(type(mask) is kind for mask in masks)
        assert all(bool(mask._given.requires_grad) == learned for mask in masks)


def test_crops():
    x = torch.arange(3 * 6 * 8).reshape(3, 6, 8, 1).expand(3, 6, 8, 3).to(torch.uint8)
    y = x[..., 0] % 12
    take = Crops((x, y), 4, seed=1)
    rows = torch.tensor([[0, 2], [1, 0], [2, 2]])
    pixels, labels = take(rows, 5)
    assert pixels.shape == (3, 2, 3, 4, 4)
    assert labels.shape == (3, 2, 4, 4)
    values = ((pixels[:, :, 0] + 1) * 127.5).round().long()
    assert torch.equal(values % 12, labels)  # pixels and labels move together
    assert torch.equal(values // 48, rows[..., None, None].expand_as(values))
    step = values[..., 0, 1] - values[..., 0, 0]
    assert set(step.flatten().tolist()) <= {1, -1}
    assert torch.equal(values[..., 1, 0] - values[..., 0, 0], torch.full((3, 2), 8))
    again, _ = take(rows[1:], 6)
    assert torch.equal(again, pixels[1:])  # the step decides
    many = Crops((x, y), 4, seed=0)(torch.zeros(50, 4, dtype=torch.long), 0)[0]
    flips = many[:, :, 0, 0, 1] < many[:, :, 0, 0, 0]
    assert 0.3 < flips.float().mean() < 0.7
    assert len(many[:, :, 0].amin((-1, -2)).unique()) == 15  # all places


def test_inputs():
    image = torch.tensor([[[0, 255, 51]]], dtype=torch.uint8)
    assert as_inputs(image)[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_sizes_of_options():
    full = options_of("concrete.camvid", "x.", ["--full"], "outputs")
    assert (full.size, full.crop, full.batch, full.whole, full.epochs) == ("103", 224, 3, True, 750)
    assert (full.bfloat16, full.device) == (True, torch.device("cuda"))
    small = options_of("concrete.camvid", "x.", [], "outputs")
    assert (small.size, small.bfloat16, small.device) == ("small", False, torch.device("cpu"))


def test_networks_compute_in_bfloat16_and_all_else_in_single_precision(tmp_path):
    options = options_of("concrete.camvid", "x.", ["--quick", "--bfloat16", "--outputs", str(tmp_path)], "outputs")
    options.epochs = options.images = 1
    model, guide, history = trained(STARTS[1], 0, options)
    seen = []
    model.net.net.first.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    x, y = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long)
    trace = pyro.poutine.trace(pyro.poutine.replay(model, pyro.poutine.trace(guide).get_trace(x, y))).get_trace(x, y)
    assert seen == [torch.bfloat16]
    assert trace.nodes["probs"]["value"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in [*model.buffers(), *guide.parameters()] if p.is_floating_point())
    assert 0 < history[-1]["rates"]["net.middle.layers.0.masked.weight"] < 1


def known(seeds=3):
    masks = [f"net.{part}.masked.weight" for part in ("down.0.layers.0", "down.0.layers.1", "middle.layers.0")]
    masks += [f"net.up.0.layers.{i}.masked.weight" for i in range(2)]
    rates = {STARTS[0]: 0.01, STARTS[1]: 0.02, STARTS[2]: 0.025}
    results = {}
    for number, dropout in enumerate([NONE, FIXED, *STARTS]):
        histories = []
        for seed in range(seeds):
            ends = [rates.get(dropout, dropout.rate) + (0.2 if mask in (masks[1], masks[4]) else 0.0) for mask in masks]
            of = {m: (0.5 + 0.1 * number + 0.01 * seed) for m in MEASURES}
            of |= {"probability": [0.1, 0.9], "frequency": [0.2, 0.8]}
            ways = {"mean": of} if dropout == NONE else {"mean": of, "draws": {**of, "IoU": of["IoU"] + 0.02}}
            seen = {"rates": dict(zip(masks, ends, strict=True)), "IoU": 0.1, "step": 10}
            histories.append([seen, {**seen, **ways}])
        results[dropout] = histories
    return results


def test_values_and_differences():
    results = known()
    assert values(results, FIXED, "draws", "IoU").tolist() == pytest.approx([62.0, 63.0, 64.0])
    assert values(results, FIXED, "mean", "log-likelihood").tolist() == pytest.approx([0.6, 0.61, 0.62])
    assert ahead(results, (FIXED, "draws"), (NONE, "mean"), "IoU").startswith("confirmed (+12.00")
    assert ahead(results, (NONE, "mean"), (FIXED, "mean"), "IoU").startswith("refuted (-10.00")
    assert ahead(known(1), (FIXED, "draws"), (NONE, "mean"), "IoU") == "not settled (+12.00, one seed)"


def test_claims():
    results = known()
    lines = claims(results)
    assert lines[0].startswith("1. IoU: Concrete above 0.2 confirmed (+20.00")
    assert any(line.startswith("2. draws before the mean network, IoU, Concrete: confirmed (+2.00") for line in lines)
    assert any(line.startswith("3. ECE larger without learned rates: 0.2, draws refuted") for line in lines)
    assert any("4. rates end alike from all starts, within 0.03: confirmed (at most 0.015)" in line for line in lines)
    assert any("5. near zero (below 0.05) in the first layer: confirmed" in line for line in lines)
    assert "4. from 0.05 and 0.5: 0.015 to 0.015 apart, 0 of 5 masks by more than 0.03" in lines
    assert "5. middle: 0.020 to 0.020" in lines
    assert any(line.startswith("Concrete from 0.05, draws, above none: IoU confirmed (+22.00") for line in lines)
    for history in results[STARTS[2]]:
        history[-1]["rates"]["net.middle.layers.0.masked.weight"] = 0.06
    assert "4. from 0.05 and 0.5: 0.015 to 0.050 apart, 1 of 5 masks by more than 0.03" in claims(results)
    assert any("4. rates end alike from all starts, within 0.03: refuted (at most 0.050)" in c for c in claims(results))
    of_seeds = (0.0, 0.05, 0.1)
    for seed, history in enumerate(results[STARTS[2]]):
        history[-1]["rates"]["net.middle.layers.0.masked.weight"] = of_seeds[seed]
    assert any("within 0.03: not settled (at most 0.040)" in line for line in claims(results))  # by these seeds


def test_tables():
    results = known(1)
    text = tables(results, argparse.Namespace(size="small", epochs=2, seeds=1))
    assert "| 0.2, draws | 67.2 | 62.00 |" in text
    assert "| 0.05 | 0.010 | 0.210 | 0.010 | 0.010 | 0.210 | 0.000 |" in rates_table(results)
    results = known(2)
    first = results[STARTS[0]][1]
    first[-1] = {**first[-1], "rates": {mask: rate + 0.02 for mask, rate in first[-1]["rates"].items()}}
    assert "| 0.05 | 0.020 ± 0.010 | 0.220 ± 0.010 |" in rates_table(results)
    assert rates_table(results).splitlines()[4].endswith("| 0.010 |")  # moved since, in the mean
    assert np.isfinite(values(results, CONCRETE, "draws", "IoU")).all()


def test_looks_are_drawn_at_their_epochs():
    history = [{"step": 455}, {"step": 910}, {"step": 1365}]
    assert epochs_of(history, argparse.Namespace(epochs=15)) == [5.0, 10.0, 15.0]
