"""The weight of the masks' entropy: what a loss takes of it, and the script, cut down."""

import argparse
import math

import pyro
import pytest
import torch

from examples.common.data.camvid import UNLABELLED
from examples.common.segmentation import CLASSES, SIZES, Dropout, weigh_entropy
from examples.concrete import camvid_regulariser
from examples.concrete.camvid_regulariser import MEASURES, WEIGHTS, table
from models.segmentation import FCDenseNet, Segmentation
from pyro_dropout import TraceDropout_ELBO
from tests.examples.staged import staged


@pytest.mark.parametrize("weight", [0.01, 100.0])
def test_loss_has_that_weight_of_the_entropy_and_one_of_all_else(weight):
    def loss(weight):
        pyro.set_rng_seed(0)
        model = Segmentation(FCDenseNet(CLASSES, **SIZES["tiny"]), size=5, ignored=UNLABELLED)
        guide = Dropout(0.2, "relaxed").guide(model)
        x, y = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
        with torch.no_grad():
            weigh_entropy(guide, weight)
            guide(x, y)
            nodes = pyro.poutine.trace(guide).get_trace(x, y).nodes
            pyro.set_rng_seed(1)
            found = TraceDropout_ELBO(masks="draw").loss(model, guide, x, y)
        return found, sum(site["value"].numel() for name, site in nodes.items() if name.endswith(".mask"))

    with pyro.settings.context(module_local_params=True):
        (by_bound, units), (weighed, _) = loss(1.0), loss(weight)
    entropy = units * -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert units > 50
    assert by_bound - weighed == pytest.approx((weight - 1) * entropy, rel=1e-3)


def test_table():
    ends = {}
    for number, weight in enumerate(WEIGHTS):
        rates = {"a": 0.1 * number, "b": 0.2 * number, "c": 0.5}
        ends[weight] = {"rates": rates, "draws": {measure: 0.01 * number + 0.4 for measure in MEASURES}}
    lines = table(ends, argparse.Namespace(size="small", epochs=3)).splitlines()
    assert lines[4] == "| 0.01 | 0.000 | 0.000 | 0.500 | 40.00 | 40.00 | 40.00 | 40.00 |"
    assert lines[6] == "| 100 | 0.200 | 0.400 | 0.500 | 42.00 | 42.00 | 42.00 | 42.00 |"


@staged
@pytest.mark.slow
def test_what_is_found_and_written(tmp_path):
    found = camvid_regulariser.main(["--quick", "--outputs", str(tmp_path)])
    assert list(found) == list(WEIGHTS)
    means = [sum(end["rates"].values()) for end in found.values()]
    assert means[0] < means[1] < means[2]  # the entropy pulls towards one half
    assert (tmp_path / "concrete_camvid_regulariser.md").read_text().count("\n") == 7
