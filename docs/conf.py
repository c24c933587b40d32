"""Sphinx configuration of the documentation site: `make docs` builds it into docs/_build/html."""

import burnish

project = "Burnish"
author = "The Burnish team"
copyright = "2026, The Burnish team"
version = release = burnish.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings
exclude_patterns = ["_build", "take_screenshots.py"]
smartquotes = False
add_module_names = False
templates_path: list[str] = []

html_theme = "furo"
html_title = f"Burnish {release}"
html_static_path: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True}
nitpicky = False
