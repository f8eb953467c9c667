"""README and docs: what they say is what the committed tables say, and what they show runs."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import fill  # noqa: E402


def shown(text: str) -> str:
    """Without the numbers of lines in links, which move with every edit of a source file."""
    return re.sub(r"#L\d+", "#L", text)


def test_every_page_says_what_its_tables_say():
    assert {"README.md", "docs/paper-and-code.md", "docs/results/phantom.md"} <= set(fill.PAGES)
    blocks = set()
    for name in fill.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        blocks |= {match[1] for match in fill.MARK.finditer(page)}
        assert shown(fill.render(page)) == shown(page), f"{name}: run `make docs`"
    assert blocks == set(fill.BLOCKS)  # each is on a page


def test_commands_can_be_pasted_into_the_shell_of_a_mac():
    """zsh takes a comment for arguments, runs its backquotes, and splits no variable into words."""
    for name in fill.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        for line in re.findall(
            r"^ {4,}((?:make|flow|snakemake|\S*python|\S*bin/|\$).*)", page, re.M
        ):
            assert " # " not in line and not line.startswith("$"), f"{name}: {line}"


def test_an_interval_that_a_table_lost_is_left_out():
    assert fill.between(0.6, 0.8) == " [.60, .80]"
    assert fill.between(-0.1, 0.2, "+") == " [-.10, +.20]"
    assert fill.between(0.6, float("nan")) == ""
    assert fill.between(-0.004, 0.2, "+") == " [-.00, +.20]"  # the sign says that it holds zero


def test_rows_of_one_network_padded_and_not_are_not_mixed(monkeypatch):
    table = fill.table("table1")
    both = pd.concat([table, table.assign(backbone="TinyNet")])
    monkeypatch.setattr(fill, "table", lambda name: both if name == "table1" else None)
    assert set(fill.own_rows().backbone) == {"TinyNet"} and fill.own_rows().method.is_unique


def test_a_page_that_disagrees_with_its_table_is_noticed(monkeypatch):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    edited = re.sub(r"(\| WSP \| )\.(\d)", r"\1.0", page)
    assert edited != page and fill.render(edited) == fill.render(page)  # put right again
    table = fill.table("table1").copy()
    table["auc_d1"] = table.auc_d1 - 0.1
    monkeypatch.setattr(fill, "table", lambda name: table if name == "table1" else None)
    assert fill.results() not in page


def test_a_table_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(fill, "table", lambda name: None)
    for name in ("population", "studies", "pairs", "variants", "adrenal_clean"):
        assert fill.BLOCKS[name]().startswith("*Not there yet: `figures/")
    with pytest.raises(KeyError, match="unheard_of"):
        fill.render("<!-- begin unheard_of -->\n<!-- end unheard_of -->")


@pytest.mark.parametrize("name", ["README.md", *map(str, Path("docs").glob("results/*.md"))])
def test_no_result_stands_outside_the_markers(name):
    """Settings may: sigma, a threshold, the accuracy of a reader, versions."""
    text = fill.MARK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    text = re.sub(
        r"```.*?```|^ {4}.*?$|`[^`]*`|\]\([^)]*\)|doi \S+|^\[\w+\]: .*?$",
        "",
        text,
        flags=re.M | re.S,
    )
    found = set(re.findall(r"(?<![\w.])-?\d*\.\d+", text))
    assert found <= {"0.1", "0.5", ".82", ".97", ".05", "3.11", "3.13", "4.0"}, name


def test_readme_fits_a_screen_and_a_half():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120
    words = " ".join(lines)
    assert words.index("Synthetic patients, not livers") < words.index("make reproduce")


@pytest.mark.parametrize("name", fill.PAGES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)", text, flags=re.M)
    for target in (a or b for a, b in targets):
        if not re.match(r"https?:|#|\.\./\.\./actions", target):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file
            assert path.exists(), f"{name}: {target}"
            line = re.fullmatch(r"L(\d+)", anchor)
            assert not line or int(line[1]) <= len(path.read_text(encoding="utf-8").splitlines())


def test_the_training_loop_of_the_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(code.strip().splitlines()) <= 12
    from wspnb.augment import augment
    from wspnb.models import TinyNet, projection_head

    torch.manual_seed(0)
    encoder, head = TinyNet(norm="batch"), projection_head("tiny")
    weights = [*encoder.parameters(), *head.parameters()]
    images = torch.rand(8, 1, 160, 160)
    batch = (images, torch.arange(8) % 2, torch.linspace(0, 1, 8))
    losses = []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            losses.append(names["loss"].item())
            return super().step(closure)

    names = {"encoder": encoder, "head": head, "loader": [batch] * 3}
    names |= {"augment": lambda x: augment(x, torch.Generator().manual_seed(len(losses)))}
    names |= {"optimizer": Watched(weights, 1e-3)}
    before = weights[0].clone()
    exec(code, names)
    assert len(losses) == 3 and all(torch.isfinite(torch.tensor(losses)))
    assert not torch.equal(before, weights[0])


def test_every_committed_picture_stands_on_a_page():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.md")]
    shown = {
        name for page in pages for name in re.findall(r"figures/(\w+\.png)\)", page.read_text())
    }
    assert {path.name for path in ROOT.glob("figures/*.png")} == shown
