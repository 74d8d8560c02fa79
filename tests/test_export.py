"""llama.cpp found, built once, and what it writes checked. Everything here runs llama.cpp itself."""
import json
import shutil
import stat
import threading
from pathlib import Path

import pytest

from toolcall_ft import export
from toolcall_ft.export import build_llama_cpp, check_gguf, export_gguf, find_llama_cpp, is_qwen2_tokenizer, llama_cache, read_gguf
from toolcall_ft.template import model_path
from toolcall_ft.tools import UserError

TINY = Path(model_path("tiny-qwen2"))
PIECES = {"convert_hf_to_gguf.py": "", "bin/llama-quantize": "#!/bin/sh\necho broken quantiser >&2\nexit 7\n",
          "bin/llama-server": "#!/bin/sh\necho 'version: 9.9 (test)'\n"}


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
    return export_gguf(TINY, tmp_path_factory.mktemp("run")/"gguf")


# ---- finding and building -------------------------------------------------------------------------------------------

def test_own_folder_goes_before_the_cache(tmp_path, monkeypatch, llama):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(fake_llama(tmp_path/"own")))
    found = find_llama_cpp()
    assert found["folder"] == tmp_path/"own" and found["version"] == "9.9 (test)"
    assert build_llama_cpp() == found


def test_build_layouts_of_a_checkout_are_found(tmp_path, monkeypatch):
    tree = fake_llama(tmp_path, {"convert_hf_to_gguf.py": "", "build/bin/llama-quantize": "", "build/bin/llama-server": "#!/bin/sh\n"})
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    assert find_llama_cpp()["quantize"] == tree/"build/bin/llama-quantize"


def test_programs_on_the_path_are_the_last_resort(tmp_path, monkeypatch):
    fake_llama(tmp_path)
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"no-cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert find_llama_cpp(["server"])["server"] == tmp_path/"bin/llama-server"
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
    monkeypatch.setattr(export, "fetch_llama_source", lambda folder: pytest.fail("downloaded again"))
    assert build_llama_cpp() == llama


def test_two_builds_at_once_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, found = [], []
    monkeypatch.setattr(export, "fetch_llama_source", lambda folder: folder)
    monkeypatch.setattr(export, "compile_llama_cpp", lambda source, target: (made.append(target), fake_llama(target)))
    threads = [threading.Thread(target=lambda: found.append(build_llama_cpp())) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(made) == 1 and len(found) == 4 and all(f["folder"] == llama_cache() for f in found)


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def stop(source, target):
        fake_llama(target)
        raise UserError("compiling llama.cpp failed")
    monkeypatch.setattr(export, "fetch_llama_source", lambda folder: folder)
    monkeypatch.setattr(export, "compile_llama_cpp", stop)
    with pytest.raises(UserError, match="compiling"): build_llama_cpp()
    assert [p.name for p in (tmp_path/"toolcall-ft").iterdir()] == [f"{llama_cache().name}.lock"]


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"): monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="Is there a network"): export.fetch_llama_source(tmp_path)


def test_missing_compiler_and_cmake(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="apt-get install build-essential"): export.build_tools()
    monkeypatch.setenv("CXX", "/usr/bin/c++")
    monkeypatch.setattr(export.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"toolcall-ft\[export\]"): export.build_tools()


def test_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path/"file").write_text("")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"file"))
    with pytest.raises((UserError, NotADirectoryError)): build_llama_cpp()


# ---- what is written ------------------------------------------------------------------------------------------------

def test_types_are_those_asked_for(exported, llama):
    wanted = {"F16": {"F16", "F32"}, "Q8_0": {"Q8_0", "F32"}, "Q4_K_M": {"Q4_K", "Q6_K", "F32"}, "Q4_0": {"Q4_0", "Q6_K", "F32"}}
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
    ours = load_file(TINY/"model.safetensors")
    for a, b in {"token_embd.weight": "model.embed_tokens.weight", "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight"}.items():
        assert numpy.array_equal(theirs[a], ours[b].to(torch.float16).numpy())


def test_the_record_names_llama_cpp(exported, llama):
    record = json.loads((exported["F16"].parent/"export.json").read_text())
    assert record["llama_cpp"] == llama["version"] != "unknown"
    assert {form: row["bytes"] for form, row in record["formats"].items()} == {form: path.stat().st_size for form, path in exported.items()}


def test_bf16_and_other_formats(tmp_path, llama):
    files = export_gguf(TINY, tmp_path, ["BF16", "Q6_K", "Q5_K_M"])
    kinds = {form: set(read_gguf(path, llama)["tensors"].values()) - {"F32"} for form, path in files.items()}
    assert kinds == {"BF16": {"BF16"}, "Q6_K": {"Q6_K"}, "Q5_K_M": {"Q5_K", "Q6_K"}}


def test_folders_with_blanks_and_other_scripts(tmp_path):
    model = tmp_path/"我的 model"
    shutil.copytree(TINY, model)
    files = export_gguf(str(model), tmp_path/"出 口", ["Q8_0"])
    assert files["Q8_0"].parent == tmp_path/"出 口" and files["Q8_0"].exists()


def test_an_older_file_stays_when_quantising_fails(tmp_path, monkeypatch, llama):
    before = export_gguf(TINY, tmp_path/"gguf", ["Q8_0"])["Q8_0"].read_bytes()
    tree = fake_llama(tmp_path/"llama")
    for name in ("conversion", "gguf-py"): (tree/name).symlink_to(llama["convert"].parent/name)
    (tree/"convert_hf_to_gguf.py").write_text(llama["convert"].read_text())
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    with pytest.raises(UserError, match="exit code 7") as caught: export_gguf(TINY, tmp_path/"gguf", ["Q8_0"])
    assert "broken quantiser" in str(caught.value)
    assert (tmp_path/"gguf/model-Q8_0.gguf").read_bytes() == before
    assert sorted(p.name for p in (tmp_path/"gguf").iterdir()) == ["export.json", "model-Q8_0.gguf"]


def test_a_gguf_cut_short_is_noticed(exported, llama, tmp_path):
    for length in (4, 100, 5000):
        (tmp_path/"cut.gguf").write_bytes(exported["Q8_0"].read_bytes()[:length])
        with pytest.raises(UserError, match="damaged"): read_gguf(tmp_path/"cut.gguf", llama)


def test_another_pre_tokenizer_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path/"model")
    path = tmp_path/"model/tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace(r"|\\p{N}|", r"|\\p{N}{1,3}|"), encoding="utf-8")
    assert is_qwen2_tokenizer(TINY) and not is_qwen2_tokenizer(tmp_path/"model")
    with pytest.raises(UserError, match="not recognized"): export_gguf(tmp_path/"model", tmp_path/"gguf", ["F16"])
    assert list((tmp_path/"gguf").iterdir()) == []


def test_each_difference_is_found(exported, llama, tmp_path):
    shutil.copytree(TINY, tmp_path/"model")
    settings = json.loads((TINY/"tokenizer_config.json").read_text())
    (tmp_path/"model/tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<tool_call>"}))
    found = check_gguf(exported["F16"], tmp_path/"model", llama)
    assert any("the stop token:" in line for line in found) and any("kind of the stop token" in line for line in found)


def test_model_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="toolcall-ft merge"): export_gguf("Qwen/Qwen2.5-0.5B-Instruct", tmp_path)
