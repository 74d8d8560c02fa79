"""Notebook kernels that need not import PyTorch and Transformers, which takes seconds: each is a fork of one process that has.

pytest --nbmake --nbmake-kernel=warm nbs/lib     # conftest.py starts that process and tells Jupyter of it

On Linux only: elsewhere there is no safe fork, and `make test` takes usual kernels.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

LARGEST = 1 << 20  # bytes of a request: environments are some thousand


def start_server(folder: Path) -> subprocess.Popen:
    "Start the process that is forked, and describe its kernels under a folder, which belongs into JUPYTER_PATH."
    place = str(folder / "socket")
    kernel = [sys.executable, "-S", __file__, "ask", place, "{connection_file}"]
    described = folder / "kernels" / "warm"
    described.mkdir(parents=True)
    settings = {"argv": kernel, "display_name": "warm", "language": "python"}
    (described / "kernel.json").write_text(json.dumps(settings), encoding="utf-8")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        command = [sys.executable, __file__, "serve", str(server.fileno())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[server.fileno()])


def end_with(stream: int) -> None:
    "End this process when the other side of a pipe or socket is gone."

    def wait():
        os.read(stream, 1)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def serve(number: str) -> None:
    "Import once, then fork a kernel for everybody who asks."
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # so that no library makes threads now
    import ipykernel.kernelapp  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(0)
    server = socket.socket(fileno=int(number))
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            run_kernel(connection)
        connection.close()


def run_kernel(connection: socket.socket) -> None:
    "Be the kernel that somebody asked for, with the folder, environment, cores and streams of theirs."
    message, streams, *_ = socket.recv_fds(connection, LARGEST, 3)
    asked = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.sched_setaffinity(0, asked["cores"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = ""

    import torch
    from ipykernel.kernelapp import IPKernelApp

    torch.set_num_threads(len(asked["cores"]))
    connection.sendall(f"{os.getpid()}\n".encode())
    end_with(connection.fileno())
    app = IPKernelApp.instance()
    app.initialize(["-f", asked["file"]])
    app.start()
    atexit._run_exitfuncs()
    os._exit(0)  # no time for taking apart what was imported


def ask(place: str, file: str) -> None:
    "Have a kernel forked, hand signals on to it, and live as long as it does."
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    cores, environment = [*os.sched_getaffinity(0)], dict(os.environ)
    asked = {"folder": os.getcwd(), "environment": environment, "cores": cores, "file": file}
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    answer = connection.makefile("rb")
    kernel = int(answer.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel, number))
    answer.read()


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
