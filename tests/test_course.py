"""The course: what each lesson must be, that it runs alone against the wheel, and that its Chinese edition is the same lesson."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import pytest
from nbclient import NotebookClient

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


@pytest.fixture(scope="session")
def wheel(repository, tmp_path_factory) -> Path:
    "The wheel of this tree, built in a copy."
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("toolcall_ft", "settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        place = repository / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    "A folder with the package as the wheel installs it."
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel]
    subprocess.run(list(map(str, command)), check=True)
    return folder


@pytest.mark.parametrize(
    "path", LESSONS[1:], ids=IDS[1:]
)  # 00 runs in the clean environment, below
def test_a_lesson_runs_alone_against_the_wheel(path, installed, repository, tmp_path, monkeypatch):
    "In an empty folder, with nothing of the repository beside it."
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.delenv("TOOLCALL_FT_RUNS", raising=False)
    vllm = repository / ".venv-vllm" / "bin" / "python"
    if vllm.exists():
        monkeypatch.setenv("TOOLCALL_FT_VLLM", str(vllm))
    notebook = nbformat.read(path, as_version=4)
    check = nbformat.v4.new_code_cell("import toolcall_ft\ntoolcall_ft.__file__")
    notebook.cells.append(check)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()
    assert str(installed) in check.outputs[0]["data"]["text/plain"]


def find_python(version: str) -> str:  # "" if there is none
    "An interpreter of a version: on the PATH, or one that pyenv keeps."
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}"))
    for place in [shutil.which(f"python{version}"), *kept]:
        if place and subprocess.run([place, "--version"], capture_output=True).returncode == 0:
            return str(place)
    return ""


def test_the_quickstart_in_a_clean_environment(wheel, tmp_path):
    "Python 3.12 and Jupyter, and nothing else: the set-up cell brings the rest, as in Colab."
    python = find_python("3.12")
    if not python and not os.environ.get("CI"):
        pytest.skip(
            "no Python 3.12 here: install one (pyenv install 3.12) to try the clean install"
        )
    assert python, "Python 3.12 must be there on CI"
    subprocess.run([python, "-m", "venv", tmp_path / "env"], check=True)
    bin = tmp_path / "env" / "bin"
    tools = ["ipykernel", "nbconvert"]
    subprocess.run([bin / "python", "-m", "pip", "install", "-q", *tools], check=True)
    lesson = tmp_path / "alone" / LESSONS[0].name
    lesson.parent.mkdir()
    shutil.copy(LESSONS[0], lesson)
    environment = {**os.environ, "TOOLCALL_FT": str(wheel)}
    environment.pop("TOOLCALL_FT_RUNS", None)
    options = ["--to", "notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=1500"]
    command = [bin / "jupyter", "nbconvert", *options, lesson.name]
    done = subprocess.run(
        command, cwd=lesson.parent, env=environment, capture_output=True, text=True
    )
    shutil.rmtree(tmp_path / "env")  # some gigabytes
    assert done.returncode == 0, done.stderr[-3000:]


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
