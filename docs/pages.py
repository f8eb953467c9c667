"""Pages of a run: ``python docs/pages.py html OUT NOTEBOOK ...`` or ``report OUT.html NOTEBOOK``.

One template for both. A page needs no network: equations are MathML, pictures, style and script
stand in the file. The report is its notebook without code and
without cells tagged ``lesson``, or ``paper`` where other cohorts than the paper's were judged.
"""

import re
import shutil
import sys
from html import escape
from pathlib import Path

import nbformat
from docutils.utils.math.latex2mathml import tex2mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from wspnb.files import write_text

HERE = Path(__file__).parent
STYLES = ("default", "github-dark")  # of Pygments
WIDGET = "application/vnd.jupyter.widget-view+json"


def mathml(tex: str, block: bool = False) -> str:
    """An equation as MathML, which browsers draw by themselves; read aloud as it is written.

    Raises:
        ValueError: with the equation, where docutils does not know a command of it.
    """
    try:
        drawn = tex2mathml(tex, as_block=block)
    except Exception as error:
        raise ValueError(f"equation {tex!r}: {error}") from error
    spoken = escape(" ".join(tex.split()), quote=True)
    return drawn.replace("<math ", f'<math aria-label="{spoken}" ', 1)


class Renderer(IPythonRenderer):
    """Markdown to HTML, with equations drawn."""

    def block_math(self, body: str) -> str:
        """``$$...$$``."""
        return f'<span class="math">{mathml(body, block=True)}</span>'

    def inline_math(self, body: str) -> str:
        """``$...$``."""
        return mathml(body)


def to_html(source: str) -> str:
    """Filter of the template for cells of text."""
    return MarkdownWithMath(Renderer(escape=False, exclude_anchor_links=True)).render(source)


def readable(notebook):
    """The notebook without progress bars (widgets that carry no picture), with its pictures' texts
    where the template looks for them; changed in place and returned."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        kept = [o for o in outputs if WIDGET not in o.get("data", {}) or "image/png" in o.data]
        for output in kept:
            output.get("data", {}).pop(WIDGET, None)
        if outputs:
            cell.outputs = kept
        if alt := cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
            cell.metadata["alt"] = alt
    notebook.metadata.pop("widgets", None)
    return notebook


def style() -> str:
    """The style of a page, code coloured for a light and a dark screen."""
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in STYLES)
    dark = f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    return "\n".join([light, dark, (HERE / "page" / "page.css").read_text(encoding="utf-8")])


def page(source: Path, links: list[tuple[str, str]], report: bool = False) -> str:
    """HTML of an executed notebook, with links above and below: (word, address)."""
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(HERE)])
    exporter.register_filter("markdown2html", to_html)
    exporter.preprocessors = []
    if report:
        exporter.exclude_input = True
    notebook = readable(nbformat.read(source, as_version=4))
    if report:
        hidden = {"lesson"}
        code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
        if re.findall(r"(?m)^paper_cohorts\b.*?= *(\w+)", code)[-1:] == ["False"]:
            hidden |= {"paper"}  # the paper beside other patients than its own
        notebook.cells = [c for c in notebook.cells if not hidden & {*c.metadata.get("tags", [])}]
    script = (HERE / "_static" / "scroll.js").read_text(encoding="utf-8")
    about = {"links": links, "style": style(), "script": script}
    html = exporter.from_notebook_node(notebook, resources={"page": about})[0]
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", html)
    return html.replace("<title>", f"<title>{heading[1] if heading else source.stem}", 1)


def write_pages(out: Path, notebooks: list[Path]) -> None:
    """One page per notebook, linked to its neighbours; the folder appears when all are written."""
    if out.exists() and any(path.suffix != ".html" for path in out.glob("[!.]*")):
        raise ValueError(f"{out} holds something else than pages: name another folder")
    out = out.resolve()  # a link stays one
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for k, path in enumerate(notebooks):
        links = [("Report", "../report.html")]
        links += [(f"← {n.stem}", f"{n.stem}.html") for n in notebooks[max(k - 1, 0) : k]]
        links += [(f"{n.stem} →", f"{n.stem}.html") for n in notebooks[k + 1 : k + 2]]
        (temporary / f"{path.stem}.html").write_text(page(path, links), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    temporary.replace(out)


def main(kind: str, out: Path, *notebooks: Path) -> None:
    """Command line."""
    if kind == "html":
        write_pages(out, list(notebooks))
    elif kind == "report":
        write_text(out, page(notebooks[0], [], report=True))
        print(f"report: {out}")
    else:
        raise SystemExit(f"{kind}: html or report, please")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("python docs/pages.py html FOLDER NOTEBOOKS, or: report FILE NOTEBOOK")
    try:
        main(sys.argv[1], *map(Path, sys.argv[2:]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
