"""The site: what goes into it, and that every equation can be drawn without a network."""

import json
import re
import runpy
from pathlib import Path

import pytest
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).parents[2]
BOOK = runpy.run_path(str(ROOT / "docs" / "book.py"))


def notebook(*outputs: dict) -> str:
    """Text of a notebook of one cell with these outputs."""
    cell = {"cell_type": "code", "source": [], "metadata": {}, "outputs": list(outputs)}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_one_notebook_of_each_step_wsp_where_there_are_several(tmp_path):
    names = ["05_results", "02_pretrain-byol-tiny-seed0", "02_pretrain-wsp-tiny-seed1"]
    names += ["02_pretrain-wsp-tiny-seed0", "02_pretrain-wsp_sigma0.3-tiny-seed0", "01_x.failed"]
    for name in names:
        (tmp_path / f"{name}.ipynb").write_text("{}")
    found = BOOK["executed"](tmp_path)
    assert list(found) == ["02_pretrain", "05_results"]
    assert found["02_pretrain"].stem == "02_pretrain-wsp-tiny-seed0"
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        BOOK["executed"](tmp_path / "nothing")


def test_progress_bars_are_left_out_and_sliders_become_their_picture():
    widget = "application/vnd.jupyter.widget-view+json"
    bar = {"output_type": "display_data", "data": {widget: {}, "text/plain": "5/5"}}
    slider = {"output_type": "display_data", "data": {widget: {}, "image/png": "AAAA"}}
    text = {"output_type": "stream", "name": "stdout", "text": ["done"]}
    (cell,) = json.loads(BOOK["without_progress"](notebook(bar, slider, text)))["cells"]
    assert cell["outputs"] == [slider, text]


def test_badges_which_would_be_fetched_are_left_out():
    text = "[![tests](https://a.org/x.svg)](https://a.org) ![b](https://b.org/y.png) ![c](c.png)"
    assert BOOK["BADGE"].sub("", text).strip() == "![c](c.png)"


def test_every_equation_can_be_drawn_as_mathml():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.md")]
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
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
            drawn = tex2mathml(block or inline, as_block=bool(block))
            assert "merror" not in drawn, f"{name}: {block or inline}"
            n_found += 1
    assert n_found > 40


def test_every_picture_of_a_notebook_says_what_it_shows():
    n_found = 0
    for path in ROOT.glob("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and "plt.show()" in "".join(cell["source"]):
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                assert len(alt) > 30, f"{path.name}, cell {cell['id']}: mystnb.image.alt is {alt!r}"
                n_found += 1
    assert n_found > 30
