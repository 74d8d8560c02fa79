"""The site: every notebook as a page, and a page a folder of the library with all its public names. Executes nothing.

python docs/make_site.py [OUTPUT]          # _docs, if no other folder is named
"""

import importlib
import re
import shutil
import sys
from os.path import relpath
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbdev.showdoc import BasicMarkdownRenderer
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = "base tools data template config train generate evaluate export serve parity tiny cli.main".split()
STYLE = """<style>
nav.site { font: 15px/1.6 system-ui, sans-serif; margin: 1em auto; max-width: 60em; padding: 0 1em; }
nav.site summary { cursor: pointer; font-weight: 600; }
nav.site a { margin-right: 1em; white-space: nowrap; }
</style>"""


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
    "Links to all pages, a group a shelf."
    groups = {"course": [], "deep": [], "lib": [], "api": []}
    for place in places:
        shelf = place.partition("/")[0] if "/" in place else "course"
        link = relpath(f"{place}.html", Path(here).parent)
        name = place.removeprefix(f"{shelf}/")
        groups[shelf].append(f'<a href="{link}">{name}</a>')
    titles = {
        "course": "Course",
        "deep": "Optional reading",
        "lib": "Sources of the library",
        "api": "Reference",
    }
    open_ones = {"course", here.partition("/")[0]}
    blocks = [
        f"<details{' open' if shelf in open_ones else ''}><summary>{titles[shelf]}</summary>{' '.join(links)}</details>"
        for shelf, links in groups.items()
    ]
    return f'{STYLE}<nav class="site">{"".join(blocks)}</nav>'


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
    html = re.sub(r'(href="(?!https?:)[^"#]*)\.ipynb', r"\1.html", html)
    body = re.search(r"<body[^>]*>", html)
    return html[: body.end()] + navigation(places, here) + html[body.end() :]


def main() -> int:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs")
    shutil.rmtree(output, ignore_errors=True)
    notebooks = site_notebooks()
    for place, notebook in notebooks.items():
        path = output / f"{place}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(notebook, list(notebooks), place), encoding="utf-8")
    print(f"{len(notebooks)} pages in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
