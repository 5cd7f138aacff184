"""On a GPU: random numbers are functions of keys that the CPU draws, and steps are those of the CPU, to rounding."""

import pyro
import pytest
import torch
from torch import nn

from models.regression import Regression
from pyro_dropout import (
    AutoConcreteDropout,
    CompiledSVI,
    DropoutPredictive,
    ReplicatedSVI,
    from_torch,
    load_checkpoint,
    save_checkpoint,
)
from tests.training.test_compiled import FAST, scenario

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


def losses(names, device, backend):
    pyro.clear_param_store()
    s = scenario(*names)
    pyro.clear_param_store()
    for module in (s.model, s.guide):
        module.to(device)
    args = [t.to(device) for t in s.args]
    svi = CompiledSVI(s.model, s.guide, pyro.optim.Adam({"lr": 0.02}), s.loss, backend=backend, progress=False)
    pyro.set_rng_seed(0)
    return [svi.step(*args) for _ in range(10)], s.guide


@pytest.mark.parametrize("backend", ["eager", "cudagraphs"])
@pytest.mark.parametrize("names", [*sorted(FAST), ("batchnorm", "concrete", "draw")], ids=" ".join)
def test_steps_are_those_of_the_cpu(names, backend):
    expected, trained = losses(names, "cpu", "eager")
    found, guide = losses(names, GPU, backend)
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(p.is_cuda for p in guide.parameters())
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(guide.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_a_graph_takes_new_data_and_rates_of_learning():
    ends = []
    for backend in ("eager", "cudagraphs"):
        pyro.clear_param_store()
        s = scenario("regression", "concrete", "elbo")
        pyro.clear_param_store()
        s.model.to(GPU), s.guide.to(GPU)
        schedule = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
        optim = pyro.optim.ExponentialLR(schedule)
        svi = CompiledSVI(s.model, s.guide, optim, s.loss, backend=backend, progress=False)
        pyro.set_rng_seed(0)
        found = []
        for i in range(12):
            found.append(svi.step(*(t.to(GPU).roll(i, 0) * (1 + i) for t in s.args)))
            optim.step()
        x, y = (t.to(GPU).expand(5, *t.shape) for t in s.args)
        ends.append([*found, *svi.scan(x, y).tolist()])
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)
    assert len(set(ends[1])) == 17


def test_a_step_of_a_graph_that_is_not_finite_raises_and_changes_nothing():
    pyro.clear_param_store()
    s = scenario("regression", "concrete", "elbo")
    pyro.clear_param_store()
    s.model.to(GPU), s.guide.to(GPU)
    x, y = (t.to(GPU) for t in s.args)
    svi = CompiledSVI(s.model, s.guide, pyro.optim.Adam({}), s.loss, backend="cudagraphs", progress=False)
    for _ in range(6):
        svi.step(x, y)
    before = {name: value.clone() for name, value in s.guide.state_dict().items()}
    with pytest.raises(ValueError, match="nan"):
        svi.step(x * torch.nan, y)
    assert all(torch.equal(before[name], value) for name, value in s.guide.state_dict().items())
    assert svi.step(x, y) > 0


def test_replicates():
    def make(rate):
        model = Regression(3, 20, hidden=(4,), precision=1.0).to(GPU)
        return model, AutoConcreteDropout(model, rate=rate)

    with pyro.settings.context(module_local_params=True):
        x, y = torch.randn(2, 8, 3, device=GPU), torch.randn(2, 8, device=GPU)
        svi = ReplicatedSVI(make, [{"rate": 0.1}, {"rate": 0.2}], pyro.optim.Adam({}), backend="eager")
        found = [svi.step(x, y) for _ in range(4)]
    assert torch.as_tensor(found[-1]).isfinite().all()


def test_states_of_a_gpu_are_loaded_on_the_cpu(tmp_path):
    _, guide = losses(("regression", "learned", "elbo"), GPU, "eager")
    save_checkpoint(tmp_path / "state.pt", guide=guide)
    pyro.clear_param_store()
    other = scenario("regression", "learned", "elbo").guide
    load_checkpoint(tmp_path / "state.pt", map_location="cpu", guide=other)
    for name, value in guide.state_dict().items():
        assert torch.equal(other.state_dict()[name], value.cpu())


def test_predictions_of_a_trained_network():
    net = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 2)).to(GPU)
    x = torch.randn(50, 3, device=GPU)
    module, guide = from_torch(net, x)
    found = DropoutPredictive(module, guide=guide, num_samples=400, return_sites=["_RETURN"], seed=0)(x)["_RETURN"]
    assert found.is_cuda
    error = found.std(0) / 20
    assert ((found.mean(0) - net.eval()(x)).abs() < 5 * error + 1e-6).all()


def test_moments_and_a_bound_on_memory():
    model = Regression(3, 100, hidden=(20,)).to(GPU)
    guide = AutoConcreteDropout(model)
    x, y = torch.randn(100, 3, device=GPU), torch.randn(100, device=GPU)
    guide(x, y)
    whole = DropoutPredictive(model, guide=guide, num_samples=30, seed=0)
    parts = DropoutPredictive(model, guide=guide, num_samples=30, seed=0, max_memory=200_000)
    torch.testing.assert_close(parts.moments(x)["mean"].mean, whole.moments(x)["mean"].mean, rtol=1e-4, atol=1e-5)
    assert whole.log_likelihood(x, y)["obs"].is_cuda
