"""Settings of the machine: registered with Pyro, checked, and without a say in results."""

import re
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive, RenyiDropout_ELBO, _settings
from pyro_dropout.entropic import EntropicLinearRegression
from tests.support.exact import Case

OURS = sorted(name for name in pyro.settings.get() if name.startswith("dropout_"))
SPEED = Path(__file__).parents[1] / ".docs" / "speed.md"


def test_the_page_has_every_setting_and_its_default():
    assert len(OURS) == 5
    page = dict(re.findall(r"^``(dropout_\w+)`` +(\S+) ", _settings.__doc__, flags=re.MULTILINE))
    assert sorted(page) == OURS
    for name, text in page.items():
        base, _, power = text.partition("^")
        assert pyro.settings.get(name) == (float(base) ** float(power) if power else float(base))
        assert f"`{name}`" in SPEED.read_text()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("value", [-1, "many", None, True])
def test_wrong_values_are_named_and_change_nothing(name, value):
    before = pyro.settings.get(name)
    with pytest.raises(ValueError, match=f"{name} .*found {value!r}"):
        pyro.settings.set(**{name: value})
    assert pyro.settings.get(name) == before


@pytest.mark.parametrize(("name", "value"), [("dropout_memory_share", 0), ("dropout_take_out_above", 1.5)])
def test_shares_that_are_none_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} .*found {value}"):
        pyro.settings.set(**{name: value})


def predicted(**settings):
    """The largest run of the network, in rows, and means by functions of one seed."""
    torch.manual_seed(0)
    model = Regression(3, 50, hidden=(600, 600))
    guide = AutoBernoulliDropout(model, rate=0.5)
    x = torch.randn(300, 3)
    guide(x, x[:, 0])
    rows = []
    hook = model.net._modules["net"].register_forward_hook(lambda _, args, out: rows.append(len(out)))
    with pyro.settings.context(**settings):
        predict = DropoutPredictive(model, guide=guide, num_samples=8, max_memory=10**7, seed=0, return_sites=["mean"])
        mean = predict(x)["mean"]
    hook.remove()
    return max(rows), mean


def test_predictions_are_the_same_with_any_settings():
    most, mean = predicted()
    share_most, share_mean = predicted(dropout_memory_share=0.2)
    cached_most, cached_mean = predicted(dropout_cached_activations=600 * 300)
    _, kept_mean = predicted(dropout_take_out_above=1.0)
    assert share_most < most
    assert cached_most <= 300 < most
    for other in (share_mean, cached_mean, kept_mean):
        torch.testing.assert_close(other, mean, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_energy_are_the_same_in_blocks():
    gradients = []
    for block in (2**24, 1):
        pyro.clear_param_store()
        case, loss = Case(), RenyiDropout_ELBO(0.5, 5)
        loss.set_up(case.model, case.guide, case.x, case.y)
        torch.manual_seed(0)
        with pyro.settings.context(dropout_energy_block=block):
            loss.loss_and_grads(case.model, case.guide, case.x, case.y)
        gradients.append([p.grad.clone() for p in case.logits])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_entropic_predictions_are_the_same_in_blocks():
    x, y = torch.randn(40, 6).numpy(), torch.randn(40).numpy()
    found = []
    for block in (2**26, 7):
        with pyro.settings.context(dropout_row_block=block):
            found.append(EntropicLinearRegression(rate=0.2).fit(x, y).predict(x, return_std=True)[1])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]))


def test_a_guide_without_masks_has_slices_too():
    model = Regression(3, 50, hidden=(20,))
    guide, x = AutoNormal(model), torch.randn(50, 3)
    guide(x, x[:, 0])
    with pyro.settings.context(dropout_cached_activations=20 * 100):
        torch.manual_seed(0)
        mean = DropoutPredictive(model, guide=guide, num_samples=8, seed=0)(x)["mean"]
    expected = DropoutPredictive(model, guide=guide, num_samples=8, seed=0)(x)["mean"]
    torch.testing.assert_close(mean, expected)
