"""Large pages of memory for PyTorch on a processor: steps of a training and batches of answers with them and without, turn by turn.

    python benchmarks/huge_pages.py [MODEL]       # smollm2, if no other model is named

`toolcall_ft.template.models.HUGE_PAGES` says what they are. Each measurement is a process of its own; its first steps, in which the memory is taken, are
left out. A kernel that gives large pages to everybody, or to nobody, shows no difference: `cat /sys/kernel/mm/transparent_hugepage/enabled`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cpu_training import home_rows
from shared_attention import home_prompts

from toolcall_ft.base.files import write_text
from toolcall_ft.base.table import markdown_table
from toolcall_ft.generate.batch import generate_batch
from toolcall_ft.generate.model import load_model
from toolcall_ft.template.models import HUGE_PAGES, load_tokenizer
from toolcall_ft.train.backend import load_peft, machine_name
from toolcall_ft.train.prefix import trained_loss
from toolcall_ft.train.trainer import turn_end

ROOT = Path(__file__).resolve().parents[1]
BATCH, TIMES, WARM, TURNS = 8, 6, 2, 3


def training_step(model: str):
    "A step of a training, the way there and back, as a function."
    import torch

    with tempfile.TemporaryDirectory() as folder:
        rows = home_rows(model, Path(folder, "run"))[:BATCH]
    adapted, tokenizer = load_peft(model), load_tokenizer(model)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tokenizer.eos_token_id, "labels": -100, "attention_mask": 0}
    batch = {
        name: torch.tensor([row[name] + [empty] * (width - len(row[name])) for row in rows])
        for name, empty in fill.items()
    }
    return lambda: trained_loss(adapted, batch, turn_end(tokenizer)).backward()


def answer_batch(model: str):
    "Sixteen answers of sixteen tokens, as a function."
    loaded, tokenizer = load_model(model)
    prompts = home_prompts(tokenizer)
    return lambda: generate_batch(loaded, tokenizer, prompts, max_new_tokens=16)


WORK = {"a step of training": training_step, "a batch of answers": answer_batch}


def measure(work: str, model: str) -> None:
    "Print the seconds of each time, but for the first ones."
    run, seconds = WORK[work](model), []
    for _ in range(TIMES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[WARM:]))


def measured(work: str, model: str, pages: str) -> list:  # seconds
    "`measure` in a process of its own."
    done = subprocess.run(
        [sys.executable, __file__, model, work],
        env={**os.environ, HUGE_PAGES: pages},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    model, *work = sys.argv[1:] or ["smollm2"]
    if work:
        return measure(*work, model)
    seconds, rows = {}, []
    for name in WORK:
        seconds[name] = {"small": [], "large": []}
        for _ in range(TURNS):
            for size, pages in (("small", "0"), ("large", "1")):
                seconds[name][size] += measured(name, model, pages)
        small, large = (statistics.median(each) for each in seconds[name].values())
        rows.append([name, f"{small:.2f}", f"{large:.2f}", f"{small / large:.2f}"])
        print(*rows[-1], flush=True)
    print(markdown_table(["", "small pages, s", "large pages, s", "times"], rows, "lrrr"))
    facts = {"model": model, "machine": machine_name(), "seconds": seconds}
    write_text(ROOT / "benchmarks/results/huge_pages.json", json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
