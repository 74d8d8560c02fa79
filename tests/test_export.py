"""llama.cpp found, built once, and what it writes checked. Everything here runs llama.cpp itself."""

import inspect
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import threading
import time
import unicodedata
from pathlib import Path

import pytest
from golden.qwen_tokenizer import CACHE, qwen_tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import temporary_folder
from toolcall_ft.base.http import fetch_json
from toolcall_ft.data.examples import read_examples
from toolcall_ft.export.adapter import export_adapter
from toolcall_ft.export.convert import (
    LLAMA3_SPLIT,
    check_gguf,
    pre_tokenizer_name,
    read_gguf,
    rename_lookalikes,
)
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.imatrix import calibration_text, make_imatrix
from toolcall_ft.export.llamacpp import (
    build_llama_cpp,
    build_tools,
    fetch_llama_source,
    find_llama_cpp,
    llama_cache,
)
from toolcall_ft.parity.strings import hard_strings
from toolcall_ft.serve.llama import LlamaServer, server_tokens
from toolcall_ft.template.control import split_tokenizer
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.rows import encode_example, encode_prompt
from toolcall_ft.tools.clean import clean_tools

TINY = Path(model_path("tiny-qwen2"))
SAMPLE = TINY.parent / "sample"
ROWS = read_examples(
    SAMPLE / "logs.jsonl", clean_tools(json.loads((SAMPLE / "tools.json").read_text()))[0]
)[0][:30]
PIECES = {
    "convert_hf_to_gguf.py": "",
    "bin/llama-quantize": "#!/bin/sh\necho broken quantiser >&2\nexit 7\n",
    "bin/llama-server": "#!/bin/sh\necho 'version: 9.9 (test)'\n",
    "bin/llama-imatrix": "#!/bin/sh\n",
    "convert_lora_to_gguf.py": "",
}


def fake_llama(folder, pieces=PIECES):
    "The layout of a llama.cpp, with shell scripts for programs."
    for name, text in pieces.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Path(folder)


@pytest.fixture(scope="session")
def llama():
    return build_llama_cpp()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, llama):
    return export_gguf(TINY, tmp_path_factory.mktemp("run") / "gguf")


# ---- finding and building -------------------------------------------------------------------------------------------


def test_own_folder_goes_before_the_cache(tmp_path, monkeypatch, llama):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(fake_llama(tmp_path / "own")))
    found = find_llama_cpp()
    assert found["folder"] == tmp_path / "own" and found["version"] == "9.9 (test)"
    assert build_llama_cpp() == found


def test_build_layouts_of_a_checkout_are_found(tmp_path, monkeypatch):
    tree = fake_llama(
        tmp_path,
        {
            "convert_hf_to_gguf.py": "",
            "build/bin/llama-quantize": "",
            "build/bin/llama-server": "#!/bin/sh\n",
        },
    )
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    assert find_llama_cpp()["quantize"] == tree / "build/bin/llama-quantize"


def test_programs_on_the_path_are_the_last_resort(tmp_path, monkeypatch):
    fake_llama(tmp_path)
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert find_llama_cpp(["server"])["server"] == tmp_path / "bin/llama-server"
    with pytest.raises(UserError, match="convert_hf_to_gguf.py not found.*toolcall-ft llama-cpp"):
        find_llama_cpp()


def test_an_incomplete_own_folder_is_named(tmp_path, monkeypatch):
    fake_llama(tmp_path, {"convert_hf_to_gguf.py": ""})
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="llama-quantize, llama-server") as caught:
        build_llama_cpp()
    assert str(tmp_path) in str(caught.value)


def test_a_cached_build_is_not_made_again(llama, monkeypatch):
    monkeypatch.setattr(
        "toolcall_ft.export.llamacpp.fetch_llama_source",
        lambda folder: pytest.fail("downloaded again"),
    )
    assert build_llama_cpp() == llama


def test_two_builds_at_once_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, found = [], []
    monkeypatch.setattr("toolcall_ft.export.llamacpp.fetch_llama_source", lambda folder: folder)
    monkeypatch.setattr(
        "toolcall_ft.export.llamacpp.compile_llama_cpp",
        lambda source, target: (made.append(target), fake_llama(target)),
    )
    threads = [threading.Thread(target=lambda: found.append(build_llama_cpp())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4 and all(f["folder"] == llama_cache() for f in found)


def test_a_folder_of_an_older_release_is_replaced(tmp_path, monkeypatch):
    "It has no llama-imatrix: built again beside it, and put in its place."
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_llama(
        llama_cache(),
        {
            name: text
            for name, text in PIECES.items()
            if "imatrix" not in name and "lora" not in name
        }
        | {"bin/old": ""},
    )
    monkeypatch.setattr("toolcall_ft.export.llamacpp.fetch_llama_source", lambda folder: folder)
    monkeypatch.setattr(
        "toolcall_ft.export.llamacpp.compile_llama_cpp", lambda source, target: fake_llama(target)
    )
    assert build_llama_cpp()["imatrix"] == llama_cache() / "bin/llama-imatrix"
    assert not (llama_cache() / "bin/old").exists()
    assert [path.name for path in llama_cache().parent.iterdir() if path.is_dir()] == [
        llama_cache().name
    ]


def test_an_older_folder_stays_when_the_build_fails(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_llama(llama_cache(), {"convert_hf_to_gguf.py": "", "bin/llama-server": "#!/bin/sh\n"})

    def fail(folder):
        raise UserError("no network")

    monkeypatch.setattr("toolcall_ft.export.llamacpp.fetch_llama_source", fail)
    with pytest.raises(UserError, match="no network"):
        build_llama_cpp()
    assert find_llama_cpp(["server"])["server"] == llama_cache() / "bin/llama-server"


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def stop(source, target):
        fake_llama(target)
        raise UserError("compiling llama.cpp failed")

    monkeypatch.setattr("toolcall_ft.export.llamacpp.fetch_llama_source", lambda folder: folder)
    monkeypatch.setattr("toolcall_ft.export.llamacpp.compile_llama_cpp", stop)
    with pytest.raises(UserError, match="compiling"):
        build_llama_cpp()
    assert [p.name for p in (tmp_path / "toolcall-ft").iterdir()] == [f"{llama_cache().name}.lock"]


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="Is there a network"):
        fetch_llama_source(tmp_path)


def test_missing_compiler_and_cmake(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="apt-get install build-essential"):
        build_tools()
    monkeypatch.setenv("CXX", "/usr/bin/c++")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"toolcall-ft\[export\]"):
        build_tools()


def test_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="another folder"):
        build_llama_cpp()


# ---- what is written ------------------------------------------------------------------------------------------------


def test_types_are_those_asked_for(exported, llama):
    wanted = {
        "F16": {"F16", "F32"},
        "Q8_0": {"Q8_0", "F32"},
        "Q4_K_M": {"Q4_K", "Q6_K", "F32"},
        "Q4_0": {"Q4_0", "Q6_K", "F32"},
    }
    for form, path in exported.items():
        assert set(read_gguf(path, llama)["tensors"].values()) == wanted[form]
        assert check_gguf(path, TINY, llama) == []


def test_weights_survive_as_f16(exported, llama):
    import numpy
    import torch
    from safetensors.torch import load_file

    read_gguf(exported["F16"], llama)
    from gguf import GGUFReader

    theirs = {t.name: numpy.asarray(t.data) for t in GGUFReader(exported["F16"]).tensors}
    ours = load_file(TINY / "model.safetensors")
    for a, b in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
    }.items():
        assert numpy.array_equal(theirs[a], ours[b].to(torch.float16).numpy())


def test_the_record_names_llama_cpp(exported, llama):
    record = json.loads((exported["F16"].parent / "export.json").read_text())
    assert record["llama_cpp"] == llama["version"] != "unknown"
    assert {form: row["bytes"] for form, row in record["formats"].items()} == {
        form: path.stat().st_size for form, path in exported.items()
    }


def test_bf16_and_other_formats(tmp_path, llama):
    files = export_gguf(TINY, tmp_path, ["BF16", "Q6_K", "Q5_K_M", "IQ4_XS"])
    kinds = {
        form: set(read_gguf(path, llama)["tensors"].values()) - {"F32"}
        for form, path in files.items()
    }
    assert kinds == {
        "BF16": {"BF16"},
        "Q6_K": {"Q6_K"},
        "Q5_K_M": {"Q5_K", "Q6_K"},
        "IQ4_XS": {"IQ4_XS", "Q6_K"},
    }


def test_folders_with_blanks_and_other_scripts(tmp_path):
    model = tmp_path / "我的 model"
    shutil.copytree(TINY, model)
    files = export_gguf(str(model), tmp_path / "出 口", ["Q8_0"])
    assert files["Q8_0"].parent == tmp_path / "出 口" and files["Q8_0"].exists()


def test_an_older_file_stays_when_quantising_fails(tmp_path, monkeypatch, llama):
    before = export_gguf(TINY, tmp_path / "gguf", ["Q8_0"])["Q8_0"].read_bytes()
    tree = fake_llama(tmp_path / "llama")
    for name in ("conversion", "gguf-py"):
        (tree / name).symlink_to(llama["convert"].parent / name)
    (tree / "convert_hf_to_gguf.py").write_text(llama["convert"].read_text())
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    with pytest.raises(UserError, match="exit code 7") as caught:
        export_gguf(TINY, tmp_path / "gguf", ["Q8_0"])
    assert "broken quantiser" in str(caught.value)
    assert (tmp_path / "gguf/model-Q8_0.gguf").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "gguf").iterdir()) == [
        "export.json",
        "model-Q8_0.gguf",
    ]


def test_a_gguf_cut_short_is_noticed(exported, llama, tmp_path):
    for length in (4, 100, 5000):
        (tmp_path / "cut.gguf").write_bytes(exported["Q8_0"].read_bytes()[:length])
        with pytest.raises(UserError, match="damaged"):
            read_gguf(tmp_path / "cut.gguf", llama)


def test_llama_3s_rule_for_cutting_text_is_that_of_transformers():
    usual = inspect.signature(TikTokenConverter).parameters["pattern"].default
    assert LLAMA3_SPLIT == usual


def test_another_pre_tokenizer_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    path = tmp_path / "model/tokenizer.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace(r"|\\p{N}|", r"|\\p{N}{1,4}|"), encoding="utf-8"
    )
    assert pre_tokenizer_name(TINY) == "qwen2" and pre_tokenizer_name(tmp_path / "model") is None
    with pytest.raises(UserError, match="not recognized"):
        export_gguf(tmp_path / "model", tmp_path / "gguf", ["F16"])
    assert list((tmp_path / "gguf").iterdir()) == []


def test_each_difference_is_found(exported, llama, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    settings = json.loads((TINY / "tokenizer_config.json").read_text())
    (tmp_path / "model/tokenizer_config.json").write_text(
        json.dumps(settings | {"eos_token": "<tool_call>"})
    )
    found = check_gguf(exported["F16"], tmp_path / "model", llama)
    assert any("the stop token:" in line for line in found) and any(
        "kind of the stop token" in line for line in found
    )


def test_model_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="toolcall-ft merge"):
        export_gguf("Qwen/Qwen2.5-0.5B-Instruct", tmp_path)


# ---- metadata -------------------------------------------------------------------------------------------------------


def test_the_file_says_what_made_it_and_not_where(tmp_path, llama):
    "A README as PEFT writes it names folders of the machine; a real base and a license stay."
    model = tmp_path / "somebody's model"
    shutil.copytree(TINY, model)
    (model / "README.md").write_text(
        f"---\nbase_model: {tmp_path}/base\nlicense: apache-2.0\ntags:\n- base_model:adapter:{tmp_path}/base\n- lora\n---\n"
    )
    matrix = make_imatrix(model, ROWS, tmp_path / "imatrix.gguf", chunks=2)
    for path in export_gguf(model, tmp_path / "gguf", ["BF16", "Q4_0"], imatrix=matrix).values():
        fields = read_gguf(path, llama)["fields"]
        assert (
            fields["toolcall_ft.llama_cpp"] == llama["version"]
            and fields["general.license"] == "apache-2.0"
        )
        assert not [
            key
            for key, value in fields.items()
            if str(tmp_path) in str(value) or str(tmp_path).title() in str(value)
        ]
    assert str(tmp_path) not in (tmp_path / "gguf/export.json").read_text()


def test_the_name_of_a_real_base_stays(tmp_path, llama):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nbase_model: Qwen/Qwen2.5-0.5B-Instruct\n---\n")
    fields = read_gguf(export_gguf(tmp_path / "model", tmp_path / "gguf", ["F16"])["F16"], llama)[
        "fields"
    ]
    assert (
        fields["general.base_model.0.repo_url"]
        == "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct"
    )


# ---- the importance matrix ------------------------------------------------------------------------------------------


def test_the_matrix_is_used_and_told_of(tmp_path, llama, exported):
    matrix = make_imatrix(TINY, ROWS, tmp_path / "mine.gguf", chunks=4)
    files = export_gguf(TINY, tmp_path / "gguf", ["Q8_0", "Q4_0", "IQ4_XS"], imatrix=matrix)
    fields = {form: read_gguf(path, llama)["fields"] for form, path in files.items()}
    assert (
        fields["Q4_0"]["quantize.imatrix.file"] == "mine.gguf"
        and fields["Q4_0"]["quantize.imatrix.chunks_count"] == 4
    )
    assert (
        fields["Q4_0"]["quantize.imatrix.entries_count"] == 28
        and "quantize.imatrix.file" not in fields["Q8_0"]
    )
    assert files["Q4_0"].read_bytes()[-50_000:] != exported["Q4_0"].read_bytes()[-50_000:]
    record = json.loads((tmp_path / "gguf/export.json").read_text())
    assert record["imatrix"]["imatrix.chunk_count"] == 4 and not any(
        row["fallback"] for row in record["formats"].values()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gguf", "mine.gguf"]


def test_control_tokens_count_as_such_in_the_matrix(tmp_path, llama):
    "Spelled out, the same rows would have more tokens, and make more chunks."
    tokenizer = load_tokenizer("tiny-qwen2")
    tokens = sum(len(encode_example(row, tokenizer)["input_ids"]) for row in ROWS)
    spelled = len(split_tokenizer(tokenizer)["plain"].encode(calibration_text(ROWS, tokenizer)).ids)
    fields = read_gguf(make_imatrix(TINY, ROWS, tmp_path / "all.gguf", chunks=10_000), llama)[
        "fields"
    ]
    assert tokens // 512 - 1 <= fields["imatrix.chunk_count"] <= tokens // 512 < spelled // 512 - 1


def test_a_matrix_that_is_none(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        export_gguf(TINY, tmp_path / "gguf", ["Q4_0"], imatrix=tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("imatrix")
    with pytest.raises(UserError, match="not a GGUF"):
        export_gguf(TINY, tmp_path / "gguf", ["Q4_0"], imatrix=tmp_path / "text.gguf")
    assert not (tmp_path / "gguf").exists()


# ---- the adapter ----------------------------------------------------------------------------------------------------


def save_adapter(path, scale=0.02, **options):
    "A LoRA adapter with random numbers, and the model that it makes when it is merged."
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY),
        LoraConfig(
            **{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
            | options
        ),
    )
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=scale)
    model.save_pretrained(path)
    load_tokenizer("tiny-qwen2").save_pretrained(path)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"r": 4, "rank_pattern": {"q_proj": 16}}],
    ids=["plain", "rslora", "rank_pattern"],
)
def test_base_and_adapter_predict_what_the_merged_model_does(tmp_path, exported, options):
    merged = tmp_path / "merged"
    save_adapter(tmp_path / "adapter", **options).merge_and_unload().save_pretrained(merged)
    load_tokenizer("tiny-qwen2").save_pretrained(merged)
    files = {
        "merged": export_gguf(merged, tmp_path / "gguf", ["F16"])["F16"],
        "base": exported["F16"],
    }
    adapter = export_adapter(tmp_path / "adapter", "tiny-qwen2", tmp_path / "adapter.gguf")
    prompts = [
        encode_prompt(
            {"messages": row["messages"][:1], "tools": row["tools"]}, load_tokenizer("tiny-qwen2")
        )
        for row in ROWS[:6]
    ]

    def predictions(file, options=()):
        with LlamaServer(file, options=options) as server:
            said = [
                fetch_json(
                    f"{server.url}/completion",
                    {"prompt": ids, "n_predict": 1, "n_probs": 2624, "temperature": -1},
                )["completion_probabilities"][0]
                for ids in prompts
            ]
        return [
            {
                token["id"]: token["logprob"]
                for token in answer["top_logprobs"]
                if token["logprob"] > -8
            }
            for answer in said
        ]

    distance = lambda one, other: max(
        abs(theirs[token] - ours[token])
        for ours, theirs in zip(one, other)
        for token in ours.keys() & theirs.keys()
    )
    wanted, found, without = (
        predictions(files["merged"]),
        predictions(files["base"], ["--lora", str(adapter)]),
        predictions(files["base"]),
    )
    assert [max(answer, key=answer.get) for answer in found] == [
        max(answer, key=answer.get) for answer in wanted
    ]
    assert distance(wanted, found) < 0.1 < distance(wanted, without)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type"),
    ],
)
def test_an_adapter_that_cannot_be_added_is_refused(tmp_path, change, named):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"} | change)
    )
    with pytest.raises(UserError, match=f"{named}.*toolcall-ft merge"):
        export_adapter(tmp_path, "tiny-qwen2", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_an_adapter_without_its_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"})
    )
    with pytest.raises(UserError, match="converting"):
        export_adapter(tmp_path, "tiny-qwen2", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


# ---- the same tokens ------------------------------------------------------------------------------------------------


def cut_differently(gguf, tokenizer, texts):
    "The texts that llama.cpp cuts differently."
    ours = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with LlamaServer(gguf, context=512) as server:
        assert (
            "control-looking token" not in server.log()
        )  # an ordinary token that llama.cpp takes for a control token
        return [text for text, ids in zip(texts, ours) if server_tokens(server.url, text) != ids]


def whole_vocabulary(tokenizer):
    "The text of every token, 500 lines to a string."
    texts = [
        text
        for number in range(len(tokenizer))
        if "\ufffd" not in (text := tokenizer.decode([number]))
    ]  # a token may be a part of a character
    assert len(texts) > 0.8 * len(tokenizer)
    return [
        unicodedata.normalize("NFC", "\n".join(texts[start : start + 500]))
        for start in range(0, len(texts), 500)
    ]


def check_tokens(gguf, tokenizer):
    "In NFC, as we send it, everything is alike; of the raw strings only those that are not in NFC differ."
    texts = hard_strings(2000)
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert cut_differently(gguf, tokenizer, [*composed, *whole_vocabulary(tokenizer)]) == []
    different = cut_differently(gguf, tokenizer, texts)
    assert len(different) > 40 and not set(different) & set(composed)


@pytest.mark.skipif(
    not CACHE.exists() and not os.environ.get("CI"),
    reason="no Qwen2.5 tokenizer: make it with python tests/golden/qwen_tokenizer.py",
)
def test_2000_strings_are_cut_alike_by_the_real_tokenizer(tmp_path, llama):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = qwen_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).half().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    check_tokens(
        export_gguf(tmp_path / "model", tmp_path / "gguf", ["F16"])["F16"], tokenizer
    )  # the export compares template, tokens and stop token


@pytest.mark.skipif(
    not CACHE.exists() and not os.environ.get("CI"),
    reason="no Qwen2.5 tokenizer: make it with python tests/golden/qwen_tokenizer.py",
)
def test_only_tokens_that_no_text_becomes_are_renamed():
    "Qwen's vocabulary has a token for `[…]` as well, which its bytes spell otherwise."
    tokenizer = qwen_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [3 if token in tokenizer.get_added_vocab() else 1 for token in tokens]
    renamed = [
        old
        for old, new in zip(tokens, rename_lookalikes(tokens, kinds, CACHE), strict=True)
        if old != new
    ]
    assert renamed == ["<unk>", "<s>", "</s>"] and len(tokenizer.encode("[…]")) == 1


# ---- interrupted, killed, no space ----------------------------------------------------------------------------------


def run_limited(code, limit):
    "Run Python with a limit for the size of any file, as a full disk has one."

    def lower():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", code], preexec_fn=lower, capture_output=True, text=True, timeout=100
    )


def test_a_full_disk_while_converting(tmp_path):
    ended = run_limited(
        f"from toolcall_ft.export.gguf import export_gguf; export_gguf({str(TINY)!r}, {str(tmp_path)!r}, ['F16'])",
        3_000_000,
    )
    assert "UserError: converting" in ended.stderr and "written" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_quantising_leaves_the_older_file(tmp_path, exported):
    (tmp_path / "model-Q8_0.gguf").write_bytes(b"older")
    code = f"""from pathlib import Path
from toolcall_ft.export.quantize import write_format
from toolcall_ft.export.llamacpp import find_llama_cpp
write_format(Path({str(exported["F16"])!r}), {str(TINY)!r}, Path({str(tmp_path)!r})/"model-Q8_0.gguf", "Q8_0", find_llama_cpp())"""
    ended = run_limited(code, 1_000_000)
    assert (
        "UserError: quantising to Q8_0 failed" in ended.stderr
        and "Is the disk full?" in ended.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model-Q8_0.gguf"] and (
        tmp_path / "model-Q8_0.gguf"
    ).read_bytes() == b"older"


def test_a_full_disk_while_measuring_importance(tmp_path):
    code = f"""import json
from toolcall_ft.export.imatrix import make_imatrix
make_imatrix({str(TINY)!r}, json.loads({json.dumps(ROWS)!r}), {str(tmp_path / "imatrix.gguf")!r}, 2)"""
    ended = run_limited(code, 3_000_000)
    assert "UserError: converting" in ended.stderr and list(tmp_path.iterdir()) == []


def test_killed_in_the_middle_and_done_again(tmp_path, llama):
    "The quantiser writes half of a file and hangs; then the whole process group dies."
    tree = fake_llama(
        tmp_path / "llama",
        PIECES
        | {
            "bin/llama-quantize": '#!/bin/sh\nhead -c 100000 "$1" > "$2"\nsleep 60\n',
            "convert_hf_to_gguf.py": llama["convert"].read_text(),
        },
    )
    for name in ("conversion", "gguf-py"):
        (tree / name).symlink_to(llama["convert"].parent / name)
    code = f"from toolcall_ft.export.gguf import export_gguf; export_gguf({str(TINY)!r}, {str(tmp_path / 'gguf')!r}, ['Q8_0'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "LLAMA_CPP_DIR": str(tree)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while (
        not list(
            (tmp_path / "gguf").glob("unfinished-*/model-Q8_0.gguf")
            if (tmp_path / "gguf").exists()
            else []
        )
        and process.poll() is None
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [
        path.name
        for path in (tmp_path / "gguf").iterdir()
        if not path.name.startswith("unfinished-")
    ] == []
    export_gguf(TINY, tmp_path / "gguf", ["Q8_0"])
    assert sorted(path.name for path in (tmp_path / "gguf").iterdir()) == [
        "export.json",
        "model-Q8_0.gguf",
    ]


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with temporary_folder(tmp_path) as first:
        (first / "half").write_text("")
        with temporary_folder(tmp_path) as second:
            assert (first / "half").exists() and second != first
    (tmp_path / "unfinished-left").mkdir()
    with temporary_folder(tmp_path):
        assert not (tmp_path / "unfinished-left").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_program_ends_with_the_one_who_started_it():
    "Killed without a word, interrupted, or done: nothing stays behind."
    sleep = f"sleep 47.{os.getpid()}"
    code = f"from toolcall_ft.base.process import run_logged; print('begun', flush=True); run_logged({sleep.split()!r}, 'sleeping')"
    running = lambda: (
        sleep
        in subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout.replace("run_logged", "")
    )
    for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        ours = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert ours.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 30
        while not running() and time.monotonic() < deadline:
            time.sleep(0.02)
        ours.send_signal(kind)
        ours.wait(20)
        while running() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not running(), kind


@pytest.mark.parametrize(
    "change, problem",
    [
        (
            lambda fields: fields["tokenizer.ggml.token_type"].__setitem__(
                fields["tokenizer.ggml.tokens"].index("<tool_call>"), 1
            ),
            "control tokens that are read as text",
        ),
        (
            lambda fields: fields["tokenizer.ggml.token_type"].__setitem__(
                fields["tokenizer.ggml.tokens"].index("<|im_start|>"), 4
            ),
            "control tokens that are read as text",
        ),
        (
            lambda fields: fields.update({"tokenizer.ggml.add_bos_token": True}),
            "a first token that is added",
        ),
        (
            lambda fields: fields["tokenizer.ggml.tokens"].__setitem__(
                fields["tokenizer.ggml.tokens"].index("Ġ"), "ĠĠĠĠĠĠĠĠĠĠĠĠĠ"
            ),
            "tokens at other ids",
        ),
    ],
)
def test_what_a_server_would_read_otherwise_is_found(exported, monkeypatch, change, problem):
    read = read_gguf(exported["F16"], find_llama_cpp())
    change(read["fields"])
    monkeypatch.setattr("toolcall_ft.export.convert.read_gguf", lambda *arguments: read)
    found = check_gguf(exported["F16"], TINY, find_llama_cpp())
    assert len(found) == 1 and problem in found[0]
