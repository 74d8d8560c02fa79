"""Servers under load, servers that die, and disks that are full: nothing is lost, nothing is wrong, and what is on disk is whole or absent."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import write_text
from toolcall_ft.data.synthetic import synthesise
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.export.convert import read_gguf
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import find_llama_cpp
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.ollama_build import find_ollama
from toolcall_ft.serve.vllm_install import find_vllm
from toolcall_ft.template.models import model_path
from toolcall_ft.tools.load import read_tools

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from serve import soak

PROGRAM = [
    sys.executable,
    "-c",
    "import sys; from toolcall_ft.cli.main import main; sys.exit(main())",
]
OLLAMA = pytest.mark.skipif(
    not find_ollama()["binary"] and not os.environ.get("CI"),
    reason="no Ollama here: toolcall-ft ollama builds it; on CI it must be there",
)
VLLM = pytest.mark.skipif(
    not find_vllm()["python"] and not os.environ.get("CI"),
    reason="no vLLM here: make vllm brings it; on CI it must be there",
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return export_gguf("tiny-qwen2", tmp_path_factory.mktemp("gguf"), ["F16"])["F16"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A run whose merged model is the embedded one, exported; the working directory of nobody."
    folder = tmp_path_factory.mktemp("project with a blank")
    run_program("init", folder=folder)
    config = (
        (folder / "config.yaml")
        .read_text()
        .replace("[F16, Q8_0, Q4_K_M, Q4_0]", "[Q8_0]")
        .replace("max_new_tokens: 160", "max_new_tokens: 40")
    )
    write_text(folder / "config.yaml", config.replace("limit: null", "limit: 4"))
    run_program("data", folder=folder)
    shutil.copytree(model_path("tiny-qwen2"), folder / "runs/first/merged")
    run_program("export", folder=folder)
    return folder


def run_program(*words, folder, code=0, **settings):
    finished = subprocess.run(
        [*PROGRAM, *words], cwd=folder, capture_output=True, text=True, **settings
    )
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished


def group_of(process):
    "Every living process of the group that a process leads, but for those that only wait to be buried."
    listed = subprocess.run(
        ["ps", "-eo", "pid,pgid,stat,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    return [
        line
        for line in listed
        if line.split()[1] == str(process) and not line.split()[2].startswith("Z")
    ]


def left_behind(group):
    "What is still there of a group after twenty seconds; a killed process needs a moment."
    deadline = time.monotonic() + 20
    while group_of(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return group_of(group)


def served(process):
    "The process group of the server behind a `toolcall-ft serve`: its child."
    return int(
        subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )


# --- load ---

REQUESTS = [
    request
    for request, _ in to_requests(
        synthesise(read_tools(ROOT / "toolcall_ft/sample/tools.json"), 12, seed=3)
    )
]


def check_soak(server, clients, count):
    "Once for the caches to fill, then once that counts."
    soak(server, clients, REQUESTS, count // 3)
    found = soak(server, clients, REQUESTS, count)
    assert found["requests"] == count and not found["lost"] and not found["wrong"]
    assert set(found["statuses"]) <= {200, 400, 500} and found["statuses"][400], (
        "malformed requests are refused, and not hung up on"
    )
    assert found["megabytes_after"] - found["megabytes_before"] < 30


def test_requests_among_malformed_ones_are_all_answered_and_as_if_asked_alone(gguf):
    "One thread: several spin while they wait for each other, and the clients want the machine too."
    with LlamaServer(gguf, slots=4, context=2048, options=["--threads", "1"]) as server:
        check_soak(server, 6, 96)


def test_a_soak_notices_what_is_lost_and_what_is_refused(gguf):
    from toolcall_ft.serve.server import free_port

    class Nobody:
        url, model, process = (
            f"http://127.0.0.1:{free_port()}",
            "x",
            subprocess.Popen(["sleep", "0"]),
        )

    with pytest.raises(UserError, match="asked alone"):
        soak(Nobody, 2, REQUESTS[:1], 4)
    with LlamaServer(gguf, slots=1, context=2048) as server:

        class Hanging(Nobody):
            url, process = server.url, server.process

        ask = openai_client(server.url, server.model, 8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "serve.openai_client",
                lambda *a: (
                    lambda requests: (
                        [ask(requests)[0] if len(requests) > 1 else {"unanswered": "lost"}]
                        * len(requests)
                    )
                ),
            )
            found = soak(Hanging, 2, REQUESTS[:2], 8)
    assert found["lost"] == 6 and len(found["wrong"]) == 6


@OLLAMA
def test_ollama_loses_nothing_under_load_either(gguf):
    with OllamaServer(gguf, slots=2, context=2048) as server:
        check_soak(server, 4, 48)


# --- servers that die ---


def ask_and_kill(server):
    "Ask something, and kill llama-server while it has the request: it is halted first, so that it cannot be done too soon."
    busy = [
        int(line.split()[0])
        for line in group_of(server.process.pid)
        if "llama-server" in line.split()[3]
    ]
    for process in busy:
        os.kill(process, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(openai_client(server.url, server.model, 40), [HELLO])
        time.sleep(0.5)
        assert not asked.done()
        for process in busy:
            os.kill(process, signal.SIGKILL)
        return asked.result(60)[0]


HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "tools": []}


def test_a_server_killed_in_mid_request_gives_an_error_that_says_what_to_do(gguf):
    with LlamaServer(gguf) as server:
        answer = ask_and_kill(server)
        assert server.process.wait(20) is not None
    assert (
        not answer["content"]
        and not answer["calls"]
        and "Is the server still running?" in answer["errors"][0]
    )
    assert not left_behind(server.process.pid)


# --- toolcall-ft serve ---

STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    "Also when a test fails before it ends its server."
    yield
    while STARTED:
        process = STARTED.pop()
        process.terminate()
        process.wait(60)


def start_serving(project, *words):
    process = subprocess.Popen(
        [*PROGRAM, "serve", *words],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[2].startswith("curl "), process.stderr.read()
    return process, lines[2]


def said_by_clients(url, sent):
    "What two clients get for a request: the words, and the calls as data."
    from langchain_openai import ChatOpenAI
    from openai import OpenAI

    plain = (
        OpenAI(base_url=url, api_key="none", max_retries=0)
        .chat.completions.create(**sent)
        .choices[0]
        .message
    )
    chain = (
        ChatOpenAI(
            base_url=url,
            model=sent["model"],
            api_key="none",
            temperature=0,
            extra_body={"max_tokens": sent["max_tokens"]},
            max_retries=0,
        )
        .bind_tools(sent["tools"])
        .invoke(sent["messages"])
    )
    return [
        (
            plain.content or "",
            [
                (call.function.name, json.loads(call.function.arguments))
                for call in plain.tool_calls or []
            ],
        ),
        (chain.content, [(call["name"], call["args"]) for call in chain.tool_calls]),
    ]


@pytest.mark.parametrize(
    "runtime, ending",
    [
        ("llama-server", signal.SIGINT),
        ("llama-server", signal.SIGTERM),
        pytest.param("ollama", signal.SIGTERM, marks=OLLAMA),
        pytest.param("vllm", signal.SIGINT, marks=VLLM),
    ],
)
def test_the_printed_line_works_and_the_server_ends_without_orphans(
    project, tmp_path, runtime, ending
):
    process, line = start_serving(project, "--runtime", runtime, "--port", "0")
    group = served(process)
    reply = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    choice = json.loads(reply.stdout)["choices"][0]
    message, cut_off = (
        choice["message"],
        choice["finish_reason"] == "length",
    )  # vLLM gives back half a call as text
    assert message["role"] == "assistant" and (
        cut_off or "<tool_call>" not in (message["content"] or "")
    )
    sent = json.loads((project / "runs/first/request.json").read_text())
    assert {tool["function"]["name"] for tool in sent["tools"]} == {"book_room", "find_colleague"}
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    ]
    assert (
        said_by_clients(re.search(r"http://\S+/v1", line)[0], sent)
        == [(message["content"] or "", calls)] * 2
    )
    process.send_signal(ending)
    assert (
        process.wait(60) == 0
        and "is stopped" in process.stdout.read()
        and process.stderr.read() == ""
    )
    assert not left_behind(group)


@OLLAMA
def test_ollama_is_measured_as_the_other_predictors_are(project):
    assert "| in Ollama |" in run_program("eval", "ollama", folder=project).stdout


def test_a_killed_program_leaves_no_server_behind(project):
    process, _ = start_serving(project, "--port", "0")
    group = served(process)
    process.kill()
    process.wait()
    assert not left_behind(group)


def test_a_server_that_dies_ends_the_program_with_its_last_lines(project):
    process, _ = start_serving(project, "--port", "0")
    for line in group_of(served(process)):
        os.kill(int(line.split()[0]), signal.SIGKILL)
    assert process.wait(30) == 2
    assert "llama-server ended by itself" in process.stderr.read()


def test_what_keeps_a_server_from_starting_gets_a_sentence(project, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finished = run_program(
            "serve", "--port", str(taken.getsockname()[1]), folder=project, code=2
        )
    assert "in use" in finished.stderr and "Traceback" not in finished.stderr
    nothing = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "LLAMA_CPP_DIR": "",
        "TOOLCALL_FT_VLLM": "",
        "PATH": "/nowhere",
    }
    for runtime, advice in (
        ("llama-server", "toolcall-ft llama-cpp"),
        ("ollama", "toolcall-ft ollama"),
    ):
        finished = run_program(
            "serve", "--runtime", runtime, "--port", "0", folder=project, code=2, env=nothing
        )
        assert advice in finished.stderr and "Traceback" not in finished.stderr
    gguf = project / "runs/first/gguf/model-Q8_0.gguf"
    kept = gguf.read_bytes()
    try:
        for content, sentence in ((b"hello", "not a GGUF"), (kept[:5000], "ended while starting")):
            gguf.write_bytes(content)
            finished = run_program("serve", "--port", "0", folder=project, code=2)
            assert sentence in finished.stderr and "Traceback" not in finished.stderr
    finally:
        gguf.write_bytes(kept)


# --- disks and interruptions ---


def whole_or_absent(folder):
    "Every file under its final name can be read to its end."
    for path in folder.rglob("*.gguf"):
        read_gguf(path, find_llama_cpp(["convert"]))
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    )


@pytest.fixture
def small(project, tmp_path):
    "A copy of the project without its GGUF files."
    shutil.copytree(project, tmp_path / "project")
    shutil.rmtree(tmp_path / "project/runs/first/gguf")
    (tmp_path / "project/runs/first/Modelfile").unlink()
    return tmp_path / "project"


def test_a_disk_that_is_full_at_any_moment_leaves_nothing_by_half(small):
    "Files may not grow beyond a size: to a program that is the same as a disk that is full at that moment."
    before = whole_or_absent(small)
    for size in (1_000, 8_250_000):  # in the first line written, in the last bytes of the weights

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        finished = run_program("export", folder=small, code=2, preexec_fn=limit)
        assert finished.stderr.startswith("toolcall-ft: ") and "Traceback" not in finished.stderr, (
            size
        )
        assert whole_or_absent(small) == before, size
    run_program("export", folder=small)
    assert {"runs/first/gguf/model-Q8_0.gguf", "runs/first/Modelfile"} <= set(
        whole_or_absent(small)
    )


@pytest.mark.parametrize("ending, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_export_is_made_whole_by_the_same_command(small, ending, code):
    before = whole_or_absent(small)
    process = subprocess.Popen(
        [*PROGRAM, "export"], cwd=small, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder, deadline = small / "runs/first/gguf", time.monotonic() + 60
    while (
        not (folder.exists() and any(folder.rglob("*.gguf*")))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(ending)
    assert process.wait(60) == code
    assert "Traceback" not in process.stderr.read()
    deadline = time.monotonic() + 20
    while (
        str(small)
        in (
            programs := subprocess.run(
                ["ps", "-eo", "args"], capture_output=True, text=True, check=True
            ).stdout
        )
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert str(small) not in programs, "converter and quantiser end with the command"
    final = [path.name for path in folder.glob("*.gguf")]
    assert not final and not (small / "runs/first/Modelfile").exists()
    if ending == signal.SIGINT:
        assert whole_or_absent(small) == before
    run_program("export", folder=small)
    assert {path.name for path in folder.iterdir()} == {"model-Q8_0.gguf", "export.json"}, (
        "what was left of the first attempt is gone"
    )
