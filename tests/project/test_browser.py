"""JupyterLab and the pages in a real browser: ``make browser``, after ``make smoke``.

Chromium is driven by playwright; screenshots go to runs/browser/. ``make lab`` runs in a folder of
its own, with notebooks whose defaults are those of params/smoke.yaml; each reads what those before
it wrote.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "runs" / "browser"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage"
WIDTHS = {"desktop": (1400, 1000), "phone": (420, 900)}
# A colour scheme changes colours alone: all rules of axe-core in light, those of colour in dark.
RULES = {"light": {}, "dark": {"runOnly": ["color-contrast", "link-in-text-block"]}}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
}
# Pages of `make book RUN=runs/smoke`, where it was called.
SITE = ["book/index", "book/notebooks/00_the_loss", "book/api/wspnb.losses"]
SITE = SITE if (ROOT / "runs" / "smoke" / "book").exists() else []
# A cell that waits or runs has a star where its number will be.
RUNNING = "[...document.querySelectorAll('.jp-InputPrompt')].some(p => p.innerText.includes('*'))"
PATIENCE = 240  # seconds for one thing on a busy machine; a free one needs 30 at most
N_STEPS = 200  # of pretraining, 5 to 30 s: enough to be interrupted
FEWER = {"n_steps": N_STEPS, "log_every": 20, "workers": 1, "scale": 0.005, "population": 0.01}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
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
def lab(browser, tmp_path_factory):
    """JupyterLab as ``make lab`` starts it, in a small copy of the project: a function that opens a
    notebook and gives its page and its file."""
    project, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "workflow", project / "workflow")
    (project / "notebooks").mkdir()
    for name in ("figures", "params", "src", "Makefile", "pyproject.toml", "requirements.lock"):
        (project / name).symlink_to(ROOT / name)
    (project / ".venv").symlink_to(ROOT / ".venv")
    smoke = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text(encoding="utf-8"))
    smoke = {k: v for k, v in smoke.items() if not str(v).startswith("runs/")}
    smoke |= FEWER
    for path in ROOT.glob("notebooks/*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                text = with_defaults("".join(cell["source"]), smoke)
                cell["source"] = text.splitlines(keepends=True)
        (project / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    for name, content in SETTINGS.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], "browser-test"
    environment = dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(home / "lab"))
    environment |= {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "RUNTIME")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    # One thread: two wait for each other where something else computes.
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    options = f"--no-browser --ServerApp.port={port} --IdentityProvider.token={token}"
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            ["make", "lab", f"LAB={options}"],
            cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(PATIENCE * 1000)
    context.new_page()  # stays open: without any page the browser may end

    def ask(what: str, method: str = "GET"):
        request = urllib.request.Request(f"{address}/api/{what}?token={token}", method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    @contextlib.contextmanager
    def opened(name: str):
        page = context.new_page()
        try:
            page.goto(f"{address}/lab/tree/runs/lab/{name}.ipynb?token={token}&reset")
            page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()  # kernel and notebook
            yield page, project / "runs" / "lab" / f"{name}.ipynb"
        finally:
            page.screenshot(path=PICTURES / f"lab-{name[:2]}.png")
            page.close()
            for kernel in ask("kernels"):  # an open one keeps its memory
                ask(f"kernels/{kernel['id']}", "DELETE")

    try:
        for _ in range(PATIENCE):
            with contextlib.suppress(OSError):
                ask("status")
                break
            assert server.poll() is None, (home / "lab.log").read_text()
            time.sleep(1)
        yield opened
    finally:
        context.close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


def menu(page, name: str, entry: str) -> None:
    """Choose an entry of Lab's menu bar."""
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
    page.locator(".lm-Menu-item", has_text=re.compile(rf"^\s*{entry}")).first.click()


def saved(page, path: Path) -> list[dict]:
    """The code cells of a notebook as Lab saves them now."""
    before, end = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    menu(page, "File", "Save Notebook")
    while time.monotonic() < end:
        page.wait_for_timeout(100)
        with contextlib.suppress(ValueError):  # Lab is writing it just now
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            if path.stat().st_mtime_ns != before:
                return [c for c in cells if c["cell_type"] == "code"]
    raise TimeoutError(f"{path}: not saved in {PATIENCE} s")


def errors(cells: list[dict]) -> list[str]:
    """Names and words of the errors among the outputs."""
    found = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    return [f"{o['ename']}: {o['evalue']}" for o in found]


def run_all(page, path: Path) -> list[dict]:
    """Run all cells; returns them when each is done and none has failed."""
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(RUNNING)
    page.wait_for_function(f"!{RUNNING}")
    cells = saved(page, path)
    assert errors(cells) == []
    assert printed(cells, "stderr") == "", "a red box"
    assert all(c["execution_count"] for c in cells)
    return cells


def printed(cells: list[dict], stream: str = "stdout") -> str:
    """All text that the cells printed."""
    outputs = [o for c in cells for o in c["outputs"] if o.get("name") == stream]
    return "".join("".join(o["text"]) for o in outputs)


def test_loss_runs_and_its_slider_changes_the_picture(lab):
    with lab("00_the_loss") as (page, path):
        run_all(page, path)
        picture, readout = page.locator("img.widget-image"), page.locator(".widget-readout")
        picture.scroll_into_view_if_needed()
        assert float(readout.inner_text()) == 0.1  # the paper's sigma
        width = picture.bounding_box()["width"]
        seen = [picture.screenshot(path=PICTURES / "slider-0.1.png")]
        for key, sigma in {"ArrowRight": 0.178, "End": 10, "Home": 0.001}.items():
            before = picture.get_attribute("src")
            page.locator(".noUi-handle").press(key)
            page.wait_for_function(
                "old => document.querySelector('img.widget-image').src != old", arg=before
            )
            assert float(readout.inner_text()) == pytest.approx(sigma, rel=0.01)
            page.evaluate("document.querySelector('img.widget-image').decode()")
            seen.append(picture.screenshot(path=PICTURES / f"slider-{sigma}.png"))
            assert picture.bounding_box()["width"] == width
        assert len(set(seen)) == 4  # four pictures


def test_slices_run(lab):
    with lab("01_preprocess") as (page, path):
        run_all(page, path)


def test_pretraining_is_interrupted_and_goes_on(lab):
    with lab("02_pretrain") as (page, path):
        folder = path.parent / "pretrain" / "wsp-tiny_padded-seed0"
        menu(page, "Run", "Run All Cells")
        bar = page.locator(".widget-html-content", has_text=re.compile(rf"[1-9]\d*/{N_STEPS}\b"))
        bar.wait_for()  # some steps are done, and no checkpoint was due
        menu(page, "Kernel", "Interrupt Kernel")
        page.wait_for_function(f"!{RUNNING}")
        cells = saved(page, path)
        assert [error.split(":")[0] for error in errors(cells)] == ["KeyboardInterrupt"]
        (done,) = re.findall(r"stopped after step (\d+); the same call goes on", printed(cells))
        assert 0 < int(done) < N_STEPS
        assert (folder / "checkpoint.pt").exists()
        assert not (folder / "encoder.safetensors").exists()
        page.screenshot(path=PICTURES / "lab-02-interrupted.png")
        cells = run_all(page, path)
        assert f"going on at step {done} of {N_STEPS}" in printed(cells)
        assert (folder / "encoder.safetensors").exists()


@pytest.mark.parametrize("name", ["03_linear_probe", "04_representations", "05_results"])
def test_what_follows_runs(lab, name):
    with lab(name) as (page, path):
        run_all(page, path)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "html/00_the_loss", "html/01_preprocess", *SITE])
def test_page_needs_no_network_and_can_be_read_by_all(browser, name, width):
    from axe_playwright_python.sync_playwright import Axe

    path = ROOT / "runs" / "smoke" / f"{name}.html"
    assert path.exists(), f"{path}: run `make smoke` first"
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    page = browser.new_context(viewport=size, offline=True).new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    for scheme, rules in RULES.items():
        page.emulate_media(color_scheme=scheme)
        picture = f"{name.replace('/', '-')}-{width}-{scheme}.png"
        page.screenshot(path=PICTURES / picture, full_page=scheme == "light")
        found = Axe().run(page, options={"resultTypes": ["violations"], **rules}).response
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], v["nodes"][0]["target"]) for v in serious] == [], scheme
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert wrong == []
    assert page.title().startswith(page.locator("h1").first.inner_text().rstrip("#¶"))
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0, "scrolls sideways"
    broken = "[...document.images].filter(i => !i.naturalWidth || i.alt.length < 30).length"
    assert page.evaluate(broken) == 0, "a picture is missing, or does not say what it shows"
    if name == "report":  # the result and one picture come first, then tables without holes
        order = "[...document.querySelectorAll('h1, .result, img, table')].map(e => e.localName)"
        assert page.evaluate(order)[:4] == ["h1", "p", "img", "table"]
        assert "nan" not in " ".join(page.locator("td").all_inner_texts()).lower().split()
    page.context.close()


@pytest.mark.skipif(not SITE, reason="a site is there after `make book RUN=runs/smoke`")
def test_search_of_the_site_finds_without_a_network(browser):
    page = browser.new_context(offline=True).new_page()
    page.goto((ROOT / "runs" / "smoke" / "book" / "search.html").as_uri() + "?q=contrastive_loss")
    page.locator("#search-results li a", has_text="contrastive_loss").first.wait_for()
    page.screenshot(path=PICTURES / "search.png")
    page.context.close()
