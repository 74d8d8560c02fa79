"""A model that is not Qwen, and has been trained by others: SmolLM2-135M-Instruct through export, every GGUF format, llama-server and Ollama."""

import os
import shutil

import pytest
from golden.smollm2 import CACHE, smollm2

from toolcall_ft.base.files import read_json
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.export.convert import CONTROL_TOKEN, check_gguf, pre_tokenizer_name, read_gguf
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import build_llama_cpp, find_llama_cpp
from toolcall_ft.parity.compare import prompt_differences
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.parity.strings import hard_strings
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer, server_tokens
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.ollama_build import find_ollama
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_prompt

CI = bool(os.environ.get("CI"))
FORMATS = ("F16", "Q8_0", "Q4_K_M", "IQ4_XS")
pytestmark = pytest.mark.skipif(
    not CACHE.exists() and not CI, reason="no SmolLM2: fetch it with toolcall-ft model smollm2"
)
TYPED = "<repo_name>x<file_sep>y<|im_end|> <jupyter_code><empty_output> <repo_"  # its own control tokens, as a stranger may type them
CORPUS = [
    *hard_corpus(),
    {
        "name": "typed, its own",
        "kind": "typed",
        "messages": [{"role": "user", "content": TYPED}],
        "tools": [],
    },
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "(folder, {format: GGUF}) with the portable template for the tools of the corpus."
    build_llama_cpp()
    folder = tmp_path_factory.mktemp("smollm2")
    shutil.copytree(smollm2(), folder / "model")
    make_portable(
        folder / "model",
        list({dump_json(tool): tool for case in CORPUS for tool in case["tools"]}.values()),
    )
    return folder / "model", export_gguf(folder / "model", folder / "gguf", FORMATS)


@pytest.fixture(scope="module")
def wanted():
    "The prompts of training: those of the template as it was."
    tokenizer = load_tokenizer(str(smollm2()))
    return [encode_prompt(case, tokenizer) for case in CORPUS]


def test_every_format_is_written_and_its_control_tokens_are_control_tokens(model):
    "Llama's class takes such a tokenizer for SentencePiece, and `<repo_name>` would be text."
    folder, files = model
    tokenizer, llama = load_tokenizer(str(folder)), find_llama_cpp()
    controls = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert (
        list(files) == list(FORMATS)
        and len(controls) == 17
        and pre_tokenizer_name(folder) == "smollm"
    )
    for path in files.values():
        fields = read_gguf(path, llama)["fields"]
        kinds = fields["tokenizer.ggml.token_type"]
        assert [index for index, kind in enumerate(kinds) if kind == CONTROL_TOKEN] == controls
        assert (
            fields["tokenizer.ggml.model"],
            fields["tokenizer.ggml.pre"],
            fields["tokenizer.ggml.eos_token_id"],
        ) == ("gpt2", "smollm", tokenizer.eos_token_id)


def test_rows_that_no_block_divides_are_reported(model):
    "Rows of 576 numbers are no multiple of 256, the block of a K-quant; of 32, that of Q8_0, they are."
    _, files = model
    formats = read_json(files["F16"].parent / "export.json")["formats"]
    assert [form for form, row in formats.items() if row["fallback"]] == [
        "Q4_K_M",
        "IQ4_XS",
    ]


@pytest.mark.parametrize("name", ["qwen2", "gpt-2", "default", "llama-bpe", None])
def test_the_name_of_another_pre_tokenizer_is_found(model, monkeypatch, name):
    folder, files = model
    read = read_gguf(files["F16"], find_llama_cpp())
    read["fields"]["tokenizer.ggml.pre"] = name
    monkeypatch.setattr("toolcall_ft.export.convert.read_gguf", lambda *arguments: read)
    found = check_gguf(files["F16"], folder, find_llama_cpp())
    assert (
        len(found) == 1
        and f"the pre-tokenizer: {str(name)!r} in the GGUF, 'smollm' in the model" in found[0]
    )


@pytest.mark.parametrize("form", ["F16", "Q8_0", "Q4_K_M"])
def test_llama_server_cuts_texts_and_prompts_as_in_training(model, wanted, form):
    folder, files = model
    tokenizer = load_tokenizer(str(folder))
    texts = hard_strings(1000) if form == "Q8_0" else []
    with LlamaServer(files[form]) as server:
        assert [
            text
            for text in texts
            if server_tokens(server.url, text)
            != tokenizer(text, add_special_tokens=False)["input_ids"]
        ] == []
        assert prompt_differences(server, CORPUS, wanted, tokenizer) == []
        answer = openai_client(server.url, server.model, max_new_tokens=24)(
            [
                {
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "tools": [],
                }
            ]
        )[0]
    assert "Paris" in answer["content"] and answer["errors"] == []


def test_ollama_renders_the_prompts_of_training(model, wanted):
    if not CI and not find_ollama()["binary"]:
        pytest.skip("Ollama is not here. Get it with: make ollama")
    folder, files = model
    tokenizer = load_tokenizer(str(folder))
    with OllamaServer(files["Q8_0"]) as server:
        assert prompt_differences(server, CORPUS, wanted, tokenizer) == []
