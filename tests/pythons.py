"""The package and its light tests on every Python that is here, of 3.11, 3.12 and 3.13: a light install in a fresh environment each.

python tests/pythons.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from test_clean import find_python

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ["test_tools.py", "test_formats.py", "test_files.py"]


def try_python(python: str, folder: Path) -> int:  # pytest's exit code
    "Install the package lightly into a new environment and run the tests that need no torch."
    subprocess.run([python, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q"]
    subprocess.run([*install, ROOT, "pytest", "hypothesis"], check=True)
    tests = [ROOT / "tests" / name for name in LIGHT]
    command = [folder / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=folder).returncode


def main() -> int:
    found = {version: find_python(version) for version in ("3.11", "3.12", "3.13")}
    codes = {}
    for version, python in found.items():
        if not python:
            print(f"Python {version} is not here: not tried")
            continue
        with tempfile.TemporaryDirectory() as folder:
            codes[version] = try_python(python, Path(folder, "env"))
    for version, code in codes.items():
        print(f"Python {version}: {'passed' if code == 0 else f'FAILED ({code})'}")
    return max(codes.values(), default=1)


if __name__ == "__main__":
    sys.exit(main())
