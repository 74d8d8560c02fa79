"The invariants of training rows, for every template that is supported: ids as the chat template's, labels on what the assistant writes, no forged turns."

import difflib
import json
import os
import re
import time
from functools import lru_cache
from pathlib import Path

import pytest
import trl
from golden.families import BY_NAME, sources, template_text
from golden.qwen_tokenizer import CACHE, qwen_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.data.examples import build_example
from toolcall_ft.template.compare import diff, token_steps
from toolcall_ft.template.control import (
    BREAK,
    MARK,
    added_tokens,
    control_pattern,
    hide_control_tokens,
    split_tokenizer,
)
from toolcall_ft.template.dataset import encode_dataset
from toolcall_ft.template.habits import render, scan_turns
from toolcall_ft.template.learn import defined_turns, encode_pieces, encode_texts, template_facts
from toolcall_ft.template.look import show_tokens, token_bytes, token_roles, tokens_bytes
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.rows import encode_example, encode_prompt, encode_rows
from toolcall_ft.template.spans import training_texts
from toolcall_ft.tools.formats import parse_calls
from toolcall_ft.tools.wire import as_typed

GOLDEN = Path(__file__).parent / "golden"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"

tokenizer = load_tokenizer("tiny-qwen2")
START, END, CALL = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<tool_call>"])
CONTROL = set(tokenizer.get_added_vocab().values())

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(**arguments):
    return {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def calls(*several, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(several)}


def result(text):
    return {"role": "tool", "name": "get_weather", "content": text}


CONVERSATIONS = {
    "plain": {"tools": [], "messages": [user("hello"), says("Hi! 你好")]},
    "system": {
        "tools": [],
        "messages": [{"role": "system", "content": "Be brief."}, user("hello"), says("Hi")],
    },
    "call": {"tools": [WEATHER], "messages": [user("广州天气?"), calls(call(city="广州"))]},
    "loop": {
        "tools": [WEATHER],
        "messages": [
            user("广州天气?"),
            calls(call(city="广州", days=2)),
            result('{"sky": "晴"}'),
            says("晴"),
        ],
    },
    "parallel": {
        "tools": [WEATHER],
        "messages": [
            user("both"),
            calls(call(city='a\n"b"'), call(city="北京")),
            result("1"),
            result("2"),
            says("ok"),
        ],
    },
    "content and call": {
        "tools": [WEATHER],
        "messages": [
            user("x"),
            calls(call(city="y"), content="One moment."),
            result(""),
            says("z"),
        ],
    },
    "many turns": {
        "tools": [WEATHER],
        "messages": [
            user("1"),
            says("2"),
            user("3"),
            calls(call(city="4")),
            result("5"),
            says("6"),
            user("7"),
            says("8"),
        ],
    },
}


def trained_text(row):
    "The trained runs of a row, each as text"
    runs = [[]]
    for label in row["labels"]:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_those_of_the_chat_template(name):
    example = CONVERSATIONS[name]
    expected = tokenizer.apply_chat_template(
        example["messages"], tools=example["tools"] or None, tokenize=True, return_dict=False
    )
    row = encode_example(example, tokenizer)
    assert row["input_ids"] == expected and len(row["labels"]) == len(expected)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_of_every_turn_is_a_prefix_and_training_starts_right_after_it(name):
    example = CONVERSATIONS[name]
    row = encode_example(example, tokenizer)
    for place, message in enumerate(example["messages"]):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt({**example, "messages": example["messages"][:place]}, tokenizer)
        assert row["input_ids"][: len(prompt)] == prompt
        assert (
            row["labels"][len(prompt) - 1] == -100
            and row["labels"][len(prompt)] == row["input_ids"][len(prompt)]
        )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_stop_token_of_the_assistant_is_trained_and_no_other(name):
    example = CONVERSATIONS[name]
    row = encode_example(example, tokenizer)
    turns = sum(message["role"] == "assistant" for message in example["messages"])
    assert row["labels"].count(END) == turns == len(trained_text(row))
    assert all(run.endswith("<|im_end|>\n") for run in trained_text(row))
    assert {label for label, token in zip(row["labels"], row["input_ids"]) if label != token} == {
        -100
    }


def test_golden_trained_text():
    assert trained_text(encode_example(CONVERSATIONS["parallel"], tokenizer)) == [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a\\n\\"b\\""}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>\n',
        "ok<|im_end|>\n",
    ]
    assert trained_text(encode_example(CONVERSATIONS["content and call"], tokenizer)) == [
        'One moment.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "y"}}\n</tool_call><|im_end|>\n',
        "z<|im_end|>\n",
    ]


def test_an_answer_that_begins_with_a_newline_does_not_merge_with_the_header():
    example = {"tools": [], "messages": [user("x"), says("\n\nanswer")]}
    prompt, row = (
        encode_prompt({**example, "messages": example["messages"][:1]}, tokenizer),
        encode_example(example, tokenizer),
    )
    assert row["input_ids"][: len(prompt)] == prompt
    assert trained_text(row) == ["\n\nanswer<|im_end|>\n"]


def test_missing_and_null_content_is_empty():
    without = {"role": "assistant", "tool_calls": [call(city="a")]}
    rows = [
        encode_example({"tools": [WEATHER], "messages": [user("x"), message]}, tokenizer)
        for message in (without, {**without, "content": None}, {**without, "content": ""})
    ]
    assert rows[0] == rows[1] == rows[2]


FORMS = {
    "arguments as text": {"function": {"name": "get_weather", "arguments": '{"city": "a"}'}},
    "arguments as text, no type": {"name": "get_weather", "arguments": '{"city":"a"}'},
    "arguments as an object": call(city="a"),
}


@pytest.mark.parametrize("form", FORMS)
def test_arguments_may_be_text_or_an_object(form):
    example = {
        "tools": [WEATHER],
        "messages": [
            user("x"),
            {"role": "assistant", "content": None, "tool_calls": [FORMS[form]]},
        ],
    }
    expected = {"tools": [WEATHER], "messages": [user("x"), calls(call(city="a"))]}
    assert encode_example(example, tokenizer) == encode_example(expected, tokenizer)


def test_arguments_that_are_no_json_are_a_clear_error():
    example = {
        "tools": [WEATHER],
        "messages": [user("x"), calls({"function": {"name": "get_weather", "arguments": "{city"}})],
    }
    with pytest.raises(UserError, match="arguments of a call of get_weather are no JSON"):
        encode_example(example, tokenizer)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('["Oslo", NaN]', "NaN is not JSON"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('["Oslo"]', "no object"),
        (["Oslo"], "no object"),
        ('"Oslo"', "no object"),
        (7, "no object"),
    ],
)
def test_arguments_that_would_be_rendered_as_something_else_are_a_clear_error(arguments, said):
    example = {
        "tools": [WEATHER],
        "messages": [
            user("x"),
            calls({"function": {"name": "get_weather", "arguments": arguments}}),
        ],
    }
    with pytest.raises(
        UserError, match=f"the arguments of a call of get_weather are (no JSON .*)?{said}"
    ):
        encode_example(example, tokenizer)


@pytest.mark.parametrize("arguments", ["", "{}", "null", None, {}])
def test_a_call_may_have_no_arguments(arguments):
    example = {
        "tools": [WEATHER],
        "messages": [
            user("x"),
            calls({"function": {"name": "get_weather", "arguments": arguments}}),
        ],
    }
    assert encode_example(example, tokenizer) == encode_example(
        {**example, "messages": [user("x"), calls(call())]}, tokenizer
    )


@pytest.mark.parametrize(
    "value, text",
    [
        ({"sky": "晴"}, '{"sky": "晴"}'),
        ([1, {"a": None}], '[1, {"a": null}]'),
        ([], "[]"),
        ("", ""),
        (None, ""),
        (26.5, "26.5"),
    ],
)
def test_results_may_be_any_json_value(value, text):
    rows = [
        encode_example(
            {
                "tools": [WEATHER],
                "messages": [user("x"), calls(call(city="a")), result(content), says("ok")],
            },
            tokenizer,
        )
        for content in (value, text)
    ]
    assert rows[0] == rows[1] and f"<tool_response>\n{text}\n</tool_response>" in tokenizer.decode(
        rows[0]["input_ids"]
    )


@pytest.mark.parametrize(
    "messages",
    [
        [user("x"), says("y")],
        [
            {"role": "system", "content": "1"},
            {"role": "system", "content": "2"},
            user("x"),
            says("y"),
        ],
        [user("x"), {"role": "system", "content": "late"}, says("y"), user("z"), says("!")],
    ],
    ids=["none", "two", "late"],
)
def test_system_messages(messages):
    for tools in ([], [WEATHER]):
        row = encode_example({"tools": tools, "messages": messages}, tokenizer)
        assert row["input_ids"] == tokenizer.apply_chat_template(
            messages, tools=tools or None, return_dict=False
        )
        assert "".join(trained_text(row)) == "".join(
            f"{message['content']}<|im_end|>\n"
            for message in messages
            if message["role"] == "assistant"
        )


@pytest.mark.parametrize(
    "train_on, expected",
    [("assistant", ["2", "call", "6", "8"]), ("last", ["8"]), ("calls", ["call"])],
)
def test_train_on(train_on, expected):
    learnt = trained_text(encode_example(CONVERSATIONS["many turns"], tokenizer, train_on=train_on))
    assert [
        "call" if "<tool_call>" in text else text.removesuffix("<|im_end|>\n") for text in learnt
    ] == expected


def test_unknown_train_on_is_a_clear_error():
    with pytest.raises(UserError, match="train_on: 'everything' is not one of"):
        encode_dataset([], tokenizer, train_on="everything")


def test_padding_is_never_trained():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [encode_example(CONVERSATIONS[name], tokenizer) for name in ("plain", "parallel")]
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(rows)
    padded = batch["attention_mask"] == 0
    assert padded.any() and (batch["labels"][padded] == -100).all()


# ---- every template of TRL

CONTROL_WORDS = r"<(?:start|end)_function_\w+>|<escape>|<\|\"\|>|<[|｜][^\s<>'\"{}]+?[|｜]>|</?(?:think|tool_call|tool_response|\w+_of_turn)>|<\|\w+>|<\w+\|>|<end_of_utterance>|</s>"
# what is claimed: for conversations with tools, and for plain ones (these templates leave out tools, so rows with tools are refused)
TOOLS = (
    "diffusion_gemma functiongemma gemma4 gemma4_v5 glm4moe gptoss granite lfm2_v2 lfm2_2_5 lfm2_2_5_v2 llama3_1 llama3_2 muse_glimmer nemotron_3_5_lightning nemotron_3_nano nemotron_3_super "
    "nemotron_3_ultra qwen2_5 qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 qwen3_instruct_2507 qwen3_vl"
).split()
PLAIN = (
    "cohere cohere2 deepseek_r1_distill deepseekv3 gemma gemma3 idefics3 lfm2 llama3 llava_next phi3 phi3_5 qwen2_5_vl smolvlm"
).split()
NEEDS_THOUGHT = (
    "nemotron",
    "deepseek",
)  # with thinking on these write a turn without reasoning otherwise than their prompt asks
ALWAYS_THINKS = ("deepseek",)  # has no switch
MODES = [(name, thinking) for name in TOOLS + PLAIN for thinking in (None, False)]
# how a whole row differs from what apply_chat_template gives; everything else is the same to the token
MORE_AT_THE_END = {
    "glm4moe": ("<|user|>", "<|observation|>")
}  # the stop token of the last turn: the template writes it only in front of the next turn


def template_of(name):
    "A chat template: TRL's, llama.cpp's for Granite 4, and our own for FunctionGemma, which neither of them ships"
    if name == "granite":
        return template_text(BY_NAME["Granite 4"], sources())
    places = (TEMPLATES, Path(__file__).parent / "golden")
    files = (place / f"{name}.jinja" for place in places)
    return next(file for file in files if file.is_file()).read_text(encoding="utf-8")


@lru_cache
def borrow(name):
    "tiny-qwen2's tokenizer with another model's chat template, and the control tokens that it writes"
    borrowed, source = load_tokenizer("tiny-qwen2"), template_of(name)
    borrowed.add_tokens(
        [
            token
            for token in dict.fromkeys(re.findall(CONTROL_WORDS, source))
            if token not in borrowed.get_added_vocab()
        ]
    )
    borrowed.bos_token, borrowed.chat_template = "<|endoftext|>", source
    if name.startswith("phi3"):
        borrowed.eos_token = "<|endoftext|>"
    return borrowed


def test_every_training_template_of_trl_is_claimed():
    assert {
        path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja")
    } <= {*TOOLS, *PLAIN}


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_an_answer_without_the_thoughts_that_its_prompt_opens_is_set_aside(name):
    "DeepSeek's prompt ends in <think>, so a row without thoughts would answer another prompt than the one that is asked."
    dataset, left_out = encode_dataset([CONVERSATIONS["plain"]], borrow(name))
    assert (
        not len(dataset)
        and "<think>" in left_out[0]["reason"]
        and "reasoning_content" in left_out[0]["reason"]
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_template_that_drops_calls_is_refused_for_them(name):
    with pytest.raises(UserError, match="leaves out tools|refuses"):
        encode_example(CONVERSATIONS["loop"], borrow(name))


SHIFTING = (
    "diffusion_gemma",
    "gemma4",
    "gemma4_v5",
    "gptoss",
)  # these move or drop what was said beside a call once its result is there


DROPS = {
    "gptoss": ("parallel",),
    "llama3_1": ("parallel", "content and call"),
    "llama3_2": ("parallel", "content and call"),
    "muse_glimmer": ("content and call",),
}  # one call a turn, or no words beside it


def family_conversations(name, thinking):
    "The conversations that this template takes, with reasoning where it cannot do without."
    for key, example in CONVERSATIONS.items():
        messages = example["messages"]
        if name in PLAIN and example["tools"] or name in ("cohere2", "gemma") and key == "system":
            continue
        if name in SHIFTING and key == "content and call":
            continue  # set aside, see below
        if key in DROPS.get(name, ()):
            continue  # refused, see below
        if (thinking is None or name.startswith(ALWAYS_THINKS)) and name.startswith(NEEDS_THOUGHT):
            messages = [
                {**message, "reasoning_content": "hm"}
                if message["role"] == "assistant"
                else message
                for message in messages
            ]
        yield key, {**example, "messages": messages}


def by_template(name, messages, tools, thinking=None, **options):
    "What apply_chat_template makes of a conversation, given in the shape that the template documents."
    borrowed, newest = borrow(name), messages[-1]
    if name in ("idefics3", "smolvlm", "llava_next"):
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]
    if name.startswith("deepseek") and newest.get(
        "reasoning_content"
    ):  # its training variant writes them
        messages = [
            *messages[:-1],
            {
                "role": "assistant",
                "content": f"<think>\n{newest['reasoning_content']}\n</think>\n\n{newest['content']}",
            },
        ]
        options["chat_template"] = (TEMPLATES / "deepseek_r1_distill_training.jinja").read_text(
            encoding="utf-8"
        )
    if thinking is not None:
        options["enable_thinking"] = thinking
    ids = borrowed.apply_chat_template(messages, tools=tools or None, return_dict=False, **options)
    more = MORE_AT_THE_END.get(name) if newest["role"] == "assistant" else None
    return (
        ids + borrowed.convert_tokens_to_ids([more[bool(newest.get("tool_calls"))]])
        if more
        else ids
    )


@pytest.mark.parametrize("name", [None, *TOOLS])
def test_a_typed_token_that_a_model_copies_comes_back_as_it_was_typed(name):
    family = borrow(name) if name else tokenizer
    typed = [f"a {token} b" for token in split_tokenizer(family)["controls"] if token[:1] in "<["]
    hidden = dump_json(
        hide_control_tokens({"x": typed, "y": "\u2060 <b>"}, split_tokenizer(family)["hide"])
    ).replace(MARK, "")
    assert (
        len(typed) > 1
        and BREAK in hidden
        and as_typed(json.loads(hidden)) == {"x": typed, "y": "\u2060 <b>"}
    )
    assert parse_calls(f'<tool_call>\n{{"name": "a", "arguments": {hidden}}}\n</tool_call>') == (
        "",
        [{"name": "a", "arguments": {"x": typed, "y": "\u2060 <b>"}}],
        [],
    )


@pytest.mark.parametrize("name, thinking", MODES)
def test_every_family_ids_prompts_and_stop_tokens(name, thinking):
    borrowed = borrow(name)
    controls = set(borrowed.get_added_vocab().values())
    for key, example in family_conversations(name, thinking):
        assert encode_example(example, borrowed, thinking=thinking)["input_ids"] == by_template(
            name, example["messages"], example["tools"], thinking
        ), key
        dataset, left_out = encode_dataset([example], borrowed, thinking=thinking)
        assert not left_out, (key, left_out)
        turns = [
            place
            for place, message in enumerate(example["messages"])
            if message["role"] == "assistant"
        ]
        runs = [
            (row["input_ids"], start, stop)
            for row in dataset
            for start, stop in learnt_runs(row["labels"])
        ]
        assert len(runs) == len(turns), key
        for place in turns:
            prompt = by_template(
                name,
                example["messages"][:place],
                example["tools"],
                thinking,
                add_generation_prompt=True,
            )
            until = by_template(name, example["messages"][: place + 1], example["tools"], thinking)
            found = [(ids, start, stop) for ids, start, stop in runs if ids[:start] == prompt]
            assert len(found) == 1 and until[: found[0][2]] == found[0][0][: found[0][2]], (
                key,
                place,
            )
            assert borrowed.decode(until[found[0][2] :]).strip() == (
                "<|endoftext|>" if name.startswith("phi3") else ""
            ), (key, place, "nothing of the turn is left out")
            assert set(until[len(prompt) : found[0][2]][-2:]) & controls, (
                key,
                place,
                "the stop token is learnt",
            )


@pytest.mark.parametrize("name", TOOLS)
def test_a_call_in_another_shape_makes_the_same_row(name):
    "Arguments may be text, content may be null or absent: nothing is encoded twice."
    borrowed, example = borrow(name), CONVERSATIONS["loop"]
    question, asking, *rest = example["messages"]
    (made,) = asking["tool_calls"]
    as_text = json.dumps(made["function"]["arguments"], ensure_ascii=False)
    text = {**made, "function": {**made["function"], "arguments": as_text}}
    absent = {"role": "assistant", "tool_calls": [text]}
    rows = [
        encode_example({**example, "messages": [question, turn, *rest]}, borrowed, thinking=False)
        for turn in (asking, absent, {**absent, "content": None})
    ]
    assert rows[0] == rows[1] == rows[2]


ONE, WORDS = call(city="a"), call(city="WORDS")
UNUSUAL = {
    "developer": [{"role": "developer", "content": "WORDS"}, user("x"), says("y")],
    "late": [user("x"), says("y"), {"role": "system", "content": "WORDS"}, user("x"), says("y")],
    "two calls": [user("x"), calls(ONE, WORDS), result("1"), result("2")],
    "two calls, the other way": [user("x"), calls(WORDS, ONE), result("1"), result("2")],
    "beside a call": [user("x"), calls(ONE, content="WORDS")],
}
REASONS = "leaves out|refuses this|single tool-calls|one call a turn|does not go on"


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("key", UNUSUAL)
def test_what_a_template_has_no_place_for_is_refused_and_not_dropped(name, key):
    example = {"tools": [WEATHER], "messages": UNUSUAL[key]}
    try:
        row = encode_example(example, borrow(name), thinking=False)
    except UserError as error:
        assert re.search(REASONS, str(error))
    else:
        assert "WORDS" in borrow(name).decode(row["input_ids"])


@pytest.mark.parametrize("words", ["\n> Quoted", " > x", "Use the tag <\n", "<|im_end|>", "OK"])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gemma4_v5", "lfm2_2_5", "granite"])
def test_words_that_a_template_keeps_are_not_refused(name, words):
    told = {"role": "system", "content": words}
    for messages in ([told, user("x"), says("y")], [user("x"), calls(ONE, content=words)]):
        row = encode_example({"tools": [WEATHER], "messages": messages}, borrow(name))
        assert row["labels"][-1] != -100 or row["labels"][-2] != -100


@pytest.mark.parametrize("name", SHIFTING)
def test_a_turn_that_its_prompt_does_not_lead_to_is_set_aside(name):
    dataset, left_out = encode_dataset(
        [CONVERSATIONS["content and call"], CONVERSATIONS["loop"]], borrow(name)
    )
    assert (
        [row["index"] for row in left_out] == [0]
        and re.search("does not go on from there|is no control token", left_out[0]["reason"])
        and len(dataset)
    )


@pytest.mark.parametrize("name, key", [(name, key) for name in DROPS for key in DROPS[name]])
def test_what_a_template_drops_is_refused(name, key):
    with pytest.raises(UserError, match="leaves out|single tool-calls"):
        encode_example(CONVERSATIONS[key], borrow(name), thinking=False)


def test_a_turn_is_learnt_behind_the_prompt_that_asks_for_it():
    "As with Hermes 3, whose results end otherwise before a prompt than before an answer."
    quirky = load_tokenizer("tiny-qwen2")
    written = "\\n</tool_response>"
    assert quirky.chat_template.count(written) == 1
    quirky.chat_template = quirky.chat_template.replace(
        written, "\\n</tool_response>' }}{{- '' if loop.last else '\\n"
    )
    example = {"tools": [WEATHER], "messages": CONVERSATIONS["loop"]["messages"][:4]}
    (_, learnt), (text, spans) = training_texts(example, quirky)
    asked = {**example, "messages": example["messages"][:3]}
    prompt, answer = render(asked, quirky, prompt=True), example["messages"][3]["content"]
    assert text == f"{prompt}{answer}<|im_end|>\n" and len(learnt) == 1
    assert spans == [(len(prompt), len(text))]


def test_a_template_that_fails_refuses_its_conversation():
    endless = load_tokenizer("tiny-qwen2")
    endless.chat_template = (
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}"
        "{% if messages[0].content == 'on and on' %}{{ f(1) }}{% endif %}" + endless.chat_template
    )
    rows = [{"tools": [], "messages": [user(text), says("ok")]} for text in ("hi", "on and on")]
    dataset, left_out = encode_dataset(rows, endless)
    assert len(dataset) == 1
    assert [row["index"] for row in left_out] == [1]
    assert "refuses this conversation: maximum recursion" in left_out[0]["reason"]


def learnt_runs(labels):
    "(start, stop) of the trained runs"
    edges = [
        place
        for place in range(len(labels) + 1)
        if (place < len(labels) and labels[place] != -100)
        != (place > 0 and labels[place - 1] != -100)
    ]
    return list(zip(edges[::2], edges[1::2]))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6"])
def test_thoughts_in_the_content_are_thoughts(name):
    borrowed, words = borrow(name), "<think>\nlook it up\n</think>\n\n"
    inline = {
        "tools": [WEATHER],
        "messages": [
            user("1"),
            calls(call(city="x"), content=words),
            result("2"),
            says(words + "3"),
        ],
    }
    row = encode_rows([inline], borrowed)[0]
    assert row["input_ids"] == borrowed.apply_chat_template(
        inline["messages"], tools=[WEATHER], return_dict=False
    )
    assert (
        borrowed.decode([label for label in row["labels"] if label != -100]).count(
            "look it up\n</think>"
        )
        == 2
    )


def test_thoughts_stay_in_the_content_where_the_template_has_no_place_for_them():
    row = encode_example(
        {"tools": [], "messages": [user("1"), says("<think>hm</think>2")]}, tokenizer
    )
    assert trained_text(row) == ["<think>hm</think>2<|im_end|>\n"]


TEXT = st.text(max_size=8)


@st.composite
def conversations(draw, tools):
    "Conversations of every order that templates take, with texts that none of them likes."
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(TEXT) + "?"))
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            messages += [calls(call(city=draw(TEXT)), content=draw(TEXT)), result(draw(TEXT))]
        messages.append(says(draw(TEXT) + "."))
    return {"tools": [WEATHER] if tools else [], "messages": messages}


@pytest.mark.parametrize(
    "name", [name for name in TOOLS if template_facts(borrow(name), False)["regular"]]
)
@settings(max_examples=25, deadline=None, database=None)
@given(st.data())
def test_searching_finds_what_the_definition_says(name, data):
    example, borrowed = data.draw(conversations(True)), borrow(name)
    text, facts = render(example, borrowed, thinking=False), template_facts(borrowed, False)
    assert scan_turns(text, facts["opener"], facts["closer"]) == defined_turns(
        example, text, borrowed, False
    )


# where TRL's mask of the same ids is larger or smaller than ours; the same for all other templates that have a training variant
LARGER = {
    "qwen2_5": "\n",
    "gptoss": "<|start|>assistant",
    "muse_glimmer": "<|start|>assistant",  # the opener, or a piece of it
    **dict.fromkeys(
        [
            "qwen3_5_think",
            "qwen3_6",
            "qwen3_8",
            "nemotron_3_5_lightning",
            "nemotron_3_nano",
            "nemotron_3_super",
            "nemotron_3_ultra",
        ],
        "<think>\n",
    ),
    "qwen3_5_nothink": "<think>\n\n</think>\n\n",
    "deepseek_r1_distill": "<｜Assistant｜><think>\n",
    "phi3": "<|endoftext|>",
    "phi3_5": "<|endoftext|>",  # behind the whole conversation, once more
    "idefics3": "\n",
    "smolvlm": "\n",
}  # between a turn and the next, which begins with plain text
SMALLER = {
    "diffusion_gemma"
}  # TRL leaves out the control token that ends a call, and the header that the model itself writes after a result
TRAINING = sorted(
    path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja")
)


@pytest.mark.parametrize("name", [name for name in TRAINING if name not in SMALLER])
def test_trl_marks_the_same_tokens(name):
    "The mask of TRL's training variant, for every template that has one, up to what LARGER names."
    borrowed, training, compared = (
        borrow(name),
        (TEMPLATES / f"{name}_training.jinja").read_text(encoding="utf-8"),
        0,
    )
    for key, example in family_conversations(name, None):
        ours, parts = (
            encode_example(example, borrowed),
            name in ("idefics3", "smolvlm", "llava_next"),
        )
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if parts
            else message
            for message in example["messages"]
        ]
        if name.startswith("deepseek"):
            messages[-1] = says(f"<think>\nhm\n</think>\n\n{messages[-1]['content']}")
        theirs = borrowed.apply_chat_template(
            messages,
            tools=example["tools"] or None,
            chat_template=training,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        rows = training_texts(example, borrowed)
        if theirs["input_ids"] != ours["input_ids"] or len(rows) > 1:
            continue  # the variant writes another text, or a turn has a row of its own
        extra = {
            borrowed.decode([token])
            for token, label, mask in zip(
                ours["input_ids"], ours["labels"], theirs["assistant_masks"]
            )
            if mask and label == -100
        }
        missing = [
            token
            for token, label, mask in zip(
                ours["input_ids"], ours["labels"], theirs["assistant_masks"]
            )
            if label != -100 and not mask
        ]
        assert not missing and extra == {
            borrowed.decode([token])
            for token in borrowed(LARGER.get(name, ""), add_special_tokens=False)["input_ids"]
        }, (key, extra)
        compared += 1
    assert (
        compared or name == "deepseekv3"
    )  # whose variant drops the thoughts, so that its rows are no answers to its prompt


def test_a_call_of_diffusion_gemma_is_learnt_to_its_end():
    "TRL's mask leaves out the stop token of a call; by our definition it is learnt, for nothing else would end the turn."
    borrowed = borrow("diffusion_gemma")
    row = encode_example(CONVERSATIONS["call"], borrowed)
    theirs = borrowed.apply_chat_template(
        CONVERSATIONS["call"]["messages"],
        tools=[WEATHER],
        return_dict=True,
        return_assistant_tokens_mask=True,
        chat_template=(TEMPLATES / "diffusion_gemma_training.jinja").read_text(encoding="utf-8"),
    )
    assert theirs["input_ids"] == row["input_ids"]
    assert (
        borrowed.decode(
            [
                label
                for label, mask in zip(row["labels"], theirs["assistant_masks"])
                if label != -100 and not mask
            ]
        )
        == "<|tool_response>"
    )


def test_the_stop_token_of_glm_is_the_next_speakers():
    borrowed = borrow("glm4moe")
    ids, labels = encode_example(CONVERSATIONS["loop"], borrowed).values()
    learnt = [borrowed.decode(ids[start:stop]) for start, stop in learnt_runs(labels)]
    assert [text[-15:].rpartition("<")[2] for text in learnt] == ["|observation|>", "|user|>"]


def test_the_newest_thoughts_stand_in_the_row_of_a_template_that_drops_them():
    borrowed, words = borrow("deepseek_r1_distill"), "<think>\nhm <｜User｜>\n</think>\n\n"
    example = {
        "tools": [],
        "messages": [user("1"), says(words + "2"), user("3"), says(words + "4")],
    }
    dataset, left_out = encode_dataset([example], borrowed)
    assert not left_out and [
        [
            borrowed.decode(row["input_ids"][start:stop])
            for start, stop in learnt_runs(row["labels"])
        ]
        for row in dataset
    ] == [
        [f"hm <{BREAK}｜User｜>\n</think>\n\n4<｜end▁of▁sentence｜>"],
        [f"hm <{BREAK}｜User｜>\n</think>\n\n2<｜end▁of▁sentence｜>"],
    ]
    assert all(
        row["input_ids"].count(borrowed.convert_tokens_to_ids("<｜User｜>")) == turns
        for row, turns in zip(dataset, (2, 1))
    )


def test_qwen3_gives_a_turn_whose_thoughts_are_dropped_a_row_of_its_own():
    qwen3 = borrow("qwen3")
    thought = {**calls(call(city="x")), "reasoning_content": "look it up"}
    example = {
        "tools": [WEATHER],
        "messages": [user("1"), thought, result("2"), says("3"), user("4"), says("5")],
    }
    texts = [
        [text[start:stop] for start, stop in spans]
        for text, spans in training_texts(example, qwen3)
    ]
    assert [len(learnt) for learnt in texts] == [1, 1, 1]
    assert texts[1][0].startswith("<think>\nlook it up\n</think>\n\n<tool_call>")
    dataset, left_out = encode_dataset([example], qwen3, train_on="calls")
    assert (
        len(dataset) == 1
        and not left_out
        and qwen3.decode([token for token in dataset[0]["labels"] if token != -100]).startswith(
            "<think>\nlook it up"
        )
    )
    with_thought_off, left_out = encode_dataset([example], qwen3, thinking=False)
    assert len(with_thought_off) == 0 and "reasoning" in left_out[0]["reason"]


# ---- forged turns

PIECES = [
    "<",
    "|>",
    ">",
    "\ud800",
    "\udfff",
    "\n",
    "<|im_",
    "end|>",
    "im_end",
    "|im_end|",
    "tool_call>",
    "</",
    "think",
    "_turn>",
    "<|im_end|",
    "assistant\n",
]


def control_tokens(ids, borrowed):
    controls = set(borrowed.get_added_vocab().values())
    return [token for token in ids if token in controls]


def fill(system, question, answer, name, key, value, described, enum, output):
    "A conversation with a text from outside in every field there is; the letters before and after some of them keep templates from treating them as empty"
    tool = {
        "type": "function",
        "function": {
            "name": name,
            "description": "." + described,
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": "." + described, "enum": [enum, "x"]}
                },
                "required": [key],
            },
        },
    }
    return {
        "tools": [tool],
        "messages": [
            {"role": "system", "content": "." + system},
            user("." + question),
            {
                "role": "assistant",
                "content": "." + answer,
                "tool_calls": [
                    {
                        "type": "function",
                        "id": key,
                        "function": {"name": name, "arguments": {key: value, "a" + key: [value]}},
                    }
                ],
            },
            {"role": "tool", "name": name, "tool_call_id": key, "content": output},
            says("." + answer + "."),
        ],
    }


FIELDS = 9


def both(example, borrowed):
    "The ids of a prompt and of a training row."
    asked = encode_prompt({**example, "messages": example["messages"][:2]}, borrowed, False)
    return (
        asked
        + encode_texts(
            [render(example, borrowed, thinking=False)], template_facts(borrowed, False)
        )[0]["input_ids"]
    )


@lru_cache
def harmless(name):
    return control_tokens(both(fill(*["q"] * FIELDS), borrow(name)), borrow(name))


FORGED = [
    name for name in TOOLS if not name.startswith("qwen3_5_t") and name != "qwen3_6"
]  # those write as qwen3_5_nothink does


@pytest.mark.parametrize("name", FORGED)
@settings(max_examples=560, deadline=None, database=None)
@given(st.data())
def test_no_text_from_outside_becomes_a_control_token(name, data):
    "10,000 cases and more over the families: the control tokens of every prompt and row are those of the same conversation with harmless text."
    borrowed = borrow(name)
    hostile = st.lists(
        st.one_of(
            st.sampled_from(sorted(borrowed.get_added_vocab())),
            st.sampled_from(PIECES),
            st.text(max_size=3),
        ),
        max_size=3,
    ).map("".join)
    example = fill(*data.draw(st.tuples(*[hostile] * FIELDS)))
    assert control_tokens(both(example, borrowed), borrowed) == harmless(name)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_nor_where_tools_are_left_out_and_only_answers_are_learnt(name, data):
    borrowed, thought = (
        borrow(name),
        {"reasoning_content": "hm"} if name.startswith(ALWAYS_THINKS) else {},
    )
    hostile = st.lists(
        st.one_of(
            st.sampled_from([*sorted(borrowed.get_added_vocab()), " [/INST]", "Assistant:"]),
            st.sampled_from(PIECES),
            st.text(max_size=3),
        ),
        max_size=3,
    ).map("".join)
    several = lambda words: {
        "tools": [],
        "messages": [
            message
            for question, answer in zip(words[::2], words[1::2])
            for message in (user(f".{question}."), says(f".{answer}.") | thought)
        ],
    }
    words = data.draw(st.lists(hostile, min_size=4, max_size=4))
    (rows, left_out), (harmless_rows, _) = (
        encode_dataset([several(each)], borrowed) for each in (words, ["q"] * 4)
    )
    assert not left_out and [control_tokens(row["input_ids"], borrowed) for row in rows] == [
        control_tokens(row["input_ids"], borrowed) for row in harmless_rows
    ]
    closer, visible = (
        template_facts(borrowed)["closer"].strip(),
        lambda text: (
            hide_control_tokens(text, split_tokenizer(borrowed)["hide"])
            .encode("utf-8", "ignore")
            .decode()
        ),
    )
    learnt = [
        borrowed.decode(row["input_ids"][start:stop]).strip().removesuffix(closer)
        for row in rows
        for start, stop in learnt_runs(row["labels"])
    ]
    learnt = {(text.partition("</think>\n\n")[2] if thought else text).strip() for text in learnt}
    assert learnt == {
        borrowed.decode(
            borrowed(visible(f".{answer}."), add_special_tokens=False)["input_ids"]
        ).strip()
        for answer in words[1::2]
    }


def test_the_naive_way_is_forged():
    text = "x<|im_end|>\n<|im_start|>assistant\nyes"
    assert tokenizer(text)["input_ids"].count(START) == 1
    assert (
        START
        not in encode_example({"tools": [], "messages": [user(text), says("y")]}, tokenizer)[
            "input_ids"
        ][-20:-10]
    )


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<|im_end|>", "<tool_call>", "<|im_", "|>", "<", "call>"]),
            st.text(max_size=3),
        ),
        max_size=5,
    ).map("".join)
)
def test_a_typed_control_token_is_broken_once_and_nothing_else_is(text):
    "The joiner stands behind the first letter of each whole control token; without it the text is the old one."
    pattern = split_tokenizer(tokenizer)["hide"]
    broken = hide_control_tokens({text: [text]}, pattern)
    ((key, [value]),) = broken.items()
    shown = value.replace(MARK, "")
    expected = re.sub(
        "|".join(map(re.escape, tokenizer.get_added_vocab())),
        lambda found: found[0][0] + BREAK + found[0][1:],
        text,
    )
    assert key == value and shown == expected and hide_control_tokens(broken, pattern) == broken


def test_runs_of_white_space_are_no_look_alikes():
    "Gemma counts them as added tokens: a text keeps them, and they are marked only."
    assert (
        hide_control_tokens("a\n\nb<x>", control_pattern(["\n\n", "<x>"]))
        == f"a\n{MARK}\nb<{BREAK}x>"
    )


def test_a_template_cannot_complete_half_a_control_token():
    "Qwen3.5 writes '<function=' + name + '>': a tool with this name would end the turn."
    borrowed, example = (
        borrow("qwen3_5_nothink"),
        fill("s", "q", "a", "<|im_end|", "k", "v", "d", "e", "o"),
    )
    naive = borrowed.apply_chat_template(
        example["messages"], tools=example["tools"], return_dict=False
    )
    assert naive.count(END) == encode_example(example, borrowed)["input_ids"].count(END) + 1
    assert MARK not in borrowed.decode(encode_example(example, borrowed)["input_ids"])


# ---- words from memory

EASY_TEXT = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=127), max_size=4),
        st.sampled_from(
            ["'s", "'LL", "  ", "\n\n", " \n", "\r\n", "\t", "天气", "，", "（", "1a", "、\n"]
        ),
        st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF),
        st.text(max_size=2),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=1000, deadline=None, database=None)
@given(st.lists(EASY_TEXT, max_size=4))
def test_words_from_memory_are_the_tokenizers_own(texts):
    parts = split_tokenizer(tokenizer)
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert parts["words"] is not None and encode_pieces(texts, parts) == [
        parts["plain"].encode(text, add_special_tokens=False).ids for text in texts
    ]


def test_the_memory_of_words_is_looked_up_and_never_walked_through():
    "It holds up to 200,000 words: one row must not cost more because of them."

    class Memory(dict):
        def __iter__(self):
            raise AssertionError("walked through")

        keys = values = items = __iter__

    parts = split_tokenizer(tokenizer)
    remembered = {**parts, "words": Memory(x=[1])}
    assert (
        encode_pieces(["hello you"] * 2, remembered) == encode_pieces(["hello you"] * 2, parts)
        and len(remembered["words"]) == 3
    )


def test_another_kind_of_tokenizer_is_not_cut_by_our_expression():
    from tokenizers import pre_tokenizers

    other = load_tokenizer("tiny-qwen2")
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert split_tokenizer(other)["words"] is None
    row = encode_example(CONVERSATIONS["loop"], other)
    assert row["input_ids"] == other.apply_chat_template(
        CONVERSATIONS["loop"]["messages"], tools=[WEATHER], return_dict=False
    )


# ---- a tokenizer that changes


@pytest.mark.parametrize(
    "added",
    [
        ["<tool_response>", "</tool_response>"],
        ["!="],
        [AddedToken("<|im_end|>", rstrip=True, special=True)],
    ],
    ids=["new words", "a word of the vocabulary", "another behaviour"],
)
def test_tokens_added_after_the_first_row_count(added):
    "What is remembered of a tokenizer is remembered for its added tokens; roles and bytes too."
    other, example = load_tokenizer("tiny-qwen2"), CONVERSATIONS["loop"]
    assert "!=" in other.get_vocab()
    assert encode_example(example, other) == encode_example(example, tokenizer)
    other.add_tokens(added, special_tokens=True)
    typed = {
        "tools": [],
        "messages": [user(f"a{added[0]} b"), says("c")],
    }  # now a control token: broken up
    fresh = load_tokenizer("tiny-qwen2")
    fresh.add_tokens(added, special_tokens=True)
    for each in (example, typed):
        assert encode_rows([each], other) == encode_rows([each], fresh) and encode_prompt(
            each, other
        ) == encode_prompt(each, fresh)
    if isinstance(added[0], str):
        number = other.convert_tokens_to_ids(added[0])
        assert (
            encode_example(typed, other)["input_ids"].count(number) == 0
            and token_bytes(number, other) == added[0].encode()
        )
        if added[0] != "!=":
            assert encode_example(example, other)["input_ids"] == other.apply_chat_template(
                example["messages"], tools=[WEATHER], return_dict=False
            )


def test_many_added_tokens_are_looked_up_once_a_batch(monkeypatch):
    "Gemma has six thousand, and asking for them takes milliseconds."
    asked = []
    monkeypatch.setattr(
        "toolcall_ft.template.learn.added_tokens",
        lambda tokenizer, ask=added_tokens: asked.append(1) or ask(tokenizer),
    )
    for kind in (tokenizer, borrow("qwen3")):  # regular, and turn by turn
        encode_rows([CONVERSATIONS["loop"]], kind)
        asked.clear()
        encode_rows([CONVERSATIONS["loop"]] * 20, kind)
        assert len(asked) == 1


# ---- many rows, limits, mistakes


def test_over_long_rows_are_reported_and_never_cut():
    examples = list(CONVERSATIONS.values())
    lengths = [len(encode_example(example, tokenizer)["input_ids"]) for example in examples]
    limit = sorted(lengths)[len(lengths) // 2]
    dataset, too_long = encode_dataset(examples, tokenizer, max_length=limit)
    assert [(row["index"], row["tokens"]) for row in too_long] == [
        (index, length) for index, length in enumerate(lengths) if length > limit
    ]
    assert (
        len(dataset) + len(too_long) == len(examples)
        and max(map(len, dataset["input_ids"])) <= limit
    )
    with pytest.raises(UserError, match="max_length 10"):
        encode_example(examples[0], tokenizer, max_length=10)


def test_no_rows_make_an_empty_dataset():
    dataset, too_long = encode_dataset([], tokenizer)
    assert len(dataset) == 0 and too_long == []


def test_bad_examples_are_set_aside_and_all_others_kept():
    bad = [
        {"tools": [], "messages": [user(["list"]), says("x")]},
        {"tools": [], "messages": [user("nobody answers")]},
    ]
    examples = [CONVERSATIONS["plain"], bad[0], CONVERSATIONS["loop"], bad[1]]
    dataset, left_out = encode_dataset(iter(examples), tokenizer)
    assert list(dataset) == encode_rows([CONVERSATIONS["plain"], CONVERSATIONS["loop"]], tokenizer)
    assert [(row["index"], row["example"]) for row in left_out] == [(1, bad[0]), (3, bad[1])]
    assert (
        "content must be text" in left_out[0]["reason"]
        and "nothing to learn" in left_out[1]["reason"]
    )


def test_two_processes_make_the_same_rows_in_the_same_order():
    examples = [
        {"tools": [], "messages": [user(str(number)), says(f"{number}!")]} for number in range(450)
    ] + [{"tools": [], "messages": [user(1), says("x")]}]
    (one, left_out), (two, left_out_too) = (
        encode_dataset(examples, tokenizer),
        encode_dataset(examples, tokenizer, num_proc=2),
    )
    assert (
        list(one) == list(two)
        and left_out == left_out_too
        and len(one) == 450
        and left_out[0]["index"] == 450
    )


def test_another_template_is_refused():
    other = load_tokenizer("tiny-qwen2")
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(UserError, match="opens no turn"):
        encode_example(CONVERSATIONS["plain"], other)
    other.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    with pytest.raises(UserError, match="never learn to stop"):
        encode_dataset([], other)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(UserError, match="no control tokens"):
        split_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))


def with_added_tokens(**changed):
    "The embedded tokenizer with another behaviour of its control tokens"
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token.update(changed)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        chat_template=tokenizer.chat_template,
        pad_token="<|endoftext|>",
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("space", ["", "\n ", "\u3000", "\x1c"])
def test_control_tokens_may_swallow_the_white_space_behind_them(name, space):
    "Phi-3's do."
    other = with_added_tokens(rstrip=True)
    messages = [
        {**message, "content": space + message["content"]} if message["role"] != "tool" else message
        for message in CONVERSATIONS[name]["messages"]
    ]
    row = encode_example({**CONVERSATIONS[name], "messages": messages}, other)
    assert row["input_ids"] == other.apply_chat_template(
        messages, tools=CONVERSATIONS[name]["tools"] or None, return_dict=False
    )
    prompt = encode_prompt({**CONVERSATIONS[name], "messages": messages[:-1]}, other)
    assert (
        row["input_ids"][: len(prompt)] == prompt
        and row["labels"][-1] == END
        and row["labels"][len(prompt) - 1] == -100 != row["labels"][len(prompt)]
    )


def test_a_tokenizer_that_treats_pieces_in_its_own_way_is_refused():
    with pytest.raises(UserError, match="a way of its own"):
        encode_example(CONVERSATIONS["plain"], with_added_tokens(lstrip=True))


def test_a_conversation_the_template_refuses_is_a_clear_error():
    strict = load_tokenizer("tiny-qwen2")
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="roles must alternate"):
        render(CONVERSATIONS["plain"], strict)
    with pytest.raises(UserError, match="content must be text"):
        render({"messages": [user(["a list"])], "tools": []}, tokenizer)


@pytest.mark.parametrize(
    "text", ["", "<start>", "<start>assistant", "<start>assistant\n", "<start>assistant\nx"]
)
def test_unfinished_turns_do_not_crash(text):
    assert scan_turns(text, "<start>assistant\n", "<end>\n") == (
        [(17, len(text))] if len(text) > 16 else []
    )


def test_model_folders_with_something_missing(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        model_path(str(tmp_path))
    with pytest.raises(UserError, match="no such model folder"):
        model_path(str(tmp_path / "absent"))
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(str(tmp_path))
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer"})
    )
    with pytest.raises(UserError, match="chat_template.jinja is missing"):
        load_tokenizer(str(tmp_path))


def test_no_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="give a folder as model:"):
        load_tokenizer("nobody-has-this/model-here")


# ---- seeing it


def test_bytes_of_the_tokens_make_up_the_text():
    text = "龘 wörld\n\t🙂"
    assert (
        b"".join(token_bytes(token, tokenizer) for token in tokenizer(text)["input_ids"]).decode()
        == text
    )


def with_byte_fallback():
    "A small tokenizer as SentencePiece makes them: a space is ▁, and what is in no word is bytes"
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁heloé",
        "he",
        "ll",
        "hell",
        "hello",
        "▁hello",
    ]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    backend = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer, backend.decoder = (
        normalizers.Replace(" ", "▁"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.add_special_tokens({"additional_special_tokens": ["<｜end▁of▁turn｜>"]})
    return made


def test_bytes_of_a_tokenizer_with_byte_fallback():
    made = with_byte_fallback()
    text = "hello hello\n龘é▁ĠÃ<｜end▁of▁turn｜> hello"
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert made.convert_ids_to_tokens(ids)[:3] == ["hello", "▁hello", "<0x0A>"] and len(
        tokens_bytes(ids, made)
    ) == len(ids)
    assert b"".join(tokens_bytes(ids, made)).decode() == text.replace(
        "é▁", "é "
    )  # the tokenizer itself does not tell a ▁ from a space
    assert [token_bytes(token, made) for token in ids] == tokens_bytes(ids, made)


def test_text_view_has_a_line_for_every_token():
    row = encode_example(CONVERSATIONS["loop"], tokenizer)
    assert len(show_tokens(row, tokenizer).split("\n")) == len(row["input_ids"]) + 1


def test_roles():
    roles = token_roles(
        encode_example(CONVERSATIONS["loop"], tokenizer)["input_ids"] + [tokenizer.pad_token_id],
        tokenizer,
    )
    assert list(dict.fromkeys(roles)) == ["system", "user", "assistant", "tool", "padding"]


@pytest.mark.parametrize(
    "name", ["llama3_1", "gptoss", "qwen3", "nemotron_3_nano", "cohere", "glm4moe", "phi3"]
)
def test_roles_in_other_families(name):
    example = CONVERSATIONS["system" if name in PLAIN else "loop"]
    ids = encode_rows([example], borrow(name), thinking=False)[0]["input_ids"]
    roles = token_roles(ids + [borrow(name).pad_token_id] * 3, borrow(name))
    assert (
        {message["role"] for message in example["messages"]} <= set(roles)
        and roles[-3:] == ["padding"] * 3
        and len(roles) == len(ids) + 3
    )


# ---- two renderings

RENDERED = tokenizer.apply_chat_template(
    CONVERSATIONS["loop"]["messages"], tools=[WEATHER], tokenize=False
)
CHANGES = {
    "number format": ('"days": 2', '"days": 2.0'),
    "whitespace": ('"city": "广州"', '"city":"广州"'),
    "escapes": ('"city": "广州"', '"city": "\\u5e7f\\u5dde"'),
    "key order": ('{"city": "广州", "days": 2}', '{"days": 2, "city": "广州"}'),
    "other text": ('"city": "广州"', '"city": "北京"'),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_diff_names_the_kind_and_the_field(kind):
    changed = RENDERED.replace(*CHANGES[kind])
    assert changed != RENDERED
    for a, b in ((RENDERED, changed), (changed, RENDERED)):
        found = diff(a, b, tokenizer)
        assert (found["kind"], found["turn"], found["role"], found["field"]) == (
            kind,
            3,
            "assistant",
            "arguments of a call",
        ) and not found["same"]


@pytest.mark.parametrize(
    "old, new, role, field",
    [
        ("广州天气?", "广州?", "user", "content"),
        ("<tool_response>\n{", "<tool_response>\n {", "tool", "result of a tool"),
        (
            '{"name": "get_weather", "arguments"',
            '{"name": "get", "arguments"',
            "assistant",
            "name of a call",
        ),
        ("Weather of a city", "weather", "system", "tool definition 1"),
        ("晴<|im_end|>", "晴", "assistant", "content"),
    ],
)
def test_diff_names_the_place(old, new, role, field):
    found = diff(RENDERED, RENDERED.replace(old, new), tokenizer)
    assert (found["role"], found["field"]) == (role, field)


def test_diff_of_equal_and_of_forged():
    assert diff(RENDERED, tokenizer(RENDERED)["input_ids"], tokenizer) == {
        "same": True,
        "words": f"the same {len(tokenizer(RENDERED)['input_ids'])} tokens",
        "tokens": "",
    }
    example = {"tools": [], "messages": [user("<|im_end|>"), says("x")]}
    found = diff(
        tokenizer.apply_chat_template(example["messages"], return_dict=False),
        encode_example(example, tokenizer)["input_ids"],
        tokenizer,
    )
    assert (
        found["kind"].startswith("a control token against its letters") and found["role"] == "user"
    )


def applied(one, two, steps):
    "The second row, made from the first by the steps, which must join each other"
    made, at = [], (0, 0)
    for tag, a, b, c, d in steps:
        assert (a, c) == at and (tag != "equal" or one[a:b] == two[c:d]) and (b > a or d > c)
        made, at = made + (one[a:b] if tag == "equal" else two[c:d]), (b, d)
    assert at == (len(one), len(two))
    return made


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 4), max_size=40),
    st.lists(st.integers(0, 4), max_size=40),
    st.integers(1, 12),
)
def test_steps_make_the_second_row_of_the_first(one, two, window):
    assert applied(one, two, token_steps(one, two, window)) == two
    place = next((n for n, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    rest = difflib.SequenceMatcher(None, one[place:], two[place:], autojunk=False).get_opcodes()
    expected = [(tag, a + place, b + place, c + place, d + place) for tag, a, b, c, d in rest]
    assert (
        list(token_steps(one, two)) == [("equal", 0, place, 0, place)] * bool(place) + expected
    )  # short rows: difflib's own


def test_long_rows_with_a_few_differences_are_compared_quickly():
    "50,000 tokens, and a system prompt of 3,000 that one server left out; comparing everything with everything takes minutes."
    ids = encode_rows(
        [
            {
                "tools": [],
                "messages": [
                    {"role": "system", "content": " ".join(map(str, range(1000)))},
                    *(
                        turn
                        for number in range(2500)
                        for turn in (user(f"{number} x"), says(f"y {number}"))
                    ),
                ],
            }
        ],
        tokenizer,
    )[0]["input_ids"][:50_000]
    two = ids[:2000] + ids[5000:30_000] + [7] + ids[30_001:40_000] + ids[40_003:]
    start = time.perf_counter()
    found = diff(ids, two, tokenizer)
    assert time.perf_counter() - start < 10
    steps = [step for step in token_steps(ids, two) if step[0] != "equal"]
    assert (
        len(ids) == 50_000
        and applied(ids, two, token_steps(ids, two)) == two
        and sum(b - a for _, a, b, _, _ in steps) < 3100
    )
    assert (found["place"], found["turn"], found["role"], found["field"]) == (
        2000,
        1,
        "system",
        "content",
    )


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, len(RENDERED)))
def test_diff_never_fails(one, two, place):
    found = diff(RENDERED[:place] + one, RENDERED[:place] + two, tokenizer)
    assert (
        found["same"]
        == (
            tokenizer(RENDERED[:place] + one)["input_ids"]
            == tokenizer(RENDERED[:place] + two)["input_ids"]
        )
        and found["words"]
    )


# ---- golden


def test_our_own_golden_rows():
    "Ids and labels of the embedded tokenizer, kept in a file; made by `python tests/golden/make_rows.py`, which says what changed."
    for stored in json.loads((GOLDEN / "rows.json").read_text(encoding="utf-8")):
        row = encode_example(stored["example"], tokenizer)
        assert [tokenizer.convert_ids_to_tokens(token) for token in row["input_ids"]] == stored[
            "tokens"
        ]
        assert [list(run) for run in learnt_runs(row["labels"])] == stored["learnt"]


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.mark.skipif(
    not (SHARED / "golden").exists(),
    reason="LLaMA-Factory's printout and data are not beside this checkout",
)
@pytest.mark.skipif(
    not CACHE.exists() and not os.environ.get("CI"),
    reason="no Qwen2.5 tokenizer: make it with python tests/golden/qwen_tokenizer.py",
)
def test_llamafactory_golden():
    "All 584 labels and the first 100 ids that LLaMA-Factory's documentation prints, with the real tokenizer; TRL's mask differs in four."
    qwen, golden = (
        qwen_tokenizer(),
        json.loads((SHARED / "golden/llamafactory_qwen_sample1.json").read_text(encoding="utf-8")),
    )
    record = json.loads((SHARED / "data/glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))[
        0
    ]
    example = build_example(record, None)
    row = encode_example(example, qwen)
    assert row["labels"] == golden["labels"] and len(row["labels"]) == 584
    assert row["input_ids"][:100] == golden["input_ids_first_100"]
    assert len(qwen("\n\n")["input_ids"]) == 1  # why the opener is encoded as one unit
    theirs = qwen.apply_chat_template(
        example["messages"],
        tools=example["tools"],
        return_dict=True,
        return_assistant_tokens_mask=True,
        chat_template=(TEMPLATES / "qwen2_5_training.jinja").read_text(encoding="utf-8"),
    )
    assert (
        sum(
            bool(mask) != (label != -100)
            for mask, label in zip(theirs["assistant_masks"], row["labels"])
        )
        == 4
    )
