"""Checkpoints: a run that was killed ends where one that was not interrupted ends, bit by bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from pyro.params.param_store import ParamStoreDict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions.constraints import positive

from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    TraceDropout_ELBO,
    load_checkpoint,
    save_checkpoint,
)
from tests.support.interruption import KINDS, train
from tests.support.scenarios import regression_data

STEPS = 45


def start(kind, folder, pause):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.support.interruption", kind, str(folder), str(STEPS), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(kind, tmp_path):
    (tmp_path / "whole").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(kind, tmp_path / "whole", STEPS)
    torch.set_num_threads(threads)
    process = start(kind, tmp_path, pause=0.02)
    assert process.stdout.readline() == "from 0\n"
    for line in process.stdout:
        if line == "step 26\n":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "fitted.pt").exists()
    process = start(kind, tmp_path, pause=0.0)
    assert process.stdout.readline() == "from 20\n"
    process.communicate()
    assert process.returncode == 0
    whole, resumed = (torch.load(p / "fitted.pt", weights_only=True) for p in (tmp_path / "whole", tmp_path))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def fitted():
    x, y = regression_data(30, dtype=torch.float32)
    model = Regression(3, 30, hidden=(8,))
    guide = AutoConcreteDropout(model, rate=0.3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceDropout_ELBO())
    for _ in range(20):
        svi.step(x, y)
    return model, guide, svi, x, y


def predictions(model, guide, x):
    predict = Predictive(model, guide=guide, num_samples=10, parallel=True)
    predict(x)  # a guide's first call takes random numbers
    pyro.set_rng_seed(5)
    return predict(x)["mean"]


@pytest.mark.parametrize("value", [np.float64(1.5), {"a": [Path("x")]}, (torch.nn.ReLU,)])
def test_what_could_not_be_read_back_is_not_saved(value, tmp_path):
    save_checkpoint(tmp_path / "a.pt", loss=1.5)
    with pytest.raises(TypeError, match=r"loss has a .* cannot be read back"):
        save_checkpoint(tmp_path / "a.pt", loss=value)
    assert load_checkpoint(tmp_path / "a.pt") == {"loss": 1.5}


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    save_checkpoint(tmp_path / "a.pt", a=nn.Linear(2, 1), b=nn.Linear(3, 1))
    a = nn.Linear(2, 1)
    before = a.weight.clone()
    with pytest.raises(ValueError, match="b is not what was saved: weight are missing or of another shape"):
        load_checkpoint(tmp_path / "a.pt", a=a, b=nn.Linear(4, 1))
    assert torch.equal(a.weight, before)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("called", [False, True])
def test_a_fit_is_loaded_into_a_guide_before_or_after_its_first_call(local, called, tmp_path):
    pyro.settings.set(module_local_params=local)
    model, guide, _, x, y = fitted()
    expected, rates = predictions(model, guide, x), guide.rates()
    save_checkpoint(tmp_path / "fit.pt", model=model, guide=guide, note="first", losses=[1.0, 2.0], best={"at": 3})
    pyro.clear_param_store()
    model = Regression(3, 30, hidden=(8,))
    fresh = AutoConcreteDropout(model, rate=0.1)
    if called:
        fresh(x, y)
    values = load_checkpoint(tmp_path / "fit.pt", model=model, guide=fresh)
    assert values == {"note": "first", "losses": [1.0, 2.0], "best": {"at": 3}}
    torch.testing.assert_close(predictions(model, fresh, x), expected, rtol=0, atol=0)
    assert fresh.rates() == rates


def test_weights_as_safetensors(tmp_path):
    model, guide, _, x, _ = fitted()
    expected = predictions(model, guide, x)
    save_file(guide.state_dict(), tmp_path / "guide.safetensors")
    pyro.clear_param_store()
    model = Regression(3, 30, hidden=(8,))
    fresh = AutoConcreteDropout(model)
    fresh.load_state_dict(load_file(tmp_path / "guide.safetensors"))
    torch.testing.assert_close(predictions(model, fresh, x), expected, rtol=0, atol=0)


def test_all_random_numbers_go_on(tmp_path):
    def numbers():
        numpy = np.random.rand()  # noqa: NPY002
        return random.random(), numpy, torch.rand(2).tolist()

    numbers()
    save_checkpoint(tmp_path / "a.pt")
    after = numbers()
    numbers()
    assert load_checkpoint(tmp_path / "a.pt") == {}
    assert numbers() == after


def test_the_first_step_of_a_loss_takes_no_random_numbers_of_its_own():
    """A loss finds out about plates and learned rates once; a resumed run does so again, later."""
    for guide in (AutoConcreteDropout, lambda m: AutoBernoulliDropout(m, learnable=True)):
        x, y = regression_data(30, dtype=torch.float32)
        model = Regression(3, 30, hidden=(8,))
        guide = guide(model)
        guide(x, y)
        used = TraceDropout_ELBO(num_particles=3)
        used.loss_and_grads(model, guide, x, y)
        values = []
        for loss in (used, TraceDropout_ELBO(num_particles=3)):
            pyro.set_rng_seed(0)
            values.append((loss.loss_and_grads(model, guide, x, y), torch.rand(()).item()))
        assert values[0] == values[1]


def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", step=1)
    monkeypatch.setattr(torch, "save", lambda state, path: (path.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path / "a.pt", step=2)
    assert load_checkpoint(tmp_path / "a.pt") == {"step": 1}


def test_no_code_is_read(tmp_path):
    """Neither by us, nor from a file that somebody else made."""
    with pytest.raises(TypeError, match="thing has a PosixPath, which cannot be read back without running code"):
        save_checkpoint(tmp_path / "a.pt", thing=[1, {"path": tmp_path}])
    torch.save({"path": tmp_path}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint: Weights only load failed"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is no checkpoint of save_checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_errors(tmp_path):
    model, guide, svi, _, _ = fitted()
    path = tmp_path / "a.pt"
    with pytest.raises(ValueError, match="new has no parameters before its first call"):
        save_checkpoint(path, new=AutoConcreteDropout(model))
    with pytest.raises(ValueError, match="optim has parameters that are in none of the parts"):
        save_checkpoint(path, model=model, optim=svi.optim)
    save_checkpoint(path, model=model, guide=guide, optim=svi.optim, step=20)
    message = r"has states of \['guide', 'model', 'optim'\], but found \['guide', 'model'\]"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=model, guide=guide)
    with pytest.raises(ValueError, match=r"but found .*'step'"):
        load_checkpoint(path, model=model, guide=guide, optim=svi.optim, step=nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"guide has no parameters for the optimiser yet: call it once with the data"):
        load_checkpoint(path, model=model, guide=AutoConcreteDropout(model), optim=svi.optim)


@pytest.mark.filterwarnings("ignore:the parameter store has noise")
def test_what_a_function_has_in_the_store_is_a_part(tmp_path):
    x, y = regression_data(30)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y=None):
        mean, noise = net(x)[..., 0], pyro.param("noise", torch.tensor(1.0).double(), constraint=positive)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    def begun():
        guide, optim = AutoConcreteDropout(model), pyro.optim.Adam({"lr": 0.05})
        return guide, optim, SVI(model, guide, optim, TraceDropout_ELBO())

    guide, optim, svi = begun()
    for _ in range(20):
        svi.step(x, y)
    with pytest.raises(ValueError, match="with store=pyro"):
        save_checkpoint(tmp_path / "a.pt", guide=guide, optim=optim)
    with pytest.warns(UserWarning, match="the parameter store has noise, which are not saved"):
        save_checkpoint(tmp_path / "a.pt", guide=guide)
    save_checkpoint(tmp_path / "a.pt", guide=guide, optim=optim, store=pyro.get_param_store())
    expected, noise = [svi.step(x, y) for _ in range(5)], pyro.param("noise").item()
    pyro.clear_param_store()
    guide, optim, svi = begun()
    guide(x, y)
    del pyro.get_param_store()["noise"]
    with pytest.raises(ValueError, match="store has no noise of the shape that was saved: run the model"):
        load_checkpoint(tmp_path / "a.pt", guide=guide, optim=optim, store=pyro.get_param_store())
    svi.step(x, y)
    load_checkpoint(tmp_path / "a.pt", guide=guide, optim=optim, store=pyro.get_param_store())
    assert [svi.step(x, y) for _ in range(5)] == expected
    assert pyro.param("noise").item() == noise
    with pytest.raises(ValueError, match="store must be Pyro's own parameter store"):
        save_checkpoint(tmp_path / "a.pt", guide=guide, store=ParamStoreDict())
