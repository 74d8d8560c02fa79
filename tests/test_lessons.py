"""Each lesson runs alone in an empty folder against the wheel."""

import nbformat
import pytest
from nbclient import NotebookClient
from test_course import IDS, LESSONS


# 00 runs in tests/test_clean.py
@pytest.mark.parametrize("path", LESSONS[1:], ids=IDS[1:])
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
    NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=folder).execute()
    assert str(installed) in check.outputs[0]["data"]["text/plain"]
