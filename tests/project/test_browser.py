"""JupyterLab and the pages in a real browser: ``make browser``, after ``make smoke``.

Chromium is driven by playwright; screenshots go to runs/browser/. Lab runs in a folder of its own,
with notebooks whose defaults are those of params/smoke.yaml.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "runs" / "browser"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
WIDTHS = {"desktop": (1400, 1000), "phone": (420, 900)}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
}
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'"
PATIENCE = 600  # seconds for one notebook on a busy machine; a free one needs 10 to 30
N_STEPS = 600  # of pretraining, some 15 s: enough to be interrupted


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(parents=True, exist_ok=True)
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)  # else the one of playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=FLAGS.split())
        yield browser
        browser.close()


def with_defaults(text: str, values: dict) -> str:
    """A cell of parameters with other defaults."""
    for name, value in values.items():
        text = re.sub(
            rf"^({name}: \w+ = ).*?(  #.*)?$", rf"\g<1>{value!r}\g<2>", text, flags=re.MULTILINE
        )
    return text


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab started as `make lab` starts it, in a small copy of the project; its address,
    token and folder of working copies."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "workflow", project / "workflow")
    (project / "notebooks").mkdir()
    for name in ("figures", "params", "src"):
        (project / name).symlink_to(ROOT / name)
    smoke = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text(encoding="utf-8"))
    smoke = {k: v for k, v in smoke.items() if not str(v).startswith("runs/")}
    smoke["n_steps"] = N_STEPS
    for path in ROOT.glob("notebooks/*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                text = with_defaults("".join(cell["source"]), smoke)
                cell["source"] = text.splitlines(keepends=True)
        (project / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    home = tmp_path_factory.mktemp("home")
    for name, content in SETTINGS.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], "browser-test"
    environment = dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(home / "lab"))
    environment |= {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "RUNTIME")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    options = ["--no-browser", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    command = [sys.executable, "workflow/lab.py", *options]
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (home / "lab.log").read_text()
                time.sleep(1)
        yield address, token, project / "runs" / "lab"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


def menu(page, name: str, entry: str) -> None:
    """Choose an entry of Lab's menu bar."""
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
    page.locator(".lm-Menu-item", has_text=re.compile(rf"^\s*{entry}")).first.click()


def open_notebook(browser, lab, name: str):
    """A page of Lab with a notebook whose kernel is ready."""
    address, token, _ = lab
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"{address}/lab/tree/runs/lab/{name}.ipynb?token={token}&reset")
    indicator = page.locator(".jp-NotebookPanel:visible .jp-Notebook-ExecutionIndicator")
    indicator.wait_for()
    page.wait_for_function(IDLE)
    return page


def saved(page, path: Path) -> list[dict]:
    """The code cells of a notebook as Lab saves them now."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(100):
        page.wait_for_timeout(100)
        if path.stat().st_mtime_ns != before:
            break
    for _ in range(50):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            return [c for c in cells if c["cell_type"] == "code"]
        except ValueError:  # Lab is writing it just now
            page.wait_for_timeout(100)
    raise AssertionError(f"{path}: not readable")


def errors(cells: list[dict]) -> list[str]:
    """Names and words of the errors among the outputs."""
    found = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    return [f"{o['ename']}: {o['evalue']}" for o in found]


def run_all(page, path: Path) -> list[dict]:
    """Run all cells, none shown as done before; returns them when the last one is done or one has
    failed."""
    menu(page, "Edit", "Clear Outputs of All Cells")
    assert not any(c["outputs"] for c in saved(page, path))
    menu(page, "Run", "Run All Cells")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        page.wait_for_timeout(2000)
        page.wait_for_function(IDLE, timeout=PATIENCE * 1000)
        cells = saved(page, path)
        if errors(cells) or all(c["execution_count"] for c in cells):
            return cells
    raise AssertionError(f"{path.name} was not done after {PATIENCE} s")


def close(page, lab) -> None:
    """Close the page and end its kernel, as open ones keep their memory."""
    address, token, _ = lab
    page.close()
    with urllib.request.urlopen(f"{address}/api/kernels?token={token}") as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        request = urllib.request.Request(
            f"{address}/api/kernels/{kernel['id']}?token={token}", method="DELETE"
        )
        urllib.request.urlopen(request).close()


def printed(cells: list[dict]) -> str:
    """All text that the cells printed."""
    outputs = [o for c in cells for o in c["outputs"] if o["output_type"] == "stream"]
    return "".join("".join(o["text"]) for o in outputs)


def test_loss_runs_and_its_slider_changes_the_picture(browser, lab):
    page = open_notebook(browser, lab, "00_the_loss")
    cells = run_all(page, lab[2] / "00_the_loss.ipynb")
    assert errors(cells) == []
    picture, handle = page.locator("img.widget-image"), page.locator(".noUi-handle")
    picture.scroll_into_view_if_needed()
    before, width = picture.get_attribute("src"), picture.bounding_box()["width"]
    seen = picture.screenshot(path=PICTURES / "slider-before.png")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => document.querySelector('img.widget-image').src != old", arg=before
    )
    page.wait_for_timeout(1000)
    assert picture.screenshot(path=PICTURES / "slider-after.png") != seen
    assert picture.bounding_box()["width"] == width
    page.screenshot(path=PICTURES / "lab-00.png")
    close(page, lab)


def test_slices_run(browser, lab):
    page = open_notebook(browser, lab, "01_preprocess")
    assert errors(run_all(page, lab[2] / "01_preprocess.ipynb")) == []
    close(page, lab)


def test_pretraining_is_interrupted_and_goes_on(browser, lab):
    path, folder = lab[2] / "02_pretrain.ipynb", lab[2] / "pretrain" / "wsp-tiny_padded-seed0"
    page = open_notebook(browser, lab, "02_pretrain")
    menu(page, "Run", "Run All Cells")
    bar = page.locator(".widget-html-content", has_text=re.compile(rf"[1-9]\d*/{N_STEPS}\b"))
    bar.wait_for()  # some steps are done, and no checkpoint was due
    menu(page, "Kernel", "Interrupt Kernel")
    page.wait_for_function(IDLE)
    cells = saved(page, path)
    assert [error.split(":")[0] for error in errors(cells)] == ["KeyboardInterrupt"]
    (done,) = re.findall(r"stopped after step (\d+); the same call goes on", printed(cells))
    assert 0 < int(done) < N_STEPS
    assert (folder / "checkpoint.pt").exists() and not (folder / "encoder.safetensors").exists()
    page.screenshot(path=PICTURES / "lab-02-interrupted.png")
    cells = run_all(page, path)
    assert errors(cells) == []
    assert f"going on at step {done} of {N_STEPS}" in printed(cells)
    assert (folder / "encoder.safetensors").exists()
    close(page, lab)


@pytest.mark.parametrize("name", ["03_linear_probe", "04_representations", "05_results"])
def test_what_follows_runs(browser, lab, name):
    page = open_notebook(browser, lab, name)
    assert errors(run_all(page, lab[2] / f"{name}.ipynb")) == []
    page.screenshot(path=PICTURES / f"lab-{name[:2]}.png")
    close(page, lab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name",
    ["report.html", "html/00_the_loss.html", "html/01_preprocess.html", "book/index.html",
     "book/notebooks/00_the_loss.html", "book/api/wspnb.losses.html"],
)  # fmt: skip
def test_page_needs_no_network_and_can_be_read_by_all(browser, name, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    path = ROOT / "runs" / "smoke" / name
    assert path.exists(), f"{path}: run `make smoke` and `make book RUN=runs/smoke` first"
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    page = browser.new_context(viewport=size, color_scheme=scheme, offline=True).new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.screenshot(path=PICTURES / f"{name.replace('/', '-')}-{width}-{scheme}.png")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert wrong == []
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0, "scrolls sideways"
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == []
    found = Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["target"]) for v in serious] == []
    page.context.close()


def test_search_of_the_site_finds_without_a_network(browser):
    page = browser.new_context(offline=True).new_page()
    page.goto((ROOT / "runs" / "smoke" / "book" / "search.html").as_uri() + "?q=contrastive_loss")
    page.locator("#search-results li").first.wait_for()
    assert page.locator("#search-results li a", has_text="contrastive_loss").count() > 0
    page.screenshot(path=PICTURES / "search.png")
    page.context.close()
