"""A graph as a shared library: made by a child process while the parent goes on, and kept for later processes.

Libraries stand in the folder of PyTorch's compiler (``TORCHINDUCTOR_CACHE_DIR``, by default ``torchinductor_<user>`` in
the folder of temporary files), in ``pyro_dropout``, under a name made of all that they depend on: the graph, its
inputs, PyTorch, the processor. Copied to another machine with the same of these they are found there.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_dropout.training._steps import maker
from pyro_dropout.training._steps.internals import compilers_folder, load_library

_ERROR = re.compile(r"^[A-Za-z_][\w.]*: .+", re.MULTILINE)  # the line of a traceback that says what it was


class Library:
    """The library of a graph, made if no process has made it yet.

    :param graph: without tensors of its own.
    :param inputs: tensors like those that it will be called with, of the CPU.
    :param options: of PyTorch's compiler.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> None:
        described = [(tuple(t.shape), t.stride(), t.dtype) for t in inputs]
        threads = torch.get_num_threads()
        self.folder = compilers_folder() / "pyro_dropout" / _name(graph.code, described, options, threads)
        self.error = ""
        self._child: subprocess.Popen | None = None
        self._work: Path | None = None  # the child's folder
        if not self.is_made:
            request = {"graph": pickle.dumps(graph), "inputs": described, "options": options, "threads": threads}
            self._start(request)

    @property
    def is_made(self) -> bool:
        return (self.folder / "graph.so").exists()

    def _start(self, request: dict[str, Any]) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(dir=self.folder.parent))
            (self._work / "request").write_bytes(pickle.dumps(request))
            with (self._work / "messages").open("wb") as messages:
                # -P: this folder's modules are not to be found as PyTorch's
                command = [sys.executable, "-P", maker.__file__, str(self._work)]
                self._child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=messages, stderr=messages, start_new_session=True
                )
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
            if self._work is not None:
                shutil.rmtree(self._work, ignore_errors=True)
            return
        self.stop = weakref.finalize(self, _end, self._child, self._work)

    def poll(self) -> bool:
        """Whether making it has ended: it is made, or there is an error."""
        if self._child is None:
            return True
        if self._child.poll() is None:
            return False
        self._finish()
        return True

    def wait(self) -> None:
        """Until making it has ended."""
        if self._child is not None:
            try:
                self._child.wait()
            except BaseException:  # interrupted
                self.stop()
                raise
            self._finish()

    def _finish(self) -> None:
        assert self._child is not None
        assert self._work is not None
        try:
            if self._child.returncode == 0:
                (self._work / "messages").unlink()
                if not self.is_made:  # nor made by another process meanwhile
                    self._work.rename(self.folder)
            else:
                said = (self._work / "messages").read_text(errors="replace").strip()
                errors = _ERROR.findall(said) or said.splitlines()
                self.error = errors[-1] if errors else f"its process ended with {self._child.returncode}"
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
        self._child = None
        self.stop()

    def load(self) -> Callable[..., list[Tensor]]:
        """The library as a function of the graph's inputs.

        :raises RuntimeError: it cannot be loaded, and is thrown away.
        """
        try:
            return load_library(self.folder / "graph.so")
        except Exception:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise


def _end(child: subprocess.Popen, work: Path) -> None:
    """Kills the child and what it has started, if they still run."""
    if child.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.wait()
    assert child.stdin is not None
    child.stdin.close()
    shutil.rmtree(work, ignore_errors=True)


def _name(*what: Any) -> str:
    """Of a graph for this PyTorch and processor, made by this version of its maker."""
    machine = (
        Path(maker.__file__).read_bytes(),
        torch.__version__,
        torch.__config__.show(),
        platform.machine(),
        _processor(),
        sys.platform,
    )
    return hashlib.sha256(repr((what, machine)).encode()).hexdigest()


def _processor() -> str:
    """What instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
