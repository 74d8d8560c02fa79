"""Quantised checkpoints, made by the real LLM Compressor and loaded by the real Transformers and vLLM."""

import json
import os

import pytest
import torch

from toolcall_ft.base.errors import UserError
from toolcall_ft.export.compressed import (
    SCHEMES,
    TOKENIZER_FILES,
    agreement,
    calibration_rows,
    compress_model,
    compressed_table,
    copy_tokenizer,
    next_tokens,
    scheme_recipe,
)
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.model import load_model
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.vllm import VllmServer
from toolcall_ft.serve.vllm_install import find_vllm
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_prompt, encode_rows
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.train.memorise import memorise_answers

TOOLS, _ = clean_tools(
    [
        {
            "name": "get_weather",
            "description": "Weather of a city 天气",
            "parameters": {"city": {"type": "string"}},
        }
    ]
)


def example(city):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": f"What's the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
    }


CITIES = ("Oslo", "北京", "Lima", "上海")
EXAMPLES = [example(city) for city in CITIES]
REQUESTS = [{**one, "messages": one["messages"][:1]} for one in EXAMPLES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A model that knows the right calls, with a portable template, as the merge stage leaves one."
    folder = tmp_path_factory.mktemp("run") / "merged"
    said = [
        f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
        for city in CITIES
    ]
    assert memorise_answers(list(zip(REQUESTS, said)), folder)["wrong tokens"] == 0
    make_portable(folder, TOOLS)
    return folder


def right(answers):
    return sum(
        one["calls"] == [{"name": "get_weather", "arguments": {"city": city}}]
        for one, city in zip(answers, CITIES)
    )


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    "One checkpoint of each scheme."
    place = tmp_path_factory.mktemp("checkpoints")
    return {
        scheme: (place / scheme, compress_model(model, place / scheme, scheme, EXAMPLES))
        for scheme in SCHEMES
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_is_smaller_and_answers_alike(made, model, scheme):
    folder, record = made[scheme]
    assert record["bytes"] < 0.8 * record["bytes_before"] and record["same_next_token"] > 0.8
    assert json.loads((folder / "checkpoint.json").read_text()) == record and record[
        "versions"
    ].keys() == {"llmcompressor", "compressed-tensors", "torch", "transformers"}
    assert right(transformers_predictor(*load_model(str(folder)))(REQUESTS)) >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weights_are_what_the_name_says(made, scheme):
    from safetensors import safe_open

    folder, _ = made[scheme]
    weights = json.loads((folder / "config.json").read_text())["quantization_config"][
        "config_groups"
    ]["group_0"]["weights"]
    wanted = {
        "FP8": (8, "float", "channel", True),
        "INT8": (8, "int", "channel", True),
        "GPTQ": (4, "int", "group", True),
        "AWQ": (4, "int", "group", False),
    }[scheme]
    assert (
        weights["num_bits"],
        weights["type"],
        weights["strategy"],
        weights["symmetric"],
    ) == wanted
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        kinds = {
            str(file.get_tensor(name).dtype)
            for name in file.keys()
            if name.endswith(("proj.weight", "proj.weight_packed"))
        }
    assert kinds == {
        {"FP8": "torch.float8_e4m3fn", "INT8": "torch.int8"}.get(scheme, "torch.int32")
    }


def test_prompts_are_made_by_the_same_files(made, model):
    for folder, _ in made.values():
        names = [name for name in TOKENIZER_FILES if (model / name).is_file()]
        assert len(names) >= 3 and all(
            (folder / name).read_bytes() == (model / name).read_bytes() for name in names
        )
        assert [encode_prompt(one, load_tokenizer(str(folder))) for one in REQUESTS] == [
            encode_prompt(one, load_tokenizer(str(model))) for one in REQUESTS
        ]


def test_vllm_serves_four_bits(made):
    "AWQ has groups, scales and zero points: whatever reads it reads the others."
    if not find_vllm()["python"]:
        if os.environ.get("CI"):
            pytest.fail("vLLM is not here, and on CI it must be. Run: make vllm")
        pytest.skip("vLLM is not here. To run this test: make vllm")
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        pytest.skip("vLLM's kernel for four bits needs AVX-512, which this processor does not have")
    folder, _ = made["AWQ"]
    with VllmServer(folder) as server:
        tokenizer = load_tokenizer(str(folder))
        assert [server.prompt_ids(one) for one in REQUESTS] == [
            encode_prompt(one, tokenizer) for one in REQUESTS
        ]
        assert right(openai_client(server.url, server.model)(REQUESTS)) >= 3


def test_nothing_is_left_of_one_that_failed(model, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "FP8").mkdir()
    (tmp_path / "FP8" / "old").write_text("kept")
    monkeypatch.setattr("toolcall_ft.export.compressed.compress", fail)
    with pytest.raises(UserError, match="(?i)space"):
        compress_model(model, tmp_path / "FP8", "FP8")
    assert [path.name for path in tmp_path.rglob("*")] == ["FP8", "old"]


def test_a_broken_checkpoint_gets_no_name(model, tmp_path, monkeypatch):
    def spoil(network, scheme, rows, folder):
        for weight in network.model.layers[0].mlp.parameters():
            weight.data.normal_(0, 10)
        network.save_pretrained(folder)

    monkeypatch.setattr("toolcall_ft.export.compressed.compress", spoil)
    with pytest.raises(UserError, match="nothing was written"):
        compress_model(model, tmp_path / "GPTQ", "GPTQ", EXAMPLES)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_the_files_do_not_hold(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "toolcall_ft.export.compressed.TOKENIZER_FILES", ("tokenizer.json", "tokenizer_config.json")
    )
    with pytest.raises(UserError, match="no chat template|another one"):
        copy_tokenizer(model, tmp_path)


def test_wishes_that_cannot_be_met(model, made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'awq'.*AWQ"):
        compress_model(model, tmp_path / "x", "awq", EXAMPLES)
    with pytest.raises(UserError, match="needs samples"):
        compress_model(model, tmp_path / "x", "INT8")
    with pytest.raises(UserError, match="quantised checkpoint already"):
        compress_model(made["FP8"][0], tmp_path / "x", "GPTQ", EXAMPLES)
    with pytest.raises(UserError, match="toolcall-ft merge"):
        compress_model("Qwen/Qwen2.5-1.5B-Instruct", tmp_path / "x", "FP8")
    monkeypatch.setattr("toolcall_ft.export.compressed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"toolcall-ft\[compress\]"):
        compress_model(model, tmp_path / "x", "FP8")
    assert not (tmp_path / "x").exists()


def test_the_last_layer_is_left_alone():
    for scheme in SCHEMES:
        assert any(
            modifier.ignore == ["lm_head"] and modifier.targets == ["Linear"]
            for modifier in scheme_recipe(scheme)
            if hasattr(modifier, "targets")
        )


def test_samples_are_whole_conversations(model):
    tokenizer = load_tokenizer(str(model))
    rows = encode_rows(EXAMPLES, tokenizer)
    samples = calibration_rows(rows)
    assert samples["input_ids"] == [row["input_ids"] for row in rows] and [
        len(mask) for mask in samples["attention_mask"]
    ] == [len(row["input_ids"]) for row in rows]


def test_agreement_counts_answers_only(model):
    network, tokenizer = load_model(str(model))
    rows = encode_rows(EXAMPLES, tokenizer)
    chosen = next_tokens(network, rows)
    assert len(chosen) == sum(label != -100 for row in rows for label in row["labels"])
    assert (
        agreement(chosen, chosen) == 1
        and agreement([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
        and agreement([], []) == 0
    )


def test_the_table_shows_what_is_missing():
    report = {"exact": 0.5, "exact_interval": [0.4, 0.6], "exact_n": 100}
    table = compressed_table(
        {
            "merged": {"bytes": 2000, "transformers": report, "vllm": "not run"},
            "FP8": {"bytes": 1000, "rows": 0, "seconds": 1.5, "transformers": report},
        }
    )
    assert (
        table.splitlines()[2] == "| merged | 2,000 | – | – | 50.0 % [40.0–60.0] n=100 | not run |"
    )
    assert table.splitlines()[3] == "| FP8 | 1,000 | – | 1.5 | 50.0 % [40.0–60.0] n=100 | – |"
