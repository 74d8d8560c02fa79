"LoRA training and merging on the embedded model: exact loss, curves, resuming, atomic folders, equal logits."

import gc
import importlib.util
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_jsonl
from toolcall_ft.template.dataset import encode_dataset
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.rows import encode_example, encode_prompt, encode_rows
from toolcall_ft.train import merge
from toolcall_ft.train.backend import compute_type, load_peft, start_backend
from toolcall_ft.train.lora import train_lora
from toolcall_ft.train.run import encode_splits
from toolcall_ft.train.results import save_adapter
from toolcall_ft.train.merge import load_adapted, merge_adapter, probe_logits
from toolcall_ft.train.prefix import PrefixSampler, prefix_groups, shared_prefix, trained_loss
from toolcall_ft.train.trainer import (
    curve_points,
    last_checkpoint,
    machine_settings,
    progress,
    trainer_settings,
)

tokenizer = load_tokenizer("tiny-qwen2")
END = tokenizer.convert_tokens_to_ids("<|im_end|>")


def tool(name):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}},
                "required": ["word"],
            },
        },
    }


def example(word, name="look_up"):
    return {
        "tools": [tool(name)],
        "messages": [
            {"role": "user", "content": f"look up {word}"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": name, "arguments": {"word": word}}}
                ],
            },
        ],
    }


WORDS = [
    "tree",
    "house",
    "猫",
    "water",
    "blue sky",
    "seven",
    "北京",
    "a",
    "lamp",
    "stone",
    "river",
    "paper",
]
ROWS = [example(word) for word in WORDS]
SMALL = dict(
    model="tiny-qwen2",
    backend="peft",
    epochs=2,
    batch_size=4,
    lora_rank=4,
    lora_alpha=8,
    save_steps=2,
)


def collate(examples):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(
        encode_rows(examples, tokenizer)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    return output, train_lora(ROWS, ROWS[:3], output=output, **SMALL)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    "The embedded model with Qwen3's template, as a model folder."
    import shutil

    import trl

    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(model_path("tiny-qwen2"), folder)
    shutil.copy(
        Path(trl.__file__).parent / "chat_templates/qwen3.jinja", folder / "chat_template.jinja"
    )
    return str(folder)


# ---- thinking


@pytest.mark.parametrize("thinking", [None, True, False])
def test_rows_begin_with_the_prompt_that_is_asked(thinker, thinking):
    other = load_tokenizer(thinker)
    rows, _, left_out = encode_splits(ROWS, [], other, 2048, thinking=thinking)
    assert left_out == 0
    for row, each in zip(rows, ROWS):
        prompt = encode_prompt({**each, "messages": each["messages"][:-1]}, other, thinking)
        assert row["input_ids"][: len(prompt)] == prompt and [
            label != -100 for label in row["labels"]
        ] == [place >= len(prompt) for place in range(len(row["labels"]))]
    learnt = other.decode([label for label in rows[0]["labels"] if label != -100])
    assert learnt.startswith(
        "<tool_call>" if thinking is False else "<think>\n\n</think>\n\n<tool_call>"
    )


def test_training_takes_thinking(thinker, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "toolcall_ft.train.run.encode_dataset",
        lambda *arguments: seen.append(arguments[4]) or encode_dataset(*arguments),
    )
    train_lora(
        ROWS[:4],
        ROWS[4:6],
        output=tmp_path,
        **{**SMALL, "model": thinker, "epochs": 1},
        thinking=False,
    )
    assert seen == [False, False]


# ---- the loss


@pytest.mark.parametrize(
    "examples",
    [
        ROWS[:1],
        ROWS[:5],
        [*ROWS[:3], *(example(word, "find") for word in WORDS[:3])],
        [
            ROWS[0],
            {
                "tools": [],
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y"},
                ],
            },
        ],
        [ROWS[0], ROWS[0]],
    ],
)
def test_loss_and_gradients_are_those_of_transformers(examples):
    model = load_peft("tiny-qwen2", rank=4).float()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    batch = collate(examples)

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return loss.item(), torch.cat(
            [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        )

    expected, gradients = gradient(model(**batch).loss)
    ours, our_gradients = gradient(trained_loss(model, batch, END))
    assert abs(ours - expected) < 1e-4 and torch.allclose(
        gradients, our_gradients, atol=1e-5, rtol=1e-3
    )


def test_the_loss_is_divided_by_the_given_number_of_tokens():
    model, batch = load_peft("tiny-qwen2", rank=4).float(), collate(ROWS[:4])
    labelled = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        assert torch.isclose(
            trained_loss(model, batch, END),
            trained_loss(model, batch, END, tokens=2 * labelled) * 2,
        )


def test_the_shared_prefix_ends_before_the_state_that_predicts_the_first_label():
    batch = collate([ROWS[0], ROWS[0]])
    first_label = int((batch["labels"][0] != -100).nonzero()[0])
    assert shared_prefix(batch["input_ids"], batch["labels"]) == first_label - 1
    assert prefix_groups(
        collate([ROWS[0], example("x", "find"), ROWS[1]])["input_ids"].tolist(), END
    ) == [[0, 2], [1]]


# ---- training


def test_training_lowers_the_loss_and_leaves_adapter_and_curves(run):
    output, report = run
    assert (
        report["validation_loss"] < report["validation_loss_before"] and report["backend"] == "peft"
    )
    assert sorted(path.name for path in output.iterdir()) == [
        "adapter",
        "curves.jsonl",
        "curves.png",
    ]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        path.name for path in (output / "adapter").iterdir()
    }
    points = read_jsonl(output / "curves.jsonl")
    assert points[0]["step"] == 0 and points[-1]["step"] == report["steps"] == 6
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_all_linear_layers_have_an_adapter(run):
    adapted = load_adapted("tiny-qwen2", run[0] / "adapter")
    layers = adapted.config.num_hidden_layers
    assert (
        sum(name.endswith("lora_A.default.weight") for name, _ in adapted.named_parameters())
        == 7 * layers
    )


def test_a_killed_training_goes_on_and_ends_where_it_would_have_ended(
    run, tmp_path, monkeypatch, capsys
):
    class Killed(BaseException):
        pass

    original = progress

    def deadly(*arguments):
        callback = original(*arguments)

        def on_step_end(_, state, control, **rest):
            if state.global_step == 5:
                raise Killed

        callback.on_step_end = on_step_end
        return callback

    monkeypatch.setattr("toolcall_ft.train.trainer.progress", deadly)
    with pytest.raises(Killed):
        train_lora(ROWS, ROWS[:3], output=tmp_path, **SMALL)
    assert not (tmp_path / "adapter").exists() and (tmp_path / "checkpoints/checkpoint-4").exists()
    monkeypatch.setattr("toolcall_ft.train.trainer.progress", original)
    report = train_lora(ROWS, ROWS[:3], output=tmp_path, **SMALL)
    assert "going on from checkpoint-4" in capsys.readouterr().out and report["steps"] == 6
    assert [point["step"] for point in read_jsonl(tmp_path / "curves.jsonl")] == [
        point["step"] for point in read_jsonl(run[0] / "curves.jsonl")
    ]
    one, two = (
        load_adapted("tiny-qwen2", folder / "adapter").state_dict() for folder in (run[0], tmp_path)
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_checkpoints_of_other_settings_are_not_continued(tmp_path):
    assert last_checkpoint(tmp_path / "c", "one") is None
    for step, state in ((2, "{}"), (10, "{}"), (12, "")):
        (tmp_path / f"c/checkpoint-{step}").mkdir()
        (tmp_path / f"c/checkpoint-{step}/trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path / "c", "one").endswith("checkpoint-10")
    assert last_checkpoint(tmp_path / "c", "two") is None and not list(
        (tmp_path / "c").glob("checkpoint-*")
    )


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=120),
    st.integers(1, 9),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_every_row_comes_once_in_each_epoch_and_full_batches_share_their_tools(rows, size, epoch):
    sampler = PrefixSampler(
        [[tools, 99, *range(length)] for tools, length in rows], end=99, size=size, seed=0
    )
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows))) and len(sampler) == len(rows)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    shared = sum(
        len({rows[number][0] for number in batch}) == 1 and len(batch) == size for batch in batches
    )
    assert shared >= sum(len(group) // size for group in sampler.groups)


def test_unsloth_is_taken_when_it_is_there():
    assert start_backend("auto") == ("unsloth" if importlib.util.find_spec("unsloth") else "peft")


def test_auto_trains_without_validation_rows(tmp_path):
    report = train_lora(ROWS[:4], [], output=tmp_path, **{**SMALL, "backend": "auto", "epochs": 1})
    assert (
        report["validation_loss"] is None
        and report["steps"] == 1
        and (tmp_path / "adapter/adapter_model.safetensors").exists()
    )


def test_a_failed_save_leaves_the_old_adapter(run, monkeypatch):
    before = (run[0] / "adapter/adapter_model.safetensors").read_bytes()

    class Broken:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises((OSError, UserError)):
        save_adapter(Broken(), tokenizer, run[0] / "adapter")
    assert (run[0] / "adapter/adapter_model.safetensors").read_bytes() == before
    assert sorted(path.name for path in run[0].iterdir()) == [
        "adapter",
        "curves.jsonl",
        "curves.png",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backend": "keras"}, "train.backend"),
        ({"max_length": 5}, "no row is left"),
        ({"model": "./no-such"}, "no such model folder"),
        ({"four_bit": True}, "needs a GPU"),
    ],
)
def test_mistakes_are_clear_errors(tmp_path, change, message):
    if "four_bit" in change and torch.cuda.is_available():
        change, message = {"backend": "keras"}, "train.backend"
    with pytest.raises(UserError, match=message):
        train_lora(ROWS[:2], [], output=tmp_path, **{**SMALL, **change})


def test_curve_points_of_a_log():
    assert curve_points([{"train_runtime": 1.0, "step": 3, "epoch": 1}]) == []
    assert curve_points(
        [{"loss": 1.0, "learning_rate": 0.1, "grad_norm": 9, "epoch": 0.5, "step": 3}]
    ) == [{"step": 3, "epoch": 0.5, "loss": 1.0, "learning_rate": 0.1}]


# ---- merging


def test_the_merged_model_has_the_logits_of_base_and_adapter(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = merge_adapter("tiny-qwen2", run[0] / "adapter", tmp_path / "merged", probe=ROWS[:4])
    assert report["max_abs_logit_difference"] < 1e-3 and report["same_next_token"] == 1.0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (
        not list((tmp_path / "merged").glob("*.bin"))
        and (tmp_path / "merged/model.safetensors").exists()
    )
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-qwen2"), dtype=torch.float32)
    rows = [encode_example(ROWS[0], tokenizer)]
    assert (probe_logits(merged.float(), rows)[0] - probe_logits(base, rows)[0]).abs().max() > 0.01
    assert encode_example(ROWS[0], AutoTokenizer.from_pretrained(tmp_path / "merged")) == rows[0]


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_an_adapter_that_holds_whole_modules_is_merged(tmp_path, modules):
    "Trained elsewhere, with `modules_to_save`: the embeddings of this model are tied, and no longer are if they differ."
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-qwen2"))
    options = {"target_modules": ["q_proj"], "modules_to_save": modules, "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(base, LoraConfig(r=4, **options))
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    adapted.save_pretrained(tmp_path / "adapter")
    report = merge_adapter("tiny-qwen2", tmp_path / "adapter", tmp_path / "merged")
    assert report["max_abs_logit_difference"] < 1e-3 and report["same_next_token"] == 1.0


def test_merging_nothing_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        merge_adapter("tiny-qwen2", tmp_path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model_is_a_clear_error(run, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_path("tiny-qwen2"))
    config.hidden_size, config.intermediate_size = 64, 128
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="does not fit"):
        merge_adapter(str(tmp_path / "other"), run[0] / "adapter", tmp_path / "merged")


def test_the_settings_of_the_configuration_reach_the_trainer(tmp_path):
    own = {"scheduler": "linear", "weight_decay": 0.1, "max_grad_norm": 0.5, "report_to": "none"}
    settings = trainer_settings(
        tmp_path, 1, 8, 1, 1e-3, 0.1, rows=80, validate=False, save_steps=7, **own
    )
    assert settings.lr_scheduler_type.value == "linear" and settings.save_steps == 7
    assert (settings.weight_decay, settings.max_grad_norm) == (0.1, 0.5)
    model = load_peft("tiny-qwen2", targets=["q_proj"], dropout=0.2)
    config = model.peft_config["default"]
    assert config.target_modules == {"q_proj"} and config.lora_dropout == 0.2


def test_the_defaults_of_training_are_those_of_the_configuration():
    import inspect

    from toolcall_ft.config import read_config

    parameters = inspect.signature(train_lora).parameters
    for key, value in read_config()["train"].items():
        assert parameters[key].default == value, key


def test_a_t4_is_asked_for_native_bfloat16_and_trains_in_float16(monkeypatch):
    "PyTorch says that a T4 does bfloat16, unless it is asked without emulation, which is slow."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert compute_type() == "float16"
    settings = machine_settings()
    assert settings["fp16"] and not settings["bf16"] and settings["gradient_checkpointing"]


def test_a_merge_holds_one_model_at_a_time(run, tmp_path, monkeypatch):
    "The adapted model is gone before the written one is loaded."
    alive, load = [], merge.load_weights

    def watched(*arguments, **options):
        gc.collect()
        alive.append(sum(reference() is not None for reference in models))
        model = load(*arguments, **options)
        models.append(weakref.ref(model))
        return model

    models = []
    monkeypatch.setattr(merge, "load_weights", watched)
    merge.merge_adapter("tiny-qwen2", run[0] / "adapter", tmp_path / "merged", probe=ROWS[:1])
    assert alive == [0, 0]
