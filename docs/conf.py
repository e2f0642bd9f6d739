"""Configuration of Sphinx: ``sphinx-build -W -n -b html docs docs/_build/html``."""

from __future__ import annotations

import trio_asgi

project = "trio_asgi"
author = "The trio_asgi contributors"
copyright = author  # noqa: A001 - the name that Sphinx asks for
version = release = trio_asgi.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# In docstrings, `this` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Nothing is downloaded for a build, hence no links into the documentation of others.
nitpick_ignore_regex = [
    ("py:.*", r"(?!trio_asgi).*"),
    ("py:.*", r"trio_asgi\._.*"),
]

html_theme = "furo"
html_title = f"trio_asgi {release}"
html_show_sphinx = False
