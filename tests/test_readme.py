"""The README's program runs as it stands, and where its links and those of the pages lead there is something."""

import re
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXTS = sorted([README, *ROOT.glob(".docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob(".github/*.md")])


def program():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return code


def test_the_first_program_is_short_and_needs_the_package_alone():
    code = program()
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    assert not re.search(r"(from|import) (models|examples|tests)\b", code)


def test_the_first_program_runs(capsys):
    pyro.set_rng_seed(0)
    names = {}
    exec(compile(program(), "README.md", "exec"), names)
    assert names["guide"].rates().keys() == {"0.weight", "2.weight"}
    y, mean, deviation = names["y"][names["test"]], names["mean"], names["deviation"]
    assert 40 < (mean - y).square().mean().sqrt() < 0.85 * y.std()
    inside = ((y - mean).abs() < 1.96 * deviation).float().mean()
    assert 0.85 < inside < 1
    assert "tensor" in capsys.readouterr().out


def test_the_readme_is_one_screen():
    assert len(README.read_text().split()) < 1000


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (page.parent / path).resolve()
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target
