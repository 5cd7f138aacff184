"""What the pages of the documentation say is what happens: their sessions and programs are run, with fewer draws."""

import doctest
import functools
import gc
import importlib.util
import pkgutil
import re
from pathlib import Path

import pyro
import pytest
import torch

import pyro_dropout
from models.regression import Regression
from pyro_dropout import TraceDropout_ELBO as ELBO
from pyro_dropout import training
from pyro_dropout.metrics import predictive_log_likelihood

FOLDER = Path(__file__).parents[1] / ".docs"
PAGES = sorted(FOLDER.glob("*.md"))
SESSIONS = [page for page in PAGES if ">>>" in page.read_text()]


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.stem)
def test_sessions(page):
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5
    assert not found.failed


def test_every_page_is_in_the_index():
    index = (FOLDER / "index.md").read_text().split()
    missing = {page.stem for page in PAGES} - {"index", *index}
    assert not missing


def test_names_of_other_libraries_are_linked_by_what_they_are():
    """Addresses end in the name of what they document, which must be there."""
    pytest.importorskip("sphinx", reason="pip install .[docs]")
    spec = importlib.util.spec_from_file_location("linked_names", FOLDER / "linked_names.py")
    linked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linked)
    assert set(linked.ALIASES.values()) <= linked.ADDRESSES.keys()
    known = 0
    for name, address in linked.ADDRESSES.items():
        page, _, anchor = address.partition("#")
        full = anchor or ("generated" in page and page.rpartition("/")[2].removesuffix(".html"))
        if full:
            assert pkgutil.resolve_name(full).__name__ == full.rpartition(".")[2], name
            assert full.endswith(name.rpartition(".")[2]), name
            known += 1
    assert known > 30


def programs(text):
    return [code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if ">>>" not in code]


def test_every_program_is_run_below():
    found = {page.stem: len(programs(page.read_text())) for page in PAGES}
    ran = {"start": 1, "prediction": 1, "compiled": 1, "conversion": 1, "encoders": 1, "entropic": 2, "scale": 3}
    assert {page: number for page, number in found.items() if number} == ran


def run(page, place=0, fewer=("", ""), **known):
    code = programs((FOLDER / f"{page}.md").read_text())[place]
    assert fewer[0] in code
    namespace = {**known}
    exec(compile(code.replace(*fewer), f"{page}.md", "exec"), namespace)
    return namespace


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_the_quickstart_runs(capsys):
    names = run("start")
    assert names["guide"].rates().keys() == {"net.0.weight", "net.2.weight"}
    moments, y = names["moments"], names["y_test"]
    assert (moments.mean - y).square().mean().sqrt() < 0.9 * y.std()
    assert 0.3 < moments.aleatoric.mean() < 0.8  # it has converged: the response has variance 1
    assert max(names["guide"].rates().values()) < 0.4
    deviation = names["draws"]["precision"].rsqrt()
    density = torch.distributions.Normal(names["draws"]["mean"].squeeze(1), deviation.reshape(-1, 1)).log_prob(y)
    assert predictive_log_likelihood(density).mean() > -1.15  # a standard normal has -1.42
    assert "elpd_loo" in capsys.readouterr().out


def test_prediction_at_scale_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run("prediction", fewer=("10_000", "1_000"))
    noise = names["moments"].aleatoric
    assert 0.05**2 < noise.mean() < 0.5**2
    assert (names["moments"].mean - names["y"]).square().mean() < 0.1
    assert names["density"].mean() > -0.7
    assert (tmp_path / "fit.pt").exists()
    assert len(names["functions"]) == 1_000
    assert "tensor" in capsys.readouterr().out


def test_compiled_steps_run(monkeypatch):
    for kind in ("CompiledSVI", "ReplicatedSVI"):
        monkeypatch.setattr(pyro_dropout, kind, functools.partial(getattr(pyro_dropout, kind), backend="eager"))
    names = run("compiled", fewer=("200", "8"))
    assert names["losses"].shape == (4, 8)
    assert names["many"].guides[2].rates().keys() == {"net.0.weight", "net.2.weight"}


def test_dropout_in_an_encoder_runs(monkeypatch):
    eager = functools.partial(pyro_dropout.CompiledSVI, backend="eager")
    monkeypatch.setattr(pyro_dropout, "CompiledSVI", eager)
    names = run("encoders")
    losses = torch.tensor(names["losses"])
    assert losses[-50:].mean() < losses[:50].mean() - 200
    assert names["dropout"].mask().rate.std() > 0.01


def test_conversion_runs(capsys):
    names = run("conversion")
    assert [p.p for p in names["plain"].modules() if type(p).__name__.startswith("Dropout")] == [0.1, 0.5]
    assert names["probs"].shape == (100, 16, 10)


def test_entropic_regression_runs():
    names = run("entropic")
    residuals = names["mean"] - names["y"][300:]
    assert residuals.std() < 0.8 * names["y"].std()
    assert (abs(residuals) < 2 * names["std"]).mean() > 0.9
    assert names["draws"].coef.shape == (1000, 10)
    models = [model for row in names["path"] for model in row]
    x, y = (names[k][300:] for k in ("x", "y"))
    truth = [float(m.predictive(x).log_prob(torch.as_tensor(y)).mean()) for m in models]
    best = models.index(names["best"])
    assert truth[best] > max(truth) - 0.02  # of data that had no part in the choice
    assert truth[best] > min(truth) + 0.03


def test_entropic_logistic_regression_runs():
    assert run("entropic", 1)["mcmc"].get_samples()["w"][:, 0].mean() > 0.5


def test_steps_of_several_processes_run(tmp_path, monkeypatch):
    """Of one, which makes its group without torchrun."""
    start = torch.distributed.init_process_group
    at = {"init_method": f"file://{tmp_path}/at", "rank": 0, "world_size": 1}
    monkeypatch.setattr(torch.distributed, "init_process_group", functools.partial(start, **at))
    x, y = torch.randn(20, 3), torch.randn(20)
    with pyro.settings.context(module_local_params=True):
        model = Regression(3, size=20)
        guide = pyro_dropout.AutoConcreteDropout(model)
        names = {"model": model, "guide": guide, "x": x, "y": y, "loader": [(x, y)] * 3, "torch": torch}
        found = run("scale", **names, **{n: getattr(training, n) for n in training.__all__}, TraceDropout_ELBO=ELBO)
    assert all(count["step"] == 3 for count in found["optim"].state.values())
    del found
    gc.collect()
    torch.distributed.destroy_process_group()


def test_data_may_come_from_a_generator():
    with pyro.settings.context(module_local_params=True):
        assert run("scale", 1)["moments"].mean.shape == (2_000,)


def test_export_runs():
    names = run("scale", 2)
    assert names["mean"].shape == names["variance"].shape == (7, 2)
    torch.testing.assert_close(names["mean"].sum(-1), torch.ones(7))
