"""Each family's calls: read off its chat template, written as it writes them, read back, held by a grammar; what it cannot carry is refused."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.generate.engines import grammar_accepts
from toolcall_ft.generate.grammar import tool_grammar
from toolcall_ft.generate.reading import read_answer
from toolcall_ft.serve.client import wire_messages
from toolcall_ft.template.habits import render
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.rows import encode_example
from toolcall_ft.tools.formats import HERMES, TOOL_FORMATS, stop_ids, tool_format
from toolcall_ft.tools.normalize import normalize_messages
from toolcall_ft.tools.notation import JSON
from toolcall_ft.tools.wire import carry_problem

TEMPLATES = [Path(trl.__file__).parent / "chat_templates", Path(__file__).parent / "golden"]
EACH = pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)
BY_NAME = {form.name: form for form in TOOL_FORMATS}


@lru_cache
def borrow(name):
    "The embedded tokenizer with the chat template of another family."
    tokenizer = load_tokenizer("tiny-qwen2")
    tokenizer.bos_token = "<|endoftext|>"
    files = [folder / f"{name}.jinja" for folder in TEMPLATES]
    tokenizer.chat_template = next(filter(Path.is_file, files)).read_text(encoding="utf-8")
    return tokenizer


FAMILIES = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
    "qwen3_5_nothink": "qwen3.5",
    "qwen3_5_think": "qwen3.5",
    "qwen3_6": "qwen3.6",
    "qwen3_8": "qwen3.6",
    "nemotron_3_nano": "qwen3.5",
    "llama3_1": "llama3",
    "llama3_2": "llama3",
    "lfm2_v2": "lfm2",
    "lfm2_2_5": "lfm2.5",
    "lfm2_2_5_v2": "lfm2.5",
    "gemma4": "gemma4-first",
    "gemma4_v2": "gemma4-first",
    "gemma4_v3": "gemma4-first",
    "gemma4_v4": "gemma4-first",
    "gemma4_v5": "gemma4",
    "functiongemma": "functiongemma",
}


@pytest.mark.parametrize("template, name", FAMILIES.items())
def test_a_format_is_recognised_by_its_template(template, name):
    assert tool_format(borrow(template)) == BY_NAME[name]


@pytest.mark.parametrize("template, name", FAMILIES.items())
def test_a_call_is_written_as_the_template_writes_it(template, name):
    "To the letter: the grammar and the check before training rest on it."
    for call in CALLS:
        turn = {"type": "function", "function": {**call, "id": "call00001"}, "id": "call00001"}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [turn]},
        ]
        text = borrow(template).apply_chat_template(messages, tools=TOOLS, tokenize=False)
        assert BY_NAME[name].write([call]) in text


@pytest.mark.parametrize("template, name", FAMILIES.items())
def test_what_a_server_is_sent_makes_the_prompt_of_training(template, name):
    "Gemma 4 names the tool of each result, which it finds by the id of the call."
    calls = CALLS[1:2] if BY_NAME[name].between is None else [CALLS[1], CALLS[3]]
    turns = [{"type": "function", "function": call} for call in calls]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": turns},
        *({"role": "tool", "name": call["name"], "content": f"{call}"} for call in calls),
    ]
    request = {"messages": normalize_messages(messages, TOOLS), "tools": TOOLS}
    sent = wire_messages(request)
    for call in sent[1]["tool_calls"]:  # every server does so
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    options = {"tools": TOOLS, "tokenize": False, "add_generation_prompt": True}
    theirs = borrow(template).apply_chat_template(sent, **options)
    assert render(request, borrow(template), True) == theirs


GRANITE = (
    "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|end_of_text|>\n{% endfor %}"
)


def test_the_same_calls_in_other_turns_end_as_that_model_ends_them():
    "Granite's turns have a format of their own; those of a model that nobody has seen end in its own token."
    tokenizer = load_tokenizer("tiny-qwen2")
    tokenizer.chat_template = GRANITE
    assert tool_format(tokenizer) == BY_NAME["granite"]
    tokenizer.chat_template = GRANITE.replace("start_of_role", "opens").replace(
        "end_of_text", "closes"
    )
    tokenizer.eos_token = "<|closes|>"
    assert tool_format(tokenizer).stops[0] == "<|closes|>"


@pytest.mark.parametrize(
    "name, words",
    [
        ("glm4moe", "a format that is not known here: .*probe value.*Known are: hermes, granite"),
        ("gptoss", "a format that is not known here: .*probe value"),
        ("phi3", "leaves out tool calls"),
        ("lfm2", "leaves out tool calls"),
        ("gemma3", "leaves out tool calls|refuses a tool call"),
    ],
)
def test_an_unknown_one_says_what_was_seen(name, words):
    with pytest.raises(UserError, match=words):
        tool_format(borrow(name))


KINDS = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "count": {"type": "integer"},
    "flag": {"type": "boolean"},
    "maybe": {"type": ["boolean", "null"]},
    "unit": {"type": "string", "enum": ["it's", 'b"c', "5"]},
    "list": {"type": "array", "items": {"type": ["string", "null"]}},
    "deep": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
}
SAY = {"name": "say", "parameters": {"type": "object", "properties": KINDS, "required": ["text"]}}
TOOLS = [
    {"type": "function", "function": SAY},
    {
        "type": "function",
        "function": {"name": "go", "parameters": {"type": "object", "properties": {}}},
    },
]
WHOLE = {
    "text": '5 "o\'clock" {你好}\n</b>\\',
    "number": -2.5,
    "count": 3,
    "flag": True,
    "maybe": None,
    "unit": "it's",
    "list": ["a, b", None, "it's"],
    "deep": {"a": 'x "y"'},
}
CALLS = [
    {"name": "say", "arguments": WHOLE},
    {"name": "say", "arguments": {"text": "5"}},
    {"name": "say", "arguments": {"text": "", "flag": False}},
    {"name": "go", "arguments": {}},
]


@EACH
def test_what_is_written_is_read_and_half_of_it_is_no_call(form):
    for call in CALLS:
        text = form.write([call])
        assert form.parse(text, TOOLS) == ("", [call], [])
        assert json.dumps(form.parse(text, TOOLS)[1]) == json.dumps([in_order(form, call)])
        assert all(form.parse(text + stop, TOOLS) == ("", [call], []) for stop in form.stops)
        assert all(form.parse(text[:end], TOOLS)[1] == [] for end in range(len(text)))
    if form.between is not None:
        text = form.write(CALLS[:2])
        for end in range(len(text)):
            whole = form.parse(text[:end], TOOLS)[1]
            assert whole in ([], CALLS[:1]), text[:end]
    if form.between is None:
        with pytest.raises(UserError, match="one call a turn"):
            form.write(CALLS)
    else:
        assert form.parse(form.write(CALLS), TOOLS) == ("", CALLS, [])


def in_order(form, call):
    "A call with its keys in the order in which its family writes them."
    sort = form.notation.sorted_keys
    ordered = lambda value: (
        {key: ordered(value[key]) for key in (sorted(value) if sort else value)}
        if isinstance(value, dict)
        else value
    )
    return {"name": call["name"], "arguments": ordered(call["arguments"])}


@EACH
def test_words_beside_a_call_are_content_and_what_is_only_thought_is_no_call(form):
    if not form.tags:
        return  # Llama's call is the whole answer: tests/test_llama3.py
    text = form.write([CALLS[1]])
    assert form.parse(f"Let me see.\n{text}", TOOLS) == ("Let me see.", [CALLS[1]], [])
    begin, finish = form.thought
    content, calls, errors = form.parse(f"{begin}\nI could write {text}", TOOLS)
    assert calls == [] and errors == [f"the thought is not closed by {finish}"]
    content, calls, errors = form.parse(f"{begin}\n{text}\n{finish}\n\n{text}", TOOLS)
    assert calls == [CALLS[1]] and errors == [] and content.endswith(finish)
    assert form.parse(f"{text[:-4]} and on", TOOLS)[1] == []
    broken, good = text.replace("say", "say\x00", 1)[: len(text) // 2], form.parse(text, TOOLS)
    assert form.parse(broken, TOOLS)[1] == [] and good[1]


@EACH
def test_the_grammar_holds_what_is_written_and_nothing_else(form):
    grammar = tool_grammar(TOOLS, form=form)
    for call in CALLS:
        assert grammar_accepts(grammar, form.write([call])), call
        assert not grammar_accepts(grammar, form.write([call])[:-1])
    for wrong in (
        {"text": "a", "count": "x"},
        {"text": "a", "unit": "zz"},
        {"text": "a", "list": [1]},
        {"text": "a", "deep": {}},
        {"text": "a", "other": 1},
        {"flag": True},
    ):
        assert not grammar_accepts(grammar, form.write([{"name": "say", "arguments": wrong}])), (
            wrong
        )
    assert not grammar_accepts(grammar, form.write([{"name": "nothing", "arguments": {}}]))
    assert grammar_accepts(grammar, "Hello {there}, 1 < 2.")
    begin, finish = form.thought
    talk = f"{begin}\nHm.\n{finish}\n\nLet me see.\n\n" + form.write([CALLS[1]])
    assert grammar_accepts(grammar, talk) == form.words_first
    if form.between is not None:
        assert grammar_accepts(grammar, form.write(CALLS[:3]))


@EACH
def test_a_thought_may_stand_before_a_call_where_the_model_has_a_token_for_it(form):
    call = form.write([CALLS[1]])
    free, held = (tool_grammar(TOOLS, must, replace(form, thoughts=True)) for must in (False, True))
    thought = "{}\n1 < 2?\n{}\n\n".format(*form.thought)
    for grammar in (free, held):
        assert grammar_accepts(grammar, call)
        assert grammar_accepts(grammar, thought + call)
    assert grammar_accepts(free, f"{thought}Yes.")
    assert not grammar_accepts(held, f"{thought}Yes.")


@pytest.mark.parametrize("form", [form for form in TOOL_FORMATS if form.tags])
def test_no_value_is_offered_that_would_not_be_read_back(form):
    values = ["plain", "x', loud='y", "a\n</parameter>\nb", "5", '<|"|>', "<escape>"]
    level = {"type": "string", "enum": values}
    parameters = {"type": "object", "properties": {"level": level}, "required": ["level"]}
    tools = [{"type": "function", "function": {"name": "set", "parameters": parameters}}]
    grammar = tool_grammar(tools, form=form)
    for value in values:
        call = {"name": "set", "arguments": {"level": value}}
        text = form.write([call])
        assert grammar_accepts(grammar, text) == (form.parse(text, tools) == ("", [call], []))


@EACH
@pytest.mark.parametrize("deep", [False, True])
def test_no_key_is_offered_that_would_not_be_read_back(form, deep):
    keys = ["plain", "two words", "a=b", "城市", "x>y", "it's", '"', "</parameter>", "a:b", "{"]
    object = {"type": "object", "properties": {key: {"type": "string"} for key in keys}}
    whole = {"type": "object", "properties": {"inside": object}} if deep else object
    tools = [{"type": "function", "function": {"name": "set", "parameters": whole}}]
    grammar, read = tool_grammar(tools, form=form), []
    for key in keys:
        arguments = {"inside": {key: "v"}} if deep else {key: "v"}
        call = {"name": "set", "arguments": arguments}
        text = form.write([call])
        read.append(form.parse(text, tools) == ("", [call], []))
        assert grammar_accepts(grammar, text) == read[-1], key
    assert read[0] and read[3]


def test_the_tokens_that_end_an_answer():
    tokenizer = borrow("gemma4_v5")
    tokenizer.add_tokens(["<turn|>", "<|tool_response>"], special_tokens=True)
    names = tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    assert names == [tokenizer.eos_token, "<turn|>", "<|tool_response>"]
    call = BY_NAME["gemma4"].write([CALLS[1]])
    for stop in stop_ids(tokenizer):
        answer = read_answer(tokenizer, [*tokenizer.encode(call), stop], TOOLS)
        assert answer["calls"] == [CALLS[1]] and answer["errors"] == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["</parameter>", "\n", "'", "', x='", '<|"|>', "</tool_call>", "true", "None", "1", "}", ")]"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {"text": TEXTS},
    optional={
        "count": st.integers(-(10**12), 10**12),
        "flag": st.booleans(),
        "list": st.lists(TEXTS | st.none(), max_size=3),
        "any": VALUES,
    },
)


@EACH
@given(arguments=ARGUMENTS)
def test_a_call_comes_back_or_is_refused(form, arguments):
    "Whatever the values are, no other call is ever read than the one that was meant."
    call = {"name": "say", "arguments": arguments}
    if not carry_problem(form, [call], TOOLS):
        content, calls, errors = form.parse(form.write([call]), TOOLS)
        assert (content, errors) == ("", [])
        assert json.dumps(calls, sort_keys=True) == json.dumps([call], sort_keys=True)
    elif form.notation == JSON:
        raise AssertionError("JSON carries everything")


@EACH
def test_what_people_say_is_not_refused(form):
    "Apostrophes, quotation marks, line breaks, flags, numbers as text."
    for text in (
        "it's",
        'she said "no"',
        "a\nb",
        "🏴\U000e0067",
        "007",
        "1 < 2",
        "C:\\Users",
        "true",
    ):
        assert not carry_problem(form, [{"name": "say", "arguments": {"text": text}}], TOOLS)
        listed = {"text": "", "list": [text, None]}
        assert not carry_problem(form, [{"name": "say", "arguments": listed}], TOOLS)


@pytest.mark.parametrize(
    "template, value",
    [("qwen3_5_nothink", "a\n</parameter>\nb"), ("lfm2_2_5_v2", "x', loud='y")],
)
def test_a_value_that_a_format_cannot_carry_is_refused_before_training(template, value):
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": value}}}
    example = {
        "messages": [
            {"role": "user", "content": "Say it."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": TOOLS,
    }
    with pytest.raises(UserError, match="the argument 'text' of a call of say: models of the form"):
        encode_example(example, borrow(template))
    call["function"]["arguments"]["text"] = value[:1]
    assert encode_example(example, borrow(template))["labels"]


def test_a_value_without_a_type_is_read_by_the_schema():
    form = BY_NAME["qwen3.5"]
    text = "<tool_call>\n<function=say>\n<parameter=text>\n5\n</parameter>\n<parameter=count>\n5\n</parameter>\n</function>\n</tool_call>"
    assert form.parse(text, TOOLS)[1] == [{"name": "say", "arguments": {"text": "5", "count": 5}}]
    assert form.parse(text)[1] == [{"name": "say", "arguments": {"text": 5, "count": 5}}]


def test_hermes_is_the_default():
    text = HERMES.write([CALLS[1]])
    assert grammar_accepts(tool_grammar(TOOLS), text)


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "qwen3_5_nothink"])
def test_a_developers_message_is_never_lost_in_silence(template):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    with pytest.raises(UserError, match="the role 'developer'|refuses this conversation"):
        encode_example({"messages": messages, "tools": []}, borrow(template))
    shown = encode_example({"messages": messages, "tools": []}, borrow("lfm2_v2"))
    assert "Be brief." in borrow("lfm2_v2").decode(shown["input_ids"])


@pytest.mark.parametrize(
    "name, text",
    [
        ("gemma4", "<|tool_call>call:say{text:1e999}<tool_call|>"),
        ("gemma4", "<|tool_call>call:say{text:" + "[" * 5000 + "<tool_call|>"),
        ("gemma4", "<|tool_call>call:say{text:1,text:2}<tool_call|>"),
        ("lfm2", "<|tool_call_start|>[say(list=['\\ud800'])]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[say(text='" + "x" * 100_000),
        ("lfm2.5", "<|tool_call_start|>[say(text='" + "x'" * 50_000),
        ("qwen3.5", "<tool_call>\n<function=say>\n" + "<parameter=text>\n" * 20_000),
        ("qwen3.5", "<tool_call>\n<function=say>\n<parameter=text>\nx\n</function>\n</tool_call>"),
    ],
)
def test_what_no_family_writes_is_an_error_and_soon(name, text):
    content, calls, errors = BY_NAME[name].parse(text, TOOLS)
    assert calls == [] and len(errors) == 1


RM = "call:rm{p:1}"


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "gemma4",
            f'<|tool_call>call:note{{text:<|"|>he said <tool_call|><|tool_call>{RM}<tool_call|>',
        ),
        (
            "qwen3.5",
            "<tool_call>\n<function=rm>\n<parameter=p>\n/tmp\n<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>",
        ),
        ("qwen3.5", "<tool_call>\n<function=a>\n<parameter=b>\nx\n</tool_call>\n" * 4000),
        (
            "qwen3.5",
            "<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n<parameter=text>\ny\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "hermes",
            'I could <tool_call>\n{"name": "go", "arguments": {}}\n</tool_call> but no.</think>\n\nNo.',
        ),
        ("hermes", 'Well <think> <tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'),
        ("llama3", '{"name": "f", "parameters": {"<\u2060a": 1, "<a": 2}}'),
    ],
)
def test_nothing_that_was_not_meant_as_a_call_is_read_as_one(name, text):
    assert BY_NAME[name].parse(text, TOOLS)[1] == []


def test_types_come_from_other_keys_too_and_a_tool_may_say_nothing():
    form, tool = BY_NAME["qwen3.5"], {"name": "say", "parameters": {"properties": None}}
    text = form.write([{"name": "say", "arguments": {"zip": "12345"}}])
    tool["parameters"]["additionalProperties"] = {"type": "string"}
    assert form.parse(text, [{"function": tool}])[1][0]["arguments"] == {"zip": "12345"}
    assert form.parse(text, [{}, {"function": None}])[1][0]["arguments"] == {"zip": 12345}
