"""Objects, lists of objects and optional arguments: what was trained comes back from every server, whichever way a client sends the tools."""

import os

import pytest

from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.data.examples import build_example
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import build_llama_cpp
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.ollama_build import find_ollama
from toolcall_ft.serve.vllm import VllmServer
from toolcall_ft.serve.vllm_install import find_vllm
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_prompt
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import HERMES
from toolcall_ft.train.memorise import memorise_answers

CI = bool(os.environ.get("CI"))
LINE = {
    "type": "object",
    "required": ["sku", "qty"],
    "properties": {
        "gift": {"type": "boolean"},
        "sku": {"type": "string"},
        "qty": {"type": "integer"},
    },
}
ADDRESS = {
    "type": "object",
    "required": ["zip"],
    "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
}
CUSTOMER = {
    "type": "object",
    "required": ["name"],
    "properties": {"address": ADDRESS, "name": {"type": "string"}, "age": {"type": "integer"}},
}
WRITTEN = [
    {
        "type": "function",
        "function": {
            "name": "create_order",
            "description": "Create an order",
            "parameters": {
                "type": "object",
                "required": ["customer"],
                "properties": {
                    "note": {"type": "string"},
                    "customer": CUSTOMER,
                    "lines": {"type": "array", "items": LINE},
                },
            },
        },
    }
]
TOOLS, _ = clean_tools(WRITTEN)
ASKED = {
    "Order for Li Wei": {"customer": {"name": "Li Wei"}},
    "Order for Ann, zip 0150, Oslo": {
        "customer": {"name": "Ann", "address": {"zip": "0150", "city": "Oslo"}}
    },
    "Two of a and a gift b for Bo, 40": {
        "customer": {"age": 40, "name": "Bo"},
        "lines": [{"qty": 2, "sku": "a"}, {"sku": "b", "qty": 1, "gift": True}],
    },
    "All for Cy": {
        "note": "fast",
        "lines": [{"gift": False, "qty": 3, "sku": "c"}],
        "customer": {"address": {"zip": "1", "city": "Rom"}, "age": 7, "name": "Cy"},
    },
}
EXAMPLES = [
    build_example({"user": question, "tool_name": "create_order", "arguments": arguments}, TOOLS)
    for question, arguments in ASKED.items()
]
REQUESTS, WANTED = [list(part) for part in zip(*to_requests(EXAMPLES))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "(folder, GGUF) of a model that knows the answers by heart, in the form in which the rows have them."
    build_llama_cpp()
    folder = tmp_path_factory.mktemp("order")
    answers = [
        (
            request,
            f"<tool_call>\n{dump_json({'name': call['name'], 'arguments': call['arguments']})}\n</tool_call>",
        )
        for request, (call,) in zip(REQUESTS, WANTED)
    ]
    assert memorise_answers(answers, folder / "model", steps=400)["wrong tokens"] == 0
    make_portable(folder / "model", TOOLS, written=WRITTEN)
    return folder / "model", export_gguf(folder / "model", folder / "gguf", ["F16"])["F16"]


@pytest.fixture(scope="module", params=["llama-server", "Ollama", "vLLM"])
def served(request, model):
    "(runtime, a server that runs, the model's tokenizer)"
    if request.param == "Ollama" and not CI and not find_ollama()["binary"]:
        pytest.skip("Ollama is not here. Get it with: make ollama")
    if request.param == "vLLM" and not CI and not find_vllm()["python"]:
        pytest.skip("vLLM is not here. Get it with: make vllm")
    start = {
        "llama-server": lambda: LlamaServer(model[1]),
        "Ollama": lambda: OllamaServer(model[1]),
        "vLLM": lambda: VllmServer(model[0]),
    }
    with start[request.param]() as server:
        yield request.param, server, load_tokenizer(str(model[0]))


def test_rows_have_the_order_of_llama_servers_grammar():
    "Required ones first; what the log wrote first does not matter."
    assert (
        dump_json(WANTED[3][0]["arguments"])
        == '{"customer": {"name": "Cy", "address": {"zip": "1", "city": "Rom"}, "age": 7}, "note": "fast", "lines": [{"qty": 3, "sku": "c", "gift": false}]}'
    )


def test_optional_arguments_come_back(served):
    "With the server's own grammar and without, with the tools of training and as their owner wrote them. In lists llama-server's grammar has the owner's order, so there the tools of training are needed."
    runtime, server, tokenizer = served
    for tools, form in (
        (TOOLS, None),
        (WRITTEN, None),
        *([(TOOLS, HERMES)] if runtime == "llama-server" else []),
    ):
        asked = [{**request, "tools": tools} for request in REQUESTS]
        assert [server.prompt_ids(request) for request in asked] == [
            list(encode_prompt(request, tokenizer)) for request in REQUESTS
        ]
        answers = openai_client(server.url, server.model, form=form)(asked)
        told = [
            calls
            for calls in WANTED
            if tools is TOOLS or runtime != "llama-server" or "lines" not in calls[0]["arguments"]
        ]
        assert [
            (answer["calls"], answer["errors"])
            for answer, calls in zip(answers, WANTED)
            if calls in told
        ] == [(calls, []) for calls in told] and len(told) >= 2, (tools is TOOLS, form)


def test_an_earlier_call_is_shown_as_it_was_trained(served):
    "The order of its keys as well, which Ollama's own structures lose."
    _, server, tokenizer = served
    later = [
        {
            "messages": [
                *example["messages"],
                {"role": "tool", "name": "create_order", "content": "ok"},
                {"role": "user", "content": "Thanks"},
            ],
            "tools": TOOLS,
        }
        for example in EXAMPLES
    ]
    assert [server.prompt_ids(request) for request in later] == [
        list(encode_prompt(request, tokenizer)) for request in later
    ]
