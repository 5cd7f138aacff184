"""Runs whose bytes are counted: they load no compiler, and leave what is compiled as it was."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from pyro_dropout._memory import PeakMemory

PREDICTION = """
import sys, torch
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive

x = torch.randn(20, 3)
model = Regression(3, 20, (4,))
guide = AutoBernoulliDropout(model, rate=0.1)
guide(x, x[:, 0])
DropoutPredictive(model, guide=guide, num_samples=10)(x)
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_a_prediction_loads_no_compiler():
    """Which would be most of the time of the first one in a process."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", PREDICTION], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_what_is_compiled_runs_as_it_is_written_and_is_compiled_afterwards():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    function = torch.compile(lambda x: x.exp().sum(), backend=backend)
    x = torch.ones(1000)
    with PeakMemory() as before:
        function(x)
    assert not graphs
    function(x)
    assert len(graphs) == 1
    with PeakMemory() as after:
        function(x)
    assert len(graphs) == 1
    assert before.peak == after.peak == 1000 * 4 + 4
