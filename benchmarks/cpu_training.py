"""LoRA on a processor: the same rows, model and adapter through our trainer and through TRL's, turn by turn in one process.

python benchmarks/cpu_training.py [MODEL]       # smollm2, if no other model is named

Useful tokens are those of the rows, without padding. TRL's trainer runs in our number format and in its default, float32.
TRL 1.15 computes its loss by a kernel for a GPU ("0 active drivers" without one), so it has Transformers' loss here.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.base.table import markdown_table
from toolcall_ft.config import read_config
from toolcall_ft.data.prepare import prepare_data
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.rows import encode_rows
from toolcall_ft.train.backend import compute_type, load_peft, machine_name
from toolcall_ft.train.trainer import make_trainer, trainer_settings

ROOT = Path(__file__).resolve().parents[1]
ROWS, BATCH, TURNS = 16, 8, 3


def home_rows(model: str, folder: Path) -> list:  # of {"input_ids", "labels"}
    "Training rows of the home task."
    config = read_config(ROOT / "examples/home/config.yaml")
    config["run"] = str(folder)
    prepare_data(config)
    return encode_rows(read_jsonl(folder / "data/train.jsonl")[:ROWS], load_tokenizer(model))


def timed(trainer) -> float:  # seconds
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def ours(model: str, dataset, folder: Path) -> float:
    "One epoch through `train_lora`'s trainer."
    settings = trainer_settings(
        folder,
        epochs=1,
        batch_size=BATCH,
        gradient_accumulation=1,
        learning_rate=5e-4,
        warmup_ratio=0.1,
        rows=len(dataset),
        validate=False,
    )
    adapted, tokenizer = load_peft(model), load_tokenizer(model)
    return timed(make_trainer(adapted, tokenizer, settings, dataset, None, folder / "curves.jsonl"))


def theirs(model: str, dataset, folder: Path, form: str) -> float:
    "One epoch through TRL's SFTTrainer with Transformers' loss, in its own order of rows."
    import torch
    from transformers import Trainer
    from trl import SFTConfig, SFTTrainer

    class OnProcessor(SFTTrainer):
        compute_loss = Trainer.compute_loss

    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-4,
        max_length=2048,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        bf16=form == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    adapted = load_peft(model).to(getattr(torch, form))
    tokenizer = load_tokenizer(model)
    return timed(OnProcessor(adapted, settings, train_dataset=dataset, processing_class=tokenizer))


def main() -> None:
    from datasets import Dataset

    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    form = compute_type()
    with tempfile.TemporaryDirectory() as work:
        rows = home_rows(model, Path(work, "run"))
        dataset = Dataset.from_list(rows)
        ways = {
            f"ours, {form}": lambda: ours(model, dataset, Path(work, "ours")),
            **{
                f"TRL, {each}": lambda each=each: theirs(model, dataset, Path(work, each), each)
                for each in dict.fromkeys([form, "float32"])
            },
        }
        seconds = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, run in ways.items():
                seconds[name].append(run())
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    tokens = sum(len(row["input_ids"]) for row in rows)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    first = next(iter(medians.values()))
    table = [
        [name, f"{each:.1f}", f"{tokens / each:.0f}", f"{each / first:.1f}"]
        for name, each in medians.items()
    ]
    head = ["trainer", "seconds, median", "useful tokens a second", "times ours"]
    print(markdown_table(head, table, "lrrr"))
    print(
        f"{model}, {len(rows)} rows, {tokens} tokens, batches of {BATCH}, {TURNS} turns; {machine_name()}"
    )
    facts = {
        "model": model,
        "machine": machine_name(),
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
    }
    write_text(ROOT / "benchmarks/results/cpu_training.json", json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
