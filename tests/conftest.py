"""The package as a user gets it: a wheel, and a folder into which it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


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
