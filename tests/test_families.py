"""Families all the way, the quick ones: the real chat template, a small random model of the architecture that knows six answers by heart, and llama-server.

benchmarks/families.py does the same with all of them, and with Ollama and vLLM.
"""

import json
import os

import pytest
from golden.families import BY_NAME, family_model, learnt, memorise_family

from toolcall_ft.base.errors import UserError
from toolcall_ft.cli.main import main
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import find_llama_cpp
from toolcall_ft.generate.answers import generate_answers
from toolcall_ft.generate.model import load_model
from toolcall_ft.parity.cases import encode_cases
from toolcall_ft.parity.compare import prompt_differences
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.serve.client import ids_client, openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.tools.formats import tool_format
from toolcall_ft.train.lora import train_lora
from toolcall_ft.train.merge import merge_adapter

QUICK = ["Qwen3-2507", "LFM2", "Granite 4"]


@pytest.fixture(scope="module", params=QUICK)
def served(request, tmp_path_factory):
    "A family's model at llama-server, its tokenizer of training, and what it knows by heart."
    try:
        find_llama_cpp()
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("family") / "model"
    answers = memorise_family(request.param, folder)
    tools = {json.dumps(tool): tool for case in hard_corpus() for tool in case["tools"]}
    tools |= {json.dumps(tool): tool for tool in answers[0][0]["tools"]}
    make_portable(folder, list(tools.values()))
    gguf = export_gguf(folder, folder / "gguf", ["F16"])["F16"]
    with LlamaServer(gguf) as server:
        yield server, load_tokenizer(str(family_model(request.param))), answers


def test_prompts_are_those_of_training(served):
    server, tokenizer, answers = served
    asked = [{**request, "name": "asked", "kind": "asked"} for request, *_ in answers]
    cases, wanted, refused = encode_cases([*hard_corpus(), *asked], tokenizer)
    assert not refused and prompt_differences(server, cases, wanted, tokenizer) == []


def test_calls_are_read(served):
    "By llama-server, and by us where it is asked by token ids."
    server, tokenizer, answers = served
    requests = [request for request, *_ in answers]
    for answer, (_, calls, words, _) in zip(openai_client(server.url)(requests), answers):
        assert (answer["calls"], answer["content"], answer["errors"]) == (calls, words, [])
    for answer, (_, calls, _, _) in zip(ids_client(server.url, tokenizer)(requests), answers):
        assert (answer["calls"], answer["errors"]) == (calls, [])


@pytest.mark.parametrize("name", QUICK)
def test_the_format_is_that_of_the_family(name):
    tokenizer = load_tokenizer(str(family_model(name)))
    assert tool_format(tokenizer).name == BY_NAME[name].form
    assert len(learnt(tool_format(tokenizer), tokenizer)) == 6


def test_doctor_says_what_will_happen_to_a_model(capsys):
    assert main(["doctor", "--model", str(family_model("LFM2.5"))]) == 0
    said = capsys.readouterr().out
    assert "lfm2.5" in said and "--tool-call-parser lfm2" in said
    assert "one template everywhere   yes" in said and "quote" in said


def test_layers_that_are_no_attention_train_and_answer_in_batches(tmp_path):
    "Such layers keep a state and no keys: rows and requests that begin alike must not share it."
    model = str(family_model("LFM2"))
    rows = [
        {**request, "messages": [*request["messages"], {"role": "assistant", "content": "Done."}]}
        for request, *_ in learnt(tool_format(load_tokenizer(model)), load_tokenizer(model))
    ]
    options = {"backend": "peft", "epochs": 2, "batch_size": 3, "lora_targets": ["up_proj", "w3"]}
    report = train_lora(rows, rows[:2], model, tmp_path, **options)
    assert report["validation_loss"] < report["validation_loss_before"]
    merged = merge_adapter(model, tmp_path / "adapter", tmp_path / "merged", rows)
    assert merged["max_abs_logit_difference"] < 1e-3
    opened = load_model(tmp_path / "merged")
    asked = [{**row, "messages": row["messages"][:1]} for row in rows]
    together = generate_answers(*opened, asked, max_new_tokens=8)
    alone = [generate_answers(*opened, [request], max_new_tokens=8)[0] for request in asked]
    assert [each["text"] for each in together] == [each["text"] for each in alone]
