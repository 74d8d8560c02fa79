"""A real llama-server, the real OpenAI client, and servers that misbehave."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_json
from toolcall_ft.base.http import ask_json, fetch_json
from toolcall_ft.base.process import start_group
from toolcall_ft.export.convert import read_gguf
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import build_llama_cpp, find_llama_cpp
from toolcall_ft.parity.gguf import sampling_findings
from toolcall_ft.serve.client import ids_client, openai_client, read_reply, wire_messages
from toolcall_ft.serve.llama import (
    SLEEPING,
    LlamaServer,
    server_prompt,
    server_tokens,
    sleeping_threads,
)
from toolcall_ft.serve.modelfile import write_modelfile
from toolcall_ft.serve.ollama_build import find_ollama
from toolcall_ft.serve.server import Server, check_port, free_port, wait_for_end
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.rows import encode_prompt
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import HERMES

TOOLS, _ = clean_tools(
    [{"name": "get_weather", "description": "Weather", "parameters": {"city": {"type": "string"}}}]
)
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "tools": TOOLS}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    "A file whose folder had settings for chat, as models are published."
    build_llama_cpp()
    work = tmp_path_factory.mktemp("run")
    shutil.copytree(model_path("tiny-qwen2"), work / "model")
    settings = read_json(work / "model" / "generation_config.json")
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 1.5}
    (work / "model" / "generation_config.json").write_text(json.dumps(settings))
    return export_gguf(work / "model", work / "gguf", ["Q8_0"])["Q8_0"]


@pytest.fixture(scope="module")
def server(gguf):
    with LlamaServer(gguf, slots=4) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-qwen2")


# ---- the server -----------------------------------------------------------------------------------------------------


def test_it_listens_on_the_loopback_address_only(server):
    assert server.url.startswith("http://127.0.0.1:") and fetch_json(f"{server.url}/health") == {
        "status": "ok"
    }
    assert "server is listening" in server.log() or "listening on" in server.log()


def test_a_request_that_says_nothing_of_sampling_is_answered_greedily(gguf, server):
    "Whatever llama-server's own settings are, and whatever the file brings."
    fields = read_gguf(gguf, find_llama_cpp(["convert"]))["fields"]
    assert fields["general.sampling.temp"] == 5.0
    assert "temp 5, penalty_repeat 1.5" in sampling_findings(fields)[0]["what"]
    used = fetch_json(f"{server.url}/props")["default_generation_settings"]["params"]
    assert (used["temperature"], used["repeat_penalty"]) == (0.0, 1.0)


def test_its_threads_are_as_many_as_asked_and_sleep_while_they_wait(gguf, monkeypatch):
    "Beside another busy process, threads that spin are many times slower."
    for name in SLEEPING:
        monkeypatch.delenv(name, raising=False)
    with LlamaServer(gguf, threads=1) as server:
        assert re.search(r"threadpool init, n_threads = 1\b", server.log())
        if sys.platform == "linux":
            environment = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
            assert {f"{name}={value}".encode() for name, value in SLEEPING.items()} <= set(
                environment
            )
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert sleeping_threads()["OMP_WAIT_POLICY"] == "active"  # whoever has set it knows why
    assert "GOMP_SPINCOUNT" not in sleeping_threads()


def test_a_browser_page_from_elsewhere_gets_no_permission(server):
    import urllib.request

    request = urllib.request.Request(
        f"{server.url}/v1/models", headers={"Origin": "http://evil.example"}
    )
    with urllib.request.urlopen(request) as reply:
        assert reply.headers.get("Access-Control-Allow-Origin") in (None, "null", "")


def test_a_given_port_is_used_and_free_again(gguf):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with LlamaServer(gguf, port=port) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"port {port}.*in use"):
            with LlamaServer(gguf, port=port):
                pass
        assert fetch_json(f"{server.url}/health") == {"status": "ok"}  # the first is unharmed
    assert server.process.returncode is not None and fetch_json(f"{server.url}/health") is None


def test_it_is_stopped_when_the_block_fails(gguf):
    with pytest.raises(ZeroDivisionError):
        with LlamaServer(gguf) as server:
            1 / 0
    assert server.process.poll() is not None


def test_it_does_not_outlive_python(gguf):
    code = f"from toolcall_ft.serve.llama import LlamaServer\ns = LlamaServer({str(gguf)!r}).__enter__()\nprint(s.process.pid, s.url)\nraise SystemExit(1)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid, url = said.stdout.split()
    assert fetch_json(f"{url}/health") is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


class Shell(Server):
    "A server made of a shell: it writes an address that answers (another server's), starts a child and may refuse to end."

    health = "/health"

    def __init__(self, script, timeout=20):
        super().__init__(["/bin/sh", "-c", script], "a script", "shell", timeout=timeout)


def group(pid):
    "The processes of a group, the dead ones left out."
    listed = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    return [
        int(line.split()[0])
        for line in listed.splitlines()
        if line.split()[1] == str(pid) and "Z" not in line
    ]


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
def test_children_of_the_server_end_with_it(server, stubborn, monkeypatch):
    monkeypatch.setattr("toolcall_ft.base.process.PATIENCE", 0.3)
    with Shell(
        f"{stubborn}sleep 1000 & echo listening on {server.url}; {stubborn}sleep 1000; sleep 1000"
    ) as shell:
        assert (
            shell.url == server.url and len(group(shell.process.pid)) >= 3
        )  # the script, its children, the guard
    assert group(shell.process.pid) == [] and shell.process.returncode is not None
    shell.close()  # a second time does no harm


def test_a_preparation_that_fails_ends_the_server(server):
    class Failing(Shell):
        def prepare(self):
            raise UserError("no model")

    failing = Failing(f"echo listening on {server.url}; sleep 1000")
    with pytest.raises(UserError, match="no model"):
        with failing:
            pass
    assert group(failing.process.pid) == []


def test_a_server_that_is_never_ready(server):
    for script, words in {
        "echo hello; sleep 1000": "was not ready after 0 seconds.*hello",
        "echo 'listening on http://127.0.0.1:9'; exit 3": "ended while starting",
    }.items():
        with pytest.raises(UserError, match="(?s)" + words):
            with Shell(script, timeout=0.4):
                pass


def test_no_such_program(tmp_path):
    for command in ("no-such-program", str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(UserError, match="no such program"):
            start_group([command], subprocess.DEVNULL)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_it_does_not_outlive_a_python_that_is_killed(gguf, kind):
    code = f"import time\nfrom toolcall_ft.serve.llama import LlamaServer\nwith LlamaServer({str(gguf)!r}) as s:\n    print(s.process.pid, flush=True)\n    time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as python:
        pid = int(python.stdout.readline())
        assert group(pid)
        python.send_signal(kind)
    end = time.monotonic() + 20
    while group(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert group(pid) == []


def test_a_free_port_is_free():
    port = free_port()
    check_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))


def test_a_refusal_is_told_in_the_servers_own_words(server):
    with pytest.raises(UserError, match="status 400.*messages"):
        ask_json(f"{server.url}/apply-template", {"message": []})
    with pytest.raises(UserError, match="Is the server still running"):
        ask_json(f"http://127.0.0.1:{free_port()}/health")


def test_wrong_files(tmp_path, gguf):
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:100_000])
    for path, words in {
        tmp_path / "missing.gguf": "cannot be read",
        tmp_path / "empty.gguf": "not a GGUF",
        tmp_path: "cannot be read",
        tmp_path / "cut.gguf": "ended while starting",
    }.items():
        with pytest.raises(UserError, match=words):
            with LlamaServer(path):
                pass


def test_missing_program(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="llama-server not found.*toolcall-ft llama-cpp"):
        LlamaServer(gguf)


# ---- what it is asked and what it sees ------------------------------------------------------------------------------


def test_tokens_are_the_same_for_strings_of_all_kinds(server, tokenizer):
    import unicodedata

    generator = random.Random(0)
    ranges = [
        (32, 127),
        (0x4E00, 0x9FA5),
        (0x400, 0x4FF),
        (0x600, 0x6FF),
        (0x1F300, 0x1F64F),
        (0xAC00, 0xD7A3),
        (0x3040, 0x30FF),
        (0x2000, 0x206F),
        (9, 13),
    ]
    texts = [
        "",
        " ",
        "\n\n",
        "  x",
        "x  \n",
        "don't I'LL",
        "12345 1.5e-3",
        "<tool_cal",
        "</tool_call",
        "a\u0301",
        "👩‍👩‍👧",
    ]
    for _ in range(400):
        low, high = generator.choice(ranges)
        texts.append(
            "".join(
                chr(generator.randint(low, high)) + " " * (generator.random() < 0.2)
                for _ in range(generator.randint(1, 30))
            )
        )
    for text in texts:
        text = unicodedata.normalize("NFC", text)  # llama.cpp does not normalise; see the next test
        assert (
            server_tokens(server.url, text)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        ), repr(text)


def test_an_answer_that_was_broken_off_counts_for_nothing():
    reply = SimpleNamespace(
        choices=[
            SimpleNamespace(
                finish_reason="abort", message=SimpleNamespace(content="half a", tool_calls=None)
            )
        ]
    )
    assert (
        read_reply(reply)["unanswered"] == "lost"
        and "Is the server still running?" in read_reply(reply)["errors"][0]
    )


CHATTY = """
import http.server, os, threading, time
asked = threading.Event()
class Fine(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); asked.set()
    def log_message(self, *parts): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Fine)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
asked.wait()
os.write(1, b"x" * (2**24 - os.fstat(1).st_size))
os.write(1, b"\\nthe line before\\n") # one byte more than is kept, and whole
while os.fstat(1).st_size > 2**20: time.sleep(.1)
print("the last line", flush=True)
"""


def test_the_log_of_a_server_that_runs_for_long_stays_small():
    with Server([sys.executable, "-c", CHATTY], "nothing", "chatty") as server:
        wait_for_end(server)  # it ends when its log has been cut
        assert os.fstat(server.output.fileno()).st_size < 2**20
        assert server.log().strip().endswith("the line before\nthe last line")


def test_unnormalised_text_is_the_known_difference(server, tokenizer):
    text = "cafe\u0301"  # e and an accent, as macOS writes file names
    assert (
        server_tokens(server.url, text)
        != tokenizer(text)["input_ids"]
        == tokenizer("caf\u00e9")["input_ids"]
    )
    request = {"messages": [{"role": "user", "content": text}], "tools": []}
    assert server.prompt_ids(request) == list(
        encode_prompt(request, tokenizer)
    )  # `wire_messages` composes it


def test_whole_floats_are_sent_as_they_were_trained():
    call = {
        "type": "function",
        "function": {"name": "a", "arguments": {"x": [2.0, 2.5, 1e300, -0.0]}},
    }
    sent = wire_messages({"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert (
        sent[0]["tool_calls"][0]["function"]["arguments"] == '{"x": [2, 2.5, 1e+300, 0]}'
        and call["function"]["arguments"]["x"][0] == 2.0
    )


def test_prompts_are_the_same(server, tokenizer):
    call = {
        "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": '上海 "x" <b>'}},
    }
    talk = [
        {"role": "system", "content": "你是助手"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "name": "get_weather", "content": '{"t": 1.5}'},
        {"role": "tool", "name": "get_weather", "content": ""},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "再来"},
    ]
    for end in (2, 4, 5, 7):
        for tools in (TOOLS, []):
            request = {"messages": talk[:end], "tools": tools}
            text = server_prompt(server.url, request)
            assert text == tokenizer.apply_chat_template(
                talk[:end], tools=tools or None, add_generation_prompt=True, tokenize=False
            )
            assert (
                server.prompt_ids(request)
                == server_tokens(server.url, text)
                == list(encode_prompt(request, tokenizer))
            )


def test_ids_are_answered_as_messages_are(server, tokenizer):
    requests = [
        HELLO,
        {"messages": [{"role": "user", "content": "Weather in Oslo?"}], "tools": TOOLS},
    ]
    by_ids = ids_client(server.url, tokenizer, server.model, max_new_tokens=24)(requests)
    by_text = openai_client(server.url, server.model, max_new_tokens=24, form=HERMES)(requests)
    assert [answer["content"] for answer in by_ids] == [
        answer["content"] for answer in by_text
    ] and all(sorted(answer) == sorted(by_text[0]) for answer in by_ids)
    assert (
        "Is the server still running?"
        in ids_client(f"http://127.0.0.1:{free_port()}", tokenizer)(requests[:1])[0]["errors"][0]
    )


def test_wire_messages_leave_the_example_alone():
    messages = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "a", "arguments": {"x": "é"}}}
            ],
        },
        {"role": "tool", "name": "a", "content": "1"},
        {"role": "tool", "name": "a", "content": "orphan"},
    ]
    copy = json.loads(json.dumps(messages))
    sent = wire_messages({"messages": messages})
    assert messages == copy and sent[0]["tool_calls"][0]["function"]["arguments"] == '{"x": "é"}'
    assert sent[1]["tool_call_id"] == sent[0]["tool_calls"][0]["id"] and sent[2]["tool_call_id"]


def test_many_at_once_keep_their_order(server):
    requests = [
        {"messages": [{"role": "user", "content": f"Say {i}"}], "tools": []} for i in range(24)
    ]
    alone = openai_client(server.url, max_new_tokens=8)(requests)
    together = openai_client(server.url, max_new_tokens=8, workers=4)(requests)
    assert len(together) == 24 and all(answer["seconds"] > 0 for answer in together)
    assert (
        sum(a["content"] == b["content"] for a, b in zip(alone, together)) >= 22
    )  # batches may round differently


def test_no_requests_no_answers(server):
    assert openai_client(server.url)([]) == []


def test_a_server_killed_in_mid_request(gguf):
    with LlamaServer(gguf) as server:
        requests = [
            {"messages": [{"role": "user", "content": f"{number} " + "word " * 1500}], "tools": []}
            for number in range(50)
        ]  # half a second each
        threading.Timer(0.5, server.process.send_signal, [signal.SIGKILL]).start()
        answers = openai_client(server.url, max_new_tokens=1000)(requests)
    assert (
        len(answers) == 50
        and "Is the server still running?" in answers[-1]["errors"][0]
        and answers[-1]["calls"] == []
    )


def test_an_unfinished_answer_says_so(server):
    answer = openai_client(server.url, max_new_tokens=1)([HELLO])[0]
    assert any("cut off" in error for error in answer["errors"])


# ---- servers that say strange things --------------------------------------------------------------------------------


def message(**fields):
    return {
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **fields}}
        ]
    }


def tool_call(arguments):
    return {
        "id": "1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }


STRANGE = {
    "not JSON": (b"<html>hello</html>", "shape"),
    "empty object": (b"{}", "shape"),
    "no choices": (b'{"choices": []}', "shape"),
    "null": (b"null", "shape"),
    "broken arguments": (
        message(content=None, tool_calls=[tool_call('{"city": "Os')]),
        "not readable",
    ),
    "arguments that are a list": (
        message(content=None, tool_calls=[tool_call("[1]")]),
        "not an object",
    ),
    "arguments that are NaN": (
        message(content=None, tool_calls=[tool_call('{"city": NaN}')]),
        "not JSON",
    ),
    "a key twice": (
        message(content=None, tool_calls=[tool_call('{"city": "a", "city": "b"}')]),
        "twice",
    ),
}


@pytest.fixture(scope="module")
def strange_server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = STRANGE[body["model"]][0] if body["model"] in STRANGE else None
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(200 if said else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.mark.parametrize("name", STRANGE)
def test_strange_replies_become_errors(strange_server, name):
    answer = openai_client(strange_server, name)([HELLO])[0]
    assert answer["calls"] == [] and STRANGE[name][1] in " ".join(answer["errors"])


def test_a_refusal_names_the_status(strange_server):
    assert "status 503" in openai_client(strange_server, "unknown")([HELLO])[0]["errors"][0]


def test_a_good_call_beside_a_bad_one(strange_server, monkeypatch):
    monkeypatch.setitem(
        STRANGE,
        "mixed",
        (message(content="ok", tool_calls=[tool_call('{"city": "Oslo"}'), tool_call("{")]), ""),
    )
    answer = openai_client(strange_server, "mixed")([HELLO])[0]
    assert (
        answer["calls"] == [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
        and len(answer["errors"]) == 1
        and answer["content"] == "ok"
    )


# ---- Modelfile and ports (a real Ollama: test_ollama.py) --------------------------------------------------------------


def test_another_chat_template_gets_no_modelfile(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "toolcall_ft.serve.modelfile.read_gguf",
        lambda *a: {"fields": {"tokenizer.chat_template": "{{ messages }}"}},
    )
    with pytest.raises(UserError, match="in no format of"):
        write_modelfile(gguf, tmp_path / "Modelfile")
    assert not (tmp_path / "Modelfile").exists()


def test_ollama_is_looked_for_where_the_environment_says(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "toolcall_ft.serve.ollama_build.fetch_json",
        lambda url, **options: asked.append(url) or {"version": "1"},
    )
    for host, url in {
        "127.0.0.1:9": "http://127.0.0.1:9",
        "http://127.0.0.1/": "http://127.0.0.1:11434",
        "0.0.0.0": "http://127.0.0.1:11434",
        "": "http://127.0.0.1:11434",
    }.items():
        monkeypatch.setenv("OLLAMA_HOST", host)
        assert find_ollama()["url"] == url and asked[-1] == f"{url}/api/version"


@pytest.mark.parametrize("port", [-5, 99999])
def test_a_number_that_is_no_port(port):
    with pytest.raises(UserError, match=f"{port} is no port"):
        check_port("127.0.0.1", port)


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(strange_server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setitem(STRANGE, "fine", (message(content="ok"), ""))
    assert openai_client(strange_server, "fine")([HELLO])[0]["content"] == "ok"
    assert ask_json(f"{strange_server}/chat/completions", {"model": "fine"})["choices"]


@pytest.mark.parametrize("name", [["x"], None, 3])
def test_a_call_whose_name_is_no_text_is_an_error_beside_the_good_ones(
    strange_server, monkeypatch, name
):
    odd = {
        **tool_call('{"city": "Oslo"}'),
        "function": {"name": name, "arguments": '{"city": "Oslo"}'},
    }
    monkeypatch.setitem(
        STRANGE, "named", (message(tool_calls=[odd, tool_call('{"city": "Oslo"}')]), "")
    )
    answer = openai_client(strange_server, "named")([HELLO])[0]
    assert len(answer["calls"]) == 1 and "not readable" in answer["errors"][0]


def test_the_log_of_a_server_is_its_end():
    with tempfile.TemporaryFile() as output:
        server = Server(["x"], "x", "x")
        server.output = output
        os.ftruncate(output.fileno(), 2**24 + 5)
        os.pwrite(output.fileno(), b"fatal: out of memory", 2**24 + 5)
        assert server.log().endswith("fatal: out of memory")
