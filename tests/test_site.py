"""The site as a reader uses it, in a real Chromium: the search finds pages in both languages, and nothing scrolls sideways on a phone."""

import functools
import http.server
import sys
import threading

import nbformat
import pytest
from test_browser import CHROMIUM, HOW, browser, tab  # noqa: F401 (fixtures)

PAGES = ["glossary", "lib/generate/grammar", "deep/common_mistakes", "zh/04_constrained_generation"]


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    "Some pages of the site on a server of this machine: its address."
    sys.path.append(str(repository / "docs"))
    from make_site import write_site

    folder = tmp_path_factory.mktemp("site")
    read = lambda place: nbformat.read(repository / "nbs" / f"{place}.ipynb", as_version=4)
    write_site({place: read(place) for place in PAGES}, folder)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(page, words):
    "The titles that the search box lists."
    page.locator("#search").fill(words)
    page.wait_for_timeout(300)
    return page.locator("#found a").all_text_contents()


def test_the_search_finds_pages_in_both_languages(site, tab):  # noqa: F811
    tab.goto(f"{site}/glossary.html")
    assert "generate.grammar" in found(tab, "GBNF grammar")
    assert any("语法" in title or "约束" in title for title in found(tab, "语法"))
    assert found(tab, "no page has this wyrd") == found(tab, "") == []
    found(tab, "generate.grammar")
    tab.locator("#found a").first.click()
    assert tab.url.startswith(f"{site}/lib/generate/grammar.html")
    assert "generate.grammar" in found(tab, "GBNF grammar"), "also from a page in a folder"


@pytest.mark.parametrize("place", PAGES)
def test_a_page_fits_a_phone(site, browser, place):  # noqa: F811
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(f"{site}/{place}.html", wait_until="domcontentloaded")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()
