"""Settings of the site (`make book`): Sphinx with MyST-NB and the theme Furo.

Nothing is fetched from a network when a page is read: equations are MathML, fonts are the reader's
own, the search index is a file beside the pages.
"""

from html import escape
from importlib.metadata import version as installed

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

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

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_search_summary = False  # would fetch the pages, which a browser refuses for file://
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def mathml(translator, node: nodes.Node) -> None:
    """Write an equation as MathML, which browsers draw by themselves.

    Raises:
        ValueError: with the equation, where docutils does not know a command of it.
    """
    block = isinstance(node, nodes.math_block)
    try:
        drawn = tex2mathml(node.astext(), as_block=block)
    except Exception as error:
        raise ValueError(f"{translator.docnames}: {node.astext()!r}: {error}") from error
    spoken = escape(" ".join(node.astext().split()), quote=True)
    drawn = drawn.replace("<math ", f'<math aria-label="{spoken}" ', 1)
    translator.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def reachable(app, page, template, context, doctree) -> None:
    """Say the level of the side bar's headings; boxes that scroll take the keyboard's focus."""
    tree = context.get("furo_navigation_tree", "")
    tree = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    context["furo_navigation_tree"] = tree
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    for box in ["table-wrapper", "cell_output", "math"]:
        body = body.replace(f'<div class="{box}', f'<div tabindex="0" class="{box}')
    context["body"] = body


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("html-page-context", reachable, priority=900)
