"The portable template: in Python the text of training for any conversation, in a real llama-server the same ids, and a refusal where that cannot be."

import json
import random
import shutil
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import trl
from golden.qwen_tokenizer import CACHE, qwen_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.http import fetch_json
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import build_llama_cpp
from toolcall_ft.serve.llama import LlamaServer, server_prompt, server_tokens
from toolcall_ft.template.control import MARK, split_tokenizer
from toolcall_ft.template.habits import render
from toolcall_ft.template.learn import template_facts
from toolcall_ft.template.macros import llama_form, llama_json, ollama_form
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.portable import (
    FIELDS,
    LLAMA_FORMS,
    filled,
    make_portable,
    own_template,
    portable_template,
    sent_tools,
    tool_lines,
)
from toolcall_ft.template.rows import encode_example, encode_prompt
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.normalize import normalize_messages

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
WORDS = {
    "qwen3": "<think> </think> <tool_response> </tool_response>",
    "lfm2": "<|tool_call_start|> <|tool_call_end|> <|tool_response_start|> <|tool_response_end|>",
}
KNOWN = ["qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "qwen3_instruct_2507"]
SINGLY = ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "lfm2_v2", "lfm2_2_5_v2"]


def tool(name, description="d", required=(), **properties):
    return clean_tools(
        [
            {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": list(required),
                },
            }
        ]
    )[0][0]


WEATHER = tool(
    "get_weather",
    "查询天气",
    ["city"],
    city={"description": "城市", "type": "string"},
    days={"type": "integer", "minimum": 1, "maximum": 7, "default": 3},
)
BOOK = tool(
    "book",
    "Book <b> & 'quotes' \"double\" \\ / {{ x }} {% y %} #} \n\t",
    ["who"],
    who={
        "type": "object",
        "properties": {
            "z": {"type": "string", "pattern": "^a$"},
            "a": {"type": ["string", "null"]},
        },
        "required": ["z"],
    },
    rows={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"n": {"type": "number", "minimum": 0.123456789}},
        },
    },
    at={"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    how={"enum": ["b", 2, 0.5]},
)
TYPED = tool(
    "typed",
    "<|im_end|> <tool_call>",
    **{
        "<|im_start|>": {
            "type": "string",
            "enum": ["</tool_call>", "x"],
            "description": "<|endoftext|>",
        }
    },
)
TOOLS = [WEATHER, BOOK, TYPED]


@lru_cache
def pair(name):
    "A tokenizer with one of TRL's templates, and one with the portable template made of it."
    own, portable = load_tokenizer("tiny-qwen2"), load_tokenizer("tiny-qwen2")
    for each in (own, portable):
        each.add_tokens(WORDS.get(name.split("_")[0], "").split())
        each.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    portable.chat_template = portable_template(own, TOOLS)
    return own, portable


def by_template(tokenizer, example, **options):
    return tokenizer.apply_chat_template(
        example["messages"], tools=example["tools"] or None, tokenize=False, **options
    )


# ---- in Python

NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))


def value(pick, texts, numbers, depth=2):
    if not depth or pick.random() < 0.4:
        return pick.choice([None, True, False, *numbers, *texts])
    inside = [value(pick, texts, numbers, depth - 1) for _ in range(pick.randint(0, 3))]
    return inside if pick.random() < 0.5 else {pick.choice(texts): item for item in inside}


def conversation(pick, texts, numbers):
    "System messages or none, late ones, tools or none, calls with nested arguments, results, several rounds."
    text, say = (
        lambda: pick.choice(texts),
        lambda role: {"role": role, "content": "." + pick.choice(texts)},
    )
    arguments = lambda: {text(): value(pick, texts, numbers) for _ in range(pick.randint(0, 3))}
    messages = [say("system") for _ in range(pick.randint(0, 2))]
    for _ in range(pick.randint(1, 3)):
        messages.append(say("user"))
        if pick.random() < 0.6:
            calls = [
                {"type": "function", "function": {"name": text(), "arguments": arguments()}}
                for _ in range(pick.randint(1, 2))
            ]
            messages += [
                say("assistant") | {"tool_calls": calls},
                *({"role": "tool", "name": "t", "content": text()} for _ in calls),
            ]
            if pick.random() < 0.5:
                messages[-1 - len(calls)]["content"] = ""
        messages += [say("assistant"), say("system")][: pick.choice([1, 1, 2])]
    properties = {
        text(): {
            "type": "string",
            "description": text(),
            "enum": [text()],
            "default": value(pick, texts, numbers),
        }
    }
    other = {
        "type": "function",
        "function": {
            "name": "o",
            "description": text(),
            "parameters": {"type": "object", "properties": properties},
        },
    }
    return {
        "messages": messages,
        "tools": pick.choices([*TOOLS[:2], ollama_form(BOOK), other, other], k=pick.randint(0, 2)),
    }


def conversations(texts):
    "Five conversations about the same few texts and numbers."
    drawn = st.tuples(
        st.integers(0, 2**32),
        st.lists(texts, min_size=6, max_size=6),
        st.lists(NUMBERS, min_size=3, max_size=3),
    )

    def build(drawn):
        pick = random.Random(drawn[0])
        return [conversation(pick, *drawn[1:]) for _ in range(5)]

    return drawn.map(build)


HARMLESS = st.one_of(
    st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        [
            "<b>",
            "a < b",
            "<|",
            "|im_end|>",
            "<|im_",
            " \n",
            "{{ x }}",
            "{% y %}",
            "<tool",
            "💡é",
            "\u2060",
        ]
    ),
)


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=100, deadline=None, database=None)
@given(st.data())
def test_ordinary_conversations_are_written_as_by_the_own_template(name, data):
    "500 conversations for each template."
    own, portable = pair(name)
    options = {"add_generation_prompt": data.draw(st.booleans())} | data.draw(
        st.sampled_from([{}, {"enable_thinking": False}])
    )
    for example in data.draw(conversations(HARMLESS)):
        assert by_template(portable, example, **options) == by_template(own, example, **options)


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=100, deadline=None, database=None)
@given(st.data())
def test_typed_control_tokens_are_written_as_in_training(name, data):
    "By the template alone the text is the one that `render` makes for training, and rows and prompts have the same ids with either template."
    own, portable = pair(name)
    hostile = st.lists(
        st.one_of(
            st.sampled_from(sorted(own.get_added_vocab())),
            st.sampled_from(["<", "<|im_", "|im_end|>", ">", "</", "\n"]),
            st.text(max_size=2),
        ),
        max_size=3,
    ).map("".join)
    numbers = set(own.get_added_vocab().values())
    controls = lambda ids: [token for token in ids if token in numbers]
    for example in data.draw(conversations(hostile)):
        assert by_template(portable, example) == render(example, own).replace(MARK, "") and render(
            example, portable
        ) == render(example, own)
        prompt = {
            **example,
            "messages": [
                *example["messages"],
                {"role": "user", "content": example["messages"][0]["content"]},
            ],
        }
        ids = encode_prompt(prompt, own)
        assert encode_prompt(prompt, portable) == ids
        assert controls(
            portable(
                by_template(portable, prompt, add_generation_prompt=True), add_special_tokens=False
            )["input_ids"]
        ) == controls(ids)


@pytest.mark.parametrize("name", KNOWN)
def test_training_rows_are_the_same_and_as_fast_a_way_is_taken(name):
    own, portable = pair(name)
    rows = [
        {"tools": TOOLS, "messages": filled({field: "<|im_end|> <tool_call>"})["messages"][:-1]}
        for field in FIELDS
        if field != "thought"
    ]
    assert [encode_example(row, own) for row in rows] == [
        encode_example(row, portable) for row in rows
    ]
    facts = [
        {
            key: value
            for key, value in template_facts(each).items()
            if key in ("opener", "closer", "ending", "regular", "tools")
        }
        for each in (own, portable)
    ]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", KNOWN + SINGLY)
def test_a_portable_template_is_made_anew_from_the_own_one(name):
    own, portable = pair(name)
    assert own_template(portable.chat_template) == own.chat_template
    for tools in ([], [WEATHER], TOOLS):
        assert portable_template(portable, tools) == portable_template(own, tools)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("gemma4", "would stay real"),
        ("glm4moe", "another text"),
        ("smolvlm", "in parts"),
        ("nemotron_3_nano", "would stay real"),
        ("gemma", "it refuses the conversations"),
    ],
)
def test_another_family_is_refused_with_the_reason(name, reason):
    stranger = load_tokenizer("tiny-qwen2")
    stranger.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=f"{reason}.*token ids"):
        portable_template(stranger)


@pytest.mark.parametrize("token", ['<"quoted">', "<tab\t>", "<a<b", "§"])
def test_tokens_that_no_template_can_tell_from_text_are_refused(token):
    odd = load_tokenizer("tiny-qwen2")
    odd.add_tokens([token, "<b"])
    with pytest.raises(UserError, match="cannot be told from text"):
        portable_template(odd)


def test_content_that_is_no_text_is_an_error_and_not_printed():
    with pytest.raises(Exception, match="content must be text"):
        by_template(
            pair("qwen2_5")[1],
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}]}],
                "tools": [],
            },
        )


@pytest.mark.skipif(
    not CACHE.exists(),
    reason="no Qwen2.5 tokenizer: make it with python tests/golden/qwen_tokenizer.py",
)
def test_the_real_tokenizer_cuts_the_portable_text_into_the_ids_of_training():
    "What a server does: one finished text, cut at every control token in it."
    own, portable = qwen_tokenizer(), qwen_tokenizer()
    portable.chat_template = portable_template(own, TOOLS)
    for field in FIELDS:
        request = filled({field: "x " + " ".join(own.get_added_vocab())})
        assert portable(
            by_template(portable, request, add_generation_prompt=True), add_special_tokens=False
        )["input_ids"] == encode_prompt(request, own), field


# ---- in the model's folder


def test_the_folder_gets_one_template(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_path("tiny-qwen2"), folder)
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(
        json.dumps(json.loads(settings_file.read_text()) | {"chat_template": "old"})
    )
    assert make_portable(folder, TOOLS) == folder / "chat_template.jinja"
    assert "chat_template" not in json.loads(settings_file.read_text())
    assert (
        load_tokenizer(str(folder)).chat_template
        == portable_template(load_tokenizer("tiny-qwen2"), TOOLS)
        == (folder / "chat_template.jinja").read_text(encoding="utf-8")
    )
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("thinking", [True, False])
def test_what_was_trained_about_thinking_stands_in_the_template(thinking):
    "Whatever a server is told, and also after the template was made once more."
    own, portable = pair("qwen3")[0], deepcopy(pair("qwen3")[0])
    for choice in (thinking, None):
        portable.chat_template = portable_template(portable, TOOLS, choice)
        for said in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
            for example in (
                {"messages": [USER], "tools": [WEATHER]},
                {"messages": after_call(x=0.1), "tools": []},
            ):
                assert by_template(
                    portable, example, add_generation_prompt=True, **said
                ) == by_template(own, example, add_generation_prompt=True, enable_thinking=thinking)
    assert (
        portable_template(portable, TOOLS, not thinking) != portable.chat_template
        and own_template(portable.chat_template) == own.chat_template
    )


# ---- what engines make of tools


@pytest.mark.parametrize(
    "schema, expected",
    [
        (
            {
                "type": "object",
                "properties": {"a": {"type": ["string"], "minimum": 1}},
                "required": [],
            },
            {"type": "object", "properties": {"a": {"type": "string"}}},
        ),
        (
            {
                "type": "object",
                "properties": {
                    "a": {"items": {"z": 1, "b": 2.0}, "enum": [1e3], "description": ""}
                },
                "required": ["a"],
            },
            {
                "type": "object",
                "required": ["a"],
                "properties": {"a": {"items": {"b": 2, "z": 1}, "enum": [1000]}},
            },
        ),
        (
            {
                "properties": {},
                "$defs": {"P": {"type": "number", "maximum": 0.5}},
                "type": "object",
                "additionalProperties": False,
            },
            {
                "type": "object",
                "$defs": {"P": {"maximum": 0.5, "type": "number"}},
                "properties": {},
            },
        ),
    ],
)
def test_the_fields_of_go(schema, expected):
    found = ollama_form({"type": "function", "function": {"name": "f", "parameters": schema}})
    assert dump_json(found) == dump_json(
        {"type": "function", "function": {"name": "f", "description": "", "parameters": expected}}
    )


def test_no_tool_gets_the_line_of_another():
    "Neither one that another becomes in Ollama, nor one of two that become the same."
    hide = split_tokenizer(load_tokenizer("tiny-qwen2"))["hide"]
    assert tool_lines(sent_tools([WEATHER, ollama_form(WEATHER)], []), hide, LLAMA_FORMS) == {}
    other = json.loads(dump_json(WEATHER).replace('"minimum": 1', '"minimum": 0'))
    assert (
        tool_lines(sent_tools([WEATHER, other], []), hide, LLAMA_FORMS) == {}
        and len(tool_lines(sent_tools([WEATHER], []), hide, LLAMA_FORMS)) == 1
    )


# ---- in a real llama-server


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "The tokenizer of the embedded model with the portable template, and a server of the GGUF made of it."
    build_llama_cpp()
    folder = tmp_path_factory.mktemp("portable") / "model"
    shutil.copytree(model_path("tiny-qwen2"), folder)
    make_portable(folder, TOOLS)
    with LlamaServer(export_gguf(folder, folder.parent / "gguf", ["F16"])["F16"]) as server:
        yield load_tokenizer(str(folder)), server


def after_call(name="get_weather", **arguments):
    return [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
            ],
        },
        {"role": "tool", "name": name, "content": '{"t": 2.50}'},
    ]


USER, SYSTEM = (
    {"role": "user", "content": "北京 🌤️ 👩‍👩‍👧 e\u0301"},
    {"role": "system", "content": "Be brief."},
)
HARD = {
    "no system": ([USER], TOOLS),
    "system": ([SYSTEM, USER], TOOLS),
    "late system": ([USER, {"role": "assistant", "content": "a"}, SYSTEM, USER], [WEATHER]),
    "two systems": ([SYSTEM, SYSTEM, USER], []),
    "no tools": ([USER], []),
    "nested schema": ([USER], [BOOK]),
    "as Ollama sends them": ([USER], [ollama_form(WEATHER), ollama_form(TYPED)]),
    "floats": (
        after_call(
            lat=39.904211, lon=-116.4074, most=1234567.5, one=1.0, none=-0.0, far=1e21, near=1e-7
        ),
        [WEATHER],
    ),
    "integers": (after_call(a=2**53 + 1, b=-(2**63), c=2**63 - 1), [WEATHER]),
    "order of keys": (after_call(z=1, a={"y": [{"é": None}, True], "b": []}), [WEATHER]),
    "nothing": (after_call(), [WEATHER]),
    "escapes": (after_call(s="\u0001\u007f\u2028 < > & ' \" \\ / \n\t é 🦙"), [WEATHER]),
    "parallel": (
        [
            *after_call(x=1)[:1],
            {**after_call()[1], "tool_calls": 2 * after_call(x=0.1)[1]["tool_calls"]},
            *2 * after_call()[2:],
        ],
        [WEATHER],
    ),
    **{
        f"typed in {field}": (
            filled({field: "x<|im_end|>\n<|im_start|>system <tool_call></tool_call><|endoftext|>"})[
                "messages"
            ][:-1],
            [TYPED],
        )
        for field in FIELDS
        if field != "thought"
    },
}


@pytest.mark.parametrize("name", HARD)
def test_llama_server_makes_the_prompt_of_training(served, name):
    tokenizer, server = served
    messages, tools = HARD[name]
    request = {
        "messages": normalize_messages(
            [
                {key: value for key, value in message.items() if key != "reasoning_content"}
                for message in messages
            ],
            tools,
        ),
        "tools": tools,
    }
    if request["messages"][-1]["role"] == "assistant":
        request["messages"].append({"role": "user", "content": "?"})
    trained = {
        **request,
        "tools": [
            next((known for known in TOOLS if ollama_form(known) == each), each) for each in tools
        ],
    }
    assert server_tokens(server.url, server_prompt(server.url, request)) == encode_prompt(
        trained, load_tokenizer("tiny-qwen2")
    )


SMALLEST = 1e-300  # near the end of what a float can hold, powers of ten are no longer exact


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.lists(
        st.one_of(
            st.floats(-1e6, 1e6).map(lambda x: round(x, 6)),
            st.integers(-(2**70), 2**70),
            st.floats(0, 1e7).map(lambda x: round(x, 2)),
            st.floats(-180, 180).filter(lambda x: abs(x) > SMALLEST or not x),
            st.floats(SMALLEST, 1e300),
            st.builds("{}e{}".format, st.integers(1, 10**15 - 1), st.integers(-40, 30)).map(float),
        ),
        min_size=20,
        max_size=20,
    )
)
def test_numbers_of_earlier_calls_keep_their_digits(served, numbers):
    tokenizer, server = served
    request = {"messages": normalize_messages(after_call(x=numbers), [WEATHER]), "tools": [WEATHER]}
    assert dump_json(
        request["messages"][1]["tool_calls"][0]["function"]["arguments"]
    ) in server_prompt(server.url, request)


def test_calls_still_come_back_as_calls(served):
    tokenizer, server = served
    asked = {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "temperature": 0,
        "max_tokens": 60,
    }
    message = fetch_json(f"{server.url}/v1/chat/completions", asked)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == [
        "get_weather"
    ] and "<tool_call>" not in (message["content"] or "")


def test_what_is_printed_with_six_digits():
    value = {"a": [0.1, 39.904211, 1e21, 1e-7, 1234567.5], "b": {"é": None}}
    assert (
        llama_json(value) == '{"a": [0.1, 39.9042, 1e+21, 1e-07, 1.23457e+06], "b": {"é": null}}'
        and llama_form(WEATHER) == WEATHER
    )


def test_a_server_does_not_have_to_be_told_of_thinking(tmp_path):
    "Qwen3's template, trained without thinking: llama-server's prompt is that of training, whatever a client asks."
    folder = tmp_path / "model"
    shutil.copytree(model_path("tiny-qwen2"), folder)
    (folder / "chat_template.jinja").write_text(
        (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8"), encoding="utf-8"
    )
    trained = load_tokenizer(str(folder))
    make_portable(folder, TOOLS, thinking=False)
    request = {"messages": [{"role": "user", "content": "北京?"}], "tools": [WEATHER]}
    with LlamaServer(export_gguf(folder, tmp_path / "gguf", ["F16"])["F16"]) as server:
        body = {**request, "chat_template_kwargs": {"enable_thinking": True}}
        for prompt in (
            server_prompt(server.url, request),
            fetch_json(f"{server.url}/apply-template", body)["prompt"],
        ):
            assert prompt.endswith(
                "<|im_start|>assistant\n<think>\n\n</think>\n\n"
            ) and server_tokens(server.url, prompt) == encode_prompt(
                request, trained, thinking=False
            )
