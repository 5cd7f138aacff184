"""What scripts share on their command lines."""

import argparse
from pathlib import Path

import pyro
import pytest
import torch

from examples.common.arguments import add_backend, add_outputs, add_seed, below_one, count, parsed, script, settle


def test_what_scripts_share():
    parser = script("start.nothing", "Does nothing.\n\nIn more words.")
    add_seed(parser, "of all")
    add_outputs(parser, "--output", "outputs/nothing")
    add_backend(parser)
    assert parser.parse_args([]) == argparse.Namespace(seed=0, output=Path("outputs/nothing"), backend="inductor")
    text = parser.format_help()
    assert "python -m examples.start.nothing" in text
    assert "Does nothing." in text
    assert "In more words." not in text
    assert "of all (default: 0)" in text


def test_a_seed_settles_what_is_drawn():
    threads = torch.get_num_threads()
    settle(3)
    first = torch.randn(4)
    settle(3)
    assert torch.equal(torch.randn(4), first)
    assert torch.get_num_threads() == 1
    assert pyro.settings.get("module_local_params")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("text", ["0", "-1", "a", "1.5"])
def test_counts(text):
    assert count("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1, but found {text}"):
        count(text)


@pytest.mark.parametrize("text", ["-0.1", "1", "a", "nan"])
def test_rates(text):
    assert (below_one("0"), below_one("0.5")) == (0.0, 0.5)
    with pytest.raises(argparse.ArgumentTypeError, match=f"below 1, but found {text}"):
        below_one(text)


def test_a_quick_run_has_other_defaults_and_a_folder_of_its_own():
    def options(*arguments):
        parser = script("start.nothing", "Does nothing.")
        parser.add_argument("--steps", type=count, default=100)
        add_outputs(parser, default="outputs/nothing")
        return parsed(parser, list(arguments), {"steps": 2})

    assert (options().steps, options().outputs) == (100, Path("outputs/nothing"))
    assert (options("--quick").steps, options("--quick").outputs) == (2, Path("outputs/nothing/quick"))
    assert options("--quick", "--steps", "5", "--outputs", "a") == argparse.Namespace(
        steps=5, outputs=Path("a"), quick=True
    )
