"""Lessons with another model than the embedded one, to their end: what they print, and which of their checks it does not meet.

    python benchmarks/course.py smollm2 03 05       # any lessons by number; each goes on with the run of those before it

A check that fails is reported and does not stop the lesson. Writes benchmarks/results/course_MODEL.json.
"""

import json
import os
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from toolcall_ft.base.files import read_json, write_text
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]


def with_model(path: Path, model: str) -> nbformat.NotebookNode:
    "A lesson with another name in its line `MODEL = …`."
    text = path.read_text(encoding="utf-8")
    line = 'MODEL = \\"tiny-qwen2\\"'
    if text.count(line) != 1:
        raise SystemExit(f"{path.name} has no line that names its model")
    return nbformat.reads(text.replace(line, f'MODEL = \\"{model}\\"'), as_version=4)


def shown(output: dict) -> str:
    "What a reader sees of an output as text; empty for a picture."
    if output["output_type"] == "error":
        return ""
    data = output.get("data", {})
    return output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""


def run_lesson(path: Path, model: str) -> dict:  # {"date", "machine", "seconds", "shown", "checks that fail"}
    "Execute a lesson; what its cells show, and the checks that fail."
    lesson, start = with_model(path, model), time.perf_counter()
    NotebookClient(lesson, timeout=None, allow_errors=True).execute()
    found = {"date": str(date.today()), "machine": machine_name()}
    found |= {"seconds": round(time.perf_counter() - start), "shown": {}, "checks that fail": {}}
    for place, cell in enumerate(lesson.cells):
        outputs = cell.get("outputs", [])
        text = "".join(map(shown, outputs))
        if text:
            found["shown"][str(place)] = text
        for output in outputs:
            if output["output_type"] == "error":
                said = f"{output['ename']}: {output['evalue']}"
                found["checks that fail"][str(place)] = said.splitlines()[0]
    return found


def main() -> None:
    model, *numbers = sys.argv[1:]
    results = ROOT / "benchmarks/results" / f"course_{model}.json"
    os.environ.setdefault("TOOLCALL_FT_RUNS", str(ROOT / "runs"))
    for number in numbers:
        (path,) = (ROOT / "nbs").glob(f"{number}_*.ipynb")
        found = run_lesson(path, model)
        facts = read_json(results) if results.exists() else {"model": model, "lessons": {}}
        facts["lessons"][path.stem] = found
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        write_text(results, text.replace(f"{ROOT}/", ""))
        print(f"{path.stem}: {found['seconds']} s; fails: {found['checks that fail']}", flush=True)
        print(*found["shown"].values(), sep="\n")


if __name__ == "__main__":
    main()
