"""The site: ``make docs`` builds it without a network, and any warning is an error."""

import re

from docutils import nodes
from sphinx.application import Sphinx

import augsubset

project = "augsubset"
author = "the augsubset authors"
copyright = author
version = release = augsubset.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = f"augsubset {release}"
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a property is described once
napoleon_custom_sections = ["Shape", "Cost", "Reference"]

# A reference within the library must lead somewhere; those to others would need a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|npt|nn|collections|pathlib|typing|datetime|optional)\b.*"),
    (r"py:.*", r"(?!.*augsubset).*"),
]
# Internal: types in signatures that users do not construct, and a module that a docstring cites.
nitpick_ignore = [
    ("py:mod", "augsubset.selection.distances"),
    ("py:class", "augsubset.batch.BatchParts"),
    ("py:class", "augsubset.augment.draws.OpDraws"),
    ("py:class", "augsubset.augment.plan.CropTables"),
    ("py:class", "augsubset.augment.plan.OpTables"),
    ("py:class", "augsubset.augment.params.PrepareContext"),
    ("py:class", "augsubset.probe.logit_cache.LogitCache"),
    ("py:class", "augsubset.selection.distances.Factors"),
    ("py:class", "augsubset.probe.batch_gradients.BatchGradients"),
    ("py:class", "augsubset.sampling.keys.Keys"),
]


def name_files(app: Sphinx, doctree: nodes.document) -> None:
    """Leave the folder of this machine out of what a difference is called."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "udiff":
            text = re.sub(r"^(---|\+\+\+) .*/", r"\1 ", block.astext(), flags=re.MULTILINE)
            block.rawsource = text
            block[:] = [nodes.Text(text)]


def setup(app: Sphinx) -> None:
    """Register what the pages need beside the extensions."""
    app.connect("doctree-read", name_files)
