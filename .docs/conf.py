"""The documentation: ``make docs`` writes it to ``outputs/docs``."""

import sys
import warnings
from pathlib import Path

import pyro_dropout

sys.path.insert(0, str(Path(__file__).parent))  # linked_names

TUTORIALS = [
    "first_network",
    "learned_rates",
    "is_it_any_good",
    "mc_dropout",
    "other_images",
    "active_learning",
    "thompson_sampling",
    "noise_in_units",
    "wide_data",
    "many_networks",
]


class _InOrder:
    """The tutorials as they are listed above."""

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return TUTORIALS.index(name.removesuffix(".py"))


project, author, copyright = "pyro_dropout", "the developers of pyro_dropout", "2026, the developers of pyro_dropout"
version = release = pyro_dropout.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "linked_names",
]
html_theme, html_title = "furo", f"pyro_dropout {version}"
html_static_path, html_css_files = ["static"], ["wide.css"]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints, autodoc_member_order = "none", "bysource"
autodoc_inherit_docstrings = False  # of what PyTorch and Pyro document themselves
autosummary_generate = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
suppress_warnings = [
    "myst.xref_missing",  # links of the README to folders of the repository
    "config.cache",  # the order of tutorials is a class
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",  # written at each build
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": _InOrder,
    "show_memory": False,
    "show_signature": False,
    "abort_on_example_error": True,
}
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")  # plt.show() of the tutorials
