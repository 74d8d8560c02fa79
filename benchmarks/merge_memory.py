"""The most memory that a merge holds: a random model of Qwen2.5-0.5B's shape, merged in float32, and what that means for 1.5 billion weights.

    python benchmarks/merge_memory.py [--layers 24]

Of a fresh process: the most memory of its own (RssAnon, read twenty times a second), which is what a machine must have, and VmHWM, which also counts the
pages of the model's files that are mapped; the kernel takes those back when memory is short.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from memory import high_water

RESULTS = Path(__file__).resolve().parent / "results" / "merge_memory.json"
GOAL = 9.0  # GB for 1.5 billion weights, on a machine of 12.7


def make_models(folder: Path, layers: int) -> int:
    "A random model of the shape and an adapter for it; the number of the model's weights."
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from toolcall_ft.template.models import load_tokenizer
    from toolcall_ft.train.backend import LINEAR_LAYERS

    torch.set_default_dtype(torch.bfloat16)
    shape = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(shape)
    model.save_pretrained(folder / "base")
    load_tokenizer("tiny-qwen2").save_pretrained(folder / "base")
    settings = LoraConfig(r=16, target_modules=LINEAR_LAYERS, init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    return sum(weight.numel() for weight in model.parameters())


def own_memory() -> float:
    "The memory that belongs to this process alone, in MB."
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def watch(seen: list) -> None:
    "Keep the most that was ever held in `seen[0]`, until the process ends."
    while True:
        seen[0] = max(seen[0], own_memory())
        time.sleep(0.05)


def child(folder: Path) -> None:
    "Merge, and print the memory before and at its peak."
    import torch  # noqa: F401  (its own memory is not the merge's)

    from toolcall_ft.train.merge import merge_adapter

    before, seen = own_memory(), [0]
    threading.Thread(target=watch, args=(seen,), daemon=True).start()
    merge_adapter(str(folder / "base"), folder / "adapter", folder / "merged")
    found = {"before_mb": before, "most_mb": seen[0], "with_mapped_files_mb": high_water()}
    print(json.dumps({name: round(value) for name, value in found.items()}))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--child", default="")
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child))
        return 0
    with tempfile.TemporaryDirectory() as work:
        weights = make_models(Path(work), arguments.layers)
        command = [sys.executable, __file__, "--child", work]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = {"weights": weights, **json.loads(printed.splitlines()[-1])}
    bytes_each = (row["most_mb"] - row["before_mb"]) * 2**20 / weights
    row["bytes_for_each_weight"] = round(bytes_each, 2)
    row["gb_for_1.54_billion"] = round(bytes_each * 1.54 + row["before_mb"] / 1000, 1)
    RESULTS.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=1))
    return int(row["gb_for_1.54_billion"] > GOAL)


if __name__ == "__main__":
    sys.exit(main())
