"""Sphinx: ``sphinx-build -W docs docs/_build``."""

import re
from importlib.metadata import version as installed_version

project = "rlhf_jax"
author = "the rlhf_jax authors"
copyright = "the rlhf_jax authors"
release = version = installed_version("rlhf_jax")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute", "plans.md"]

html_theme = "furo"
html_title = f"rlhf_jax {release}"
html_static_path: list[str] = []

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
# The tutorial runs whenever Sphinx reads it. Not "cache": that looks at the page alone,
# and would show old numbers after the library has changed.
nb_execution_mode = "force"
nb_execution_timeout = 3600  # seconds a cell, on a machine as busy as can be
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # notes of libraries, which depend on the machine
nb_merge_streams = True  # what a cell prints is one block

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    # What flax adds to every module and every pytree.
    "exclude-members": "replace, name, parent, scope, setup, __init__, __new__",
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _list_named_returns(app, what, name, obj, options, lines):
    """Shows "name: text" entries of a Returns section as a list, not as one line."""
    if "Returns:" not in lines:
        return
    start = lines.index("Returns:") + 1
    end = next(
        (i for i in range(start, len(lines)) if not lines[i].strip()), len(lines)
    )
    section = lines[start:end]
    named = re.compile(r"  (\w+): ")
    if not section or not named.match(section[0]):
        return
    lines[start:end] = [named.sub(r"  * ``\1`` – ", line, count=1) for line in section]


def setup(app):
    app.connect("autodoc-process-docstring", _list_named_returns, priority=400)
