"""The site: `sphinx-build -W --keep-going -b html notebooks build/site`, from guide pages, notebooks and docstrings.

Nothing is executed and nothing fetched: notebooks are shown with the output they are stored with, and equations are
MathML, which browsers show without a script.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils import unescape
from docutils.utils.math import latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxTranslator

import psa_jax

project = "psa_jax"
author = "the developers of psa_jax"
version = release = psa_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["**.ipynb_checkpoints"]
default_role = "quoted"

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "groupwise"}
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # fields in one list, not as an entry each
napoleon_attr_annotations = False  # the signature has them
napoleon_custom_sections = ["Returns", "Warns"]  # prose, whose first colon ends no type
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"psa_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "code-font-size": "82%",
        "color-brand-primary": "#20639b",
        "color-brand-content": "#20639b",
    },
    "dark_css_variables": {"color-brand-primary": "#7db4e0", "color-brand-content": "#7db4e0"},
}


class Quoted(PyXRefRole):
    """Docstrings quote with single backticks: a link for the name of something that is documented, else as it is."""

    def __call__(self, name: str, rawtext: str, text: str, *args: Any, **options: Any) -> Any:
        if re.fullmatch(r"[A-Za-z_][\w.]*", text):
            return super().__call__("py:obj", rawtext, text, *args, **options)
        return [nodes.literal(rawtext, unescape(text))], []


def inline_equation(translator: SphinxTranslator, node: nodes.math) -> None:
    """Writes an equation of a line."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed_equation(translator: SphinxTranslator, node: nodes.math_block) -> None:
    """Writes an equation of its own."""
    translator.body.append(f"<div>{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>\n")
    raise nodes.SkipNode


def told_briefly(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str) -> Any:
    """Signatures say `Array`, not where it comes from, and `...` for a default that is made."""
    short = [text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returned)]
    return short[0] and short[0].replace("<factory>", "..."), short[1]


def for_users(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Leaves out what a folder imports, which is for those who change it."""
    if what == "module":
        kept = (part for part in "\n".join(lines).split("\n\n") if not re.search(r"\b[Ii]mports\b", part))
        lines[:] = "\n\n".join(kept).split("\n")


def of_the_package(app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.Element) -> Any:
    """Links `align` and `psa.align` as well as `psa_jax.align.align`, where it is documented."""
    target = node.get("reftarget", "")
    name = target.removeprefix("psa.").removeprefix("psa_jax.")
    if node.get("refdomain") != "py" or not target:
        return None
    objects = env.get_domain("py").objects
    found = [full for full in objects if full == f"psa_jax.{name}" or full.endswith(f".{name}")]
    public = [full for full in found if full.count(".") == 2 + name.count(".")]
    if not public:
        return None
    entry = objects[public[0]]
    uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", contents, internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=public[0])


def setup(app: Sphinx) -> None:
    """Is called by sphinx."""
    app.add_role("quoted", Quoted())
    app.add_html_math_renderer("mathml", (inline_equation, None), (displayed_equation, None))
    app.connect("autodoc-process-signature", told_briefly)
    app.connect("autodoc-process-docstring", for_users)
    app.connect("missing-reference", of_the_package)
