"""Constrained generation with both engines, on the embedded model's tokenizer and on models with random weights."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import trl

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.generate import batch
from toolcall_ft.generate.answers import generate_answers, transformers_predictor
from toolcall_ft.generate.reading import CUT_OFF
from toolcall_ft.generate.engines import (
    choose_engine,
    compile_grammar,
    grammar_accepts,
    vocabulary_bytes,
)
from toolcall_ft.generate.grammar import literal, tool_grammar
from toolcall_ft.generate.loop import chat_with_tools, run_calls
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.rows import encode_example
from toolcall_ft.tools.check import check_call
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import parse_calls, stop_ids
from toolcall_ft.tools.normalize import normalize_messages
from toolcall_ft.train import shared

ENGINES = ("xgrammar", "transformers-cfg")


def tool(name, properties=None, required=(), **more):
    parameters = {
        "type": "object",
        "properties": properties or {},
        "required": list(required),
        **more,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "", "parameters": parameters},
    }


TOOLS = [
    tool(
        "set_light",
        {
            "room": {"enum": ["厨房", 'bath "2"', "a\\b\n", "😀"]},
            "on": {"type": "boolean"},
            "level": {"type": ["integer", "null"]},
        },
        ["room", "on"],
    ),
    tool(
        "plan.trip-1",
        {
            "stops": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {"$ref": "#/$defs/Stop"},
            },
            "fare": {"anyOf": [{"type": "number"}, {"const": "free"}]},
        },
        ["stops"],
        **{
            "$defs": {
                "Stop": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "via": {"$ref": "#/$defs/Stop"}},
                    "required": ["name"],
                }
            }
        },
    ),
    tool(
        "note",
        {
            "text": {"type": "string"},
            "extra": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
    ),
    tool("ping"),
]


def accepts_value(schema, value):
    return grammar_accepts(
        tool_grammar([tool("f", {"x": schema}, ["x"])]), call_text("f", {"x": value})
    )


def call_text(name, arguments):
    return f"<tool_call>\n{dump_json({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_what_is_trained_is_in_the_grammar():
    "Rows (`normalize_messages`) and clean schemas name arguments in one order, so that no grammar forces a model off what it learnt."
    send = tool(
        "send",
        {
            "to": {
                "type": "object",
                "required": ["street", "city"],
                "properties": {
                    "street": {"type": "string"},
                    "city": {"type": "string"},
                    "at": {
                        "items": {"properties": {"z": {"type": "integer"}, "a": {"type": "number"}}}
                    },
                },
            },
            "kind": {"enum": [{"z": 1, "a": 0.5}]},
            "by": {"$ref": "#/$defs/Way"},
        },
        ["to"],
        **{
            "$defs": {
                "Way": {
                    "type": "object",
                    "properties": {"way": {"type": "string"}, "cost": {"type": "number"}},
                }
            }
        },
    )
    arguments = {
        "to": {"street": "s", "city": "c", "at": [{"z": 1, "a": 1e18}]},
        "kind": {"z": 1, "a": 0.5},
        "by": {"way": "w", "cost": 0.1 + 0.2},
    }
    cleaned, _ = clean_tools([send])
    made = normalize_messages(
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "send", "arguments": arguments}}],
            }
        ],
        cleaned,
    )[0]["tool_calls"][0]["function"]
    assert (
        grammar_accepts(tool_grammar(cleaned), call_text("send", made["arguments"]))
        and not check_call(made, cleaned)
        and not grammar_accepts(tool_grammar([send]), call_text("send", made["arguments"]))
    )


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-qwen2")


@pytest.fixture(scope="module")
def noise():
    "The embedded architecture with random weights, large enough that it does not repeat one token."
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(model_path("tiny-qwen2"))
    config.initializer_range = 0.3
    return AutoModelForCausalLM.from_config(config).float().eval()


def random_walk(grammar, tokenizer, engine, rng, steps=400):
    "A text made of tokens that the engine leaves open, chosen at random; tokens that bring it to an end are preferred now and then."
    size = len(tokenizer)
    processor, ids = compile_grammar(grammar, tokenizer, engine, size)(), [tokenizer.pad_token_id]
    closing = {
        i
        for i, token in enumerate(vocabulary_bytes(tokenizer))
        if token in (b'"', b"}", b"]", b"}\n", b"</tool_call>")
    } | {tokenizer.eos_token_id}
    for _ in range(steps):
        scores = processor(torch.tensor([ids]), torch.zeros(1, size))[0]
        allowed = (scores == 0).nonzero().flatten().tolist()
        ending = [i for i in allowed if i in closing]
        ids.append(rng.choice(ending if ending and rng.random() < 0.4 else allowed))
        if ids[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(ids[1:-1])
    return None


@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_the_tokens_the_calls_fit(engine, tokenizer):
    rng, grammar = random.Random(0), tool_grammar(TOOLS, required=True)
    texts = [
        text
        for _ in range(60 if engine == "xgrammar" else 15)
        if (text := random_walk(grammar, tokenizer, engine, rng)) is not None
    ]
    names = set()
    for text in texts:
        content, calls, errors = parse_calls(text)
        repeated = [
            error for error in errors if "twice" in error
        ]  # the keys of a free object: no grammar can forbid it
        assert content == "" and errors == repeated, text
        assert len(calls) + len(errors) == text.count("</tool_call>") >= 1
        assert all(check_call(call, TOOLS) == [] for call in calls), text
        names |= {call["name"] for call in calls}
    assert len(texts) > 10 and len(names) >= 3


@pytest.mark.parametrize("engine", ENGINES)
def test_plain_text_never_holds_a_tag(engine, tokenizer):
    rng, grammar = random.Random(1), tool_grammar([])
    texts = [
        text
        for _ in range(10)
        if (text := random_walk(grammar, tokenizer, engine, rng)) is not None
    ]
    assert texts and all(
        text and parse_calls(text)[1:] == ([], []) and "<tool_call>" not in text for text in texts
    )


def test_engines_leave_the_same_tokens_open(tokenizer):
    grammar, size = tool_grammar(TOOLS), len(tokenizer)
    control = [
        i
        for i, token in enumerate(vocabulary_bytes(tokenizer))
        if not token and i not in stop_ids(tokenizer)
    ]
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in control
    texts = [
        call_text("set_light", {"room": "厨房", "on": True, "level": -3})
        + "\n"
        + call_text("ping", {}),
        "你好 <b> 😀",
        call_text("note", {"text": 'a<b "q" \\ </tool_cal', "extra": {"k": 1}}),
    ]
    for text in texts:
        ids = tokenizer.encode(text) + [tokenizer.eos_token_id]
        processors = [compile_grammar(grammar, tokenizer, engine, size)() for engine in ENGINES]
        for place in range(len(ids)):
            seen = torch.tensor([[tokenizer.pad_token_id] + ids[:place]])
            one, other = (processor(seen, torch.zeros(1, size))[0] == 0 for processor in processors)
            assert torch.equal(one, other) and one[ids[place]] and not one[control].any()
            so_far = tokenizer.decode(ids[:place])
            if "\ufffd" not in so_far:
                assert one[tokenizer.eos_token_id] == grammar_accepts(grammar, so_far)


def random_model(family, tokenizer, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings |= {"vocab_size": len(tokenizer), **sizes, **heads}
    config = getattr(transformers, f"{family}Config")(**settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def answers_alike(model, tokenizer):
    "Tokens of prompts that begin alike, together and each alone."
    prompts = [tokenizer.encode(f"alike until here, {text}") for text in ("on", "x " * 9, "天气")]
    asked = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 12}
    alone = [batch.generate_batch(prompts=[prompt], **asked)[0] for prompt in prompts]
    return batch.generate_batch(prompts=prompts, **asked), alone


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_a_shared_start_gives_the_tokens_of_pytorchs_attention(family, tokenizer, monkeypatch):
    model = random_model(family, tokenizer)
    together, alone = answers_alike(model, tokenizer)
    assert together == alone and model.config._attn_implementation == "sdpa"
    with monkeypatch.context() as patch:
        patch.setattr(shared, "attend", lambda *given, **rest: None)
        with pytest.raises(TypeError):  # our attention is the one that is asked
            answers_alike(model, tokenizer)
    monkeypatch.setattr(shared, "is_plain", lambda model: False)
    assert answers_alike(model, tokenizer) == (together, alone)


@pytest.mark.parametrize("name, value", [("repetition_penalty", 9.0), ("no_repeat_ngram_size", 1)])
def test_a_base_models_advice_for_chat_changes_no_token(name, value, tokenizer):
    "A call repeats words of its tools. With tied embeddings a random model says its last token again, so each setting would show."
    model = random_model("Qwen2", tokenizer, tie_word_embeddings=True)
    plain = answers_alike(model, tokenizer)
    setattr(model.generation_config, name, value)
    assert answers_alike(model, tokenizer) == plain
    ids = torch.tensor([tokenizer.encode("alike until here, on")])
    advised = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
    assert advised != plain[1][0]  # without our settings it does


def test_a_window_is_not_filled_with_padding(tokenizer):
    "Padding behind a shared start would count as tokens that a window shows."
    together, alone = answers_alike(random_model("Mistral", tokenizer, sliding_window=6), tokenizer)
    assert together == alone


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_give_the_texts_of_single_requests(engine, noise, tokenizer):
    switch = tool(
        "switch",
        {
            "room": {"enum": ["厨房", "hall", 'a"b']},
            "on": {"type": "boolean"},
            "days": {"type": "array", "items": {"enum": list("一二三四五")}, "maxItems": 3},
        },
        ["room"],
    )
    requests = [
        {"messages": [{"role": "user", "content": text}], "tools": tools}
        for text in ["on", "请把厨房的灯打开，谢谢", "x " * 30]
        for tools in ([switch], [TOOLS[3], switch])
    ]
    options = dict(constrained=True, required=True, engine=engine, max_new_tokens=80)
    together = generate_answers(noise, tokenizer, requests, batch_size=4, **options)
    single = [generate_answers(noise, tokenizer, [request], **options)[0] for request in requests]
    assert [answer["text"] for answer in together] == [answer["text"] for answer in single]
    for request, answer in zip(requests, together):
        assert answer["calls"] and all(
            check_call(call, request["tools"]) == [] for call in answer["calls"]
        )
        assert all(CUT_OFF in error for error in answer["errors"][:1])
    assert len({answer["text"] for answer in together}) > 1


def test_requests_with_tools_of_their_own_share_a_batch_without_a_grammar(
    noise, tokenizer, monkeypatch
):
    requests = [
        {"messages": [{"role": "user", "content": text}], "tools": TOOLS[:count]}
        for count, text in enumerate(["on", "请把厨房的灯打开，谢谢", "x " * 30], start=1)
    ]
    sizes = []

    def counted(model, tokenizer, prompts, *options):
        sizes.append(len(prompts))
        return batch.generate_batch(model, tokenizer, prompts, *options)

    monkeypatch.setattr("toolcall_ft.generate.answers.generate_batch", counted)
    together = generate_answers(noise, tokenizer, requests, max_new_tokens=20)
    single = [generate_answers(noise, tokenizer, [each], max_new_tokens=20)[0] for each in requests]
    assert [answer["text"] for answer in together] == [answer["text"] for answer in single]
    assert sizes == [3, 1, 1, 1] and len({answer["text"] for answer in together}) == 3


def test_cut_off_is_an_error_and_never_a_call(noise, tokenizer):
    request = {"messages": [{"role": "user", "content": "write"}], "tools": TOOLS[2:3]}
    answer = generate_answers(
        noise, tokenizer, [request], constrained=True, required=True, max_new_tokens=12
    )[0]
    assert answer["calls"] == [] and answer["errors"][0] == f"{CUT_OFF} after 12 tokens"
    assert generate_answers(noise, tokenizer, []) == []


def test_transformers_cfg_needs_no_network(noise, tokenizer, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    compile_grammar.cache_clear()
    predictor = transformers_predictor(
        noise, tokenizer, constrained=True, engine="transformers-cfg", max_new_tokens=5
    )
    assert (
        len(predictor([{"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS[:1]}])) == 1
    )


def test_every_recorded_call_is_in_the_grammar():
    from pathlib import Path

    from toolcall_ft.tools.load import read_tools

    examples = Path(__file__).parent.parent / "examples"
    tools = read_tools(examples / "tools.json")
    grammar = tool_grammar(tools)
    records = [
        json.loads(line)
        for line in (examples / "logs.jsonl").read_text(encoding="utf-8").splitlines()[:400:8]
    ]
    order = {t["function"]["name"]: list(t["function"]["parameters"]["properties"]) for t in tools}
    calls = [
        (r["tool_name"], r["arguments"]) for r in records if isinstance(r.get("tool_name"), str)
    ]
    assert len(calls) > 20
    for name, arguments in calls:
        assert list(arguments) == sorted(arguments, key=order[name].index)
        assert grammar_accepts(grammar, call_text(name, arguments)), (name, arguments)


@pytest.mark.parametrize(
    "text",
    ['"', "\\", 'a"b\\"', 'x" | root', "[a-z]*", "天\t\n\r", "\\n", "\\U0010FFFF", "#", "😀"],
)
def test_literals_of_any_text(text):
    assert grammar_accepts("root ::= " + literal(text), text) and not grammar_accepts(
        "root ::= " + literal(text), text + "x"
    )
    assert accepts_value({"enum": [text]}, text) and not accepts_value({"enum": [text]}, text + "x")


@pytest.mark.parametrize(
    "schema, good, bad",
    [
        ({"type": "integer"}, [0, -7, 10**18], [1.5, "1", None, True]),
        ({"type": "number"}, [0, -0.25, 1e-07, 3e20], ["1", None, False]),
        ({"type": "string"}, ["", '\\ " \n \x1f 天 😀', "<table> </tool_cal"], [1, None]),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 2},
            [["a", "b"], ["a", "b", "c"]],
            [["a"], [], "ab"],
        ),
        (
            {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
            [[], [1], [1, 2]],
            [[1, 2, 3], ["1"]],
        ),
        ({"type": "array", "maxItems": 0}, [[]], [[1]]),
        (
            {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "boolean"}},
            [[True, False]],
            [[True], [True] * 3],
        ),
        (
            {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]},
            [1, [1, 2]],
            ["1", [["1"]]],
        ),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}]),
        (
            {
                "allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}],
                "required": ["a"],
            },
            [{"a": 1}],
            [{}, {"b": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {}},
                "required": ["b"],
            },
            [{"b": 1}, {"a": 1, "b": [2]}, {"b": 1, "c": 1}],
            [{}, {"a": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {}},
                "required": ["b"],
                "additionalProperties": False,
            },
            [{"b": 1}, {"a": 1, "b": [2]}],
            [{}, {"a": 1}, {"b": 1, "c": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "additionalProperties": {"type": "boolean"},
            },
            [{}, {"a": 1, "z": True}, {"z": False}],
            [{"z": 1}],
        ),
        ({"type": "object", "required": ["k"]}, [{"k": 1, "other": [None]}], [{}, {"other": 1}]),
        ({}, [1, "a", {"a": [1]}, None], []),
        (True, [1, [{}]], []),
    ],
)
def test_schemas(schema, good, bad):
    for value in good:
        assert accepts_value(schema, value), value
    for value in bad:
        assert not accepts_value(schema, value), value


def test_only_the_given_tools_in_exactly_the_template_s_bytes():
    grammar = tool_grammar(TOOLS)
    right = call_text("ping", {})
    assert grammar_accepts(grammar, right) and grammar_accepts(grammar, right + "\n" + right)
    for wrong in [
        right + right,
        right + "\n",
        right.replace(": ", ":"),
        right[:-1],
        " " + right,
        "Yes. " + right,
        call_text("pong", {}),
        call_text("ping", {"a": 1}),
        "",
    ]:
        assert not grammar_accepts(grammar, wrong), wrong


def test_a_reference_that_leads_nowhere_is_named():
    with pytest.raises(UserError, match="#/\\$defs/Missing"):
        tool_grammar([tool("f", {"x": {"$ref": "#/$defs/Missing"}})])


def test_engine_names(monkeypatch):
    assert choose_engine() == "xgrammar" and choose_engine("transformers-cfg") == "transformers-cfg"
    with pytest.raises(UserError, match="generate.engine"):
        choose_engine("outlines")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xgrammar" else object()
    )
    assert choose_engine() == "transformers-cfg"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        choose_engine()


def test_a_tokenizer_of_another_kind_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"▁hello": 0, "<unk>": 1}, unk_token="<unk>"))
    )
    with pytest.raises(UserError, match="byte-level"):
        vocabulary_bytes(words)


def test_calls_are_checked_before_they_run():
    ran = []
    functions = {
        "ping": lambda **arguments: ran.append(arguments),
        "note": lambda text="": {"saved", text},
        "set_light": lambda room, on: 1 / 0,
    }
    calls = [
        {"name": "ping", "arguments": {"x": 1}},
        {"name": "ping", "arguments": {}},
        {"name": "note", "arguments": {"text": "好"}},
        {"name": "set_light", "arguments": {"room": "厨房", "on": True}},
        {"name": "plan.trip-1", "arguments": {"stops": [{"name": "a"}]}},
        {"name": "rm", "arguments": {}},
    ]
    told = [message["content"] for message in run_calls(calls, functions, TOOLS)]
    assert ran == [{}]
    assert (
        told[0].startswith("Error: ping")
        and told[1] == "null"
        and "好" in told[2]
        and told[3] == "Error: ZeroDivisionError: division by zero"
    )
    assert told[4] == "Error: there is no function plan.trip-1" and told[5].startswith(
        "Error: unknown tool"
    )


def test_the_loop_corrects_itself_and_leaves_its_input_alone():
    def predictor(requests):
        last = requests[0]["messages"][-1]
        calls = {
            "user": [{"name": "set_light", "arguments": {"room": "attic", "on": True}}],
            "tool": [{"name": "set_light", "arguments": {"room": "厨房", "on": True}}],
        }[last["role"]]
        if last["role"] == "tool" and not last["content"].startswith("Error"):
            calls = []
        return [
            {
                "content": "" if calls else "Done.",
                "calls": calls,
                "errors": [],
                "text": "",
                "seconds": 0.0,
            }
        ]

    messages = [{"role": "user", "content": "light!"}]
    talk = chat_with_tools(predictor, messages, TOOLS, {"set_light": lambda room, on: "on"})
    assert len(messages) == 1 and [message["role"] for message in talk] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert talk[4]["content"] == "on" and talk[-1] == {"role": "assistant", "content": "Done."}


def test_import_is_light():
    code = "import sys, toolcall_ft.generate, toolcall_ft.evaluate; print([m for m in ('torch', 'transformers', 'xgrammar', 'transformers_cfg', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize("thinking", [None, True, False])
def test_an_predictor_asks_as_the_rows_were_encoded(tokenizer, monkeypatch, thinking):
    "Qwen3's template: what the model is asked is the part of the training row that is not learnt."
    other = load_tokenizer("tiny-qwen2")
    other.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(
        encoding="utf-8"
    )
    asked, question = [], [{"role": "user", "content": "ping?"}]
    monkeypatch.setattr(
        "toolcall_ft.generate.answers.generate_batch",
        lambda model, tokenizer, prompts, *rest: (
            asked.extend(prompts) or [[tokenizer.eos_token_id]] * len(prompts)
        ),
    )
    transformers_predictor(None, other, thinking=thinking)([{"messages": question, "tools": TOOLS}])
    row = encode_example(
        {"messages": [*question, {"role": "assistant", "content": "pong"}], "tools": TOOLS},
        other,
        thinking=thinking,
    )
    assert (
        asked == [row["input_ids"][: row["labels"].count(-100)]]
        and row["labels"][len(asked[0])] != -100
    )
