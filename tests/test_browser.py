"""The viewer as a person uses it, in a real headless Chromium: the HTML page, and the notebook in JupyterLab."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from test_viewer import EVIL, ROWS, TABLE

from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.viewer import (
    VIEWS,
    render_row,
    row_reasons,
    row_title,
    select_rows,
    token_table,
    visible,
    write_page,
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
HOW = "no Chromium found: `make browser` installs one (Debian: apt-get install chromium), or set CHROMIUM to the path of yours"
if not CHROMIUM and not os.environ.get("CI"):
    pytest.skip(HOW, allow_module_level=True)

tokenizer = load_tokenizer("tiny-qwen2")
SECONDS = 60_000  # milliseconds that a slow machine may need for one step
FLAGS = [(1, "rare characters"), (2, EVIL), (2, "again")]
CONTRAST = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => numbers(text).slice(0, 3).map(part => (part /= 255) <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [.2126, .7152, .0722][at], 0);
  const ground = element => { const own = getComputedStyle(element).backgroundColor; return numbers(own)[3] === 0 ? ground(element.parentElement) : own; };
  return Array.from(document.querySelectorAll(".look *, .look"), element => {
    const [one, two] = [light(getComputedStyle(element).color), light(ground(element))];
    return [(Math.max(one, two) + .05) / (Math.min(one, two) + .05), `${element.tagName} ${element.className}`];
  }).sort((one, two) => one[0] - two[0])[0];
}"""


def random_rows(count):
    "Rows of any tokens and labels, so that there are broken characters of every kind."
    dice = random.Random(7)
    opener = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for _ in range(count):
        ids = [dice.choice([dice.randrange(len(tokenizer))] * 9 + [opener]) for _ in range(80)]
        yield {
            "input_ids": ids,
            "labels": [
                dice.choice([-100, token, token, dice.randrange(len(tokenizer))]) for token in ids
            ],
        }


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, HOW
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [],
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    "A tab in which an error, a dialog, or a request that leaves the machine fails the test."
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(SECONDS)
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    tab.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(
                ("file:", "data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1")
            )
            else wrong.append(request.url)
        ),
    )
    yield tab
    context.close()
    assert not wrong


@pytest.fixture
def page(tab, tmp_path):
    write_page(tmp_path / "page.html", ROWS, tokenizer, FLAGS)
    return opened(tab, tmp_path / "page.html")


def opened(tab, path):
    tab.goto(path.as_uri())
    tab.locator("pre > *").first.wait_for()
    return tab


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def number(page):
    return int(page.locator("#number").input_value())


def inside(page):
    return page.locator("#tokens").evaluate("element => element.innerHTML")


def parsed(page, text):
    return page.evaluate(
        "text => new DOMParser().parseFromString(text, 'text/html').body.firstChild.innerHTML", text
    )


# ---- the page


def test_python_and_the_page_draw_the_same(tab, tmp_path):
    rows = [*ROWS, *random_rows(20)]
    table, reasons = token_table(rows, tokenizer), row_reasons(FLAGS, len(rows))
    write_page(tmp_path / "page.html", rows, tokenizer, FLAGS)
    page = opened(tab, tmp_path / "page.html")
    for search in ("", "龘", "<|im_end|>", "e", "<script>"):
        page.locator("#search").fill(search)
        chosen = select_rows(rows, table, reasons, search=search)
        assert page.evaluate("chosen") == chosen and chosen
        for row in chosen:
            for view in VIEWS:
                page.evaluate("([row, name]) => { view = name; show(row); }", [row, view])
                assert inside(page) == parsed(
                    page, render_row(rows[row], table, tokenizer, view, search)
                ), (row, view, search)
            assert page.locator("#title").inner_text() == parsed(
                page, row_title(row, rows[row], reasons)
            ).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").replace("\n", " ")


def test_views(page):
    for view in VIEWS:
        press(page, view)
        assert inside(page) == parsed(page, render_row(ROWS[0], TABLE, tokenizer, view))
        assert page.locator("nav [aria-pressed=true]").inner_text() == view


def test_stepping_with_buttons_keys_and_numbers(page):
    press(page, "next row")
    assert number(page) == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert number(page) == 3  # the last one
    page.keyboard.press("ArrowLeft")
    assert number(page) == 2
    page.locator("#number").fill("1")
    page.keyboard.press("Enter")
    assert "row 1 ·" in page.locator("#title").inner_text()


def test_flagged_rows(page):
    page.get_by_label("flagged rows only").check()
    assert number(page) == 1 and "⚑ rare characters" in page.locator("#title").inner_text()
    page.keyboard.press("ArrowRight")
    assert number(page) == 2 and "⚑ again" in page.locator("#title").inner_text()
    page.keyboard.press("ArrowRight")
    assert number(page) == 2 and "2 of 4 rows" in page.locator("#count").inner_text()


def test_search(page):
    page.locator("#search").fill("龘")
    assert number(page) == 1 and "1 of 4 rows" in page.locator("#count").inner_text()
    assert page.locator(".found").count() > 2  # two occurrences, each of several tokens
    press(page, "text")
    assert {visible(text) for text in page.locator(".found").all_inner_texts()} == {"龘"}
    page.locator("#search").fill("no such text")
    assert (
        "no row is left" in page.locator("#title").inner_text()
        and page.locator("pre > *").count() == 0
    )
    press(page, "labels")
    page.locator("#search").fill("")
    assert (
        "4 of 4 rows" in page.locator("#count").inner_text() and page.locator("pre > *").count() > 0
    )


def test_pointing_at_a_token(page):
    last = page.locator("pre > *").nth(len(ROWS[0]["labels"]) - 2)
    last.hover()
    hint = page.locator("#hint").inner_text()
    assert (
        hint == last.get_attribute("title")
        and "bytes 3c 7c 69 6d 5f 65 6e 64 7c 3e · assistant · trained" in hint
    )
    assert (
        f"id {ROWS[0]['input_ids'][-2]} · " in hint
        and f"position {len(ROWS[0]['labels']) - 2} " in hint
    )


def test_everything_by_keyboard(page):
    reached = []
    for _ in range(8):  # the tab key reaches every control, in the order of the page
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert reached == ["previous", "number", "next", *VIEWS, "search", "flagged"]
    page.keyboard.press("Space")
    assert number(page) == 1 and page.locator("#flagged").is_checked()
    for key, place in (
        ("Shift+ArrowRight", 0),
        ("Shift+ArrowRight", 1),
        ("Shift+ArrowRight", 2),
        ("Shift+ArrowLeft", 1),
    ):
        page.keyboard.press(key)
        here = page.locator("#tokens .here")
        assert (
            here.count() == 1
            and here.get_attribute("title") == page.locator("#hint").inner_text()
            and f"position {place} ·" in page.locator("#hint").inner_text()
        )
    page.keyboard.press("ArrowRight")
    assert number(page) == 2 and page.locator(".here").count() == 0


@pytest.mark.parametrize("width", [320, 390])
def test_a_narrow_screen(page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 700})
    for view in VIEWS:
        press(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            "nothing stands beyond the edge"
        )
        assert page.locator("nav").evaluate("element => element.offsetHeight") < 200
        page.screenshot(path=str(tmp_path / f"narrow-{width}-{view}.png"))


def test_hostile_text_is_shown_not_run(page):
    page.locator("#number").fill("2")
    page.keyboard.press("Enter")
    for view in VIEWS:
        press(page, view)
        assert page.locator("#tokens script, #tokens img, #title img").count() == 0
    press(page, "text")
    assert (
        "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>"
        in page.locator("#tokens").inner_text()
    )
    assert page.locator("script:not([type])").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(page, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme)
    seen = set()
    for row in ("2", "3"):
        page.locator("#number").fill(row)
        page.keyboard.press("Enter")
        for view in VIEWS:
            press(page, view)
            ratio, where = page.evaluate(CONTRAST)
            assert ratio >= 4.5, (where, ratio)  # WCAG 2, level AA
            seen.add(
                page.evaluate("getComputedStyle(document.querySelector('.look')).backgroundColor")
            )
            page.screenshot(path=str(tmp_path / f"page-{scheme}-{row}-{view}.png"))
    assert len(seen) == 1 and (min(map(int, seen.pop()[4:-1].split(","))) > 128) == (
        scheme == "light"
    )
    lines = page.locator(".trained, .other").evaluate_all(
        "found => found.map(element => getComputedStyle(element).borderBottomWidth)"
    )
    assert lines and set(lines) == {"3px"}  # colour is not the only sign


# ---- JupyterLab


@pytest.fixture
def lab(repository, tmp_path):
    "JupyterLab on the loopback interface with a home of its own; ended by its process id."
    for name in ("nbs/deep/viewer.ipynb", "examples/logs.jsonl", "examples/tools.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    settings = {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell is in the page, also those off the screen
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }
    for name, text in settings.items():
        file = tmp_path / f"home/config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        f"JUPYTER_{kind}_DIR": str(tmp_path / "home" / kind.lower())
        for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    environment = {
        **os.environ,
        **folders,
        "HOME": str(tmp_path / "home"),
        "IPYTHONDIR": str(tmp_path / "home/ipython"),
        "JUPYTER_TOKEN": "secret",
        "PYTHONPATH": str(repository),
        "HF_HOME": str(tmp_path / "home/hub"),
    }
    options = [
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_root=True",
        f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield answering(f"http://127.0.0.1:{port}", server, tmp_path / "lab.log")
        finally:
            server.terminate()
            server.wait(30)


def answering(address, server, log):
    "The address, once the server answers there."
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
        except OSError:
            time.sleep(0.1)
        else:
            return address
    raise AssertionError(log.read_text())


def wait_for_kernel(address):
    "Until the notebook's kernel has started, is connected to the page, and waits for work."
    for _ in range(600):
        kernels = json.load(
            urllib.request.urlopen(f"{address}/api/kernels?token=secret", timeout=5)
        )
        if kernels and kernels[0]["connections"] and kernels[0]["execution_state"] == "idle":
            return
        time.sleep(0.1)
    raise AssertionError("no kernel")


def test_the_widget_in_jupyterlab(lab, tab, tmp_path):
    tab.goto(f"{lab}/lab/tree/nbs/deep/viewer.ipynb?token=secret")
    tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
    wait_for_kernel(lab)
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.locator("[data-command='runmenu:run-all']").click()
    widget = tab.locator(".jupyter-widgets.widget-vbox").last
    title = widget.locator(".look .flag")
    title.wait_for()
    before = title.inner_text()
    widget.get_by_role("button", name="◀").click()
    tab.wait_for_function(
        "([element, before]) => element.querySelector('.look .flag').innerText !== before",
        arg=[widget.element_handle(), before],
    )
    for view in ("labels", "text", "tokens"):
        widget.get_by_role("button", name=view, exact=True).click()
        widget.locator(f".look pre.{view}").wait_for()
    assert "bytes " in widget.locator("pre > *").first.get_attribute("title")
    widget.locator("select").select_option(label="all rows")
    widget.get_by_placeholder("only rows that contain").fill("量血压")
    tab.keyboard.press("Enter")
    widget.locator("pre .found").first.wait_for()
    grounds = {}
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        tab.get_by_role("menuitem", name="Settings", exact=True).click()
        tab.locator("[data-type=submenu]", has_text="Theme").first.click()
        tab.locator(f".lm-Menu-itemLabel:text-is('{theme}')").click()
        tab.locator(f"body[data-jp-theme-name='{theme}']").wait_for(state="attached")
        tab.locator("#jupyterlab-splash").wait_for(state="detached")
        widget.scroll_into_view_if_needed()
        tab.screenshot(path=str(tmp_path / f"{theme}.png"))
        grounds[theme] = widget.locator(".look").evaluate(
            "element => getComputedStyle(element).backgroundColor"
        )
        ratio, where = tab.evaluate(CONTRAST)
        assert ratio >= 4.5, (theme, where, ratio)
    assert grounds == {
        "JupyterLab Dark": "rgb(27, 27, 31)",
        "JupyterLab Light": "rgb(255, 255, 255)",
    }
