"""Bring the Chinese edition up to date: code and outputs from the English lessons, texts from the Chinese ones.

    python docs/sync_chinese.py [TEXTS]

Without TEXTS the text cells of each nbs/zh/NN_*.ipynb are kept. TEXTS is a folder of NN_*.md files, in which a line
`=== md` begins each text cell; those lessons get their texts from there. A lesson with another number of text cells is refused.
The Chinese edition has no `#| default_exp`: a module has one source.
"""

import json
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"


def text_cells(notebook: dict) -> list:  # of sources
    "The text cells of a notebook."
    return [
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    ]


def chinese_texts(name: str, folder: Path | None) -> list:  # of sources, empty if there are none
    "The Chinese text cells of a lesson: from a file of texts, or from the lesson as it is."
    file = folder / f"{name}.md" if folder else None
    if file and file.exists():
        parts = f"\n{file.read_text(encoding='utf-8')}".split("\n=== md\n")
        return [part.strip("\n") for part in parts[1:]]
    old = NBS / "zh" / f"{name}.ipynb"
    return text_cells(json.loads(old.read_text(encoding="utf-8"))) if old.exists() else []


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    wrong = 0
    for path in sorted(NBS.glob("[01][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        texts, count = chinese_texts(path.stem, folder), len(text_cells(notebook))
        if len(texts) != count:
            print(f"{path.stem}: {len(texts)} Chinese text cells for {count} English ones")
            wrong += 1
            continue
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = texts.pop(0).splitlines(keepends=True)
            elif "".join(cell["source"]).startswith("#| default_exp"):
                cell["source"] = ["# the source of a module: the English lesson"]
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        (NBS / "zh").mkdir(exist_ok=True)
        (NBS / "zh" / path.name).write_text(text, encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
