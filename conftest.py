"""What all tests share: nothing is fetched, nothing is reported, and every test has a folder of its own."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parent / "tests"))
from warm_kernel import start_server

settings.register_profile(
    "ci", derandomize=True, print_blob=True
)  # the same cases each time: a red run is the fault of the change
if os.environ.get("CI"):
    settings.load_profile("ci")

collect_ignore_glob = ["nbs/zh/*"]  # the same code and outputs as the English edition (tests/test_course.py), so run once
RUNS = tempfile.TemporaryDirectory()  # gone when the tests are over

os.environ.update(
    HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", TOKENIZERS_PARALLELISM="false"
)


def pytest_configure(config):
    "Ctrl-C works also in what a shell runs in the background. Of several workers each has cores of its own: servers take all that they see, wait busily, and would stand in each other's way."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    config.warm = config.getoption("nbmake_kernel", None) == "warm"
    if config.warm and not worker:
        os.environ["JUPYTER_PATH"] = RUNS.name  # the workers inherit it
        config.add_cleanup(start_server(Path(RUNS.name)).kill)
    if not worker or not hasattr(os, "sched_setaffinity"):
        return
    number, count, cores = (
        int(worker["workerid"].removeprefix("gw")),
        worker["workercount"],
        sorted(os.sched_getaffinity(0)),
    )
    if count <= len(cores):
        os.sched_setaffinity(0, cores[number::count])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "A notebook in a test starts from nothing, as for somebody who opens it first: its runs are in a folder of its own."
    if item.path.suffix == ".ipynb":
        os.environ["TOOLCALL_FT_RUNS"] = tempfile.mkdtemp(dir=RUNS.name, prefix=item.path.stem)
        if item.config.warm:  # the sources of modules only: what is read runs as its readers run it
            module = item.config.rootpath / "nbs" / "lib" in item.path.parents
            item.config.option.nbmake_kernel = "warm" if module else None


@pytest.fixture(scope="session")
def repository() -> Path:
    "The root of the working tree."
    return Path(__file__).resolve().parent
