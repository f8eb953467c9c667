"""The site: what goes into it, and that every equation can be drawn without a network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import book
import nbformat
import pages
import pytest

ROOT = Path(__file__).parents[2]


def test_one_notebook_of_each_step_wsp_where_there_are_several(tmp_path):
    names = ["05_results", "02_pretrain-byol-tiny-seed0", "02_pretrain-wsp-tiny-seed1"]
    names += ["02_pretrain-wsp-tiny-seed0", "02_pretrain-wsp_sigma0.3-tiny-seed0", "01_x.failed"]
    names += ["03_notes-Copy1", "05_results-Copy1", "._05_results"]
    for name in names:
        (tmp_path / f"{name}.ipynb").write_text("{}")
    (tmp_path / "06_folder.ipynb").mkdir()
    found = book.executed(tmp_path)
    assert list(found) == ["02_pretrain", "05_results"]
    assert found["02_pretrain"].stem == "02_pretrain-wsp-tiny-seed0"
    for name in ("06_audit-byol-tiny-seed0", "06_audit-wsp-tiny-seed10", "06_audit-wsp-tiny-seed9"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    assert book.executed(tmp_path)["06_audit"].stem == "06_audit-wsp-tiny-seed9"
    failed = '{"metadata": {"papermill": {"exception": true}}}'  # of papermill without our runner
    for seed in (9, 10):
        (tmp_path / f"06_audit-wsp-tiny-seed{seed}.ipynb").write_text(failed)
    assert book.executed(tmp_path)["06_audit"].stem == "06_audit-byol-tiny-seed0"
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        book.executed(tmp_path / "nothing")


def test_a_page_needs_no_network_and_shows_pictures_with_their_words(tmp_path):
    widget, picture = pages.WIDGET, {"image": {"alt": "bands widen into blocks"}}
    bar = nbformat.v4.new_output("display_data", {widget: {}, "text/plain": "5/5"})
    slider = nbformat.v4.new_output("display_data", {widget: {}, "image/png": "AAAA"})
    table = nbformat.v4.new_output("display_data", {"text/html": "<table></table>"})
    code = nbformat.v4.new_code_cell("x = 1  # code", metadata={"mystnb": picture})
    code.outputs = [bar, slider, table]
    lesson = nbformat.v4.new_markdown_cell("what to learn", metadata={"tags": ["lesson"]})
    text = nbformat.v4.new_markdown_cell("# A title\n\n$k_{ti}$ and\n\n$$\\frac{a}{b}$$")
    path = tmp_path / "01_x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[lesson, text, code]), path)
    html = pages.page(path, [("next →", "02.html")])
    assert 'alt="bands widen into blocks"' in html and "5/5" not in html
    assert html.count("<math ") == 2 and html.count("<mfrac>") == 1 and "# code" in html
    assert "what to learn" in html and html.count('href="02.html"') == 2
    assert set(re.findall(r"https?://[^\"'<) ]+", html)) == {"http://www.w3.org/1998/Math/MathML"}
    report = pages.page(path, [], report=True)
    assert "<table>" in report and "# code" not in report and "what to learn" not in report


def test_badges_which_would_be_fetched_are_left_out():
    text = "[![tests](https://a.org/x.svg)](https://a.org) ![b](https://b.org/y.png) ![c](c.png)"
    assert book.BADGE.sub("", text).strip() == "![c](c.png)"


def test_every_equation_can_be_drawn_as_mathml():
    files = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.md")]
    texts = {page.name: page.read_text(encoding="utf-8") for page in files}
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n\n".join(
            "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
        )
    n_found = 0
    for name, text in texts.items():
        text = re.sub(r"```(?!math).*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for block, inline in re.findall(
            r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?! )([^$\n]+?)\$", text, re.DOTALL
        ):
            drawn = pages.mathml(block or inline, bool(block))
            assert "merror" not in drawn, f"{name}: {block or inline}"
            n_found += 1
    assert n_found > 40


def test_every_equation_of_a_docstring_can_be_drawn_as_mathml():
    n_found = 0
    for path in ROOT.glob("src/**/*.py"):
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"\.\. math::\n((?:\n| {8}.*\n)+)", text)
        for tex in [*blocks, *re.findall(r":math:`([^`]+)`", text)]:
            assert "merror" not in pages.mathml(tex, tex in blocks), f"{path.name}: {tex}"
            n_found += 1
    assert n_found > 25


def test_a_lost_page_is_named(tmp_path):
    for name in ("source/api/a.md", "source/b.ipynb", "pages/b.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert book.lost_pages(tmp_path / "source", tmp_path / "pages") == ["api/a.md"]


def test_every_picture_of_a_notebook_says_what_it_shows():
    n_found = 0
    for path in ROOT.glob("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and "plt.show()" in "".join(cell["source"]):
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                assert len(alt) > 30, f"{path.name}, cell {cell['id']}: mystnb.image.alt is {alt!r}"
                n_found += 1
    assert n_found > 30


@pytest.mark.parametrize("script", ["book.py", "pages.py"])
def test_scripts_of_the_pages_end_in_one_line(tmp_path, script):
    command = [sys.executable, Path(__file__).parents[2] / "docs" / script]
    given = ["report", tmp_path / "o.html"] if script == "pages.py" else [tmp_path / "run"]
    for words in ([], [*given, tmp_path / "gone"]):
        found = subprocess.run([*command, *words], capture_output=True, text=True)
        assert found.returncode == 1 and found.stderr.count("\n") == 1, found.stderr


def test_a_run_is_no_place_for_its_pages(tmp_path):
    (tmp_path / "scores.csv").touch()
    with pytest.raises(ValueError, match="holds something else"):
        pages.write_pages(tmp_path, [])
    with pytest.raises(ValueError, match="holds something else"):
        book.main(tmp_path, tmp_path)
    assert (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    "source",
    ["paper_cohorts = False", "paper_cohorts: bool = False  # own", "paper_cohorts = True"],
)
def test_a_report_of_other_patients_is_without_the_papers_however_it_was_run(tmp_path, source):
    first = nbformat.v4.new_code_cell("paper_cohorts: bool = True  # the paper's")
    paper = nbformat.v4.new_markdown_cell("of the paper", metadata={"tags": ["paper"]})
    cells = [first, nbformat.v4.new_code_cell(source), paper]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "05.ipynb")
    shown = "of the paper" in pages.page(tmp_path / "05.ipynb", [], report=True)
    assert shown == source.endswith("True")
    (tmp_path / "www").mkdir()
    (tmp_path / "html").symlink_to(tmp_path / "www")  # where a web server looks
    pages.write_pages(tmp_path / "html", [tmp_path / "05.ipynb"])
    assert (tmp_path / "html").is_symlink() and (tmp_path / "www" / "05.html").exists()
