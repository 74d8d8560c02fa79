"""The quickstart in a clean Python 3.12, as in Colab: the set-up cell brings everything."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_course import LESSONS

TOOLS = ["ipykernel", "nbconvert"]  # all that is there before


def find_python(version: str) -> str:  # "" if there is none
    "An interpreter of a version: on the PATH, or one that pyenv keeps."
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}"))
    for place in [shutil.which(f"python{version}"), *kept]:
        if place and subprocess.run([place, "--version"], capture_output=True).returncode == 0:
            return str(place)
    return ""


@pytest.fixture
def environment(repository):
    """A Python 3.12 with Jupyter and without this package.

    What the package needs stays there after a run that succeeded, until `settings.ini` asks for
    something else: it is some gigabytes, and unpacking them takes minutes.
    """
    python = find_python("3.12")
    if not python and not os.environ.get("CI"):
        pytest.skip(
            "no Python 3.12 here: install one (pyenv install 3.12) to try the clean install"
        )
    assert python, "Python 3.12 must be there on CI"
    asked = (repository / "settings.ini").read_bytes() + python.encode()
    folder = repository / "build" / f"clean-{hashlib.sha256(asked).hexdigest()[:12]}"
    for other in folder.parent.glob("clean-*"):
        if other != folder or not (other / "complete").exists():
            shutil.rmtree(other)
    if not folder.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    (folder / "complete").unlink(missing_ok=True)
    pip = [folder / "bin" / "python", "-m", "pip"]
    subprocess.run([*pip, "install", "-q", *TOOLS], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", "toolcall-ft"], check=True)
    return folder


def test_the_quickstart_in_a_clean_environment(environment, wheel, tmp_path):
    "Python 3.12 and Jupyter, and nothing else: the set-up cell brings the rest, as in Colab."
    # pip's word for "compile nothing now": of the thousands of files only some are imported, and those are compiled then
    variables = {**os.environ, "TOOLCALL_FT": str(wheel), "PIP_NO_COMPILE": "0"}
    variables.pop("TOOLCALL_FT_RUNS", None)
    lesson = tmp_path / LESSONS[0].name
    shutil.copy(LESSONS[0], lesson)
    options = ["--to", "notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=1500"]
    command = [environment / "bin" / "jupyter", "nbconvert", *options, lesson.name]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (environment / "complete").touch()
