"""What the pages of the documentation say is what happens: their sessions are run."""

import doctest
from pathlib import Path

import pyro
import pytest

PAGES = [page for page in sorted((Path(__file__).parents[1] / ".docs").glob("*.md")) if ">>>" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sessions(page):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5
    assert not found.failed


def test_every_page_is_in_the_index():
    index = (PAGES[0].parent / "index.md").read_text().split()
    missing = {page.stem for page in PAGES[0].parent.glob("*.md")} - {"index", *index}
    assert not missing
