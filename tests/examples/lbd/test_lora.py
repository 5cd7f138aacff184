"""The adapters' example, cut down: what it writes, what it keeps, and that adapting to turned digits works."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch

from examples.lbd import lora
from tests.examples.staged import staged

CUT = ["--seeds", "2", "--images", "60", "--steps", "12", "--base-steps", "150", "--rank", "2", "--draws", "4"]
CUT += ["--test-images", "200", "--learning-rates", "0.001", "0.03"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("lora") / "made when missing"
    arguments = [*CUT, "--outputs", str(outputs)]
    return lora.main(arguments), outputs, arguments


@staged
def test_the_base_is_bad_at_turned_images_and_adapters_are_less_so(run):
    results = run[0]
    alone = results["alone"]
    assert alone["base, upright images"]["nll"] < 1.5 < alone["base"]["nll"]
    for values in results["rows"].values():
        assert values["nll"].shape == (2,)
        assert (values["nll"] < alone["base"]["nll"]).all()


@staged
def test_the_learning_rate_is_the_best_on_validation_images(run):
    results = run[0]
    assert results["chosen"] == 0.03
    assert {len(row) for row in results["tuning"].values()} == {2}
    means = {rate: np.mean([row[rate] for row in results["tuning"].values()]) for rate in (0.001, 0.03)}
    assert means[0.03] < means[0.001]


@staged
def test_every_rank_has_a_rate(run):
    for result in run[0]["found"]["learned"]:
        rates = np.array(list(result["rates"].values()))
        assert rates.shape == (12, 2)
        assert ((rates > 0) & (rates < 1)).all()
        assert len(set(rates.flatten().tolist())) > 12


@staged
def test_table_and_picture(run):
    text = (run[1] / "lora.md").read_text()
    assert text.count("| learned | ") == 1 + 2 + 1  # tuned, by draws and by the mean, and the difference to the mean
    assert matplotlib.image.imread(run[1] / "lora_rates.png").std() > 0.01


@staged
def test_a_run_goes_on_where_it_was_interrupted(run, monkeypatch):
    results, outputs, arguments = run
    text = (outputs / "lora.md").read_text()
    (outputs / "learned-seed-1.json").unlink()
    computed = []
    adapt = lora.adapted

    def adapted(base, data, method, size, learning_rate, seed):
        computed.append((method.learned, seed))
        return adapt(base, data, method, size, learning_rate, seed)

    monkeypatch.setattr(lora, "adapted", adapted)
    monkeypatch.setattr(lora, "train_base", None)
    again = lora.main(arguments)
    assert computed == [(True, 1)]
    assert (outputs / "lora.md").read_text() == text
    for found, expected in zip(again["base"].parameters(), results["base"].parameters(), strict=True):
        assert torch.equal(found, expected)


@staged
def test_results_of_other_settings_are_computed_anew(run, monkeypatch):
    monkeypatch.setattr(lora, "adapted", None)
    with pytest.raises(TypeError, match="not callable"):
        lora.main([*run[2], "--steps", "13"])
    settings = json.loads((run[1] / "tied-seed-0.json").read_text())["settings"]
    assert settings["steps"] == 12
    assert settings["rate"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number, at least 1, but found 0"),
        (["--learning-rates", "0"], "--learning-rates: must be a positive number, but found 0"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        lora.main(arguments)
    assert message in capsys.readouterr().err
