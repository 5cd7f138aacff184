"""The example shows the checks on both data sets."""

import contextlib
import io
import math

import matplotlib.image
import pyro
import pytest
import torch

from examples.start.posterior_checks import main
from examples.start.posterior_digits import load_digits
from tests.examples.staged import staged

# how ArviZ 0.23 calls pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")

GUIDES = ["rate 0.1", "Concrete", "learned hard", "AutoNormal", "NUTS"]


def test_one_run_has_nothing_to_agree_with(capsys):
    with pytest.raises(SystemExit):
        main(["--restarts", "1"])
    assert "--restarts and --chains must be 2 or more" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results of a short run, and what it printed."""
    threads = torch.get_num_threads()
    outputs = tmp_path_factory.mktemp("checks") / "made when missing"
    sizes = ["--steps", "80", "--draws", "50", "--restarts", "2", "--warmup", "5", "--nuts-draws", "10"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = main([*sizes, "--outputs", str(outputs)])
    torch.set_num_threads(threads)
    pyro.settings.set(module_local_params=False)
    return results, printed.getvalue()


@staged
def test_every_guide_is_scored_and_compared(run):
    regression = run[0].regression
    assert list(regression.scores) == list(regression.loo) == GUIDES
    compared = set(regression.comparison.index)
    assert compared == {name for name in GUIDES if math.isfinite(regression.loo[name]["elpd_loo"])}
    assert compared >= set(GUIDES[:-1])  # of ten draws of NUTS ArviZ 1 has no estimate
    chance = -math.log(16.7) - 0.5 * math.log(2 * math.pi * math.e)  # a normal with the deviation of the target
    for row in list(regression.scores.values())[:-1]:  # not NUTS, which has hardly begun here
        assert chance - 4 < row["log-likelihood"] < chance + 1.5  # AutoNormal is far from done
        assert 4 < row["RMSE"] < 2 * 16.7
        assert 0 <= row["in 50 %"] <= row["in 90 %"] <= 1
        assert 0 < row["calibration"] < 0.3


@staged
def test_predictions_rates_and_chains_have_their_r_hat(run):
    sites = ["net.0.weight", "net.2.weight"]
    rates = [f"{name}, {site}" for name in ("Concrete", "learned hard") for site in sites]
    found = run[0].regression.r_hat
    assert list(found) == GUIDES + rates
    assert all(0.9 < row["median"] <= row["largest"] for row in found.values())
    assert found["NUTS"]["largest"] > 1.5  # ten draws are too few, and it says so


@staged
def test_joint_weights_of_many_latents_rest_on_few_draws(run):
    assert run[0].regression.approximate["log p - log q"]["k > 0.7"] == 1


@staged
def test_uncertainty_tells_unknown_classes_from_known_ones(run):
    classification = run[0].classification
    assert list(classification.auroc) == list(classification.scores) == ["rate 0.1", "Concrete"]
    assert set(classification.comparison.index) == {"rate 0.1", "Concrete"}
    for name, row in classification.auroc.items():
        assert classification.scores[name]["accuracy"] > 0.9
        assert min(row.values()) > 0.7


@staged
def test_held_out_classes_are_not_for_training():
    _, y = load_digits("train", 2000, [1, 4, 9])
    assert y.unique().tolist() == list(range(7))
    x, y = load_digits("test", 2000, [1, 4, 9])
    assert y.unique().tolist() == list(range(-1, 7))
    assert (y < 0).float().mean() == pytest.approx((1135 + 982 + 1009) / 10000, abs=0.04)
    assert x.shape == (2000, 1, 28, 28)
    assert (x.min(), x.max()) == (0, 1)


@staged
def test_pictures_are_written_and_not_blank(run):
    assert len(run[0].pictures) == 5
    for path in run[0].pictures:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].std() > 0.05


@staged
def test_tables_are_printed(run):
    results, printed = run
    for table in (results.regression.scores, results.regression.loo, results.classification.auroc):
        for name, row in table.items():
            first = next(iter(row.values()))
            assert any(line.startswith(name) and f"{first:.3f}" in line for line in printed.splitlines())
    assert printed.count("az.compare") == 2
    assert all(f"wrote {path}" in printed for path in results.pictures)
