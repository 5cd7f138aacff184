"""What scripts share on their command lines."""

import argparse
from pathlib import Path

import pyro
import pytest
import torch

from examples.common.arguments import add_backend, add_outputs, add_seed, count, script, settle


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
