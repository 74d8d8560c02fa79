"""The course: what each lesson must be, and that its Chinese edition is the same lesson."""

import json
import re
from pathlib import Path
from statistics import median

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
LESSONS = sorted(NBS.glob("[01][0-9]_*.ipynb"))
CHINESE = NBS / "zh"
IDS = [path.stem for path in LESSONS]
MODULE_LINE = "# the source of a module: the English lesson"
NOT_DIRECTIVES = ("#| default_exp", "#| export")


def cells(path: Path, kind: str) -> list:  # of sources
    "The texts of all cells of a kind."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def set_up_cell(path: Path) -> str:
    return next(code for code in cells(path, "code") if "set_up()" in code)


def example_cells(path: Path) -> list:
    "Code cells that are neither exported nor the set-up."
    set_up = set_up_cell(path)
    return [
        code
        for code in cells(path, "code")
        if not code.startswith(NOT_DIRECTIVES) and code != set_up
    ]


def code_lines(code: str) -> int:
    "Lines of a cell that are not empty."
    return sum(bool(line.strip()) for line in code.splitlines())


def words(text: str) -> int:
    "Words of a text cell that are read: addresses of links and badges are not."
    return len(re.sub(r"\]\([^)]*\)|https?://\S+|[|#>*`_\[\]!]", " ", text).split())


def test_twelve_lessons_in_their_order():
    assert [name[:2] for name in IDS] == [f"{number:02d}" for number in range(12)]


def test_the_set_up_cell_is_the_same_in_all():
    assert len({set_up_cell(path) for path in LESSONS}) == 1


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_a_lesson_keeps_to_its_limits(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    texts, code = cells(path, "markdown"), example_cells(path)
    assert len(notebook["cells"]) <= 35
    assert max(map(words, texts)) <= 120
    assert max(map(code_lines, code)) <= 15
    assert max(len(line) for one in code for line in one.splitlines()) <= 100
    assert "course_picture(" in "".join(code), "a picture of the mechanism"
    for place in ("colab.research.google.com", "kaggle.com/kernels", "AutoDL"):
        assert place in texts[0], place
    assert f"{path.name}" in texts[0], "the badges open this lesson"
    asserting = [one for one in code if "assert" in one]
    assert len(asserting) >= 0.5 * len(code), "results are asserted"


def test_texts_are_short():
    counts = [words(text) for path in LESSONS for text in cells(path, "markdown")]
    assert median(counts) <= 40


def test_the_course_is_more_example_than_source():
    exported = example = 0
    for path in LESSONS:
        source = [one for one in cells(path, "code") if one.startswith("#| export")]
        exported += sum(len(one.splitlines()) for one in source)
        example += sum(len(one.splitlines()) for one in example_cells(path))
    assert exported <= 0.7 * example, f"{exported} exported lines, {example} example lines"


def chinese_pairs() -> list:
    return [pytest.param(path, CHINESE / path.name, id=path.stem) for path in LESSONS]


def code_and_outputs(path: Path) -> list:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [
        (cell["source"], cell["outputs"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "default_exp" not in "".join(cell["source"])
    ]


@pytest.mark.parametrize("english, chinese", chinese_pairs())
def test_the_chinese_edition_is_the_same_lesson(english, chinese):
    assert chinese.exists(), "no lesson is missing"
    "All code and all outputs, but for the directive that makes a notebook the source of a module: one has it."
    same = code_and_outputs(english)
    assert same == [each for each in code_and_outputs(chinese) if each[0] != [MODULE_LINE]]
    assert len(cells(english, "markdown")) == len(cells(chinese, "markdown"))
    text = "\n".join(cells(chinese, "markdown"))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 300
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (CHINESE / link).exists(), f"{chinese.name}: {link}"
    body = "\n".join(cells(chinese, "markdown")[1:])
    to_english = re.findall(r"\]\(\.\./([01][0-9]_\w+\.ipynb)\)", body)
    assert not to_english, "links lead to the Chinese edition"
