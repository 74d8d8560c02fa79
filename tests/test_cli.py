"""The command line: exit codes, sentences, stages that remember, and the whole chain on a small project."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import write_text
from toolcall_ft.cli.doctor import misfit_lines, misfits
from toolcall_ft.cli.errors import explain_error
from toolcall_ft.cli.main import main
from toolcall_ft.cli.pipeline import chain, find_format, make_summary, result_table
from toolcall_ft.cli.project import quiet_start
from toolcall_ft.cli.registry import COMMANDS
from toolcall_ft.cli.serving import write_request
from toolcall_ft.cli.stages import (
    Stage,
    do_stage,
    hold_run,
    is_done,
    read_record,
    run_stages,
    stage_digest,
)
from toolcall_ft.cli.steps import (
    data_notes,
    four_bit_notes,
    function_notes,
    make_data,
    make_inspection,
    make_merged,
    need,
    trained_tools,
)
from toolcall_ft.cli.talk import (
    describe_message,
    drift_notes,
    known_tools,
    open_functions,
    read_own,
)
from toolcall_ft.config import read_config
from toolcall_ft.template.models import model_path
from toolcall_ft.tiny.course import course_config, course_model, course_splits


def run_program(*words, folder, **settings):
    "The program as a user runs it, in a process of its own."
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from toolcall_ft.cli.main import main; sys.exit(main())",
            *words,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        **settings,
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder that `init` has filled, as the working directory."
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    return tmp_path


def test_init_writes_a_project_and_never_overwrites(project, capsys):
    assert sorted(path.name for path in project.iterdir()) == [
        "config.yaml",
        "functions.py",
        "logs.jsonl",
        "tools.json",
    ]
    write_text(project / "logs.jsonl", "mine")
    (project / "tools.json").unlink()
    assert main(["init"]) == 0
    said = capsys.readouterr().out
    assert (project / "logs.jsonl").read_text() == "mine" and (project / "tools.json").exists()
    assert said.count("kept as it was") == 3
    config = read_config("config.yaml")
    assert config["run"].endswith("runs/first") and config["data"]["functions"].endswith(
        "functions.py"
    )


def test_the_header_of_the_first_config_names_what_is_not_a_default(project):
    def leaves(config, prefix=""):
        return {
            key: value
            for name, part in config.items()
            for key, value in (
                leaves(part, f"{prefix}{name}.")
                if isinstance(part, dict)
                else {f"{prefix}{name}": part}
            ).items()
        }

    own, default = leaves(read_config("config.yaml")), leaves(read_config(None))
    changed = {key for key in own if own[key] != default[key]}
    header = Path("config.yaml").read_text().split("\n\n")[0]
    assert changed == {"run", "data.functions", "train.epochs"} == set(
        re.findall(r"run|data\.functions|train\.epochs", header)
    ) and "its default" not in header.replace("has its default", "")


def test_init_says_when_nothing_was_changed(project, capsys):
    assert main(["init"]) == 0 and "Nothing was changed" in capsys.readouterr().out


def test_a_model_that_is_nowhere_is_refused_with_its_line(project, capsys):
    write_text(project / "config.yaml", "run: runs/x\nmodel: tiny-qwen\n")
    assert main(["data"]) == 2
    said = capsys.readouterr().err
    assert "config.yaml, line 2: model: tiny-qwen" in said and "'tiny-qwen2'" in said
    (project / "hollow").mkdir()
    write_text(project / "config.yaml", "model: hollow\n")
    assert (
        main(["data"]) == 2
        and "config.yaml, line 1: model:" in (said := capsys.readouterr().err)
        and "no tokenizer" in said
    )


def test_functions_that_do_not_fit_the_tools_are_noted_and_noted_again(project, capsys):
    write_text(project / "functions.py", "def find_colleague(): return 'nobody'\n")
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert (
        "functions.py has no function book_room" in said
        and "find_colleague does not take the arguments of its tool: got an unexpected keyword"
        in said
    )
    config = read_config("config.yaml")
    run_stages(chain(config)[:1], config)
    again = capsys.readouterr().out
    assert "done already" in again and "functions.py has no function book_room" in again


def test_notes_are_of_today_and_not_of_the_day_of_the_stage(project, capsys, monkeypatch):
    whole = Path("functions.py").read_text()
    write_text(project / "functions.py", "def find_colleague(name): return 'nobody'\n")
    assert (
        main(["data"]) == 0 and "functions.py has no function book_room" in capsys.readouterr().out
    )
    config = read_config("config.yaml")
    write_text(project / "functions.py", whole)
    assert run_stages(chain(config)[:1], config) == []
    said = capsys.readouterr().out
    assert (
        "done already" in said
        and "book_room" not in said
        and "checks of the examples: 0 errors" in said
    )
    assert "notes" not in read_record(config)["data"]["facts"], "what can change is not stored"
    write_text(project / "functions.py", "def find_colleague(:\n")
    assert (
        run_stages(chain(config)[:1], config) == []
        and "functions.py, line 1: the file does not load" in capsys.readouterr().out
    )
    monkeypatch.chdir(project.parent)
    run_stages(chain(config)[:1], config)
    assert f"{project.name}/runs/first/data/checks.md" in capsys.readouterr().out, (
        "a path is told from where one stands"
    )


def test_a_function_answers_a_tool_whose_name_python_cannot_write(project, capsys):
    tools = [
        {
            "name": "track-parcel",
            "parameters": {
                "type": "object",
                "properties": {"from": {"type": "string"}},
                "required": ["from"],
            },
        }
    ]
    write_text(project / "tools.json", json.dumps(tools))
    write_text(
        project / "logs.jsonl",
        "".join(
            json.dumps(
                {
                    "user": f"Where is the parcel from {city}?",
                    "tool_name": "track-parcel",
                    "arguments": {"from": city},
                }
            )
            + "\n"
            for city in "Rome Oslo Bonn Lima Cork Nice Pisa Riga Kyiv Bern".split()
        ),
    )
    write_text(project / "functions.py", "x = 1\n")
    assert (
        main(["data"]) == 0
        and "functions.py has no function track_parcel for the tool track-parcel"
        in capsys.readouterr().out
    )
    config, trained = read_config("config.yaml"), trained_tools(read_config("config.yaml"))
    for text, told in (
        ("def track_parcel(place): pass", "'from': take them all as **arguments"),
        ("def track_parcel(**arguments): return arguments['from']", None),
    ):
        write_text(project / "functions.py", text + "\n")
        notes = function_notes(config, trained) + drift_notes(
            config, {tool["function"]["name"]: tool for tool in trained}
        )
        assert told in notes[0] if told else notes == []
    from toolcall_ft.generate.loop import run_calls

    with open_functions(config) as functions:
        assert run_calls(
            [{"name": "track-parcel", "arguments": {"from": "Rome"}}], functions, trained
        ) == [{"role": "tool", "name": "track-parcel", "content": "Rome"}]


def test_the_tools_offered_are_those_of_most_rows(project):
    config = read_config("config.yaml")
    tools, question, trained = known_tools(config)
    assert (
        trained == {}
        and {tool["function"]["name"] for tool in tools} >= {"book_room", "find_colleague"}
        and question is None
    )
    assert main(["data"]) == 0
    one = [tool for tool in tools if tool["function"]["name"] == "find_colleague"]
    rows = [
        json.loads(line) for line in Path("runs/first/data/test.jsonl").read_text().splitlines()
    ]
    train = Path("runs/first/data/train.jsonl")
    write_text(train, "".join(json.dumps({**row, "tools": one}) + "\n" for row in rows))
    write_text(
        Path("runs/first/data/test.jsonl"),
        "".join(json.dumps({**row, "tools": one}) + "\n" for row in rows),
    )
    tools, question, trained = known_tools(config)
    assert (
        list(trained.values()) == one
        and tools == one
        and question in [row["messages"][0]["content"] for row in rows]
    )


def test_the_data_stage_leaves_a_report_and_strict_stops_on_errors(project, capsys):
    assert main(["data", "--strict"]) == 0
    said = capsys.readouterr().out
    assert "checks of the examples: 0 errors" in said and {
        "checks.md",
        "checks.png",
        "checks.jsonl",
    } <= {path.name for path in Path("runs/first/data").iterdir()}
    lines = [
        {
            "user": "Where does Li Wei sit?",
            "tool_name": "find_colleague",
            "arguments": {"name": name},
            "group": "a",
        }
        for name in ("Li Wei", "Wei Li")
    ]
    write_text(
        project / "logs.jsonl",
        Path("logs.jsonl").read_text() + "".join(json.dumps(line) + "\n" for line in lines),
    )
    assert main(["data"]) == 0
    assert main(["data", "--strict"]) == 2
    assert "contradiction" in capsys.readouterr().err


def test_examples_are_converted_there_and_back(project, capsys):
    write_text(project / "bad.jsonl", Path("logs.jsonl").read_text() + "no JSON\n")
    assert (
        main(["convert", "bad.jsonl", "share.json", "--to", "sharegpt", "--tools", "tools.json"])
        == 0
    )
    assert (
        "108 examples" in capsys.readouterr().out
        and json.loads(Path("share.json.rejected.jsonl").read_text())["line"] == 109
    )
    assert json.loads(Path("dataset_info.json").read_text())["share"]["formatting"] == "sharegpt"
    assert (
        main(["convert", "share.json", "back.jsonl"]) == 0
        and main(["convert", "logs.jsonl", "straight.jsonl", "--tools", "tools.json"]) == 0
    )
    assert Path("back.jsonl").read_bytes() == Path("straight.jsonl").read_bytes()
    assert (
        main(["convert", "logs.jsonl", "x", "--to", "sharegtp", "--tools", "tools.json"]) == 2
        and "'sharegpt'" in capsys.readouterr().err
    )


def test_examples_are_made_from_tools_alone(project, capsys):
    write_text(project / "pools.yaml", "room: [Blue, Red]\n")
    assert main(["synthesise", "rows.jsonl", "--count", "30", "--pools", "pools.yaml"]) == 0
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    made = [
        json.loads(call["function"]["arguments"])
        for row in rows
        for m in row["messages"]
        for call in m.get("tool_calls") or []
        if call["function"]["name"] == "book_room"
    ]
    assert len(rows) == 30 and {call["room"] for call in made} <= {"Blue", "Red"} and made
    write_text(
        project / "config.yaml", "data: {logs: [rows.jsonl], tools: tools.json}\nrun: runs/made\n"
    )
    assert main(["data"]) == 0 and "rejected 0" in capsys.readouterr().out


def test_the_page_shows_every_training_row(project):
    assert main(["data"]) == 0 and main(["inspect", "--n", "1", "--html", "page.html"]) == 0
    rows = len(Path("runs/first/data/train.jsonl").read_text().splitlines())
    assert (
        make_inspection(read_config("config.yaml"))["examples"] == rows
        and Path("page.html").stat().st_size > 10_000
    )


def test_a_call_that_cannot_be_read_is_no_answer():
    said = describe_message({"role": "assistant", "content": '<tool_call>\n{"name": '})
    assert (
        said.startswith("unread")
        and describe_message({"role": "assistant", "content": "Hello"}) == "answer  Hello"
    )
    assert (
        "(the model began a call that cannot be read, so nothing runs: tool call not readable: Expecting value"
        in said
    )
    assert describe_message({"role": "tool", "content": "<tool_call>"}) == "result  <tool_call>"


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    "Makes packages that are installed as far as their metadata go."
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def make(name, version, *needs):
        write_text(
            tmp_path / "site" / f"{name}-{version}.dist-info/METADATA",
            "\n".join(
                [
                    "Metadata-Version: 2.1",
                    f"Name: {name}",
                    f"Version: {version}",
                    *(f"Requires-Dist: {need}" for need in needs),
                ]
            ),
        )

    return make


def test_doctor_compares_versions_with_what_the_packages_ask_for(distribution, monkeypatch, capsys):
    distribution(
        "slothlike",
        "2.0",
        "deeper",
        "gone-package!=1.5,>=1.1",
        "other; extra == 'x'",
        "old-python; python_version < '3'",
    )
    distribution("deeper", "1.0", "newish<=1.15.0", "good>=1", "gone_package<3")
    distribution("newish", "1.16.2")
    distribution("good", "1.0rc1", "slothlike")
    found = misfits(["slothlike", "not-here"])
    assert {(who, str(requirement), here) for who, requirement, here in found} == {
        ("slothlike", "gone-package!=1.5,>=1.1", ""),
        ("deeper", "newish<=1.15.0", "1.16.2"),
        ("deeper", "good>=1", "1.0rc1"),
        ("deeper", "gone_package<3", ""),
    }
    lines = misfit_lines(found)
    assert (
        "deeper needs newish<=1.15.0, and 1.16.2 is here" in lines
        and "slothlike needs gone-package!=1.5,>=1.1, which is missing" in lines
    )
    assert lines[-1].startswith("To get them: pip install ") and "'newish<=1.15.0'" in lines[-1]
    monkeypatch.setattr("toolcall_ft.cli.doctor.EXTRA_OF", {"slothlike": "train"})
    assert (
        main(["doctor"]) == 0
        and "Versions that do not go together:\n  " in (said := capsys.readouterr().out)
        and "Everything for the whole chain" not in said
    )


def test_doctor_advises_what_everybody_can_do(monkeypatch, capsys):
    monkeypatch.setattr("toolcall_ft.serve.vllm_install.find_vllm", lambda: {"version": None})
    assert main(["doctor"]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("serve: vLLM")
    )
    assert "pip install vllm" in line and "in a checkout" in line


def test_sample_tools_are_those_of_the_sample_functions(project):
    from toolcall_ft.tools.load import read_functions, read_tools
    from toolcall_ft.tools.schema import tool_schema

    assert read_tools("tools.json") == [
        tool_schema(function) for function in read_functions("functions.py").values()
    ]


def test_sample_logs_all_become_examples(project, capsys):
    assert main(["data"]) == 0
    parts = {
        part: len(Path(f"runs/first/data/{part}.jsonl").read_text().splitlines())
        for part in ("train", "validation", "test")
    }
    assert (
        sum(parts.values()) == len(Path("logs.jsonl").read_text().splitlines())
        and min(parts.values()) > 0
    )


@pytest.mark.parametrize(
    "words, expected",
    [
        (["data", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train"], "toolcall-ft data"),
        (["merge"], "toolcall-ft"),
        (["export"], "toolcall-ft merge"),
        (["eval", "Q8_0"], "toolcall-ft"),
        (["eval", "Q3_X"], "Q3_X"),
        (["generate", "hi", "--with", "Q3_X"], "There are base"),
        (["generate", " "], "question is empty"),
        (["serve", "--format", "Q3_X"], "Q3_X"),
        (["init", "tools.json"], "cannot be written"),
        (["train", "--config", "taken.yaml"], "no folder can be made"),
        (["serve"], "toolcall-ft export"),
        (["serve", "--runtime", "ollama"], "toolcall-ft export"),
        (["serve", "--runtime", "vllm"], "toolcall-ft merge"),
        (["serve", "--runtime", "vllm", "--format", "Q8_0"], "leave out --format"),
        (["eval", "ollama"], "toolcall-ft data"),
        (["parity"], "toolcall-ft merge"),
        (
            ["parity", "--runtimes", "lama-server"],
            "There are transformers, llama-server, ollama, vllm",
        ),
        (["parity", "--gguf", "model.gguf"], "--hf DIR"),
        (["parity", "--modelfile", "Modelfile"], "--gguf FILE"),
        (["inspect"], "toolcall-ft data"),
        (["chat", "--with", "free"], "toolcall-ft merge"),
    ],
)
def test_what_is_not_there_yet_gets_a_sentence(project, capsys, words, expected):
    write_text("taken.yaml", "run: tools.json/run")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("toolcall-ft: ") and expected in error and "Traceback" not in error


def test_a_count_is_one_or_more(project, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "--n", "0"])
    assert "1 or more" in capsys.readouterr().err


def test_no_config_names_the_command_that_makes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 2
    assert "toolcall-ft init" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("logs.jsonl", "", "logs.jsonl"),
        ("logs.jsonl", "no json\n", "logs.jsonl"),
        ("tools.json", "[", "tools.json"),
        ("config.yaml", "train: {epoch: 3}\n", "epoch"),
        ("config.yaml", "model: no/such/model/folder\n", "model"),
    ],
)
def test_bad_files_are_a_users_mistake_in_a_real_process(project, name, content, expected):
    write_text(project / name, content)
    if name == "config.yaml" and "model" in content:
        (
            (project / "runs/demo/data").mkdir(parents=True),
            write_text(project / "runs/demo/data/train.jsonl", ""),
        )
    finished = run_program("inspect" if "model" in content else "data", folder=project)
    assert finished.returncode == 2, finished.stderr
    assert expected in finished.stderr and "Traceback" not in finished.stderr


def test_a_model_of_the_hub_without_network_gets_a_sentence(project):
    assert main(["data"]) == 0
    write_text(
        project / "config.yaml",
        (project / "config.yaml")
        .read_text()
        .replace("model: tiny-qwen2", "model: nobody/no-such-model"),
    )
    finished = run_program(
        "inspect",
        folder=project,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(project / "empty")},
    )
    assert finished.returncode == 2 and "Traceback" not in finished.stderr, finished.stderr
    assert "no-such-model" in finished.stderr or "no network" in finished.stderr


@pytest.fixture
def rude_hub():
    "A hub that hangs up on everybody: its address, and a list that grows by one with every connection."
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                connections.append(client)
                client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_hub_that_does_not_answer_is_asked_once(project, rude_hub):
    address, connections = rude_hub
    write_text(project / "config.yaml", "model: nobody/no-such-model\n")
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(project / "empty"),
        "no_proxy": "127.0.0.1",
    }
    said = f"toolcall-ft: the model nobody/no-such-model is not on this machine, and {address} cannot be reached ("
    assert (
        run_program("data", folder=project, env={**env, "HF_ENDPOINT": address}).returncode == 0
        and len(connections) == 1
    )
    for words in (["inspect"], ["eval", "base"]):
        connections.clear()
        finished = run_program(*words, folder=project, env={**env, "HF_ENDPOINT": address})
        assert (
            finished.returncode == 2
            and finished.stderr.startswith(said)
            and finished.stderr.count("\n") == 1
        ), finished.stderr
        assert len(connections) == 1, "the libraries by themselves ask more than fifty times"
    nowhere = "http://hub.invalid"
    finished = run_program("inspect", folder=project, env={**env, "HF_ENDPOINT": nowhere})
    assert finished.returncode == 2 and f"{nowhere} cannot be reached ([Errno -" in finished.stderr
    assert "hf-mirror.com" in finished.stderr and finished.stderr.count("\n") == 1


def test_a_model_that_was_fetched_before_needs_no_hub(project, rude_hub):
    "The folders that the hub's library leaves; one without weights and a whole one."
    address, connections = rude_hub
    from toolcall_ft.template.models import model_path

    for name, files in (("half", "*token*"), ("whole", "*")):
        snapshot = project / f"cache/hub/models--somebody--{name}/snapshots/{'0' * 40}"
        snapshot.mkdir(parents=True)
        for file in (
            *Path(model_path("tiny-qwen2")).glob(files),
            *Path(model_path("tiny-qwen2")).glob("*.jinja"),
            Path(model_path("tiny-qwen2"), "config.json"),
        ):
            shutil.copy(file, snapshot)
        write_text(snapshot.parents[1] / "refs/main", "0" * 40)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(project / "cache"),
        "HF_ENDPOINT": address,
        "no_proxy": "127.0.0.1",
    }
    code = "from toolcall_ft.generate.model import load_model\nfrom toolcall_ft.base.errors import UserError\nmodel, tokenizer = load_model('somebody/whole')\nprint(model.num_parameters())\ntry: load_model('somebody/half')\nexcept UserError as error: print(error)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert finished.returncode == 0 and len(connections) == 4, finished.stderr
    lines = finished.stdout.splitlines()
    assert (
        int(lines[0]) > 4_000_000
        and lines[1].startswith("the model somebody/half is not on this machine")
        and len(lines) == 2
    )


def test_trouble_of_the_machine_gets_a_sentence(project, monkeypatch, capsys):
    def full(config):
        raise OSError(errno.ENOSPC, "No space left on device", "weights")

    monkeypatch.setattr("toolcall_ft.cli.pipeline.make_data", full)
    assert main(["data"]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert "port" in explain_error(OSError(errno.EADDRINUSE, "Address already in use"))
    assert "no network" in explain_error(
        ConnectionError("We couldn't connect to 'https://example.org' to load the files")
    )


def test_a_full_disk_is_found_behind_another_error():
    error = RuntimeError("I/O error")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in explain_error(error)


def test_a_reader_that_stops_is_no_error(project):
    assert main(["data"]) == 0
    code = f"{sys.executable} -c 'import sys; from toolcall_ft.cli.main import main; sys.exit(main())' inspect --n 20 | head -n 1; echo ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert finished.stdout.split()[-1] == "0" and finished.stderr == ""


def test_a_bug_keeps_its_traceback(project, monkeypatch):
    def bug(config):
        raise ZeroDivisionError

    monkeypatch.setattr("toolcall_ft.cli.pipeline.make_data", bug)
    with pytest.raises(ZeroDivisionError):
        main(["data"])


def test_ctrl_c_is_130_and_the_next_run_goes_on(project, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("toolcall_ft.cli.pipeline.make_inspection", interrupted)
        assert main(["run"]) == 130
    assert "Finished stages are kept" in capsys.readouterr().err
    config = read_config("config.yaml")
    assert list(read_record(config)) == ["data"]
    assert is_done(chain(config)[0], config) and not is_done(chain(config)[1], config)


def toy_stages(run):
    "Two stages; the second depends on the first and on a setting."

    def first(config):
        write_text(run / "first.txt", (run / "input.txt").read_text())

    def second(config):
        write_text(run / "second.txt", (run / "first.txt").read_text() * config["own"]["times"])

    return [
        Stage("first", first, ("first.txt",), files=lambda config: [run / "input.txt"]),
        Stage("second", second, ("second.txt",), ("first.txt",), ("own",)),
    ]


@pytest.fixture
def toy(tmp_path):
    write_text(tmp_path / "input.txt", "a")
    return toy_stages(tmp_path), {"run": str(tmp_path), "seed": 0, "own": {"times": 2}}


def test_a_stage_runs_again_when_and_only_when_something_changed(toy):
    stages, config = toy
    run = Path(config["run"])
    assert run_stages(stages, config) == ["first", "second"]
    assert run_stages(stages, config) == []
    (run / "second.txt").unlink()
    assert run_stages(stages, config) == ["second"]
    write_text(run / "input.txt", "b")
    assert run_stages(stages, config) == ["first", "second"]
    assert (run / "second.txt").read_text() == "bb"
    config["seed"] = 1
    assert run_stages(stages, config) == ["first", "second"]


def test_doing_an_early_stage_again_makes_the_later_ones_old_only_if_it_gave_something_new(toy):
    stages, config = toy
    run_stages(stages, config)
    do_stage(stages[0], config)
    assert run_stages(stages, config) == []
    write_text(Path(config["run"]) / "first.txt", "edited by hand")
    assert run_stages(stages, config) == ["second"]


def test_data_again_on_the_same_logs_trains_nothing_again(project):
    config = read_config("config.yaml")
    run_stages(chain(config)[:1], config)
    for stage in chain(config)[1:]:
        for path in stage.makes:
            write_text(Path(config["run"]) / path, "")
        do_stage(stage._replace(function=lambda config: {}, notes=lambda config, facts: []), config)
    before = {
        name: (Path(config["run"]) / "data" / name).read_bytes()
        for name in ("train.jsonl", "checks.jsonl", "sources.jsonl", "rejected.jsonl")
    }
    assert main(["data"]) == 0
    assert before == {
        name: (Path(config["run"]) / "data" / name).read_bytes() for name in before
    } and all(is_done(stage, config) for stage in chain(config))
    write_text("logs.jsonl", Path("logs.jsonl").read_text() + "no JSON\n")
    assert [stage.name for stage in chain(config) if not is_done(stage, config)] == ["data"]
    assert main(["data"]) == 0 and all(is_done(stage, config) for stage in chain(config)), (
        "the rows are the same"
    )
    write_text("logs.jsonl", "\n" + Path("logs.jsonl").read_text())
    assert main(["data"]) == 0 and is_done(
        next(stage for stage in chain(config) if stage.name == "train"), config
    ), "only the lines are others"


def test_a_stage_that_fails_is_not_recorded_and_the_record_survives(toy):
    stages, config = toy

    def fail(config):
        raise UserError("no")

    with pytest.raises(UserError):
        run_stages([stages[0], stages[1]._replace(function=fail)], config)
    assert list(read_record(config)) == ["first"]
    assert run_stages(stages, config) == ["second"]


def test_a_broken_record_means_everything_again(toy):
    stages, config = toy
    run_stages(stages, config)
    write_text(Path(config["run"]) / "stages.json", "{")
    assert run_stages(stages, config) == ["first", "second"]


def test_a_second_process_is_told_that_the_run_is_taken(project):
    with hold_run(read_config("config.yaml")):
        finished = run_program("data", folder=project)
    assert finished.returncode == 2 and "another toolcall-ft" in finished.stderr
    assert run_program("data", folder=project).returncode == 0


def test_new_export_formats_leave_the_training_alone(project):
    config = read_config("config.yaml")

    def finish(config):
        "Pretend that every stage ran."
        for stage in chain(config):
            for path in stage.makes:
                write_text(Path(config["run"]) / path, "")
            do_stage(
                stage._replace(function=lambda config: {}, notes=lambda config, facts: []), config
            )

    finish(config)
    assert all(is_done(stage, config) for stage in chain(config))
    config["export"]["formats"] = ["F16"]
    assert {stage.name for stage in chain(config) if not is_done(stage, config)} == {"export"}

    def export(config):
        (
            (Path(config["run"]) / "gguf").unlink(),
            write_text(Path(config["run"]) / "gguf/model-F16.gguf", "other weights"),
        )

    do_stage(chain(config)[-2]._replace(function=export), config)
    assert {stage.name for stage in chain(config) if not is_done(stage, config)} == {"F16"}
    (Path(config["run"]) / "gguf/model-F16.gguf").unlink(), (Path(config["run"]) / "gguf").rmdir()
    finish(config)
    config["train"]["epochs"] = 9
    assert {stage.name for stage in chain(config) if not is_done(stage, config)} >= {"train"}
    assert is_done(chain(config)[2], config)  # the base was measured before the training


def fake_report(share):
    return {
        "n": 10,
        "exact": share,
        "exact_interval": [0, 1],
        "tool": share,
        "args": None,
        "failures": [{"text": "x"}],
    }


def test_missing_files_and_shares_are_refused_with_their_line(project, capsys):
    for text, words in (
        ("data:\n  logs: [gone.jsonl]\n", "config.yaml, line 2: data.logs: there is no gone.jsonl"),
        ("data:\n  tools: gone.json\n", "config.yaml, line 2: data.tools: there is no gone.json"),
        (
            "data:\n  test: 0.5\n  validation: 0.5\n",
            "config.yaml, line 2: data.validation 0.5 and data.test 0.5",
        ),
        (
            "data:\n  validation: 0.9\n",
            "config.yaml, line 1: data.validation 0.9 and data.test 0.2",
        ),
    ):
        write_text("config.yaml", text)
        for command in ("data", "run"):
            assert main([command]) == 2 and words in capsys.readouterr().err, text
    Path("logs.jsonl").unlink()
    write_text("config.yaml", "run: runs/x\n")
    assert (
        main(["data"]) == 2
        and "config.yaml: data.logs (by default): there is no logs.jsonl" in capsys.readouterr().err
    )


def test_chat_says_when_todays_tools_are_not_those_of_the_training(project, capsys):
    config = read_config("config.yaml")
    read_own(config)
    assert capsys.readouterr().out == "" and main(["data"]) == 0
    capsys.readouterr()
    read_own(config)
    assert capsys.readouterr().out == ""
    tools = json.loads(Path("tools.json").read_text())
    tools[0]["function"]["description"] += " Now."
    write_text("tools.json", json.dumps([*tools, {"name": "water_plants", "parameters": {}}]))
    write_text(
        "functions.py", Path("functions.py").read_text() + "\ndef call_taxi(): return 'yes'\n"
    )
    read_own(config)
    said = capsys.readouterr().out
    assert (
        "water_plants: the model was not trained on it" in said
        and "call_taxi: the model was not trained" in said
        and "its description in tools.json is another" in said
    )


def test_shared_values_and_other_reasons_are_told_once_and_counted_as_in_the_report(
    project, capsys
):
    lines = [
        {"user": f"{ask} {name}", "tool_name": "find_colleague", "arguments": {"name": name}}
        for name, words in (
            ("Li Wei", "find seek call want need show reach"),
            ("Ada Moreau", "where ring fetch meet ask greet phone"),
        )
        for ask in words.split()
    ]
    write_text(
        "logs.jsonl",
        "".join(json.dumps(line) + "\n" for line in lines)
        + "".join(
            json.dumps({"user": "u", "tool_name": f"x{i}{i}", "arguments": {}}) + "\n"
            for i in range(12)
        ),
    )
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert (
        said.count(
            "note: values in more than one split (1), because a split or a tool would have too few rows otherwise: 'Li Wei' (train "
        )
        == 1
    )
    assert (
        "| shared on purpose | 1: validation 1 |" in Path("runs/first/data/checks.md").read_text()
        and "leaked value" not in said
    )
    assert "4 tool_name: other reasons" in said
    found = [
        json.loads(line) for line in Path("runs/first/data/checks.jsonl").read_text().splitlines()
    ]
    leaked = next(f for f in found if f["kind"] == "shared on purpose")
    row = json.loads(
        Path(f"runs/first/data/{leaked['split']}.jsonl").read_text().splitlines()[leaked["row"] - 1]
    )
    assert (
        leaked["source"]
        == f"logs.jsonl, line {1 + [line['user'] for line in lines].index(row['messages'][0]['content'])}"
    )


def test_the_backend_starts_without_a_word_before_the_first_line(capsys):
    with quiet_start():
        print("no GPU")
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="it cannot"):
        with quiet_start():
            raise UserError("it cannot")


def test_the_runtime_of_the_configuration_is_one_of_three(project, capsys):
    assert read_config("config.yaml")["serve"]["runtime"] == "llama-server"
    write_text("config.yaml", "serve:\n  runtime: lamma\n")
    assert (
        main(["serve"]) == 2
        and "config.yaml, line 2: serve.runtime: 'lamma' is not one of llama-server, ollama, vllm"
        in capsys.readouterr().err
    )


def test_what_the_runtimes_scored_stands_in_the_table(project):
    write_text("runs/first/eval/ollama.json", json.dumps(fake_report(0.5)))
    assert "| in Ollama | 50.0 % |" in result_table(make_summary(read_config("config.yaml")))


def test_a_template_that_cannot_be_made_portable_is_a_note_and_no_failure(project, monkeypatch):
    def refuse(*arguments):
        raise UserError("of another family")

    def merged(*arguments, **options):
        return {"probe_tokens": 1}

    monkeypatch.setattr("toolcall_ft.template.portable.make_portable", refuse)
    monkeypatch.setattr("toolcall_ft.train.merge.merge_adapter", merged)
    assert main(["data"]) == 0
    (project / "runs/first/adapter").mkdir()
    facts = make_merged(read_config("config.yaml"))
    assert (
        facts["probe_tokens"] == 1
        and "stays as it is" in facts["notes"][0]
        and "of another family" in facts["notes"][0]
    )


def test_an_importance_matrix_is_made_of_the_training_rows_or_not_read_at_all(project):
    config = read_config("config.yaml")
    export = {stage.name: stage for stage in chain(config)}["export"]
    assert export.reads == ("merged",)
    config["export"]["imatrix"] = True
    assert {stage.name: stage for stage in chain(config)}["export"].reads == (
        "merged",
        "data/train.jsonl",
    )


def test_ollama_without_llama_cpp_is_told_what_to_do_first(project):
    finished = run_program(
        "ollama",
        folder=project,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(project),
            "HOME": str(project),
            "PATH": "/nowhere",
        },
    )
    assert (
        finished.returncode == 2
        and "llama" in finished.stderr
        and "Traceback" not in finished.stderr
    )


def test_summary_has_the_promised_keys(project):
    config = read_config("config.yaml")
    for name in ("base", "free", "constrained", "F16", "Q4_K_M"):
        write_text(Path(config["run"]) / "eval" / f"{name}.json", json.dumps(fake_report(0.5)))
    write_text(
        Path(config["run"]) / "stages.json", json.dumps({"train": {"seconds": 1.5, "facts": {}}})
    )
    summary = make_summary(config)
    assert {"base", "free", "constrained", "gguf", "seconds", "seed", "versions"} <= set(summary)
    assert list(summary["gguf"]) == ["F16", "Q4_K_M"] and summary["seconds"] == {"train": 1.5}
    assert all(
        {"exact", "tool", "args", "n"} <= set(report) and "failures" not in report
        for report in (summary["base"], *summary["gguf"].values())
    )
    assert summary["versions"]["toolcall-ft"] and summary["versions"]["torch"]
    assert json.loads((Path(config["run"]) / "summary.json").read_text()) == summary
    assert "–" in result_table(summary)


def test_need_names_the_command(project):
    with pytest.raises(UserError, match="toolcall-ft merge"):
        need(read_config("config.yaml"), "merged", "merge")


def test_doctor_says_what_will_be_used(project, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert all(
        words in said
        for words in (
            "train: LoRA",
            "serve: llama-server",
            "serve: Ollama (optional)",
            "serve: vLLM (optional)",
            "FP8, INT8, AWQ, GPTQ (optional)",
        )
    )
    assert "CPU" in said or "GPU" in said


def test_every_command_has_help(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0 and "usage: toolcall-ft" in capsys.readouterr().out


def test_generate_and_chat_with_the_base_model(project):
    finished = run_program("generate", "Find Ada Moreau", "--with", "base", folder=project)
    assert finished.returncode == 0 and "without tools:" in finished.stdout, finished.stderr
    finished = run_program("chat", "--with", "base", folder=project, input="Find Ada Moreau\n\n")
    assert finished.returncode == 0 and "2 tools: book_room, find_colleague" in finished.stdout, (
        finished.stderr
    )


def test_the_whole_chain_on_a_small_project(project):
    config = (
        (project / "config.yaml")
        .read_text()
        .replace("epochs: 3", "epochs: 1")
        .replace("[F16, Q8_0, Q4_K_M, Q4_0]", "[Q8_0]")
        .replace("limit: null", "limit: 4")
    )
    write_text(
        project / "config.yaml",
        config.replace("max_new_tokens: 160", "max_new_tokens: 40").replace(
            "imatrix: false", "imatrix: true"
        ),
    )
    finished = run_program("run", folder=project)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((project / "runs/first/summary.json").read_text())
    assert summary["base"]["n"] == summary["gguf"]["Q8_0"]["n"] == 4
    assert set(summary["seconds"]) == {
        "data",
        "inspect",
        "base",
        "train",
        "merge",
        "free",
        "constrained",
        "export",
        "Q8_0",
    }
    for path in (
        "adapter",
        "merged/model.safetensors",
        "gguf/model-Q8_0.gguf",
        "Modelfile",
        "inspect.html",
        "curves.png",
        "eval/free.html",
    ):
        assert (project / "runs/first" / path).exists(), path
    assert "| Q8_0 in llama-server |" in finished.stdout and "Talk to it:" in finished.stdout
    assert json.loads((project / "runs/first/gguf/export.json").read_text())["imatrix"]
    template = (project / "runs/first/merged/chat_template.jinja").read_text()
    assert "book_room" in template, "the tools of the run are written into it"
    finished = run_program(
        "parity", "--runtimes", "transformers,llama-server", "--answers", "2", folder=project
    )
    assert finished.returncode == 0 and re.search(
        r"\nllama-server: prompts (\d+) of \1; calls 2 of 2\.\n$", finished.stdout
    ), finished.stdout + finished.stderr
    assert list(json.loads((project / "runs/first/parity.json").read_text())["runtimes"]) == [
        "training row",
        "Transformers",
        "llama-server",
    ]
    again = run_program("run", folder=project)
    assert again.returncode == 0 and again.stdout.count("done already") == 9


def spoilt(project, bad, good=28):
    "The sample's first lines, and some that call a tool with a wrong argument."
    lines = (project / "logs.jsonl").read_text().splitlines()[:good]
    wrong = json.dumps(
        {
            "user": "Book Oak",
            "tool_name": "book_room",
            "arguments": {"room": 7, "day": "Monday", "people": 2},
        }
    )
    write_text("logs.jsonl", "\n".join([*lines, *[wrong] * bad]) + "\n")


@pytest.mark.parametrize("command", ["data", "run"])
def test_too_many_rejected_records_stop_the_run_before_training(project, capsys, command):
    "It trained on 19 rows after 92 of 120 records were rejected, with exit code 0."
    spoilt(project, 92)
    assert main([command]) == 2
    said, run = capsys.readouterr(), project / "runs/first"
    assert (
        "92 of 120 records cannot be used" in said.err
        and "    92 arguments.room: " in said.err
        and "rejected.jsonl" in said.err
        and "train …" not in said.out
    )
    assert (
        len((run / "data/rejected.jsonl").read_text().splitlines()) == 92
        and (run / "data/train.jsonl").exists()
        and not (run / "stages.json").exists()
    )
    assert main([command]) == 2, "and the second time as well"


def test_the_loss_is_said_again_at_the_end_of_a_run(project, monkeypatch, capsys):
    spoilt(project, 20)
    monkeypatch.setattr(
        "toolcall_ft.cli.project.chain",
        lambda config: [Stage("data", make_data, ("data/train.jsonl",), notes=data_notes)],
    )
    assert main(["run"]) == 0
    said = capsys.readouterr().out
    loss = "20 of 48 records were left out; each is in runs/first/data/rejected.jsonl"
    assert (
        said.count(loss) == 2
        and loss in said.partition("summary.json")[2].partition("Talk to it")[0]
        and "    20 arguments.room: " in said.partition("summary.json")[2]
    )


def test_a_share_is_no_more_than_all(project, capsys):
    write_text("config.yaml", "data:\n  max_rejected: 20\n")
    assert (
        main(["data"]) == 2
        and "config.yaml, line 2: data.max_rejected: 20.0 is no share" in capsys.readouterr().err
    )


def test_thoughts_for_a_model_that_has_no_place_for_them_are_told(project, capsys):
    lines = (project / "logs.jsonl").read_text().splitlines()
    thought = {
        "messages": [
            {"role": "user", "content": "Where is Ann?"},
            {"role": "assistant", "content": "I do not know.", "reasoning_content": "Hm."},
        ]
    }
    write_text("logs.jsonl", "\n".join([*lines, json.dumps(thought)]) + "\n")
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert "put before the answer in <think>: reasoning_content (1)" in said
    assert (
        f"1 of {len(lines) + 1} examples hold thoughts (<think>), and the template of tiny-qwen2 has no place for them"
        in said
    )


def test_the_tools_stand_below_the_results_where_the_reports_count_them():
    report = {
        **fake_report(0.5),
        "tools": {"book_room": {"right": 3, "n": 6}, "never": {"right": 0, "n": 0}},
    }
    table = result_table({"base": fake_report(0.1), "free": report, "gguf": {}})
    assert "| after LoRA | 50.0 % |" in table and table.endswith(
        "| book_room | 6 | 50.0 % |\n| never | 0 | never tested |"
    )
    assert "each tool" not in result_table({"base": fake_report(0.1), "gguf": {}}), (
        "the summary of an earlier version"
    )


def test_the_sample_tests_both_of_its_tools(project):
    "All 48 rows of book_room went to training, and `right tool 100 %` had not seen them."
    assert main(["data"]) == 0
    tools = read_record(read_config("config.yaml"))["data"]["facts"]["tools"]
    assert (
        all(row["test"] >= 3 and row["train"] >= 5 for row in tools.values())
        and tools["book_room"]["test"] >= 5
    )


def test_a_report_on_no_requests_is_a_row_without_figures():
    nothing = {"exact": None, "exact_interval": None, "tool": None, "args": None, "n": 0}
    assert "| before training | – | 0.0 to 100.0 | – | – | 0 |" in result_table(
        {"base": nothing, "gguf": {}}
    )


def test_a_server_that_dies_leaves_no_figure_behind(project, monkeypatch):
    from contextlib import contextmanager

    from toolcall_ft.serve.client import openai_client
    from toolcall_ft.serve.server import free_port

    @contextmanager
    def nobody(config, name):
        yield openai_client(f"http://127.0.0.1:{free_port()}")

    monkeypatch.setattr("toolcall_ft.cli.pipeline.open_predictor", nobody)
    assert main(["data"]) == 0
    config = read_config("config.yaml")
    stage = next(stage for stage in chain(config) if stage.name == "Q8_0")
    with pytest.raises(UserError, match="nothing was measured"):
        do_stage(stage, config)
    assert not is_done(stage, config) and not (project / "runs/first/eval/Q8_0.json").exists()


@pytest.mark.parametrize(
    "key, stages",
    [
        ("context: 4096", {"export", "Q8_0", "ollama"}),
        ("max_new_tokens: 160", {"base", "free", "Q8_0", "ollama"}),
    ],
)
def test_what_depends_on_a_setting_runs_again(project, key, stages):
    before, text = read_config("config.yaml"), (project / "config.yaml").read_text()
    assert key in text
    write_text("config.yaml", text.replace(key, key[:-1] + "8"))
    changed = {
        stage.name
        for stage in chain(before, ("ollama",))
        if stage_digest(stage, before) != stage_digest(stage, read_config("config.yaml"))
    }
    assert stages <= changed and not changed & {"data", "train", "merge"}


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_question_to_try_is_found_with_a_system_message_too(project, system):
    config = read_config("config.yaml")
    config["data"]["system"] = system
    assert make_data(config)["train"]
    question = known_tools(config)[1]
    server = SimpleNamespace(model="m", asks={"reasoning_effort": "none"})
    request = write_request(config, server).read_text()
    assert question and request.count(question) and json.loads(request)["reasoning_effort"] == "none"


def test_parity_that_compared_no_server_is_a_fault(project, monkeypatch, capsys):
    config = read_config("config.yaml")
    for path in ("merged/config.json", "gguf/model-F16.gguf", "data/test.jsonl"):
        write_text(project / "runs/first" / path, "")
    report = {
        "runtimes": {
            "training row": {"prompts": {"test": [1, 1], "hard": [1, 1]}, "differences": []}
        },
        "missing": {"vLLM": "vLLM is not here"},
        "refused": [],
        "cases": {"test": 1, "turns": 1},
    }
    monkeypatch.setattr(
        "toolcall_ft.parity.measure.measure_parity",
        lambda *arguments: {**report, "max_differing": arguments[-1]},
    )
    assert main(["parity", "--runtimes", "vllm"]) == 1
    assert (
        "nothing was compared" in (said := capsys.readouterr().out)
        and "vLLM: was asked for and is not here" in said
    )
    report["runtimes"]["Transformers"] = report["runtimes"]["training row"]
    assert main(["parity"]) == 1 and "no server was compared" in capsys.readouterr().out
    assert (
        main(["parity", "--runtimes", "transformers"]) == 1
    )  # vLLM is missing in this report, too
    report["missing"] = {}
    assert (
        main(["parity", "--runtimes", "transformers"]) == 0
        and "Transformers: prompts 2 of 2.\nThe answers of two runtimes were not compared.\n"
        in capsys.readouterr().out
    )
    report["runtimes"]["llama-server"] = {
        **report["runtimes"]["Transformers"],
        "calls": [1, 1],
        "differing": [],
    }
    assert main(["parity"]) == 0 and capsys.readouterr().out.endswith(
        "\nllama-server: prompts 2 of 2; calls 1 of 1.\n"
    )
    found = {
        "case": "test 1",
        "same calls": False,
        "answers": ["f({})", "g({})"],
        "words": "token 3: 'f' or 'g'",
        "margin": 3.5,
        "tokens": "",
        "verdict": "unexplained",
    }
    report["runtimes"]["llama-server"] |= {"calls": [26, 30], "differing": [found] * 4}
    assert (
        main(["parity"]) == 1
        and "calls 26 of 30; 4 unexplained." in (said := capsys.readouterr().out)
        and said.count("| test 1 | llama-server |") == 4
    )
    assert (
        main(["parity", "--max-differing", "3"]) == 1
        and main(["parity", "--max-differing", "4"]) == 0
    )
    report["runtimes"]["llama-server"]["differing"] = [
        {**found, "margin": 0.01, "verdict": "near tie"}
    ] * 4
    assert (
        main(["parity"]) == 0
        and "calls 26 of 30; 4 near ties (margin 0.010 at most)." in capsys.readouterr().out
    )
    with pytest.raises(SystemExit):
        main(["parity", "--answers", "-1"])
    assert "0 or more is needed" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_made_gets_a_sentence(project, capsys):
    assert main(["checkpoint", "FP8"]) == 2 and "toolcall-ft merge" in capsys.readouterr().err
    write_text(project / "runs/first/merged/config.json", "{}")
    write_text(project / "runs/first/data/train.jsonl", "")
    assert (
        main(["checkpoint", "FP9"]) == 2
        and "there are FP8, INT8, GPTQ, AWQ" in capsys.readouterr().err
    )
    assert (
        main(["serve", "--runtime", "vllm", "--format", "Q8_0"]) == 2
        and "not a GGUF file" in capsys.readouterr().err
    )


def test_doctor_shows_the_table_though_one_program_is_set_wrong(project, monkeypatch, capsys):
    monkeypatch.setenv("TOOLCALL_FT_VLLM", "/nowhere")
    assert main(["doctor"]) == 0 and "no Python with vLLM" in capsys.readouterr().out


def test_a_checkpoint_of_an_earlier_model_is_not_served(project, capsys):
    for path in ("merged/config.json", "checkpoints/FP8/checkpoint.json"):
        write_text(project / "runs/first" / path, "{}")
    write_text(
        project / "runs/first/stages.json", json.dumps({"merge": {"finished": time.time() - 10}})
    )
    os.utime(project / "runs/first/checkpoints/FP8/checkpoint.json", (0, 0))
    assert (
        main(["serve", "--runtime", "vllm", "--format", "FP8"]) == 2
        and "Make it again with: toolcall-ft checkpoint FP8" in capsys.readouterr().err
    )
    os.utime(project / "runs/first/checkpoints/FP8/checkpoint.json")
    assert (
        main(["serve", "--runtime", "vllm", "--format", "FP8"]) == 2
        and "Make it again" not in capsys.readouterr().err
    )  # but it is no model


def test_a_gguf_of_an_earlier_model_is_not_served(project, capsys):
    run = project / "runs/first"
    for path in ("merged/config.json", "gguf/model-Q8_0.gguf", "Modelfile"):
        write_text(run / path, "{}")
    record = lambda merged, digest="": write_text(
        run / "stages.json",
        json.dumps({"export": {"finished": 100, "digest": digest}, "merge": {"finished": merged}}),
    )
    config = read_config("config.yaml")
    record(99)
    assert find_format(config).endswith("model-Q8_0.gguf")
    record(101)
    assert (
        main(["serve"]) == 2
        and "is older than the merged model. Make it again with: toolcall-ft export"
        in capsys.readouterr().err
    )
    record(
        101, stage_digest(next(stage for stage in chain(config) if stage.name == "export"), config)
    )  # merged again, and it came to the same
    assert find_format(config).endswith("model-Q8_0.gguf")


@pytest.mark.parametrize(
    "key, value, again",
    [
        ("report_to", "tensorboard", False),
        ("save_steps", 7, False),
        ("weight_decay", 0.1, True),
        ("lora_targets", ["q_proj"], True),
        ("four_bit", True, True),
    ],
)
def test_only_a_key_that_changes_the_result_makes_training_run_again(project, key, value, again):
    config = read_config("config.yaml")
    stage = next(stage for stage in chain(config) if stage.name == "train")
    before = stage_digest(stage, config)
    config["train"][key] = value
    assert (stage_digest(stage, config) != before) == again


def test_a_merge_into_whole_weights_says_how_many_answers_it_changed(tmp_path, monkeypatch):
    "The course's adapter beside 4-bit weights, as QLoRA trains it, and merged: bitsandbytes answers on a processor, too."
    monkeypatch.setenv("TOOLCALL_FT_RUNS", str(tmp_path))
    config = course_config()
    course_splits(config), course_model(config)
    assert four_bit_notes(config) == []
    monkeypatch.setattr("toolcall_ft.cli.steps.ASKED", 12)
    shipped = Path(sys.modules["toolcall_ft"].__file__).parent / "course" / "adapter"
    shutil.copytree(shipped, Path(config["run"], "adapter"))
    config["train"]["four_bit"] = True

    def count():
        (said,) = four_bit_notes(config)
        return tuple(map(int, re.search(r"(\d+) of (\d+) test requests", said).groups()))

    # how many a merge changes is a matter of rounding: none on one processor, some on another
    changed, asked = count()
    assert asked == 12 and changed < 12
    merged = Path(config["run"], "merged")
    shutil.rmtree(merged)
    shutil.copytree(model_path("tiny-qwen2"), merged)
    assert count()[0] > changed, "the untrained model in its place answers otherwise"
