"""The quickstart in a clean Python 3.12, as in Colab: the set-up cell brings everything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_course import LESSONS


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
    # pip's word for "compile nothing now": of the thousands of files only some are imported
    environment = {**os.environ, "TOOLCALL_FT": str(wheel), "PIP_NO_COMPILE": "0"}
    environment.pop("TOOLCALL_FT_RUNS", None)
    tools = ["ipykernel", "nbconvert"]
    install = [bin / "python", "-m", "pip", "install", "-q", *tools]
    subprocess.run(install, env=environment, check=True)
    lesson = tmp_path / "alone" / LESSONS[0].name
    lesson.parent.mkdir()
    shutil.copy(LESSONS[0], lesson)
    options = ["--to", "notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=1500"]
    command = [bin / "jupyter", "nbconvert", *options, lesson.name]
    done = subprocess.run(
        command, cwd=lesson.parent, env=environment, capture_output=True, text=True
    )
    shutil.rmtree(tmp_path / "env")  # some gigabytes
    assert done.returncode == 0, done.stderr[-3000:]
