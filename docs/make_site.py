"""The site: every notebook as a page, and a page a folder of the library with all its public names. Executes nothing.

python docs/make_site.py [OUTPUT]          # _docs, if no other folder is named
"""

import importlib
import json
import re
import shutil
import sys
from os.path import relpath
from pathlib import Path

import nbformat
from jupyter_core.paths import jupyter_path
from nbconvert import HTMLExporter
from nbdev.showdoc import BasicMarkdownRenderer
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from toolcall_ft.base.errors import REPOSITORY

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = "base tools data template config train generate evaluate export serve parity tiny cli.main".split()
ASSETS = ROOT / "docs" / "assets"
# MathJax, RequireJS, Mermaid: our pages use none of them, and nothing is loaded from elsewhere
FOREIGN_SCRIPT = re.compile(r'<script[^>]*\bsrc="https?:[^>]*>\s*</script>')
TITLES = {
    "course": "Course",
    "zh": "课程（中文）",
    "deep": "Optional reading",
    "lib": "Sources of the library",
    "api": "Reference",
}


def api_notebook(folder: str) -> nbformat.NotebookNode:
    "The reference of a folder: signature, comments of the arguments and docstring of each public name."
    package = importlib.import_module(f"toolcall_ft.{folder}")
    cells = [new_markdown_cell(f"# toolcall_ft.{folder}\n\n> {(package.__doc__ or '').strip()}")]
    for name in sorted(package.__all__):
        found = getattr(package, name)
        if callable(found):
            text = BasicMarkdownRenderer(found)._repr_markdown_()
        else:
            text = f"---\n\n### {name}\n\n```python\n{found!r}\n```"
        cells.append(new_markdown_cell(text))
    return new_notebook(cells=cells)


def site_notebooks() -> dict:  # path of the page without its ending -> notebook
    "All pages: the index, the shelves, the reference."
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            place = path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
            found[place] = nbformat.read(path, as_version=4)
    return found | {f"api/{folder}": api_notebook(folder) for folder in FOLDERS}


def navigation(places: list, here: str) -> str:
    "The search box, and links to all pages, a group a shelf."
    groups = {shelf: [] for shelf in TITLES}
    for place in places:
        shelf = place.partition("/")[0] if "/" in place else "course"
        link = relpath(f"{place}.html", Path(here).parent)
        name = place.removeprefix(f"{shelf}/")
        groups[shelf].append(f'<a href="{link}">{name}</a>')
    open_one = here.partition("/")[0] if "/" in here else "course"
    blocks = [
        f"<details{' open' if shelf == open_one else ''}><summary>{TITLES[shelf]}</summary>{' '.join(links)}</details>"
        for shelf, links in groups.items()
    ]
    root = relpath(".", Path(here).parent)
    box = f'<input id="search" type="search" placeholder="Search · 搜索" data-root="{root}"><ul id="found"></ul>'
    return f'<nav class="site">{box}{"".join(blocks)}</nav>'


def dark_theme() -> str:
    "The colours of nbconvert's own dark theme, for readers whose system is dark."
    places = [Path(folder) / "nbconvert/templates/lab/static" for folder in jupyter_path()]
    text = next(place / "theme-dark.css" for place in places if place.exists()).read_text()
    return f"@media (prefers-color-scheme: dark) {{\n{text}\n}}\n"


def search_entry(place: str, notebook) -> dict:
    "What the search looks at: the title, and the words of all text cells."
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", "\n".join(texts))
    title = re.search(r"^# (.+)", text, re.MULTILINE)
    return {"page": f"{place}.html", "title": title[1] if title else place, "text": text}


def broken_links(output: Path) -> list:  # of texts
    "Links between pages that lead nowhere."
    found = []
    for path in sorted(output.rglob("*.html")):
        for link in re.findall(r'href="([^"#:?]+)(?:#[^"]*)?"', path.read_text(encoding="utf-8")):
            target = (path.parent / link).resolve()
            if not target.is_relative_to(output.resolve()) or not target.exists():
                found.append(f"{path.relative_to(output)}: {link}")
    return found


def mark_hidden(notebook) -> None:
    "What nbdev is told is not for the reader: cells that name the module, and the code of figures."
    for cell in notebook.cells:
        if cell.source.startswith("#| default_exp"):
            cell.metadata.tags = ["no-cell"]
        elif cell.source.startswith("#| echo: false"):
            cell.metadata.tags = ["no-code"]


def page(notebook, places: list, here: str) -> str:
    "One page of HTML; links between notebooks lead from page to page."
    mark_hidden(notebook)
    hidden = {"enabled": True, "remove_cell_tags": {"no-cell"}, "remove_input_tags": {"no-code"}}
    exporter = HTMLExporter(template_name="lab", config=Config(TagRemovePreprocessor=hidden))
    html, _ = exporter.from_notebook_node(notebook)
    html = FOREIGN_SCRIPT.sub("", html)
    html = re.sub(r'(href="(?!https?:)[^"#]*)\.ipynb', r"\1.html", html)
    html = re.sub(r'href="(?:\.\./)+([\w./-]+\.md)"', rf'href="{REPOSITORY}/blob/main/\1"', html)
    root = relpath(".", Path(here).parent)
    head = f'<link rel="stylesheet" href="{root}/site.css"><script defer src="{root}/search.js"></script></head>'
    html = html.replace("</head>", head, 1)
    body = re.search(r"<body[^>]*>", html)
    return html[: body.end()] + navigation(places, here) + html[body.end() :]


def write_site(
    notebooks: dict,  # from `site_notebooks`
    output: Path,  # an empty folder, or none yet
) -> None:
    "All pages, and beside them what the search and the colours need."
    for place, notebook in notebooks.items():
        path = output / f"{place}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(notebook, list(notebooks), place), encoding="utf-8")
    shutil.copy(ASSETS / "search.js", output)
    style = dark_theme() + (ASSETS / "site.css").read_text(encoding="utf-8")
    (output / "site.css").write_text(style, encoding="utf-8")
    entries = [search_entry(place, notebook) for place, notebook in notebooks.items()]
    text = json.dumps(entries, ensure_ascii=False)
    (output / "search.json").write_text(text, encoding="utf-8")


def main() -> int:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs")
    shutil.rmtree(output, ignore_errors=True)
    notebooks = site_notebooks()
    write_site(notebooks, output)
    broken = broken_links(output)
    print(*broken, f"{len(notebooks)} pages in {output}, {len(broken)} broken links", sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
