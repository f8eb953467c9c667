"""Settings of the site (`make book`): Sphinx with MyST-NB and the theme Furo.

Nothing is fetched from a network when a page is read: equations are MathML, fonts are the reader's
own, the search index is a file beside the pages.
"""

from importlib.metadata import version as installed

from docutils import nodes
from pages import mathml

project = "wspnb"
html_title = f"wspnb {installed('wspnb')}"
author = "The wspnb authors"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

nb_execution_mode = "off"  # the notebooks of a run are shown as they ran
nb_ipywidgets_js = {}  # a slider is shown as its strip of pictures
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_show_copyright = False
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["scroll.js"]
html_copy_source = False
html_show_search_summary = False  # would fetch the pages, which a browser refuses for file://
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def equation(translator, node: nodes.Node) -> None:
    """Write an equation as MathML."""
    block = isinstance(node, nodes.math_block)
    drawn = mathml(node.astext(), block)
    translator.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def captions(app, page, template, context, doctree) -> None:
    """The headings of the side bar say their level, for those who listen to it."""
    tree = context.get("furo_navigation_tree", "")
    tree = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    context["furo_navigation_tree"] = tree


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (equation, None), (equation, None))
    app.connect("html-page-context", captions, priority=900)
