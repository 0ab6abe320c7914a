"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

Formulas are set by MathJax, which the reader's browser loads from its usual address; without a
network they are shown as LaTeX. For pages that need no network, add ``-D mathjax_path=...`` with the
path of a MathJax of your own.
"""

import re

from npmeta import __version__
from npmeta.training.options import OPTIONS  # noqa: F401  # reads defaults before autodoc changes them

project = "npmeta"
author = "the npmeta authors"
copyright = "the npmeta authors"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
# Every role must lead somewhere, but for the fields of a class and for other packages' names.
nitpicky = True
nitpick_ignore_regex = [("py:attr", r"\w+"), ("py:.*", r"(numpy|collections)\..*")]

html_theme = "furo"
html_title = f"npmeta {release}"
html_static_path = ["_static"]
html_css_files = ["npmeta.css"]
html_copy_source = False
html_show_copyright = False

# --- the reference ------------------------------------------------------------------------------

autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Signatures say Array, not what Array is short for.
autodoc_type_aliases = {
    name: name
    for name in (
        *("Array", "ArrayLike", "DType", "DTypeLike", "PathLike", "Range"),
        *("Batch", "Scale", "MetaParameters", "Named", "Schedule"),
    )
}
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, and no second description
napoleon_use_rtype = False


def setup(app):
    app.connect("missing-reference", leave_words_alone)
    app.connect("autodoc-skip-member", skip_fields_of_tuples)
    app.connect("autodoc-process-signature", name_types_plainly)
    app.connect("autodoc-process-docstring", keep_first_sentence, priority=400)  # before napoleon


def leave_words_alone(app, env, node, contnode):
    """Types in numpydoc sections ("array_like, (T, P)") are prose, no references."""
    from docutils import nodes

    return None if isinstance(contnode, nodes.literal) else contnode


def skip_fields_of_tuples(app, what, name, obj, skip, options):
    """The docstring Python gives to the fields of a NamedTuple says nothing."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def name_types_plainly(app, what, name, obj, options, signature, returns):
    """A type alias inside a list or a tuple is shown as what keeps its name; show the name."""
    return tuple(
        re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) if part else part
        for part in (signature, returns)
    )


def keep_first_sentence(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon in the first line of a comment on data for its type."""
    if what in ("data", "attribute", "property") and lines:
        lines.insert(0, "")
