"""The data module: bad records, honest splits, exact files."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import disk_errors, read_jsonl, replace_folder, write_jsonl, write_text
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.config import CHOICES, read_config
from toolcall_ft.data.examples import build_example, read_examples
from toolcall_ft.data.logs import REASONS, contradictions, count_reasons
from toolcall_ft.data.prepare import prepare_data
from toolcall_ft.data.split import (
    group_examples,
    measure_leakage,
    open_values,
    phrasing,
    request_keys,
    shared_links,
    split_examples,
    split_rows,
)
from toolcall_ft.data.store import from_dataset, to_dataset
from toolcall_ft.data.turns import RecordError
from toolcall_ft.export.formats import GGUF_TYPES
from toolcall_ft.tools.clean import clean_tools

EXAMPLES = Path(__file__).parent.parent / "examples"
TOOLS, _ = clean_tools(
    [
        {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
        {
            "name": "find_food",
            "parameters": {
                "properties": {
                    "place": {"type": "string"},
                    "sort_by": {"type": "string", "enum": ["rating", "price"]},
                }
            },
        },
    ]
)
GOOD = {"user": "查一下北京的天气", "tool_name": "get_weather", "arguments": {"city": "北京"}}


def read(tmp_path, text, name="logs.jsonl", **options):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_examples(tmp_path / name, TOOLS, **options)


def config_of(tmp_path, records, **data):
    write_jsonl(tmp_path / "logs.jsonl", records)
    write_text(tmp_path / "tools.json", dump_json(TOOLS))
    write_text(tmp_path / "config.yaml", "run: run\n")
    config = read_config(tmp_path / "config.yaml")
    return {**config, "data": {**config["data"], **data}}


# --- Records -------------------------------------------------------------------------------------------------------------

BAD = [
    ("{no json", "record"),
    ("[]", "record"),
    ("null", "record"),
    ('"text"', "record"),
    ("{}", "record"),
    ('{"user": 3, "answer": "x"}', "user"),
    ('{"user": "u"}', "tool_name"),
    ('{"user": "u", "tool_name": "", "arguments": {}}', "tool_name"),
    ('{"user": "u", "tool_name": "nope", "arguments": {}}', "tool_name"),
    ('{"user": "u", "tool_name": "get_weather"}', "arguments"),
    ('{"user": "u", "tool_name": "get_weather", "arguments": {"town": "x"}}', "arguments.city"),
    ('{"user": "u", "tool_name": "get_weather", "arguments": "{"}', "arguments"),
    ('{"user": "u", "tool_name": "get_weather", "arguments": [1]}', "arguments"),
    ('{"user": "u", "calls": 3}', "calls"),
    ('{"user": "u", "calls": [3]}', "calls[0]"),
    ('{"user": "u", "calls": []}', "messages"),
    ('{"user": "u", "calls": [{"tool_name": "get_weather"}]}', "calls[0].arguments"),
    ('{"user": "u", "answer": "x", "tools": ["nope"]}', "tools"),
    ('{"user": "u", "answer": "x", "tools": 3}', "tools"),
    ('{"user": "u", "answer": "x", "tools": [3]}', "tools"),
    ('{"user": "u", "answer": "x", "history": 3}', "history"),
    (
        '{"user": "u", "answer": "x", "history": [{"role": "wizard", "content": "x"}]}',
        "history[0].role",
    ),
    (
        '{"user": "u", "tool_name": "get_weather", "arguments": {"city": "x"}, "answer": "a"}',
        "result",
    ),
    ('{"messages": []}', "messages"),
    ('{"messages": 3}', "messages"),
    ('{"messages": [3]}', "messages[0]"),
    ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content"),
    ('{"messages": [{"role": "user", "content": "u"}]}', "messages"),
    (
        '{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [{}]}]}',
        "messages[1].tool_calls[0].function",
    ),
    ('{"user": "u", "answer": "\\ud800"}', "record"),
    ('{"user": NaN}', "record"),
    ("[" * 4000, "record"),
    ("9" * 5000, "record"),
    ('{"user": "u", "tool_name": "get_weather", "arguments": {"city": 1e999}}', "record"),
]


def test_bad_records_are_set_aside_with_line_and_field(tmp_path):
    lines = [text for text, _ in BAD]
    examples, errors = read(tmp_path, "\n".join([json.dumps(GOOD), *lines, json.dumps(GOOD)]))
    assert len(examples) == 2
    assert [(e["line"], e["field"]) for e in errors] == [
        (i + 2, field) for i, (_, field) in enumerate(BAD)
    ]
    assert all(e["reason"] and e["file"].endswith("logs.jsonl") for e in errors)
    write_jsonl(tmp_path / "rejected.jsonl", errors)
    assert len(read_jsonl(tmp_path / "rejected.jsonl")) == len(BAD)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["get_weather", "user", "assistant", "tool", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "user",
                    "tool_name",
                    "arguments",
                    "history",
                    "tools",
                    "calls",
                    "result",
                    "answer",
                    "messages",
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "group",
                    "city",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=14,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(ANY_JSON, min_size=1, max_size=4))
def test_any_json_becomes_an_example_or_an_error(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("any") / "logs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    examples, errors = read_examples(path, TOOLS)
    whole = len(records) == 1 and isinstance(
        records[0], list
    )  # such a file is a JSON list of records
    assert whole or len(examples) + len(errors) == len(records)
    split_examples(examples, 0.1, 0.2)
    assert json.dumps(from_dataset(to_dataset(examples))) == json.dumps(examples)


@pytest.mark.parametrize(
    "name, text, lines",
    [
        ("a.json", json.dumps([GOOD, GOOD], indent=1), [2, 9]),
        ("a.jsonl", f"{json.dumps(GOOD)}\r\n\r\n{json.dumps(GOOD)}", [1, 3]),
        ("a.json", json.dumps(GOOD, indent=2), [1]),
        (
            "a.txt",
            '["u", "get_weather", {"city": "x"}]\n["u", "get_weather", {"city": "y"}]',
            [1, 2],
        ),
        ("a.jsonl", '["u", "get_weather", {"city": "x"}]', [1]),
        ("a.json", "\ufeff" + json.dumps([GOOD]), [1]),
    ],
)
def test_forms_of_files(tmp_path, name, text, lines):
    examples, errors = read(tmp_path, text, name)
    assert len(examples) == len(lines) and not errors
    broken = text.replace("get_weather", "nope")
    assert [error["line"] for error in read(tmp_path, broken, name)[1]] == lines


def test_a_json_list_that_breaks_off_keeps_what_stands_before(tmp_path):
    text = json.dumps([GOOD, GOOD, GOOD], indent=1)
    examples, errors = read(tmp_path, text[:-40], "a.json")
    assert len(examples) == 2 and len(errors) == 1 and errors[0]["line"] == 19, (
        "the line of the mistake"
    )


def test_a_repeated_key_costs_one_record(tmp_path):
    examples, errors = read(
        tmp_path,
        f'[{json.dumps(GOOD)},\n{{"user": "a", "user": "b"}},\n{json.dumps(GOOD)}]',
        "a.json",
    )
    assert len(examples) == 2 and errors[0]["line"] == 2 and "twice" in errors[0]["reason"]


@pytest.mark.parametrize("data, words", [(b"", "empty"), (b" \n", "empty"), (None, "no such file")])
def test_files_that_cannot_be_read(tmp_path, data, words):
    if data is not None:
        (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_examples(tmp_path / "x.jsonl", TOOLS)


def test_a_line_in_another_encoding_costs_one_record(tmp_path):
    lines = [
        json.dumps(GOOD, ensure_ascii=False).encode(encoding)
        for encoding in ("utf-8", "gb18030", "utf-8")
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    examples, errors = read_examples(tmp_path / "x.jsonl", TOOLS)
    assert (
        len(examples) == 2
        and [error["line"] for error in errors] == [2]
        and "not UTF-8" in errors[0]["reason"]
    )


def test_a_json_list_under_the_wrong_name_keeps_what_stands_before_the_break(tmp_path):
    examples, errors = read(tmp_path, json.dumps([GOOD, GOOD, GOOD], indent=1)[:-40], "a.jsonl")
    assert len(examples) == 2 and len(errors) == 1


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({}, "arguments.city"),
        ({"city": "天津", "day": 1}, "arguments.day"),
        ({"city": 3}, "arguments.city"),
        ([], "arguments"),
    ],
)
def test_the_field_of_a_wrong_argument_is_named(tmp_path, arguments, field):
    _, errors = read(tmp_path, json.dumps({**GOOD, "arguments": arguments}))
    assert [error["field"] for error in errors] == [field]


def test_where_groups_are_too_big_single_requests_are_dealt():
    examples = [
        build_example([f"{verb} {city}", "get_weather", {"city": city}], TOOLS)
        for city in ("北京", "上海", "天津")
        for verb in ("查查", "看看", "weather in", "说说")
    ] * 2
    assert len(group_examples(examples)) == 1
    splits = split_rows(examples, 0.2, 0.25, 0)
    assert (
        len(splits["train"]) >= 12 and len(splits["test"]) >= 4 and len(splits["validation"]) >= 4
    )
    asked = {name: {e["messages"][0]["content"] for e in rows} for name, rows in splits.items()}
    assert not asked["test"] & asked["train"], "equal requests stay together"


def test_a_request_and_a_group_are_both_kept_together():
    "Dealt by the one or the other, a request that two customers made was on both sides, and the checks called it leaked."
    from toolcall_ft.data.checks import check_examples

    examples = [
        {
            **build_example([f"{verb} 北京", "get_weather", {"city": "北京"}], TOOLS),
            **({"group": f"customer {(i + j) // 2}"} if (i + j) % 3 else {}),
        }
        for i, verb in enumerate(f"Weather number {n}, please, in" for n in range(40))
        for j in range(2)
    ]
    examples += [
        {
            **build_example(["Food in 北京", "find_food", {"place": "北京"}], TOOLS),
            "group": f"single {i % 2}",
        }
        for i in range(4)
    ]
    for seed in range(8):
        splits = split_rows(examples, 0.2, 0.2, seed)
        assert all(splits.values()) and sum(map(len, splits.values())) == len(examples)
        assert not {f["kind"] for f in check_examples(splits)} & {"leaked request", "leaked group"}


def test_the_berkeley_leaderboards_answers_stand_in_a_folder_of_their_own(tmp_path):
    question = lambda number: {
        "id": f"simple_{number}",
        "question": [[{"role": "user", "content": "Weather in Oslo?"}]],
        "function": [
            {
                "name": "weather",
                "description": "",
                "parameters": {
                    "type": "dict",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            }
        ],
    }
    (tmp_path / "possible_answer").mkdir()
    write_jsonl(tmp_path / "BFCL_v3_simple.json", [question(0), question(1)])
    write_jsonl(
        tmp_path / "possible_answer/BFCL_v3_simple.json",
        [{"id": "simple_0", "ground_truth": [{"weather": {"city": ["Oslo", "oslo"]}}]}],
    )
    examples, errors = read_examples(tmp_path / "BFCL_v3_simple.json")
    assert [call["function"] for call in examples[0]["messages"][-1]["tool_calls"]] == [
        {"name": "weather", "arguments": {"city": "Oslo"}}
    ]
    assert len(examples) == 1 and [(error["line"], error["field"]) for error in errors] == [
        (2, "ground_truth")
    ]


def test_the_berkeley_leaderboards_other_questions(tmp_path):
    unhelped = {
        "id": "irrelevance_0",
        "question": [[{"role": "user", "content": "Sing!"}]],
        "function": [
            {"name": "weather", "description": "", "parameters": {"type": "dict", "properties": {}}}
        ],
    }
    turns = {
        "id": "multi_turn_base_0",
        "question": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]],
        "involved_classes": ["X"],
        "ground_truth": [["f(x=1)"], ["g()"]],
    }
    write_jsonl(
        tmp_path / "BFCL_v4_irrelevance.json",
        [
            unhelped,
            {**unhelped, "answer": "I cannot sing."},
            turns,
            {**turns, "ground_truth": None},
        ],
    )
    examples, errors = read_examples(tmp_path / "BFCL_v4_irrelevance.json")
    assert [e["messages"][-1] for e in examples] == [
        {"role": "assistant", "content": "I cannot sing."}
    ]
    assert [(e["line"], e["field"], e["format"]) for e in errors] == [
        (1, "answer", "bfcl"),
        (3, "question", "bfcl"),
        (4, "question", "bfcl"),
    ] and "call nothing" in errors[0]["reason"]


def test_phrasings_that_differ_in_a_number_are_one():
    tools, _ = clean_tools(
        [
            {
                "name": "brew",
                "parameters": {"minutes": {"type": "integer"}, "what": {"type": "string"}},
            }
        ]
    )
    asked = [
        build_example(
            [f"boil {what} for {minutes} minutes", "brew", {"what": what, "minutes": minutes}],
            tools,
        )
        for what, minutes in (("eggs", 4), ("tea leaves", 30))
    ]
    assert phrasing(asked[0]) == phrasing(asked[1]) and len(group_examples(asked)) == 1


def test_a_request_with_two_answers_is_a_warning():
    examples = [
        {
            "messages": [
                {"role": "user", "content": "hot?"},
                {"role": "assistant", "content": said},
            ],
            "tools": [],
        }
        for said in ("yes", "no", "yes")
    ]
    assert contradictions(examples) == ["hot?"] and contradictions(examples[::2]) == []


def test_openai_messages_of_both_ages(tmp_path):
    old = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "天津"}]},
            {
                "role": "assistant",
                "function_call": {"name": "get_weather", "arguments": '{"city": "天津"}'},
            },
        ]
    }
    new = {
        "tools": TOOLS[:1],
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "天津"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "cold"},
            {"role": "assistant", "content": "Cold."},
        ],
    }
    (first, second), errors = read(
        tmp_path, json.dumps(old) + "\n" + json.dumps(new), system="be brief"
    )
    assert not errors
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant"] and first[
        "messages"
    ][1]["content"] == "天津"
    assert first["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"city": "天津"}
    assert second["messages"][0] == {"role": "system", "content": "s"} and second["messages"][
        3
    ] == {"role": "tool", "name": "get_weather", "content": "cold"}
    assert second["tools"] == TOOLS[:1] and first["tools"] == TOOLS


# --- Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("trian: {}", "line 1.*unknown key.*'train'"),
        ("train:\n  lora_rnk: 3", "line 2.*lora_rank"),
        ("seed: yes", "line 1: seed: a whole number"),
        ("seed: 1.5", "whole number"),
        ("evaluate: {limit: all}", "evaluate.limit: a whole number"),
        ("train:\n\n  learning_rate: fast", "line 3.*a number"),
        ("train: {learning_rate: .inf}", "not possible"),
        ("seed: -1", "0 or more"),
        ("generate: {batch_size: 0}", "1 or more"),
        ("evaluate: {limit: 0}", "1 or more"),
        ("seed: 1\nserve: {port: 99999}", "line 2: serve.port: 99999 is no port"),
        ("export: {formats: []}", "list is empty"),
        ("data: {logs: [1]}", "list of texts"),
        ("data: 3", "section"),
        ("run: null", "a text"),
        ("- a", "mapping"),
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "line 2.*twice"),
        ("{seed: 1, seed: 2}", "twice"),
        ("a: \x01", "not YAML"),
        ("model: ''", "must not be empty"),
        (
            "train: {backend: unslot}",
            "line 1: train.backend: 'unslot' is not one of auto, unsloth, peft",
        ),
        ("a: 1", "unknown key"),
        ("export: {formats: [Q4]}", "'Q4' is not one of F16"),
        ("seed: 1\nmodel: ./nowhere", "line 2: model: there is no"),
        ("data: {functions: gone.py}", "data.functions: there is no"),
        ("!!python/object:os.system x", "not YAML"),
        ("3: 4", "unknown key '3'"),
        ("{a: 1}: 2", "YAML|unknown key"),
    ],
)
def test_mistakes_in_a_configuration(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_config(tmp_path / "config.yaml")


def test_a_configuration_is_seen_from_its_folder(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "f.py").touch()
    (tmp_path / "config.yaml").write_text(
        "model: weights\ndata: {logs: a.jsonl, functions: f.py}\ntrain: {learning_rate: 1e-4, max_length: 64}\nevaluate: {limit: 5}\n"
    )
    monkeypatch.chdir("/")
    config = read_config(tmp_path / "config.yaml")
    assert (
        config["model"] == str(tmp_path / "weights")
        and config["data"]["functions"] == str(tmp_path / "f.py")
        and config["data"]["logs"] == [str(tmp_path / "a.jsonl")]
    )
    assert (
        config["train"]["learning_rate"] == 1e-4
        and config["evaluate"]["limit"] == 5
        and config["export"] == read_config()["export"]
    )
    assert read_config()["model"] == "tiny-qwen2"


# --- Files ---------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    code = (
        "import resource, signal, sys\nfrom toolcall_ft.base.files import write_text, replace_folder\nfrom toolcall_ft.base.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(sys.argv[1] + '/x.txt', 'new' * 1000)\nexcept UserError as error: print(error)\n"
        "try:\n with replace_folder(sys.argv[1] + '/folder') as folder: write_text(folder / 'y', 'new' * 1000)\nexcept UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("cannot be written") == 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"] and (
        tmp_path / "x.txt"
    ).read_text() == "old"


@pytest.mark.parametrize(
    "trouble, advice",
    [
        (errno.ENOSPC, "Free some space, or choose another folder"),
        (errno.EACCES, ". Choose another folder"),
    ],
)
def test_the_advice_fits_the_trouble(tmp_path, trouble, advice):
    with pytest.raises(UserError, match=advice), disk_errors(tmp_path):
        raise OSError(trouble, os.strerror(trouble))


def test_the_formats_of_the_configuration_are_those_of_the_export():
    assert CHOICES["export.formats"] == list(GGUF_TYPES)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    for text in ("one", "two"):
        with replace_folder(tmp_path / "run" / "data") as folder:
            write_text(folder / "x", text)
    with pytest.raises(ZeroDivisionError):
        with replace_folder(tmp_path / "run" / "data") as folder:
            write_text(folder / "x", "three")
            1 / 0
    assert (tmp_path / "run" / "data" / "x").read_text() == "two" and len(
        list((tmp_path / "run").iterdir())
    ) == 1


def test_an_error_that_is_no_disk_error_passes_through(tmp_path):
    with pytest.raises(ConnectionError):
        with replace_folder(tmp_path / "x"):
            raise ConnectionError("no network")


def test_datasets_keep_every_key_and_no_other(tmp_path):
    from datasets import load_from_disk

    rows = [
        build_example({"user": "u", "tool_name": name, "arguments": arguments}, TOOLS)
        for name, arguments in [
            ("get_weather", {"city": "北京"}),
            ("find_food", {}),
            ("find_food", {"sort_by": "price", "place": "x\u2028y"}),
        ]
    ]
    rows += [
        {
            "messages": [{"role": "user", "content": "u"}],
            "tools": [{"z": 10**30, "a": None, "f": 1.0, "list": [[], {}, [1, "x", None]]}],
        }
    ]
    to_dataset(rows).save_to_disk(str(tmp_path / "ds"))
    assert json.dumps(from_dataset(load_from_disk(str(tmp_path / "ds")))) == json.dumps(rows)
    assert from_dataset(to_dataset([])) == []


# --- Splits --------------------------------------------------------------------------------------------------------------


def test_chains_of_shared_values_and_phrasings_stay_together():
    ask = lambda text, city, **more: build_example(
        {
            "user": text.format(city),
            "tool_name": "get_weather",
            "arguments": {"city": city},
            **more,
        },
        TOOLS,
    )
    rows = [
        ask("查{}天气", "北京"),
        ask("查 {} 天气！", "上海"),
        ask("{}冷吗", "上海"),
        ask("{}热吗", "广州"),
        ask("雨 {}", "深圳", group=1),
        ask("雪 {}", "武汉", group=1),
        ask("风 {}", "长沙"),
    ]
    assert sorted(map(len, group_examples(rows))) == [1, 1, 2, 3]
    assert [g for g in group_examples(rows) if len(g) == 3] == [rows[:3]]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=60),
    st.integers(0, 3),
)
def test_no_split_leaks(pairs, seed):
    rows = [
        build_example(
            {
                "user": f"ask{a} about town{b:02d} now",
                "tool_name": "get_weather",
                "arguments": {"city": f"town{b:02d}"},
            },
            TOOLS,
        )
        for a, b in pairs
    ]
    splits = split_examples(rows, 0.2, 0.3, seed)
    assert sum(map(len, splits.values())) == len(rows)
    assert measure_leakage(splits) == {"phrasings": 0, "values": 0, "texts": 0}
    assert splits == split_examples(rows, 0.2, 0.3, seed)
    assert len(splits["train"]) >= len(splits["test"]) or len(group_examples(rows)) > 1


def test_the_phrasing_of_a_turn_that_is_only_a_value():
    history = [{"role": "user", "content": "查天气"}, {"role": "assistant", "content": "哪里？"}]
    asked = build_example(
        {
            "user": "北京",
            "history": history,
            "tool_name": "get_weather",
            "arguments": {"city": "北京"},
        },
        TOOLS,
    )
    whole = build_example(
        {"user": "怎么种花？", "tool_name": "get_weather", "arguments": {"city": "怎么种花？"}},
        TOOLS,
    )
    assert phrasing(asked) == "查天气" and phrasing(whole) == "怎么种花"
    assert (
        open_values(
            build_example(
                {
                    "user": "x",
                    "tool_name": "find_food",
                    "arguments": {"sort_by": "price", "place": "Y"},
                },
                TOOLS,
            )
        )
        == set()
    )


def test_shares_that_leave_nothing_are_refused():
    for shares in ((0.5, 0.5), (-0.5, 0.2), (0, 1.5)):
        with pytest.raises(UserError, match="nothing to train on|between"):
            split_examples([], *shares)


def test_logs_that_cannot_be_split_are_said_to_be(tmp_path):
    counts = prepare_data(config_of(tmp_path, [GOOD] * 20))
    assert (
        counts["train"] == 20
        and counts["test"] == 0
        and any("test split has 0 rows" in w for w in counts["warnings"])
    )


BOOKS, _ = clean_tools(
    [
        {"name": name, "parameters": {"title": {"type": "string"}, "branch": {"type": "string"}}}
        for name in ("lend", "renew", "return_book")
    ]
)
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo sierra tango uniform victor whiskey xray".split()


def book(tool, words, **values):
    "A record of the library whose words are its phrasing."
    return build_example([f"{words}: {' / '.join(values.values())}", tool, values], BOOKS)


def chained(tool="return_book"):
    "Twenty-four rows of a tool; each shares a value with the next, and all but two a branch, so that they are one group."
    return [
        book(tool, f"{tool} {word}", title=f"book {i // 2} of {tool}", branch="Main Street")
        for i, word in enumerate(WORDS)
    ]


def asked(rows):
    return Counter(
        call["function"]["name"]
        for example in rows
        for call in example["messages"][-1]["tool_calls"]
    )


def test_a_tool_whose_rows_are_one_group_is_tested_all_the_same(tmp_path):
    "Its 24 rows were a tenth of all, so the split as a whole looked good, and all of them went to training in silence."
    others = [
        book(tool, f"{tool} {word} {other}", title=f"{word} {other} {tool}")
        for tool in ("lend", "renew")
        for word in WORDS[:12]
        for other in WORDS[12:21]
    ]
    examples = others + chained()
    assert len(max(group_examples(examples), key=len)) == 24 and "return_book" not in asked(
        split_examples(examples, 0.1, 0.2)["test"]
    )
    splits = split_rows(examples, 0.1, 0.2, 0)
    assert (
        sum(map(len, splits.values())) == len(examples)
        and min(asked(splits["test"]).values()) == asked(splits["test"])["return_book"] >= 2
    )
    shared = shared_links(splits)
    assert (
        {link["kind"] for link in shared} == {"value"}
        and shared[0]["text"] == "Main Street"
        and sum(shared[0][name] for name in splits) == 24
    )
    assert all("return_book" in link["text"] or link["text"] == "Main Street" for link in shared), (
        "no link of another tool is cut"
    )
    write_jsonl(tmp_path / "logs.jsonl", examples)
    write_text(tmp_path / "tools.json", dump_json(BOOKS))
    write_text(tmp_path / "config.yaml", "run: run")
    counts = prepare_data(read_config(tmp_path / "config.yaml"))
    assert counts["tools"]["return_book"]["test"] >= 2 and not any(
        "never tested" in warning for warning in counts["warnings"]
    )
    told = next(warning for warning in counts["warnings"] if "in more than one split" in warning)
    assert (
        told.startswith(f"values in more than one split ({len(shared)}), because")
        and f"'Main Street' (train {shared[0]['train']}, validation {shared[0]['validation']}, test {shared[0]['test']})"
        in told
    )
    assert read_jsonl(tmp_path / "run/data/shared.jsonl") == shared


def test_the_weakest_links_are_cut_first():
    "Rows that share only what many rows share go to the test, before a pair that shares what nobody else says."
    common = [book("lend", f"common {word}", branch="Main Street") for word in WORDS[:20]]
    pairs = [
        book("lend", f"rare {word}", title=f"book {i // 2}", branch="Main Street")
        for i, word in enumerate(WORDS[:10])
    ]
    splits = split_rows(pairs + common, 0, 0.2, 0)
    assert len(splits["test"]) == 6 and {
        open_values(example) == {"Main Street"} for example in splits["test"]
    } == {True}
    assert [(link["text"], link["test"]) for link in shared_links(splits)] == [("Main Street", 6)]


def test_whole_groups_move_before_a_link_is_cut():
    free = [book("renew", f"renew {word}", title=f"book {word}") for word in WORDS[:3]]
    for seed in range(6):
        splits = split_rows(
            free
            + [
                book("lend", f"lend {word} {other}", title=f"book {word} {other}")
                for word in WORDS
                for other in WORDS[:4]
            ],
            0.1,
            0.2,
            seed,
        )
        assert (
            asked(splits["test"])["renew"]
            and asked(splits["train"])["renew"]
            and shared_links(splits) == []
        )


def test_a_request_with_two_answers_is_in_one_split():
    "Its phrasing depends on the values of the answer, so it was dealt as two."
    rows = [
        row
        for word in WORDS
        for row in (
            book("lend", f"{word} please", title=f"book {word}"),
            build_example({"user": f"{word} please: book {word}", "answer": "Which one?"}, BOOKS),
        )
    ]
    for seed in range(4):
        for splits in (split_examples(rows, 0.2, 0.2, seed), split_rows(rows, 0.2, 0.2, seed)):
            home = {}
            for name, part in splits.items():
                for example in part:
                    home.setdefault(example["messages"][0]["content"], set()).add(name)
            assert len(home) == 24 and {len(names) for names in home.values()} == {1}


def test_what_cannot_be_tested_is_named(tmp_path):
    "One record alone, one named group, and calls that are never the last turn: no split can test these."
    lend = [
        {"user": f"lend {word} to me", "tool_name": "lend", "arguments": {"title": f"book {word}"}}
        for word in WORDS
    ]
    alone = {"user": "return this, please", "tool_name": "return_book", "arguments": {}}
    session = [
        {
            "user": f"renew {word}",
            "tool_name": "renew",
            "arguments": {"title": f"{word} {word}"},
            "group": "one session",
        }
        for word in WORDS[:7]
    ]
    config = config_of(tmp_path, [*lend, alone, *session])
    write_text(tmp_path / "tools.json", dump_json(BOOKS))
    counts = prepare_data(config)
    assert (
        counts["tools"]["return_book"] == {"train": 1, "validation": 0, "test": 0}
        and counts["tools"]["renew"]["train"] == 7
    )
    assert [
        warning
        for warning in counts["warnings"]
        if "never tested: renew (7 rows), return_book (1 rows);" in warning
    ]
    before = {"result": "done", "answer": "It is done."}
    write_jsonl(
        tmp_path / "logs.jsonl",
        [*lend, *({**record, **before, "group": None} for record in session)],
    )
    assert any(
        "never tested: renew (7 rows);" in warning for warning in prepare_data(config)["warnings"]
    )
    assert not any(
        "never tested" in warning
        for warning in prepare_data({**config, "data": {**config["data"], "test": 0.0}})["warnings"]
    ), "nobody wanted a test"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 9),
            st.integers(0, 9),
            st.sampled_from([None, None, None, "a", "b"]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 3),
)
def test_split_rows_keeps_what_it_must(rows, seed):
    "Nothing is lost, equal requests and named groups stay together, and each tool of two requests is trained and tested."
    tools, _ = clean_tools(
        [{"name": f"tool_{n}", "parameters": {"city": {"type": "string"}}} for n in range(5)]
    )
    examples = [
        build_example(
            {
                "user": f"{WORDS[word]} {tool} town{city} please",
                "tool_name": f"tool_{tool}",
                "arguments": {"city": f"town{city}"},
                "group": group,
            },
            tools,
        )
        for tool, word, city, group in rows
    ]
    splits = split_rows(examples, 0.1, 0.2, seed)
    assert sorted(map(id, sum(splits.values(), []))) == sorted(map(id, examples))
    assert splits == split_rows(examples, 0.1, 0.2, seed)
    home = {}
    for name, part in splits.items():
        for example in part:
            for key in request_keys(example):
                assert home.setdefault(key, name) == name
    if any(example.get("group") for example in examples):
        return  # groups of several tools can stand in each other's way
    requests = Counter(name for name, _ in {(tool, (word, city)) for tool, word, city, _ in rows})
    for tool in requests:
        if requests[tool] > 1:
            assert (
                asked(splits["train"])[f"tool_{tool}"] and asked(splits["test"])[f"tool_{tool}"]
            ), tool


def test_every_row_has_its_line_in_the_logs(tmp_path):
    cities = "Oslo Bergen Molde Rome Paris Lyon Graz Linz Wien Brno Bonn Kiel".split()
    records = [
        {"user": f"{city} {i}", "tool_name": "get_weather", "arguments": {"city": city}}
        for i, city in enumerate(cities)
    ]
    config = config_of(tmp_path, [records[0], {"bad": 1}, *records[1:]])
    assert prepare_data(config)["rejected"] == 1
    lines, sources = (
        (tmp_path / "logs.jsonl").read_text().splitlines(),
        read_jsonl(tmp_path / "run/data/sources.jsonl"),
    )
    assert len(sources) == len(cities)
    for source in sources:
        row = read_jsonl(tmp_path / f"run/data/{source['split']}.jsonl")[source["row"] - 1]
        assert (
            source["file"] == str(tmp_path / "logs.jsonl")
            and json.loads(lines[source["line"] - 1])["user"] == row["messages"][0]["content"]
        )


def test_other_reasons_are_named_by_their_field(tmp_path):
    unknown = [{"user": "u", "tool_name": f"none_{i}{i}", "arguments": {}} for i in range(12)]
    counts = prepare_data(config_of(tmp_path, [GOOD, *unknown], max_rejected=1.0))
    assert (
        counts["rejected"] == 12 == sum(counts["reasons"].values())
        and counts["reasons"]["tool_name: other reasons"] == 4
    )
    counts = prepare_data(
        config_of(
            tmp_path,
            [GOOD, *unknown, {**GOOD, "arguments": {"city": 3}}, *[{**GOOD, "tool_name": 3}] * 2],
            max_rejected=1.0,
        )
    )
    assert (
        counts["reasons"]["arguments.city: get_weather.city: must be of type string, got 3"] == 1
    ), "a reason that is alone in its field is told, not called 'other reasons'"
    assert (
        counts["rejected"] == 15 == sum(counts["reasons"].values())
        and "arguments.city: other reasons" not in counts["reasons"]
    )


def test_what_records_lose_is_told_once_for_each_kind_with_its_count(tmp_path):
    "Thoughts became text, `name` was dropped, and nobody said so."
    call = {
        "id": "a",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    chat = lambda city, **more: {
        "messages": [
            {"role": "user", "content": f"{city}?", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call], **more},
        ]
    }
    log = {**GOOD, "result": {"sky": "clear"}, "timestamp": 7}
    share = {
        "conversations": [
            {"from": "human", "value": "天津?"},
            {"from": "gpt", "value": "Where?", "reasoning_content": "Hm."},
        ],
        "id": "7",
        "tools": [{"name": "f", "parameters": {"x": {"type": "str"}}, "strict": True}],
    }
    bad = {**chat("Rome", refusal="no"), "tools": ["nobody"]}
    config = config_of(
        tmp_path,
        [
            chat("Oslo", reasoning_content="Hm."),
            chat("Oslo", reasoning="Hm.", thinking="Hm!"),
            log,
            log,
            share,
            {**chat("Rom"), "id": ""},
            bad,
        ],
    )
    counts = prepare_data(config)
    told = {
        note.partition(": ")[2]
        for note in counts["warnings"]
        if note.startswith(str(tmp_path / "logs.jsonl"))
    }
    assert counts["rejected"] == 1 and told == {
        "not read in turns of the user: name (3)",
        "put before the answer in <think>: reasoning_content (2), reasoning (1), thinking (1)",
        "not read because no answer follows: result (2)",
        "not read in records: timestamp (2), id (1)",
        next(
            note
            for note in told
            if "type 'str' became 'string' (1)" in note
            and note.startswith("repaired in the tools of records: ")
            and "strict left out" in note
        ),
    }


def test_the_only_reason_of_a_field_is_told_with_its_count():
    common = {f"city: reason {i}": 9 for i in range(REASONS)}
    assert count_reasons(Counter({**common, "date: too late": 3, "day: a": 2, "day: b": 1})) == {
        **common,
        "date: too late": 3,
        "day: other reasons": 3,
    }


def test_above_a_share_of_rejected_records_nothing_goes_on(tmp_path):
    "19 of 120 were trained on, with exit code 0."
    bad = [{**GOOD, "tool_name": "get_wether"}] * 80 + [{**GOOD, "arguments": {}}] * 12
    good = [
        {"user": f"{word} weather", "tool_name": "get_weather", "arguments": {"city": word}}
        for word in WORDS
    ] + [GOOD] * 4
    config = config_of(tmp_path, [*good, *bad])
    with pytest.raises(UserError) as error:
        prepare_data(config)
    told = str(error.value)
    assert (
        "92 of 120 records cannot be used, and data.max_rejected allows 50% of them" in told
        and "rejected.jsonl" in told
    )
    assert (
        "    80 tool_name: unknown tool 'get_wether'" in told and "    12 arguments.city: " in told
    )
    assert (
        len(read_jsonl(tmp_path / "run/data/rejected.jsonl")) == 92
        and sum(
            len(read_jsonl(tmp_path / f"run/data/{name}.jsonl"))
            for name in ("train", "validation", "test")
        )
        == 28
    )
    assert (
        prepare_data({**config, "data": {**config["data"], "max_rejected": 0.8}})["rejected"] == 92
    )
    write_jsonl(tmp_path / "logs.jsonl", [*good, *bad[-28:]])
    assert prepare_data(config)["rejected"] == 28, "just one half is not above it"


def test_the_place_of_broken_json_is_one_place(tmp_path):
    _, errors = read(tmp_path, '{"user": "a"}\n{"user": \n[1\n')
    assert [(e["line"], e["reason"]) for e in errors[1:]] == [
        (2, "not JSON: Expecting value (column 9)"),
        (3, "not JSON: Expecting ',' delimiter (column 3)"),
    ]
    _, errors = read(tmp_path, '[\n {\n  "user": "a",\n  "answer" 3\n }\n]', "list.json")
    assert [(e["line"], e["reason"]) for e in errors] == [
        (4, "not JSON: Expecting ':' delimiter (column 12)")
    ]
    (tmp_path / "own.jsonl").write_text('{"a": 1}\n{"a": }\n')
    with pytest.raises(UserError, match=r"line 2: not JSON: Expecting value \(column 7\)\.$"):
        read_jsonl(tmp_path / "own.jsonl")


def test_no_usable_record_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no usable record.*line 1, record"):
        prepare_data(config_of(tmp_path, [{}]))
    with pytest.raises(UserError, match="no such file"):
        prepare_data(config_of(tmp_path, [GOOD], logs=[str(tmp_path / "gone.jsonl")]))


def test_files_of_several_formats_become_one_data_set(tmp_path):
    table = tmp_path / "logs.csv"
    table.write_text(
        "query,tool,arguments\n"
        + "".join(f'"ask {i}, please",get_weather,"{{""city"": ""town{i}""}}"\n' for i in range(9)),
        encoding="utf-16",
    )
    talk = {
        "talk": [
            {"who": "me", "said": "Rome?"},
            {"who": "does", "said": '{"name": "get_weather", "arguments": {"city": "Rome"}}'},
        ]
    }
    write_jsonl(tmp_path / "shared.jsonl", [talk, {"talk": 3}])
    write_text(
        tmp_path / "dataset_info.json",
        dump_json(
            {
                "mine": {
                    "file_name": "shared.jsonl",
                    "columns": {"messages": "talk"},
                    "tags": {
                        "role_tag": "who",
                        "content_tag": "said",
                        "user_tag": "me",
                        "function_tag": "does",
                    },
                }
            }
        ),
    )
    config = config_of(
        tmp_path,
        [GOOD] * 3,
        logs=[str(tmp_path / "logs.jsonl"), str(table), str(tmp_path / "shared.jsonl")],
        dataset_info=str(tmp_path / "dataset_info.json"),
    )
    counts = prepare_data(config)
    assert (
        counts["formats"] == {"logs": 12, "sharegpt": 2}
        and counts["rejected"] == 1
        and sum(counts[name] for name in ("train", "validation", "test")) == 13
    )
    from datasets import load_from_disk

    for name in ("train", "validation", "test"):
        assert from_dataset(
            load_from_disk(str(tmp_path / "run/data/dataset" / name))
        ) == read_jsonl(tmp_path / f"run/data/{name}.jsonl")
    with pytest.raises(UserError, match="no usable record"):
        prepare_data({**config, "data": {**config["data"], "format": "bfcl", "dataset_info": None}})


def test_a_million_bad_lines_take_no_memory(tmp_path):
    import tracemalloc

    config = config_of(tmp_path, [GOOD], max_rejected=1.0)
    peaks = []
    for count in (1_000, 10_000):
        with open(tmp_path / "logs.jsonl", "a") as file:
            file.writelines(
                f'{{"user": "{i}", "tool_name": "nope", "arguments": {{}}}}\n' for i in range(count)
            )
        tracemalloc.start()
        assert prepare_data(config)["rejected"] >= count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000_000, peaks


def test_records_that_bring_the_same_tools_have_their_own(tmp_path):
    schemas = [{"name": "own", "parameters": {"x": {"type": "int"}}}]
    examples, _ = read(
        tmp_path,
        "".join(
            dump_json(
                {"user": f"u{i}", "tool_name": "own", "arguments": {"x": i}, "tools": schemas}
            )
            + "\n"
            for i in range(3)
        ),
    )
    assert len(examples) == 3 and examples[0]["tools"] == examples[2]["tools"]
    examples[0]["tools"][0]["function"]["name"] = "changed"
    examples[0]["tools"].clear()
    assert [len(example["tools"]) for example in examples] == [0, 1, 1]
    again, errors = read_examples(tmp_path / "logs.jsonl", TOOLS)
    assert not errors and [example["tools"] for example in again] == [examples[1]["tools"]] * 3, (
        "a later read is not touched"
    )


# --- The demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker():
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("make_logs", EXAMPLES / "make_logs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    config = read_config(EXAMPLES / "config.yaml")
    config["run"] = str(tmp_path_factory.mktemp("demo"))
    counts = prepare_data(config)
    folder = Path(config["run"]) / "data"
    return counts, {
        name: read_jsonl(folder / f"{name}.jsonl") for name in ("train", "validation", "test")
    }


def test_the_logs_are_what_the_generator_makes(maker):
    text = (EXAMPLES / "logs.jsonl").read_text(encoding="utf-8")
    assert text == "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in maker.make_logs(0)
    )
    assert text.count("\n") >= 1800


def test_the_demo_splits_honestly(demo):
    counts, splits = demo
    assert counts["test"] >= 200 and counts["rejected"] == 0 and counts["warnings"] == []
    assert measure_leakage(splits) == {"phrasings": 0, "values": 0, "texts": 0}
    assert len(counts["tools"]) == 9 and all(
        n >= 10 for row in counts["tools"].values() for n in row.values()
    )
    assert not {e["group"] for e in splits["train"]} & {e["group"] for e in splits["test"]}


def test_the_demo_is_varied(demo):
    examples = sum(demo[1].values(), [])
    phrasings, texts = {}, set()
    for example in examples:
        for made in (
            made["function"] for m in example["messages"] for made in m.get("tool_calls", [])
        ):
            phrasings.setdefault(made["name"], set()).add(phrasing(example))
            texts |= {(made["name"], value) for value in open_values(example)}
    assert len(phrasings) == 8 and min(map(len, phrasings.values())) >= 25
    assert len({v for name, v in texts if name in ("WeatherApi", "get_weather")}) >= 150
    assert len({v for name, v in texts if name == "HandleTongzhiTonggao"}) >= 400
    assert (
        len({v for name, v in texts if name in ("HealthReportSimple", "DirectLLMCommunityAiUser")})
        >= 200
    )
    assert max(Counter(dump_json(e["messages"]) for e in examples).values()) <= 3


def test_every_argument_of_the_demo_can_be_read_off_the_conversation(demo):
    for example in sum(demo[1].values(), []):
        said = "\n".join(m["content"] for m in example["messages"] if m["role"] == "user")
        assert all(value in said for value in open_values(example))


def test_no_site_shares_a_phrasing_with_another(maker):
    import random

    sites = maker.deal_phrasings(random.Random(0))
    seen = Counter(
        phrase
        for site in sites
        for phrase in {
            item if isinstance(item, str) else item[0] for pool in site.values() for item in pool
        }
    )
    assert len(sites) >= 12 and max(seen.values()) == 1


def test_rejected_records_are_written_even_if_no_record_is_left(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "logs.jsonl").write_text(
        '{"user": "hi", "tool_name": "no_such_tool", "arguments": {}}\nnot JSON\n'
    )
    (tmp_path / "config.yaml").write_text("run: run")
    with pytest.raises(
        UserError, match="no usable record.*2 set aside in .*rejected.jsonl.*line 1"
    ):
        prepare_data(read_config(tmp_path / "config.yaml"))
    assert [row["line"] for row in read_jsonl(tmp_path / "run/data/rejected.jsonl")] == [1, 2]


def test_examples_are_written_in_one_spelling():
    "As the servers get them: composed letters, whole numbers without a point; the names of tools in a record, too."
    tools = clean_tools(
        [{"name": "go", "parameters": {"type": "object", "properties": {"x": {}}}}]
    )[0]
    example = build_example(
        {"user": "cafe\u0301", "tool_name": "go", "arguments": {"x": [2.0, 2.5, "e\u0301"]}}, tools
    )
    assert (
        dump_json(
            [
                example["messages"][0]["content"],
                example["messages"][1]["tool_calls"][0]["function"]["arguments"],
            ]
        )
        == '["caf\u00e9", {"x": [2, 2.5, "\u00e9"]}]'
    )


def test_numbers_that_servers_change_are_text_or_refused():
    "A log may go on holding them as numbers, once the tool says that it takes a string."
    record = {
        "user": f"Where is parcel {2**63}?",
        "tool_name": "track",
        "arguments": {"parcel": 2**63},
    }
    of_type = lambda kind: clean_tools(
        [
            {
                "name": "track",
                "parameters": {"type": "object", "properties": {"parcel": {"type": kind}}},
            }
        ]
    )[0]
    assert build_example(record, of_type("string"))["messages"][1]["tool_calls"][0]["function"][
        "arguments"
    ] == {"parcel": "9223372036854775808"}
    for kind in ("integer", ["integer", "null"]):
        with pytest.raises(RecordError) as error:
            build_example(record, of_type(kind))
        assert (
            error.value.args[0] == "arguments.parcel"
            and "Servers change numbers" in error.value.args[1]
            and "make the argument a string" in error.value.args[1]
        )
    assert build_example({**record, "arguments": {"parcel": 2**53 - 1}}, of_type("integer"))


def test_answers_begin_with_words_and_nested_keys_are_sorted():
    tools = clean_tools(
        [{"name": "go", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}]
    )[0]
    record = {
        "messages": [
            {"role": "user", "content": " hi "},
            {
                "role": "assistant",
                "content": "\n\n",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {
                            "name": "go",
                            "arguments": {"z": {"b": 1, "a": [{"d": 1, "c": 2}]}, "a": 1},
                        },
                    }
                ],
            },
            {"role": "tool", "name": "go", "content": " {} "},
            {"role": "assistant", "content": " \n\u3000Done. "},
        ]
    }
    said = build_example(record, tools)["messages"]
    assert [message["content"] for message in said] == [" hi ", "", " {} ", "Done. "]
    assert (
        dump_json(said[1]["tool_calls"][0]["function"]["arguments"])
        == '{"z": {"a": [{"c": 2, "d": 1}], "b": 1}, "a": 1}'
    )
