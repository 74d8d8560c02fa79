"""What all tests share: nothing is fetched, nothing is reported, and every test has a folder of its own."""

import itertools
import os
import signal
import socket
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


def keep_ports(first: int):
    "Kernels take ports from here on. Those that systems give away by themselves are higher, and one that was free may be taken before the kernel binds to it."
    from jupyter_client.connect import LocalPortCache

    ports = itertools.count(first)

    def next_port(cache, address):
        for port in ports:
            with socket.socket() as tried:
                if tried.connect_ex((address, port)):  # nobody listens
                    return port

    LocalPortCache.find_available_port = next_port


def pytest_configure(config):
    "Ctrl-C works also in what a shell runs in the background. Of several workers each has cores of its own: servers take all that they see, wait busily, and would stand in each other's way."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if hasattr(config.option, "nbmake"):  # not in the light environments of tests/pythons.py
        number = int(worker["workerid"].removeprefix("gw")) if worker else -1
        keep_ports(20_000 + 2_000 * number)
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


SHELVES = ["test_clean.py", "test_lessons.py", "tests", "deep", "lib"]


def shelf(item) -> int:
    "The place of a test's shelf in the order in which they run."
    names = item.nodeid.partition("::")[0].split("/")
    return min((SHELVES.index(name) for name in names if name in SHELVES), default=len(SHELVES))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items, config):
    "The longest begin, so that no worker waits for one at the end. A file's tests share a worker and its fixtures; lessons share nothing."
    named = (config.rootpath / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    items.sort(key=shelf)
    for item in items:
        file, _, name = item.nodeid.partition("::")
        if file in named or f"{file}::{name.partition('[')[0]}" in named:
            item.add_marker(pytest.mark.slow)
        alone = item.path.name == "test_lessons.py"
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else file))


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
