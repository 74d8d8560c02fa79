"""The formats module: every spelling in, nothing lost on the way out, nothing but RecordError for what is broken."""

import importlib.util
import json
import random
import re
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.data.readers import FORMATS, detect_format, read_record
from toolcall_ft.data.tagged import RESULT_JOIN, TOOLS_HEAD, TOOLS_TAIL, take_tools
from toolcall_ft.data.turns import (
    RecordError,
    call_message,
    escape_text,
    loose_value,
    openai_messages,
    unescape_text,
)
from toolcall_ft.data.writers import WRITERS, dataset_info, to_chatml, to_openai, to_sharegpt
from toolcall_ft.tools.clean import clean_tools

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ROME, PARIS = (
    {"name": "weather", "arguments": {"city": "Rome"}},
    {"name": "weather", "arguments": {"city": "Paris"}},
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def result(content, name="weather"):
    return {"role": "tool", "name": name, "content": content}


# --- Records of every format, as they stand in real files ------------------------------------------------------------------

CALL = json.dumps(ROME)
ONE, BOTH = (
    [user("Rome?"), call_message([ROME])],
    [
        user("Paris, Rome?"),
        call_message([PARIS, ROME]),
        result("rain"),
        result("sun"),
        assistant("Rain, sun."),
    ],
)
ROUND = [*ONE, result('{"sky": "clear"}'), assistant("Sunny.")]
HERMES = (
    f"You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. You may call one or more functions. Here are the available tools: <tools> {[TOOL]} </tools> "
    "Use the following pydantic model json schema for each tool call you will make: {'title': 'FunctionCall', 'type': 'object'} For each function call return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>\nThink first."
)
OPENAI_CALLS = [
    {
        "id": "a",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps(PARIS["arguments"])},
    },
    {"id": "b", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
]
HEAD = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n"
BRIEF = {"role": "system", "content": "Be brief."}
THIRD = {"role": "system", "content": "You are a function calling AI model.\nThink first."}

READ = [  # (name, record, format, messages, tools)
    (
        "guide 2",
        {"user": "Rome?", "tool_name": "weather", "arguments": {"city": "Rome"}},
        "logs",
        ONE,
        None,
    ),
    (
        "log from a table",
        {
            "user": "Rome?",
            "tool_name": "weather",
            "arguments": '{"city": "Rome"}',
            "calls": "",
            "answer": "",
            "tools": "",
            "history": "",
            "group": "",
        },
        "logs",
        ONE,
        None,
    ),
    (
        "log of a round",
        {
            "user": "Rome?",
            "tool_name": "weather",
            "arguments": {"city": "Rome"},
            "result": {"sky": "clear"},
            "answer": "Sunny.",
            "tools": ["weather"],
        },
        "logs",
        ROUND,
        ["weather"],
    ),
    (
        "log of two calls",
        {
            "user": "Paris, Rome?",
            "calls": [{"tool_name": "weather", "arguments": c["arguments"]} for c in (PARIS, ROME)],
            "result": ["rain", "sun"],
            "answer": "Rain, sun.",
        },
        "logs",
        BOTH,
        None,
    ),
    (
        "plain answer",
        {"user": "Thanks", "tool_name": None, "answer": "Welcome."},
        "logs",
        [user("Thanks"), assistant("Welcome.")],
        None,
    ),
    (
        "log with history",
        {"history": ROUND, "user": "Thanks", "answer": "Welcome."},
        "logs",
        [*ROUND, user("Thanks"), assistant("Welcome.")],
        None,
    ),
    ("guide 3", ["Rome?", "weather", {"city": "Rome"}], "triples", ONE, None),
    (
        "guide 3, messages",
        {
            "messages": [
                user("Rome?"),
                {
                    "role": "assistant",
                    "function_call": {"name": "weather", "arguments": '{ "city": "Rome" }'},
                },
            ]
        },
        "openai",
        ONE,
        None,
    ),
    (
        "old functions",
        {
            "messages": [
                user("Rome?"),
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
                {"role": "function", "name": "weather", "content": '{"sky": "clear"}'},
                assistant("Sunny."),
            ],
            "functions": [TOOL["function"]],
        },
        "openai",
        ROUND,
        [TOOL["function"]],
    ),
    (
        "results by id",
        {
            "messages": [
                user("Paris, Rome?"),
                {"role": "assistant", "content": None, "tool_calls": OPENAI_CALLS},
                {"role": "tool", "tool_call_id": "b", "content": "sun"},
                {
                    "role": "tool",
                    "tool_call_id": "a",
                    "content": [{"type": "text", "text": "rain"}],
                },
                assistant("Rain, sun."),
            ],
            "tools": [TOOL],
        },
        "openai",
        BOTH,
        [TOOL],
    ),
    (
        "results by order",
        {
            "messages": [
                user("Paris, Rome?"),
                {
                    "role": "assistant",
                    "tool_calls": [{"function": c["function"]} for c in OPENAI_CALLS],
                },
                {"role": "tool", "content": "rain"},
                {"role": "tool", "content": "sun"},
                assistant("Rain, sun."),
            ]
        },
        "openai",
        BOTH,
        None,
    ),
    (
        "Arrow's nulls",
        {
            "messages": [
                {"role": "user", "content": "Rome?", "tool_calls": None, "name": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": OPENAI_CALLS[1:],
                    "function_call": None,
                },
            ],
            "system": None,
        },
        "openai",
        ONE,
        None,
    ),
    ("system beside", {"system": "Be brief.", "messages": ONE}, "openai", [BRIEF, *ONE], None),
    (
        "system twice",
        {"system": "Be brief.", "messages": [BRIEF, *ONE]},
        "openai",
        [BRIEF, *ONE],
        None,
    ),
    (
        "turns that are learnt",
        {"messages": [{**user("Hi"), "weight": None}, {**assistant("Ho"), "weight": 1}]},
        "openai",
        [user("Hi"), assistant("Ho")],
        None,
    ),
    (
        "thoughts apart",
        {
            "messages": [
                user("Hi"),
                {"role": "assistant", "content": "Ho", "reasoning_content": "A greeting."},
            ]
        },
        "openai",
        [user("Hi"), assistant("<think>\nA greeting.\n</think>\n\nHo")],
        None,
    ),
    (
        "messages from a table",
        {"messages": json.dumps(ONE), "tools": json.dumps([TOOL])},
        "openai",
        ONE,
        [TOOL],
    ),
    (
        "LLaMA-Factory",
        {
            "conversations": [
                {"from": "human", "value": "Rome?"},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": '{"sky": "clear"}'},
                {"from": "gpt", "value": "Sunny."},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        "sharegpt",
        ROUND,
        [TOOL["function"]],
    ),
    (
        "its parallel calls",
        {
            "conversations": [
                {"from": "human", "value": "Paris, Rome?"},
                {"from": "function_call", "value": json.dumps([PARIS, ROME])},
                {"from": "observation", "value": f"rain{RESULT_JOIN}sun"},
                {"from": "gpt", "value": "Rain, sun."},
            ],
            "system": "",
            "tools": "[]",
        },
        "sharegpt",
        BOTH,
        [],
    ),
    (
        "a list of results",
        {
            "conversations": [
                {"from": "human", "value": "Paris, Rome?"},
                {"from": "function_call", "value": json.dumps([PARIS, ROME])},
                {"from": "observation", "value": '["rain", "sun"]'},
                {"from": "gpt", "value": "Rain, sun."},
            ]
        },
        "sharegpt",
        BOTH,
        None,
    ),
    (
        "results in turns of their own",
        {
            "conversations": [
                {"from": "human", "value": "Paris, Rome?"},
                {"from": "function_call", "value": json.dumps([PARIS, ROME])},
                {"from": "observation", "value": "[1, 2]"},
                {"from": "observation", "value": "[3, 4]"},
                {"from": "gpt", "value": "Rain, sun."},
            ]
        },
        "sharegpt",
        [*BOTH[:2], result("[1, 2]"), result("[3, 4]"), BOTH[4]],
        None,
    ),
    (
        "a thought before a call",
        {
            "conversations": [
                {"from": "human", "value": "Rome?"},
                {"from": "function_call", "value": f"<think>Hm.</think>{CALL}"},
            ],
            "system": "Be brief.",
        },
        "sharegpt",
        [BRIEF, user("Rome?"), call_message([ROME], "<think>Hm.</think>")],
        None,
    ),
    (
        "Hermes",
        {
            "id": "x",
            "conversations": [
                {"from": "system", "value": HERMES},
                {"from": "human", "value": "Rome?"},
                {
                    "from": "gpt",
                    "value": "<tool_call> {'arguments': {'city': 'Rome'}, 'name': 'weather'} </tool_call> ",
                },
                {
                    "from": "tool",
                    "value": '<tool_response>\n{"name": "weather", "content": {"sky": "clear"}}\n</tool_response>\n',
                },
                {"from": "gpt", "value": "Sunny."},
            ],
            "category": "c",
        },
        "sharegpt",
        [THIRD, *ROUND],
        [TOOL],
    ),
    (
        "Hermes, two calls",
        {
            "conversations": [
                {"from": "human", "value": "Paris, Rome?"},
                {
                    "from": "gpt",
                    "value": f"<tool_call>\n{json.dumps(PARIS)}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
                },
                {
                    "from": "tool",
                    "value": "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>",
                },
                {"from": "gpt", "value": "Rain, sun."},
            ]
        },
        "sharegpt",
        BOTH,
        None,
    ),
    (
        "roles human and model",
        {
            "messages": [
                {"role": "human", "content": "Rome?"},
                {
                    "role": "model",
                    "content": f"<think>Hm.\n</think><tool_call>\n{CALL}\n</tool_call>",
                },
                {"role": "tool", "content": "<tool_response>\n{'sky': 'clear'}\n</tool_response>"},
                {"role": "model", "content": "Sunny."},
            ]
        },
        "sharegpt",
        [
            user("Rome?"),
            call_message([ROME], "<think>Hm.\n</think>"),
            result("{'sky': 'clear'}"),
            assistant("Sunny."),
        ],
        None,
    ),
    (
        "guides 2 and 3",
        {"input": HEAD + f"<function_call>{CALL}</function_call><|im_end|>"},
        "chatml",
        [BRIEF, *ONE],
        None,
    ),
    (
        "guide 2, backslash n",
        {"input": (HEAD + f"<function_call>{CALL}</function_call><|im_end|>").replace("\n", "\\n")},
        "chatml",
        [BRIEF, *ONE],
        None,
    ),
    (
        "Qwen",
        {
            "text": f"<|im_start|>system\nBe brief.\n\n{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}<|im_end|>\n"
            + HEAD.split("\n", 2)[2]
            + f"<tool_call>\n{CALL}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n"
            '{"sky": "clear"}\n</tool_response><|im_end|>\n<|im_start|>assistant\nSunny.<|im_end|>\n<|endoftext|>'
        },
        "chatml",
        [BRIEF, *ROUND],
        [TOOL],
    ),
    (
        "prompt and completion",
        {"prompt": HEAD, "completion": f"<tool_call>\n{CALL}\n</tool_call>"},
        "chatml",
        [BRIEF, *ONE],
        None,
    ),
    (
        "a bare text",
        HEAD + f"<tool_call>\n{CALL}\n</tool_call><|im_end|>",
        "chatml",
        [BRIEF, *ONE],
        None,
    ),
    (
        "xLAM",
        {
            "id": 7,
            "query": "Rome?",
            "answers": json.dumps([ROME]),
            "tools": json.dumps(
                [
                    {
                        "name": "weather",
                        "parameters": {
                            "city": {"type": "str", "description": "City", "default": ""}
                        },
                    }
                ]
            ),
        },
        "xlam",
        ONE,
        [
            {
                "name": "weather",
                "parameters": {"city": {"type": "str", "description": "City", "default": ""}},
            }
        ],
    ),
    (
        "Berkeley",
        {
            "id": "simple_1",
            "question": [[user("Rome?")]],
            "function": [TOOL["function"]],
            "ground_truth": [{"weather": {"city": ["Rome", "Roma"], "unit": ["", "celsius"]}}],
        },
        "bfcl",
        ONE,
        [TOOL["function"]],
    ),
    (
        "Berkeley, objects",
        {
            "question": [user("Rome?")],
            "function": TOOL["function"],
            "ground_truth": [
                {
                    "weather": {
                        "city": [{"name": ["Rome"], "zip": ["", 1]}],
                        "days": [[1, 2]],
                        "spots": [[{"x": [1, 2]}]],
                    }
                }
            ],
        },
        "bfcl",
        [
            user("Rome?"),
            call_message(
                [
                    {
                        "name": "weather",
                        "arguments": {
                            "city": {"name": "Rome"},
                            "days": [1, 2],
                            "spots": [{"x": 1}],
                        },
                    }
                ]
            ),
        ],
        [TOOL["function"]],
    ),
    (
        "Berkeley, Python",
        {
            "question": [[user("Rome?")]],
            "function": [TOOL["function"]],
            "ground_truth": ["geo.weather(city='Rome', at=[-1.5, 2], now=True)"],
        },
        "bfcl",
        [
            user("Rome?"),
            call_message(
                [
                    {
                        "name": "geo.weather",
                        "arguments": {"city": "Rome", "at": [-1.5, 2], "now": True},
                    }
                ]
            ),
        ],
        [TOOL["function"]],
    ),
]


@pytest.mark.parametrize(
    "record, format, messages, tools", [row[1:] for row in READ], ids=[row[0] for row in READ]
)
def test_records_of_every_format(record, format, messages, tools):
    before = deepcopy(record)
    assert detect_format(record) == format
    assert read_record(record) == read_record(record, format)
    assert {**read_record(record), "changes": None} == {
        "messages": messages,
        "tools": tools,
        "group": None,
        "format": format,
        "changes": None,
    }
    assert record == before, "reading changes nothing"
    clean_tools([tool for tool in tools or [] if isinstance(tool, dict)])


def test_there_is_a_record_of_every_format():
    assert {format for _, _, format, _, _ in READ} == set(FORMATS)


ENTRY = {
    "file_name": "mine.json",
    "formatting": "sharegpt",
    "columns": {"messages": "dialogue", "system": "setup", "tools": "apis"},
    "tags": {
        "role_tag": "who",
        "content_tag": "says",
        "user_tag": "client",
        "assistant_tag": "shop",
        "observation_tag": "till",
        "function_tag": "asks",
        "system_tag": "boss",
    },
}


def test_columns_and_tags_of_dataset_info():
    record = {
        "dialogue": [
            {"who": "client", "says": "Rome?"},
            {"who": "asks", "says": CALL},
            {"who": "till", "says": '{"sky": "clear"}'},
            {"who": "shop", "says": "Sunny."},
        ],
        "setup": "Be brief.",
        "apis": json.dumps([TOOL]),
    }
    assert read_record(record, tags=ENTRY) == {
        "messages": [BRIEF, *ROUND],
        "tools": [TOOL],
        "group": None,
        "format": "sharegpt",
        "changes": [],
    }
    openai = {
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
            "observation_tag": "tool",
        },
    }
    assert (
        read_record(
            {
                "messages": [
                    user("Rome?"),
                    {"role": "assistant", "content": None, "tool_calls": OPENAI_CALLS[1:]},
                ]
            },
            tags=openai,
        )["messages"]
        == ONE
    )
    with pytest.raises(RecordError) as error:
        read_record({"dialogue": [{"who": "owner", "says": "?"}]}, tags=ENTRY)
    assert error.value.args[0] == "dialogue[0].who"


def test_the_group_is_a_text():
    assert read_record({"user": "a", "answer": "b", "group": 7})["group"] == "7"


# --- What has no place in an example ---------------------------------------------------------------------------------------


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def changed(*messages, **more):
    return read_record({"messages": list(messages), **more})["changes"]


def test_thoughts_stand_before_the_answer_under_each_of_their_names():
    for key in ("reasoning_content", "reasoning", "thinking"):
        read = read_record({"messages": [user("Hi"), turn("assistant", "Ho", **{key: " Hm.\n"})]})
        assert read["messages"][1]["content"] == "<think>\nHm.\n</think>\n\nHo" and read[
            "changes"
        ] == [("put before the answer in <think>", key)]
    both = read_record(
        {
            "messages": [
                user("Hi"),
                turn(
                    "assistant", "Ho", reasoning="Hm.", reasoning_content="Hm.", thinking="And so?"
                ),
            ]
        }
    )
    assert both["messages"][1]["content"] == "<think>\nHm.\n\nAnd so?\n</think>\n\nHo", (
        "the same thoughts once, others too"
    )
    share = read_record(
        {
            "conversations": [
                {"from": "human", "value": "Rome?"},
                {"from": "function_call", "value": CALL, "reasoning": "Hm."},
            ]
        }
    )
    assert share["messages"] == [
        user("Rome?"),
        call_message([ROME], "<think>\nHm.\n</think>"),
    ] and share["changes"] == [("put before the answer in <think>", "reasoning")]


@pytest.mark.parametrize(
    "key, value",
    [
        ("name", "ann"),
        ("refusal", "no"),
        ("audio", {"id": "a"}),
        ("reasoning_details", [{"text": "Hm."}]),
        ("annotations", [{"url": "x"}]),
        ("images", ["x"]),
    ],
)
def test_what_a_turn_loses_is_listed(key, value):
    assert changed(user("Hi"), turn("assistant", "Ho", **{key: value})) == [
        ("not read in turns of the assistant", key)
    ]
    assert changed(turn("user", "Hi", **{key: value}), turn("assistant", "Ho", **{key: None})) == [
        ("not read in turns of the user", key)
    ]
    share = {
        "conversations": [
            {"from": "human", "value": "Hi", key: value},
            {"from": "gpt", "value": "Ho"},
        ]
    }
    assert read_record(share)["changes"] == [("not read in turns of the user", key)]


def test_what_is_read_is_no_loss():
    for _, record, *_ in READ:
        lost = {
            key for what, key in read_record(record)["changes"] if not what.startswith("put before")
        }
        assert lost <= {"id", "category"}, record
    assert changed(
        user("Hi"),
        turn("assistant", "Ho", weight=1, tool_calls=[], function_call=None, refusal=None),
        temperature=0,
        tool_choice="auto",
    ) == [("not read in records", "temperature"), ("not read in records", "tool_choice")]
    assert read_record({"user": "a", "answer": "b", "result": 3})["changes"] == [] and read_record(
        {"user": "a", "tool_name": "f", "arguments": {}, "result": 3}
    )["changes"] == [("not read because no answer follows", "result")]


def test_a_turn_that_is_not_to_be_learnt_is_refused_in_sharegpt_too():
    with pytest.raises(RecordError) as error:
        read_record(
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Ho", "weight": 0},
                ]
            }
        )
    assert error.value.args[0] == "conversations[1].weight"


# --- What a careful person would find ---------------------------------------------------------------------------------------


def chat(*turns):
    return {"messages": list(turns)}


def shared(*turns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def said(text):
    return {"text": text}


CALLS = {"role": "assistant", "content": "", "tool_calls": OPENAI_CALLS}
BAD = [
    (3, "record"),
    ({}, "record"),
    ([], "record"),
    ("text", "record"),
    ({"instruction": "x"}, "record"),
    ({"user": "u"}, "tool_name"),
    ({"tool_name": "t", "arguments": {}}, "user"),
    ({"user": "u", "tool_name": "t", "arguments": "{"}, "arguments"),
    (
        {"user": "u", "calls": [{"tool_name": "t", "arguments": {}}, {"tool_name": "t"}]},
        "calls[1].arguments",
    ),
    ({"user": "u", "tool_name": "t", "arguments": {}, "answer": "a"}, "result"),
    (
        {
            "user": "u",
            "calls": [{"tool_name": "t", "arguments": {}}] * 2,
            "result": ["x"],
            "answer": "a",
        },
        "result",
    ),
    ({"history": [result("x")], "user": "u", "answer": "a"}, "history[0]"),
    ({"history": ONE, "user": "u", "answer": "a"}, "user"),
    ({"user": "u", "answer": "a", "tools": 3}, "tools"),
    ({"user": "u", "answer": "a", "tools": "{"}, "tools"),
    (chat(user("u"), result("x")), "messages[1]"),
    (
        chat(
            user("u"),
            CALLS,
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "a", "content": "2"},
        ),
        "messages[3]",
    ),
    (
        chat(
            user("u"), CALLS, {"role": "tool", "tool_call_id": "a", "content": "1"}, assistant("x")
        ),
        "messages[3]",
    ),
    (chat(user("u"), CALLS, {"role": "tool", "tool_call_id": "a", "content": "1"}), "messages[2]"),
    (chat(user("u"), CALLS, {"role": "tool", "tool_call_id": "z", "content": "1"}), "messages[2]"),
    (chat(user("u"), CALLS, result("x", "other")), "messages[2]"),
    (chat(user("u"), CALLS, *[result("x")] * 3), "messages[4]"),
    (
        chat(
            user("u"), {**assistant("x"), "weight": 0}, user("v"), {**assistant("y"), "weight": 1}
        ),
        "messages[1].weight",
    ),
    (
        {"history": [user("u"), {**assistant("x"), "weight": 0}], "user": "v", "answer": "y"},
        "history[1].weight",
    ),
    ({"system": "Be long.", **chat(BRIEF, *ONE)}, "system"),
    (
        {"system": "Be long.", **shared(("system", "Be brief."), ("human", "u"), ("gpt", "x"))},
        "system",
    ),
    (chat(user("u"), CALLS, user("v")), "messages[2]"),
    (chat({**CALLS, "role": "user"}), "messages[0]"),
    (chat({**CALLS, "role": "tool"}), "messages[0]"),
    (chat(user("u"), assistant("")), "messages[1]"),
    (chat(user(" ")), "messages[0]"),
    (chat({"role": "wizard", "content": "x"}), "messages[0].role"),
    (chat(user(3)), "messages[0].content"),
    (chat(user([{"type": "image_url"}])), "messages[0].content[0]"),
    (chat(3), "messages[0]"),
    ({"messages": None}, "messages"),
    (
        chat(
            user("u"),
            {"role": "assistant", "tool_calls": [{"function": {"name": "t", "arguments": "[]"}}]},
        ),
        "messages[1].tool_calls[0].function.arguments",
    ),
    (
        chat(user("u"), {"role": "assistant", "tool_calls": [{}]}),
        "messages[1].tool_calls[0].function",
    ),
    (shared(("human", "u"), ("observation", "x")), "conversations[1].value"),
    (shared(("human", "u"), ("function_call", "weather()")), "conversations[1].value"),
    (
        shared(("human", "u"), ("function_call", '{"name": "t"}')),
        "conversations[1].value.arguments",
    ),
    (
        shared(
            ("human", "u"),
            ("function_call", json.dumps([ROME, ROME])),
            ("observation", "x"),
            ("gpt", "y"),
        ),
        "conversations[3].value",
    ),
    (shared(("human", "")), "conversations[0].value"),
    (shared(("owner", "u")), "conversations[0].from"),
    (shared(("human", "u"), ("gpt", "<tool_call>{")), "conversations[1].value"),
    (
        shared(("human", "u"), ("gpt", f"<tool_call>{CALL}</tool_call> Done.")),
        "conversations[1].value",
    ),
    ({"conversations": 3}, "conversations"),
    (said("<|im_start|>user\nu"), "text, turn 0"),
    (said("<|im_start|>user\nu<|im_end|>\nx<|im_start|>assistant\na<|im_end|>"), "text, turn 1"),
    (said("<|im_start|>user\nu<|im_start|>assistant\na<|im_end|>"), "text, turn 0"),
    (said("<|im_start|>wizard\nu<|im_end|>"), "text, turn 0"),
    (
        said(
            "<|im_start|>user\nu<|im_end|>\n<|im_start|>user\n<tool_response>\nx\n</tool_response><|im_end|>"
        ),
        "text, turn 1",
    ),
    (
        said(
            "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<function_call>{</function_call><|im_end|>"
        ),
        "text, turn 1",
    ),
    ({"query": "q", "answers": "[]"}, "answers"),
    ({"query": "q", "answers": "[{}]"}, "answers[0].name"),
    ({"query": "", "answers": [ROME]}, "query"),
    ({"question": [[user("u")]], "function": []}, "ground_truth"),
    ({"id": "x", "ground_truth": []}, "question"),
    ({"question": [[user("u")], [user("v")]], "ground_truth": [[]]}, "question"),
    ({"question": [[user("u")]], "ground_truth": [{"t": {"x": []}}]}, "ground_truth[0].t.x"),
    ({"question": [[user("u")]], "ground_truth": ["t(1)"]}, "ground_truth[0]"),
    ({"question": [[user("u")]], "ground_truth": ["t(x=open('f'))"]}, "ground_truth[0]"),
    ({"question": [[user("u")]], "ground_truth": [{"t": {}, "s": {}}]}, "ground_truth[0]"),
]


@pytest.mark.parametrize("record, field", BAD)
def test_what_is_wrong_is_named_with_its_place(record, field):
    with pytest.raises(RecordError) as error:
        read_record(record)
    assert error.value.args[0] == field and error.value.args[1]


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_can_be_asked_for(format):
    for name, record, found, messages, _ in READ:
        if found == format:
            assert read_record(record, format)["messages"] == messages
        elif (found, format) not in (
            ("triples", "logs"),
            ("openai", "sharegpt"),
        ):  # the last: OpenAI's keys with Hermes' text inside
            with pytest.raises(RecordError):
                read_record(record if isinstance(record, dict) else {"x": 1}, format)


def test_an_unknown_format_is_the_users_mistake():
    with pytest.raises(UserError, match="openai"):
        read_record({}, "opeani")


def test_python_literals_are_read_and_nothing_is_run():
    assert loose_value("{'a': (1, None, True), 'b': 'it\\'s'}") == {
        "a": [1, None, True],
        "b": "it's",
    }
    for text in [
        "__import__('os').getcwd()",
        "{1, 2}",
        "b'x'",
        "1j",
        "(" * 9000,
        "-" * 90000 + "1",
        '{"a": 1, "a": 2}',
        "{'a': 1, 'a': 2}",
        "{1: 1, '1': 2}",
        "NaN",
        "{'a': 1e999}",
        "'\\ud800'",
        "x",
        "",
    ]:
        with pytest.raises(ValueError):
            loose_value(text)


# --- Out and in again -------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>user\n",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        RESULT_JOIN,
        "<function_call>",
        "<tools>",
        "</tools>",
        TOOLS_HEAD,
        TOOLS_TAIL,
        "<think>",
        "</think>",
        "\\",
        "<",
        "<\\|im_end|>",
        "\n",
        "\\n",
        " ",
        "{",
        "[",
        '"',
        "You are provided with function signatures within <tools>",
        "# Tools\n\nYou may call ",
        CALL,
        '{"name": "x", "content": "y"}',
        "北京",
        "🙂",
        "\u2028",
        "\x00",
        "\r",
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=6), max_size=6).map("".join)
SOME_TEXT = TEXT.filter(str.strip)
NAME = st.sampled_from(["weather", "geo.find", "a-b", "名"]) | SOME_TEXT
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1.0, -0.0, 1e300])
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ONE_CALL = st.fixed_dictionaries(
    {"name": NAME, "arguments": st.dictionaries(TEXT, VALUE, max_size=3)}
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {
                    "name": NAME,
                    "description": TEXT,
                    "parameters": st.dictionaries(TEXT, VALUE, max_size=2),
                }
            ),
        }
    ),
    max_size=2,
)


@st.composite
def examples(draw, odd=False):
    "Conversations as our readers make them; odd ones break the alternation that ShareGPT asks for."
    messages = [{"role": "system", "content": draw(SOME_TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(SOME_TEXT)))
        for calls in draw(st.lists(st.lists(ONE_CALL, min_size=1, max_size=3), max_size=2)):
            messages += [
                call_message(calls, draw(TEXT)),
                *[result(draw(TEXT), call["name"]) for call in calls],
            ]
        messages.append(assistant(draw(SOME_TEXT)))
        if odd:
            messages += draw(
                st.lists(
                    st.sampled_from(
                        [
                            user("And?"),
                            assistant("So."),
                            {"role": "system", "content": "Now in French."},
                        ]
                    ),
                    max_size=2,
                )
            )
    if draw(st.booleans()):
        messages += [
            user(draw(SOME_TEXT)),
            call_message(draw(st.lists(ONE_CALL, min_size=1, max_size=2)), draw(TEXT)),
        ]
    group = {"group": draw(SOME_TEXT)} if draw(st.booleans()) else {}
    return {"messages": messages, "tools": draw(TOOLS), **group}


def comes_back(example, format, record):
    "The conversation is read again from what a file would hold, with the keys in their order."
    read = read_record(json.loads(json.dumps(record, ensure_ascii=False)))
    assert read["format"] == format
    assert json.dumps([read["messages"], read["tools"], read["group"]]) == json.dumps(
        [example["messages"], example["tools"], example.get("group")]
    )


@settings(max_examples=400, deadline=None)
@given(examples())
def test_every_format_gives_back_what_it_was_given(example):
    for format, write in WRITERS.items():
        comes_back(example, format, write(example))
    factory_rules(to_sharegpt(example))
    assert to_chatml(example)["text"].count("<|im_start|>") == len(
        [
            m
            for m, after in zip(example["messages"], [*example["messages"][1:], {"role": None}])
            if not m["role"] == after["role"] == "tool"
        ]
    ) + (bool(example["tools"]) and example["messages"][0]["role"] != "system"), (
        "no text becomes a turn"
    )


@settings(max_examples=150, deadline=None)
@given(examples(odd=True))
def test_what_does_not_alternate_is_refused_by_sharegpt_only(example):
    comes_back(example, "openai", to_openai(example))
    comes_back(example, "chatml", to_chatml(example))
    try:
        comes_back(example, "sharegpt", to_sharegpt(example))
    except RecordError as error:
        assert "ShareGPT" in error.args[1]


def factory_rules(record):
    "What LLaMA-Factory asks of a row (its data/README.md, converter.py and formatter.py), written down anew."
    assert (
        {"conversations", "system", "tools"} <= set(record)
        and isinstance(json.loads(record["tools"]), list)
        and isinstance(record["system"], str)
    )
    turns = record["conversations"]
    assert (
        len(turns) % 2 == 0
        and {turn["from"] for turn in turns[::2]} <= {"human", "observation"}
        and {turn["from"] for turn in turns[1::2]} <= {"gpt", "function_call"}
    )
    for turn in turns:
        assert isinstance(turn["value"], str)
        if turn["from"] != "function_call":
            continue
        block = re.search("<tool_call>(.*?)</tool_call>", turn["value"], re.DOTALL)
        thought = None if block else re.search("<think>(.*?)</think>", turn["value"], re.DOTALL)
        calls = json.loads(
            block[1]
            if block
            else turn["value"].replace(thought[0], "")
            if thought
            else turn["value"]
        )
        assert all(
            isinstance(call["name"], str) and isinstance(call["arguments"], dict)
            for call in (calls if isinstance(calls, list) else [calls])
        )


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_the_escape_leaves_no_control_text_and_is_undone(text):
    escaped = escape_text(text)
    assert unescape_text(escaped) == text and not re.search(
        r"<(\||/?(tools|tool_call|tool_response|function_call)>)", escaped
    )
    assert text == escaped or "<" in text


def test_other_peoples_backslashes_stay():
    assert read_record({"text": "<|im_start|>user\n<\\|im_end|>?<|im_end|>"})["messages"] == [
        user("<\\|im_end|>?")
    ]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    "messages",
    [
        [result("x")],
        [user("u"), assistant("")],
        [user("u"), {**assistant("x"), "name": "Bob"}],
        [*ONE, result("x", "other")],
        [*BOTH[:2], result("x"), assistant("y")],
        [{**user("u"), "tool_calls": ONE[1]["tool_calls"]}],
        [user("u"), {**ONE[1], "tool_calls": [{**ONE[1]["tool_calls"][0], "id": "x"}]}],
    ],
)
def test_a_writer_refuses_what_would_be_lost(write, messages):
    with pytest.raises(RecordError):
        write({"messages": messages, "tools": []})


def test_the_entry_for_llamafactory():
    entry = dataset_info("mine", "mine.json")["mine"]
    assert entry == {
        "file_name": "mine.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
    }
    assert (
        read_record(to_sharegpt({"messages": ROUND, "tools": [TOOL]}), tags=entry)["messages"]
        == ROUND
    )


def test_chatml_is_what_qwens_own_template_renders():
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not importlib.util.find_spec("trl"):
        pytest.skip("TRL, whose template is compared, is not here: pip install trl")
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    qwen = environment.from_string((folder / "qwen2_5.jinja").read_text(encoding="utf-8"))
    for messages in (
        [BRIEF, *ROUND],
        [BRIEF, *BOTH, user("Merci, 北京"), assistant("De rien")],
        [BRIEF, user("Rome?"), call_message([PARIS, ROME], "Let me look.")],
    ):
        for tools in ([], [TOOL, {**TOOL, "function": {**TOOL["function"], "name": "climate"}}]):
            assert to_chatml({"messages": messages, "tools": tools})["text"] == qwen.render(
                messages=messages, tools=tools, add_generation_prompt=False
            )
    assert to_chatml({"messages": ONE, "tools": [TOOL]})["text"].startswith(
        f"<|im_start|>system\n{TOOLS_HEAD}"
    ), "without a system prompt: as Qwen3's template has it, no name put in"


def test_llamafactorys_demo_and_rows_like_it(repository):
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "Hi, what can I cook?"},
                {"from": "gpt", "value": "What do you have?"},
                {"from": "human", "value": "Rice."},
                {
                    "from": "function_call",
                    "value": '{"name": "recipes", "arguments": {"with": ["rice"]}}',
                },
                {"from": "observation", "value": '{"recipes": [{"name": "Pilaf"}]}'},
                {"from": "gpt", "value": "Pilaf."},
            ],
            "tools": '[{"name": "recipes", "description": "", "parameters": {"type": "object", "properties": {"with": {"type": "array"}}}}]',
        }
    ]
    demo = repository.parent / "shared" / "data" / "glaive_toolcall_en_demo.json"
    if demo.exists():
        rows += json.loads(demo.read_text(encoding="utf-8"))
    for row in rows:
        read = read_record(row)
        example = {"messages": read["messages"], "tools": clean_tools(read["tools"])[0]}
        for format, write in WRITERS.items():
            comes_back(example, format, write(example))
        assert [
            {
                "from": turn["from"],
                "value": json.loads(turn["value"])
                if turn["from"] == "function_call"
                else turn["value"],
            }
            for turn in to_sharegpt(example)["conversations"]
        ] == [
            {
                "from": turn["from"],
                "value": json.loads(turn["value"])
                if turn["from"] == "function_call"
                else turn["value"],
            }
            for turn in row["conversations"]
        ]


# --- Damaged records --------------------------------------------------------------------------------------------------------

JUNK = [
    None,
    True,
    0,
    -1.5,
    10**30,
    "",
    " ",
    "{",
    "[]",
    "{}",
    "text",
    [],
    {},
    [[]],
    {"role": "tool"},
    {"from": "gpt", "value": "<tool_call>"},
    "<|im_start|>",
    "<|im_end|>",
    "<tools>",
    "</tools>",
    "<tool_call>{'a': 1}</tool_call>",
    "\ud800",
    {"name": "x"},
    [None],
]


def places(value, path=()):
    "Every place in a JSON value."
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(inner, (*path, key))


def damage(record, chance):
    "A copy of a record with one to four wounds."
    box = [deepcopy(record)]
    for _ in range(chance.randint(1, 4)):
        path = chance.choice([path for path in places(box) if path])
        parent = box
        for key in path[:-1]:
            parent = parent[key]
        value, act = parent[path[-1]], chance.randrange(6)
        if act == 0:
            parent[path[-1]] = deepcopy(chance.choice(JUNK))
        elif act == 1 and len(path) > 1:
            del parent[path[-1]]
        elif act == 2 and isinstance(parent, list) and len(path) > 1:
            parent.insert(path[-1], deepcopy(value))
        elif act == 3 and isinstance(value, list):
            chance.shuffle(value)
        elif act == 4 and isinstance(value, dict) and value:
            value[chance.choice(["name", "role", "tool_calls", "id", "value"])] = value.pop(
                chance.choice(list(value))
            )
        elif isinstance(value, str):
            cut = chance.randint(0, len(value))
            parent[path[-1]] = (
                value[:cut]
                + chance.choice(
                    [
                        "",
                        '"',
                        "}",
                        "\\",
                        "<tool_call>",
                        "</tool_call>",
                        "<|im_end|>",
                        "<|im_start|>user\n",
                        "</tools>",
                        "\x00",
                    ]
                )
                + value[cut + chance.randint(0, 3) :]
            )
    return box[0]


def survives(record, format="auto", tags=None):
    "Reads a record: a sound conversation, or RecordError with a field and a reason; never anything else."
    try:
        read = read_record(record, format, tags)
    except RecordError as error:
        field, reason = error.args
        assert isinstance(field, str) and isinstance(reason, str) and reason
        return False
    json.dumps(read).encode()
    assert openai_messages(read["messages"]) == read["messages"], "what was read keeps the rules"
    assert read["tools"] is None or isinstance(read["tools"], list)
    return True


def test_damaged_records_of_every_format_raise_nothing_else():
    chance = random.Random(20261121)
    written = [
        {"messages": BOTH, "tools": [TOOL], "group": "g"},
        {"messages": [BRIEF, *ROUND], "tools": []},
    ]
    sound = [record for _, record, *_ in READ] + [
        write(example) for write in WRITERS.values() for example in written
    ]
    outcomes = [
        survives(
            damage(chance.choice(sound), chance),
            chance.choice(["auto", "auto", *FORMATS]),
            chance.choice([None] * 9 + [ENTRY, damage(ENTRY, chance)]),
        )
        for _ in range(20000)
    ]
    assert outcomes.count(True) > 1000 and outcomes.count(False) > 5000, "both kinds occur"


KEYS = sorted(
    {
        key
        for _, record, *_ in READ
        if isinstance(record, dict)
        for path in places(record)
        for key in path
        if isinstance(key, str)
    }
)
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from(
        [
            "user",
            "assistant",
            "tool",
            "system",
            "human",
            "gpt",
            "function_call",
            "observation",
            CALL,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(ANY, st.sampled_from(["auto", *FORMATS]))
def test_any_json_is_read_or_refused(value, format):
    survives(value, format)


@pytest.mark.parametrize(
    "text",
    [
        "<tools>" * 5000,
        "<tools>" * 5000 + "</tools>",
        "<tool_call>" * 5000,
        "<tool_call>{}" * 3000,
        "<tool_call>" + "[" * 5000,
        "<tools>" + "[" * 5000 + "</tools>",
        "<|im_start|>user\n" * 3000,
        "<tool_response>" * 5000 + "</tool_response>",
        "# Tools You may call " * 3000,
        " " * 100000 + "x",
        "\\n" * 50000,
        "<think>" * 5000,
        "(" * 5000,
    ],
)
def test_long_hostile_texts_come_to_an_end(text):
    for role in ("system", "human", "gpt", "function_call", "observation"):
        survives(
            {"conversations": [{"from": "human", "value": "u"}, {"from": role, "value": text}]}
        )
    for role in ("system", "user", "assistant", "tool"):
        survives({"text": f"<|im_start|>{role}\n{text}<|im_end|>"})
    survives({"text": f"<|im_start|>user\nu<|im_end|>{text}"})
    survives({"question": [[user("u")]], "ground_truth": [text], "function": text})


def test_tools_in_a_system_prompt():
    assert take_tools(
        f"Mine.\n<tools>\n{json.dumps(TOOL)}\n{json.dumps(TOOL)}\n</tools>\nUse them."
    ) == ("Mine.\n\nUse them.", [TOOL, TOOL])
    assert take_tools("I sell <tools>hammers</tools>.") == ("I sell <tools>hammers</tools>.", None)
    assert take_tools(f"A\n\n{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}") == (
        "A",
        [TOOL],
    ) and take_tools(f"{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}") == ("", [TOOL])


@pytest.mark.parametrize(
    "words",
    [
        "\n\nNever guess a city.",
        " Answer in French.",
        '\n\nFor example:\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\nNever guess.',
    ],
)
def test_what_follows_the_tools_in_a_system_prompt_is_kept(words):
    explained = TOOLS_TAIL.removeprefix("\n</tools>")
    assert take_tools(f"A\n\n{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}{words}") == (
        f"A{words}",
        [TOOL],
    )
    assert take_tools(f"{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}{words}") == (
        words.lstrip("\n"),
        [TOOL],
    )
    assert take_tools(
        f"A\n{TOOLS_HEAD.replace('assist with', 'help with')}{json.dumps(TOOL)}{TOOLS_TAIL}{words}"
    ) == (f"A{words}", [TOOL]), "a wording close to Qwen's"
    assert take_tools(HERMES + words) == (THIRD["content"] + words, [TOOL])
    unexplained = HERMES.partition(" Use the following")[0]
    assert take_tools(unexplained + words) == (
        "You are a function calling AI model." + words,
        [TOOL],
    ), "no paragraph that explains, so all of it is somebody's own"
    assert explained not in take_tools(f"{TOOLS_HEAD}{json.dumps(TOOL)}{TOOLS_TAIL}{words}")[0]
