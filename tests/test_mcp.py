"""Tools of real MCP servers, started here: over standard input and output, and over HTTP on 127.0.0.1."""

import gc
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.cli.talk import open_functions
from toolcall_ft.config import read_config
from toolcall_ft.generate.loop import chat_with_tools
from toolcall_ft.tools.check import check_call
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.load import read_tools
from toolcall_ft.tools.mcp import mcp_functions, mcp_servers, mcp_tools

SERVER = Path(__file__).parent / "mcp_server.py"
COMMAND = [sys.executable, str(SERVER), "stdio"]
NAMES = ["price", "ship", "items", "fail", "picture", "sleep", "die"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("mcp") / "log"
    with (
        log.open("wb") as printed,
        subprocess.Popen(
            [sys.executable, str(SERVER), "http", str(port)], stdout=printed, stderr=printed
        ) as process,
    ):
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
        process.kill()


@pytest.fixture(scope="module", params=["stdio", "http", "http with headers"])
def source(request):
    if request.param == "stdio":
        return COMMAND
    address = request.getfixturevalue("address")
    return address if request.param == "http" else {"url": address, "headers": {"X-Key": "1"}}


@pytest.fixture(scope="module")
def functions(source):
    with mcp_functions(source) as functions:
        yield functions


def test_the_tools_of_a_server(source):
    tools, repairs = mcp_tools(source)
    assert [tool["function"]["name"] for tool in tools] == NAMES and repairs == []
    assert clean_tools(tools) == (tools, [])
    price = tools[0]["function"]
    assert (
        price["description"] == "The price of some items."
        and price["parameters"]["properties"]["item"]["enum"] == ["tea", "rice"]
        and price["parameters"]["required"] == ["item"]
    )
    assert (
        check_call(
            {"name": "ship", "arguments": {"to": {"street": "A", "zip": "12345"}, "note": None}},
            tools,
        )
        == []
    )
    assert check_call(
        {"name": "ship", "arguments": {"to": {"street": "A", "zip": "1"}}}, tools
    ) == [r'ship.to.zip: must match the pattern ^\d{5}$, got "1"']
    assert check_call({"name": "price", "arguments": {"item": "tea", "count": 10}}, tools) == [
        "price.count: must be at most 9, got 10"
    ]


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("price", {"item": "tea", "count": 2}, '{"item": "tea", "total": 6}'),
        (
            "ship",
            {"to": {"street": "北京路", "zip": "12345"}, "note": "{"},
            "Shipped to 北京路, 12345: {",
        ),
        ("items", {}, '["tea", "rice"]'),
        ("picture", {}, "Here:\n[image: image/png]"),
    ],
)
def test_results_are_text_for_the_model(functions, name, arguments, text):
    assert functions[name](**arguments) == text


def test_failures_of_a_tool_are_told(functions):
    assert functions["fail"](why="x").startswith("Error: ")
    assert functions["price"](item="gold").startswith("Error: ")
    assert functions["price"](item="tea") == '{"item": "tea", "total": 3}', "and the server goes on"


def test_structured_content_without_text():
    from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextResourceContents

    from toolcall_ft.tools.mcp import result_text

    assert (
        result_text(CallToolResult(content=[], structured_content={"城": [1, 2]}))
        == '{"城": [1, 2]}'
    )
    assert result_text(CallToolResult(content=[], is_error=True)) == "Error: "
    assert (
        result_text(CallToolResult(content=[], structured_content={"result": [4, 6]})) == "[4, 6]"
    )
    link = ResourceLink(type="resource_link", uri="file:///menu.txt", name="menu")
    inside = EmbeddedResource(
        type="resource", resource=TextResourceContents(uri="file:///a.txt", text="tea 3")
    )
    assert (
        result_text(CallToolResult(content=[link, inside]))
        == "[resource_link: file:///menu.txt]\ntea 3"
    )


def test_the_tool_loop_calls_the_server(source):
    tools, _ = mcp_tools(source)

    def stand_in(requests):
        last = requests[0]["messages"][-1]
        calls = (
            []
            if last["role"] == "tool"
            else [
                {"name": "price", "arguments": {"item": "rice", "count": 3}},
                {"name": "price", "arguments": {"item": "rice", "count": 0}},
            ]
        )
        return [
            {
                "content": f"It is {last['content']}",
                "calls": calls,
                "errors": [],
                "text": "",
                "seconds": 0.0,
            }
        ]

    with mcp_functions(source) as functions:
        messages = chat_with_tools(
            stand_in, [{"role": "user", "content": "Rice?"}], tools, functions
        )
    assert messages[2] == {
        "role": "tool",
        "name": "price",
        "content": '{"item": "rice", "total": 6}',
    }
    assert messages[3]["content"] == "Error: price.count: must be at least 1, got 0", (
        "what does not fit never reaches the server"
    )


def test_calls_from_many_threads(functions):
    answers = {}

    def ask(n):
        answers[n] = functions["price"](item="tea", count=n)

    threads = [threading.Thread(target=ask, args=[n]) for n in range(1, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: json.loads(text)["total"] for n, text in answers.items()} == {
        n: 3 * n for n in range(1, 10)
    }


def test_nothing_is_left_behind():
    children = psutil.Process().children
    before, threads = children(), threading.active_count()
    mcp_tools(COMMAND)
    with mcp_functions(COMMAND) as functions:
        assert children() != before and functions["items"]()
    with pytest.raises(ZeroDivisionError):
        with mcp_functions(COMMAND) as functions:
            1 / 0
    with pytest.raises(UserError):
        mcp_tools([sys.executable, "-c", "import time; time.sleep(60)"], seconds=1)
    gc.collect()
    assert children() == before and threading.active_count() == threads


@pytest.mark.parametrize("kind", ["stdio", "http"])
def test_a_call_that_takes_too_long_is_told_and_the_talk_goes_on(kind, request):
    source = COMMAND if kind == "stdio" else request.getfixturevalue("address")
    with mcp_functions(source, call_timeout=2) as functions:
        assert functions["sleep"](seconds=30) == "Error: no answer within 2 seconds"
        assert (
            functions["items"]() == '["tea", "rice"]' and functions["sleep"](seconds=0) == "awake"
        )


def test_a_server_that_dies_is_started_again():
    with mcp_functions(COMMAND) as functions:
        assert (
            functions["die"]() == "Error: Connection closed"
            and functions["items"]() == '["tea", "rice"]'
        )


def test_a_server_that_is_gone_is_told_at_every_call(tmp_path):
    shutil.copy(SERVER, tmp_path / "shop.py")
    with mcp_functions([sys.executable, str(tmp_path / "shop.py"), "stdio"]) as functions:
        (tmp_path / "shop.py").unlink()
        functions["die"]()
        for _ in range(2):
            assert (
                functions["items"]().startswith("Error: MCP server `")
                and "terminal" in functions["items"]()
            )


CHATTY = """
import json, sys, time
def answer(message, result): print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **result}), flush=True)
print("loading the prices", flush=True)
sys.stdout.buffer.write(b"\\xff\\xfe\\nready\\n"); sys.stdout.flush()
for line in sys.stdin:
    message = json.loads(line)
    method, asked = message["method"], message.get("params", {})
    print("asked", method, flush=True)
    if method == "initialize": answer(message, {"result": {"protocolVersion": asked["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "a", "version": "1"}}})
    elif method == "tools/list": answer(message, {"result": {"tools": [{"name": name, "inputSchema": {"type": "object", "properties": {}}} for name in ("hang", "quick")]}})
    elif method == "tools/call" and asked["name"] == "hang": time.sleep(600)
    elif method == "tools/call": answer(message, {"result": {"content": [{"type": "text", "text": "yes"}]}})
    elif "id" in message: answer(message, {"error": {"code": -32601, "message": "unknown"}})
"""


def test_a_server_that_prints_and_hangs(tmp_path, capfd):
    "It answers one message after the other, so that while it hangs it answers nothing; a real process."
    (tmp_path / "chatty.py").write_text(CHATTY)
    tools, _ = mcp_tools([sys.executable, str(tmp_path / "chatty.py")])
    steps = iter(["quick", "hang", "quick"])

    def stand_in(requests):
        name = next(steps, None)
        return [
            {
                "content": "" if name else "Done.",
                "calls": [{"name": name, "arguments": {}}] if name else [],
                "errors": [],
                "text": "",
                "seconds": 0.0,
            }
        ]

    (tmp_path / "mcp.json").write_text(
        json.dumps({"command": sys.executable, "args": [str(tmp_path / "chatty.py")]})
    )
    (tmp_path / "config.yaml").write_text("data: {functions: mcp.json}\nserve: {call_timeout: 2}\n")
    with open_functions(read_config(tmp_path / "config.yaml")) as functions:
        talk = chat_with_tools(stand_in, [{"role": "user", "content": "Go!"}], tools, functions)
    assert [message["content"] for message in talk if message["role"] == "tool"] == [
        "yes",
        "Error: no answer within 2 seconds",
        "yes",
    ] and talk[-1]["content"] == "Done."
    said = capfd.readouterr().err
    assert (
        said.count("\n") == 1
        and "chatty.py` prints on its standard output what is no message" in said
        and said.endswith("The first: loading the prices\n")
    )


@pytest.mark.parametrize(
    "source, words",
    [
        (["no-such-command", "--x"], "`no-such-command --x`.*No such file.*terminal"),
        ([sys.executable, "-c", "raise SystemExit('the key is missing')"], "the key is missing"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "no answer within 1 seconds"),
        (
            [sys.executable, "-c", "print('hello'); import time; time.sleep(60)"],
            "no answer within 1 seconds",
        ),
        ("http://127.0.0.1:9/mcp", "127.0.0.1:9/mcp.*Is it running"),
        ({"url": "http://127.0.0.1:9/mcp", "headers": {"a": "b"}}, "Is it running"),
        ([], "no MCP server"),
        (3, "no MCP server"),
        ({"mcpServers": {}}, "no MCP server"),
        ({"mcpServers": {"a": {}}}, "'a'.*command"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, "'a'.*list"),
        ({"command": 3}, "needed"),
        ({"servers": {"a": {"type": "sse", "url": "http://127.0.0.1:9/sse"}}}, "streamable HTTP"),
        ({"command": sys.executable, "env": 3}, "env"),
    ],
)
def test_servers_that_cannot_be_reached(source, words):
    with pytest.raises(UserError, match=words):
        mcp_tools(source, seconds=1)


def test_a_web_server_that_is_no_mcp_server():
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port := free_port())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            with pytest.raises(UserError, match="ends in /mcp"):
                mcp_tools(f"http://127.0.0.1:{port}/mcp", seconds=5)
        finally:
            process.kill()


def test_files_as_other_programs_write_them(tmp_path, address):
    described = {
        "mcpServers": {
            "shop": {
                "command": sys.executable,
                "args": [str(SERVER), "stdio"],
                "env": {"LANG": "C"},
            }
        }
    }
    (tmp_path / "mcp.json").write_text(json.dumps(described))
    (tmp_path / "one.json").write_text(json.dumps({"command": COMMAND[0], "args": COMMAND[1:]}))
    (tmp_path / "web.json").write_text(
        json.dumps({"servers": {"shop": {"type": "http", "url": address}}})
    )
    for path in (tmp_path / "mcp.json", str(tmp_path / "one.json"), tmp_path / "web.json", address):
        assert [tool["function"]["name"] for tool in read_tools(path)] == NAMES
    with mcp_functions(tmp_path / "mcp.json") as functions:
        assert functions["items"]() == '["tea", "rice"]'
    described["mcpServers"]["again"] = described["mcpServers"]["shop"]
    (tmp_path / "mcp.json").write_text(json.dumps(described))
    assert len(mcp_servers(tmp_path / "mcp.json")) == 2
    with pytest.raises(UserError, match="mcp.json: two tools have the name"):
        read_tools(tmp_path / "mcp.json")
    (tmp_path / "bad.json").write_text(
        json.dumps({"mcpServers": {"a": {"command": "no-such-command"}}})
    )
    with pytest.raises(UserError, match="bad.json.*no-such-command"):
        read_tools(tmp_path / "bad.json")


def test_names_that_a_model_cannot_call_and_tools_beyond_repair(monkeypatch):
    "A stand-in for the connection: the SDK's own server would warn of these names, others do not."
    from contextlib import contextmanager
    from types import SimpleNamespace as Tool

    offered = [
        Tool(
            name="files/read",
            description="Reads.",
            input_schema={"type": "object", "properties": {"path": {"type": "string"}}},
        ),
        Tool(
            name="broken",
            description="",
            input_schema={"type": "object", "properties": {"x": {"type": "datum"}}},
        ),
        Tool(name="plain", description="", input_schema={"type": "object"}),
    ]
    called = []

    def ask(method, name, arguments, seconds):
        called.append(name)
        return Tool(content=[], structured_content=arguments, is_error=False)

    @contextmanager
    def connection(server, seconds):
        yield ask, offered

    monkeypatch.setattr("toolcall_ft.tools.mcp.mcp_connection", connection)
    tools, repairs = mcp_tools(["x"])
    assert (
        [tool["function"]["name"] for tool in tools] == ["files_read", "plain"]
        and any("broken: left out" in repair for repair in repairs)
        and any("'files/read'" in repair for repair in repairs)
    )
    with mcp_functions(["x"]) as functions:
        assert functions["files_read"](path="a") == '{"path": "a"}' and called == ["files/read"]


def test_inside_of_a_running_event_loop():
    import asyncio

    async def main():
        return mcp_tools(COMMAND)

    assert [tool["function"]["name"] for tool in asyncio.run(main())[0]] == NAMES
