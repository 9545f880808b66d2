"""The documentation as a site: `make site`. Its root is the repository, so links in the pages lead where they stand."""

from importlib.metadata import version as version_of

project = "vlp"
author = "the authors of vlp"
version = release = version_of("vlp")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "README.md", "CONTRIBUTING.md", "benchmarks/*/*.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # tables begin at any level; shell output is no code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = f"vlp {release}"
html_copy_source = False
nitpicky = False
