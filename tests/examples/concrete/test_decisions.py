"""Decisions, cut down; what tables say of softmax inputs that are known."""

import itertools
import math

import pytest
import torch

from examples.concrete import decisions
from examples.concrete.decisions import auroc, measures, others_table, referral_table, sets_table, temperature_table
from examples.concrete.rates_mnist_runs import Run
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "steps", lambda run, epochs: 60)
    text = decisions.main(["--quick", "--outputs", str(tmp_path)])
    assert (tmp_path / "decisions.md").read_text() == text + "\n"
    assert text.count("| learned rates, draws |") == 3 + 3 + 1 + 1  # referral, other images, temperature, sets
    assert text.count("| no dropout | mutual information") == 0  # of one function there is none


def known(sure=8.0, size=1000):
    """Networks that are right in nine of ten, as sure of themselves where they are wrong."""
    said = torch.zeros(size, dtype=torch.long)
    return sure * torch.nn.functional.one_hot(said, 10).float()[None], (torch.arange(size) % 10 == 0).long()


def test_temperature_and_sets_of_known_networks():
    """Right in nine of ten: odds of 81 to each other class."""
    inputs, y = known()
    found = {"a": dict.fromkeys(("temperature", "sets", "test"), inputs)}
    data = dict.fromkeys(("temperature", "sets", "test"), (inputs, y))
    temperature = 8 / torch.log(torch.tensor(81.0)).item()
    row = temperature_table(found, data).splitlines()[-1]
    assert f"| {temperature:.3f} | 90.00, 90.00 |" in row
    assert row.endswith(", 0.00 |")  # the calibration error is mended
    before = float(row.split("|")[5].split(",")[0])
    assert before == pytest.approx(100 * (1 / (1 + 9 * torch.exp(torch.tensor(-8.0))) - 0.9).item(), abs=0.01)
    sets = sets_table(found, data).splitlines()[-1]
    of_90, of_99, _ = (cell.strip() for cell in sets.split("|")[2:5])
    assert of_90.startswith("100.00")  # 90 % of 1,001 needs one more than are right, so that sets are all classes
    assert of_99 == "100.00 ± 0.44, 10.00, 0.0 %"  # of a thousand data on either side


def test_referral_of_a_measure_that_knows_nothing():
    inputs, y = known()
    row = referral_table({"a": {"test": inputs}}, {"test": (inputs, y)}).splitlines()[-1]
    assert row == "| a | 1 - largest | 10.00 | 10.00 | 10.00 | 10.00 | 10.0000 |"


def test_other_images_by_what_functions_disagree_on():
    inside, outside = torch.zeros(2, 50, 10), torch.zeros(2, 50, 10)
    inside[..., 0] = 9.0
    outside[0, :, 1], outside[1, :, 2] = 9.0, 9.0  # each sure, of another class
    assert auroc(measures(inside)["mutual information"], measures(outside)["mutual information"]) == 1.0
    rows = others_table({"a": {"test": inside, "photographs": outside, "turned digits": inside}}).splitlines()[-3:]
    assert rows == [f"| a | {m} | 1.0000 | 0.5000 |" for m in ("entropy", "1 - largest", "mutual information")]


@staged
def test_parts_do_not_share_images():
    """Half of the held-out images for temperatures, the others for sets, none of them to judge."""
    data = decisions.images(200)
    assert {part: len(x) for part, (x, _) in data.items()} == {
        "temperature": 5000,
        "sets": 5000,
        "test": 200,
        "photographs": 200,
        "turned digits": 200,
    }
    train = decisions.parts(decisions.Run(), 10_000)[0][0]
    keys = {part: {row.tobytes() for row in x.numpy()} for part, (x, _) in data.items()}
    keys["train"] = {row.tobytes() for row in train.numpy()}
    for one, other in itertools.combinations(keys, 2):
        assert not keys[one] & keys[other], (one, other)


def test_what_is_fitted_is_fitted_on_its_own_part():
    """Parts whose temperatures and thresholds differ."""
    (inputs, y), (sharp, _) = known(), known(sure=16.0)
    found = {"a": {"temperature": inputs, "sets": sharp, "test": sharp}}
    data = dict.fromkeys(("temperature", "sets", "test"), (inputs, y))
    assert "| a | 1.820 |" in temperature_table(found, data)
    other = {"a": {"temperature": sharp, "sets": inputs, "test": inputs}}
    assert "| a | 3.641 |" in temperature_table(other, data)
    some = {
        "temperature": (inputs, y),
        "test": (inputs, y),
        "sets": (inputs[:, :999], torch.zeros(999, dtype=torch.long)),
    }
    all_right = {"a": {"temperature": inputs, "sets": inputs[:, :999], "test": inputs}}
    assert "| a | 90.00" in sets_table(all_right, some)  # by its own part every set has one label; by test images ten


def test_certain_images_have_an_order():
    """In single precision 1 - p is 0 for all of these, which would be taken for equally uncertain."""
    inputs = torch.tensor([[[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [50.0, 0.0, 0.0], [5.0, 0.0, 0.0]]])
    found = measures(inputs)
    for name, values in found.items():
        assert values.argsort(descending=True).tolist() == [3, 0, 1, 2], name
        assert (values > 0).all(), name
    assert found["1 - largest"][2].item() == pytest.approx(2 * math.exp(-50))
