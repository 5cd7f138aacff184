"""Digits by two processes, cut down."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.scale import train_ddp

ROOT = Path(__file__).parents[3]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "examples.scale.train_ddp", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--compiled"], ["--bfloat16"]], ids=str)
def test_two_processes_and_a_second_start(options, tmp_path):
    arguments = ["--quick", "--outputs", str(tmp_path), *options]
    first = torchrun(*arguments)
    assert "epoch 1: loss" in first
    assert "2 processes" in first
    second = torchrun(*arguments)
    assert "epoch" not in second  # nothing is left to do
    assert second.split("accuracy")[1].split("written")[0] == first.split("accuracy")[1].split("written")[0]


def test_without_torchrun_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit):
        train_ddp.main(["--quick"])
    assert "start it by torchrun" in capsys.readouterr().err
