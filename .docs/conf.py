"""The documentation: ``make docs`` writes it to ``outputs/docs``."""

import pyro_dropout

project, author, copyright = "pyro_dropout", "the developers of pyro_dropout", "2026, the developers of pyro_dropout"
version = release = pyro_dropout.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx_copybutton"]
html_theme, html_title = "furo", f"pyro_dropout {version}"
exclude_patterns = ["README.md"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints, autodoc_member_order = "none", "bysource"
autosummary_generate = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
suppress_warnings = ["myst.xref_missing"]  # links of the README to folders of the repository
