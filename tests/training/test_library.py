"""Graphs as shared libraries: made by a child process, found again, and what happens when that goes wrong."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, CompiledSVI, RenyiDropout_ELBO, TraceDropout_ELBO
from pyro_dropout.training._steps import library as library_module
from pyro_dropout.training._steps.graph import Compiled, trace
from pyro_dropout.training._steps.library import Library

SLEEPS = """
import subprocess, sys, threading
sys.path.insert(0, {folder!r})
import maker
threading.Thread(target=maker._end_with_parent, daemon=True).start()
subprocess.run(["sleep", "100"])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of libraries, empty."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiler"))
    yield tmp_path / "compiler" / "pyro_dropout"
    gc.collect()  # and no process is left
    assert not children()


@pytest.fixture
def makes(tmp_path, monkeypatch):
    """Replaces the program of the child process."""

    def replace(text):
        (tmp_path / "other.py").write_text(text)
        folder = str(Path(library_module.maker.__file__).parent)
        (tmp_path / "other.py").write_text(text.format(folder=folder))
        monkeypatch.setattr(library_module.maker, "__file__", str(tmp_path / "other.py"))

    return replace


def data():
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    return x, x.sum(1)


def svi_of(width=4, progress=False, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = Regression(3, 8, (width,))
    guide = AutoBernoulliDropout(model, rate=0.2)
    return CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), progress=progress, **options)


def state(svi):
    return {name: parameter.detach().clone() for name, parameter in svi.guide.named_parameters()}


def children():
    """Processes that this one has started and that still run."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    lines = [line.split() for line in listed.stdout.splitlines() if "other.py" in line]
    return [int(number) for number, stat, *_ in lines if stat != "Z"]


def ends(process, seconds=10.0):
    """Whether a process, by its number, ends within some seconds."""
    for _ in range(int(seconds * 20)):
        try:
            stat = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_steps_go_on_until_it_is_made_and_later_ones_find_it(folder, two_threads):
    """Compiled for once: ten seconds of a compiler."""

    def function(x, y, a, b):
        held.add_(1)
        large = [a @ a, a.T @ b, torch.addmm(b, a, b.T), torch.addmm(b, a, b, beta=2.0, alpha=3.0)]
        large.append(torch.bmm(*pair(a, b)))
        return [x @ y + held, (x * y.sum()).exp(), *(product.tanh() for product in large)]

    def pair(a, b):
        """Three products, of factors that lie in memory in other ways."""
        return torch.stack([a, b, a.T]), torch.stack([b, a, b]).mT

    held = torch.zeros(())
    a, b = (torch.randn(128, 128, dtype=torch.float64) / 8 for _ in range(2))
    exact = [(a @ a).tanh(), (a.T @ b).tanh(), (b + a @ b.T).tanh(), (2 * b + 3 * a @ b).tanh()]
    exact.append(torch.stack([a @ b.T, b @ a.T, a.T @ b.T]).tanh())
    inputs = [torch.randn(6, 6), torch.randn(6, 6), a.float(), b.float()]
    told, threads = [], []

    def make():
        return Compiled(trace(function, inputs), inputs, False, lambda *said: told.append(said))

    def called(compiled):
        held.fill_(1)
        found = compiled(*inputs, held)
        assert held == 2
        return found

    first = make()
    assert not told
    operations = first._function
    first._function = lambda *tensors: threads.append(torch.get_num_threads()) or operations(*tensors)
    before = called(first)
    assert threads == [1]  # beside the compiler
    assert torch.get_num_threads() == 2
    first._library.wait()
    after = called(first)
    assert len(threads) == 1
    assert told[0][0] == ""
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(after[2:], exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.0, atol=3e-6)
    (library,) = folder.iterdir()
    assert [path.name for path in library.iterdir()] == ["graph.so"]
    if torch.backends.mkldnn.is_available():  # large products are oneDNN's
        assert b"aoti_torch_cpu__linear_pointwise" in (library / "graph.so").read_bytes()

    second = make()
    assert len(told) == 2  # at once
    assert second._library is None
    for ours, theirs in zip(called(second), after, strict=True):
        assert torch.equal(ours, theirs)


def test_a_library_that_is_none_is_thrown_away(folder, monkeypatch):
    x = torch.ones(3)
    traced, told = trace(lambda x: [x + 1], [x]), []
    with monkeypatch.context() as patch:
        patch.setattr(Library, "_start", lambda self, request: None)
        patch.setattr(Library, "poll", lambda self: False)
        name = Compiled(traced, [x], False, None)._library.folder
    name.mkdir(parents=True)
    (name / "graph.so").write_bytes(b"no library")
    function = Compiled(traced, [x], False, lambda *said: told.append(said))
    assert "dlopen" in told[0][0]
    assert not name.exists()
    assert torch.equal(function(x)[0], x + 1)


def test_other_graphs_have_other_names(folder, monkeypatch):
    x, y = data()
    found = []
    monkeypatch.setattr(Library, "_start", lambda self, request: found.append(self.folder.name))
    monkeypatch.setattr(Library, "poll", lambda self: False)

    def make(prior=1.0, width=4, rate=0.2, optim=None, loss=None, dtype=torch.float32, activation=nn.Tanh):
        pyro.clear_param_store()
        model = Regression(3, 8, (width,), activation=activation).to(dtype)
        guide = AutoBernoulliDropout(model, rate=rate)
        svi = CompiledSVI(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss, progress=False)
        for _ in range(2):
            svi.step(x.to(dtype), y.to(dtype))
        return found.pop()

    first = make()
    same = [make(), make(optim=pyro.optim.Adam({"lr": 0.5})), make(rate=0.7)]  # which are tensors
    assert all(name == first for name in same)
    alpha = make(loss=RenyiDropout_ELBO(0.5, 3))
    assert make(loss=RenyiDropout_ELBO(0.2, 3)) == alpha
    others = [
        *(make(width=5), make(dtype=torch.float64), make(activation=nn.ReLU), make(loss=TraceDropout_ELBO(2))),
        *(make(optim=pyro.optim.Adam({"betas": (0.5, 0.9)})), make(optim=pyro.optim.SGD({"lr": 0.01})), alpha),
        make(loss=RenyiDropout_ELBO(0.5, 4)),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_a_compiler_that_fails_leaves_the_steps_as_they_are(folder, makes):
    makes("import sys; sys.exit('no space left on device')")
    svi = svi_of()
    arguments = data()
    torch.manual_seed(1)
    losses = [svi.step(*arguments) for _ in range(2)]
    assert all(ends(child) for child in children())  # none, if it has ended already
    with pytest.warns(UserWarning, match="operation by operation, not compiled: .*no space left on device"):
        losses.append(svi.step(*arguments))
    losses.append(svi.step(*arguments))
    plain = svi_of(backend="eager")
    torch.manual_seed(1)
    assert losses == [plain.step(*arguments) for _ in range(4)]
    assert not list(folder.iterdir())
    assert not children()


def test_no_place_for_libraries(folder, tmp_path):
    (tmp_path / "compiler").write_text("a file where a folder should be")
    svi = svi_of()
    svi.step(*data())
    with pytest.warns(UserWarning, match="the compiler failed .*(NotADirectory|FileExists)"):
        svi.step(*data())
    assert svi.step(*data()) > 0


def test_a_child_that_cannot_start(folder, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    svi = svi_of()
    svi.step(*data())
    with pytest.warns(UserWarning, match="the compiler failed .*no/such/python"):
        svi.step(*data())
    assert not list(folder.iterdir())


def test_interrupted_while_it_waits(folder, makes):
    """No process is left, no parameter has changed, and the step can be taken again."""
    makes(SLEEPS)
    svi = svi_of(wait=True)
    svi.step(*data())
    before = state(svi)

    seen = []

    def interrupt(*_):
        seen.extend(children())
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(KeyboardInterrupt):
            svi.step(*data())
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(seen) == 1
    assert not children()
    assert not list(folder.iterdir())
    for name, value in state(svi).items():
        assert torch.equal(value, before[name])
    svi.wait = False
    assert svi.step(*data()) > 0


def test_what_is_no_longer_wanted_ends(folder, makes):
    makes(SLEEPS)
    svi = svi_of()
    for _ in range(3):
        svi.step(*data())
    (child,) = children()
    del svi
    gc.collect()
    assert ends(child)
    assert not list(folder.iterdir())


PARENT = """
import sys, time, torch
sys.path[:0] = [{root!r}]
from tests.training.test_library import data, library_module, svi_of
library_module.maker.__file__ = {maker!r}
svi = svi_of()
for _ in range(3):
    svi.step(*data())
(program,) = [p for p in svi._programs.values() if hasattr(p, "traced")]
print(program._function._library._child.pid, flush=True)
time.sleep(100)
"""


def test_a_parent_that_is_killed_takes_the_compilers_along(folder, makes, tmp_path):
    makes(SLEEPS)
    root = str(Path(__file__).parents[2])
    text = PARENT.format(root=root, maker=library_module.maker.__file__)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(1.0)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child)], capture_output=True, text=True)
    compilers = [int(line) for line in listed.stdout.split()]
    assert compilers
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(ends(process) for process in (child, *compilers))


BUILDS = {
    "as it is": {},
    "wider": {"width": 70},
    "alpha": {"loss": lambda: RenyiDropout_ELBO(0.5, 2)},
    "learned hard masks": {"learnable": True},
    "double precision": {"dtype": torch.float64},
    "SGD": {"optim": lambda: pyro.optim.SGD({"lr": 0.001, "momentum": 0.9})},
}


def trained(width=4, loss=TraceDropout_ELBO, learnable=False, dtype=torch.float32, optim=None):
    """Losses and parameters of ten compiled steps."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = Regression(3, 8, (width,)).to(dtype)
    guide = AutoBernoulliDropout(model, rate=0.2, learnable=learnable)
    optim = pyro.optim.Adam({"lr": 0.01}) if optim is None else optim()
    svi = CompiledSVI(model, guide, optim, loss(), progress=False, wait=True)
    losses = svi.scan(*(t.to(dtype).expand(10, *t.shape) for t in data()))
    return [losses, *state(svi).values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_built_anew_or_found_the_bits_are_the_same(name, tmp_path, monkeypatch):
    """In two empty folders, and once more in the second: half a minute."""
    runs = []
    for folder in ("first", "second", "second"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / folder))
        known = set((tmp_path / folder / "pyro_dropout").glob("*"))
        runs.append(trained(**BUILDS[name]))
        assert bool(set((tmp_path / folder / "pyro_dropout").glob("*")) - known) != bool(known)
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))
