"""Draws without gradients use the parameters as they are, however these were written; kept draws stay."""

import pyro
import pytest
import torch
from pyro.infer import SVI

from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, DropoutPredictive, TraceDropout_ELBO
from tests.support.scenarios import FixedNoise, regression_data

OWN = ["AdagradRMSProp", "ClippedAdam", "DCTAdam"]  # Pyro's
OTHERS = {"LBFGS", "Muon", "Optimizer", "SparseAdam"}  # that want closures, matrices alone, or sparse gradients
KINDS = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name not in OTHERS}
NAMES = OWN + sorted(
    n for n, kind in KINDS.items() if issubclass(kind, torch.optim.Optimizer) and hasattr(pyro.optim, n)
)


def fitted(make=AutoBernoulliDropout):
    torch.manual_seed(0)
    x, y = regression_data(20)
    model = FixedNoise(mlp(3, (4,)).double(), size=20)
    guide = make(model, rate=0.0)
    guide(x, y)
    return model, guide, x, y


def drawn(guide, x, y):
    with torch.no_grad():
        return {name: torch.as_tensor(value[...]).clone() for name, value in guide(x, y).items() if "weight" in name}


def values(guide):
    return {
        name.removeprefix("locs.").removesuffix("_unconstrained"): parameter.detach().clone()
        for name, parameter in guide.named_parameters()
        if name.startswith("locs.")
    }


def test_the_list_of_optimisers_is_not_short():
    assert {"Adam", "AdamW", "SGD", "RMSprop"} <= set(NAMES)
    assert len(NAMES) > 12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
def test_after_steps_of_any_optimiser(name, local):
    pyro.settings.set(module_local_params=local)
    model, guide, x, y = fitted()
    options = {"eta": 0.5} if name == "AdagradRMSProp" else {"lr": 0.05}
    svi = SVI(model, guide, getattr(pyro.optim, name)(options), TraceDropout_ELBO())
    for _ in range(3):
        before = drawn(guide, x, y)
        svi.step(x, y)
        after = drawn(guide, x, y)
        for site, value in values(guide).items():
            assert torch.equal(after[site], value)
            assert not torch.equal(after[site], before[site])


def by_data_copy(parameter):
    parameter.data.copy_(torch.randn_like(parameter))


def by_data_in_place(parameter):
    parameter.data.add_(1.0)


def by_an_entry(parameter):
    parameter.data.view(-1)[-1] += 1e-7


def by_new_data(parameter):
    parameter.data = torch.randn_like(parameter)


def by_numpy(parameter):
    parameter.detach().numpy()[:] = 3.0


def by_an_average(parameter):
    torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)([parameter.data], [torch.ones_like(parameter)], None)


def without_gradients(parameter):
    with torch.no_grad():
        parameter.mul_(2.0)


WRITES = [by_data_copy, by_data_in_place, by_an_entry, by_new_data, by_numpy, by_an_average, without_gradients]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_after_writes_that_pytorch_does_not_count(write, make):
    model, guide, x, y = fitted(make)
    drawn(guide, x, y)
    before = DropoutPredictive(model, guide=guide, num_samples=2, seed=0)(x)["obs"]
    kept = DropoutPredictive(model, guide=guide, num_samples=2, seed=0).draw(x)
    expected = kept.moments(x)["obs"].mean
    for name, parameter in guide.named_parameters():
        if name.startswith("locs."):
            write(parameter)
    after = drawn(guide, x, y)
    for site, value in values(guide).items():
        assert torch.equal(after[site], value)
    assert not torch.equal(DropoutPredictive(model, guide=guide, num_samples=2, seed=0)(x)["obs"], before)
    assert torch.equal(kept.moments(x)["obs"].mean, expected)  # what was kept is kept


def test_the_loss_after_training_is_that_of_the_last_step():
    """With ``ClippedAdam``, which writes through ``.data``."""
    model, guide, x, y = fitted()
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05}), TraceDropout_ELBO())
    svi.step(x, y)
    first = svi.evaluate_loss(x, y)
    for _ in range(200):
        last = svi.step(x, y)
    assert last < 0.5 * first
    assert svi.evaluate_loss(x, y) == pytest.approx(last, rel=0.1)


def test_all_draws_between_two_writes_share_one_copy():
    _, guide, x, y = fitted()
    with torch.no_grad():
        first, second = (guide(x, y)["net.0.weight"] for _ in range(2))
    assert first.loc.data_ptr() == second.loc.data_ptr()
    assert first.loc.data_ptr() != guide.locs.net._modules["0"].weight.data_ptr()


def test_predictions_that_keep_no_draws_copy_nothing():
    model, guide, x, _ = fitted(make=lambda model, rate: AutoBernoulliDropout(model, rate=0.3))
    predict = DropoutPredictive(model, guide=guide, num_samples=20, seed=0, return_sites=["obs"])
    first = predict(x)["obs"]
    assert not guide._snapshots
    kept = predict.draw(x)
    assert guide._snapshots
    before = kept(x)["obs"]
    assert torch.equal(predict(x)["obs"], first)
    with torch.no_grad():
        for parameter in guide.locs.parameters():
            parameter.data.mul_(3.0)
    assert torch.equal(kept(x)["obs"], before)
    assert not torch.allclose(predict(x)["obs"], first)


def test_weights_among_predictions_do_not_change_with_training():
    model, guide, x, _ = fitted(make=lambda model, rate: AutoBernoulliDropout(model, rate=0.3))
    site = next(name for name in guide.rates())
    weights = DropoutPredictive(model, guide=guide, num_samples=20, return_sites=[site])(x)[site]
    before = torch.as_tensor(weights[...]).clone()
    with torch.no_grad():
        for parameter in guide.locs.parameters():
            parameter.data.mul_(3.0)
    assert torch.equal(torch.as_tensor(weights[...]), before)
