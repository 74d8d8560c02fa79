"""LoRA without a GPU: seconds of a training on the demo's rows, batches of shared tools (`PrefixSampler`) against random order, turn by turn."""

import statistics
import tempfile
from pathlib import Path

from toolcall_ft.config import read_config
from toolcall_ft.data.logs import read_logs
from toolcall_ft.train.lora import train_lora
from toolcall_ft.train.prefix import PrefixSampler

ROOT, ROWS, TURNS = Path(__file__).resolve().parents[1], 320, 5
SHARED = PrefixSampler


class RandomOrder(SHARED):
    "The same trainer, but a batch holds whatever comes: every row is a group of its own."

    def __init__(self, rows, end, size, seed):
        super().__init__(rows, end, size, seed)
        self.groups = [[number] for number in range(len(rows))]


def seconds(sampler, rows: list) -> float:
    "Seconds of one epoch, as the trainer measures them."
    PrefixSampler = sampler
    with tempfile.TemporaryDirectory() as folder:
        return train_lora(
            rows, [], "tiny-qwen2", folder, epochs=1, batch_size=8, lora_rank=32, lora_alpha=64
        )["seconds"]


def main():
    rows = read_logs(read_config(ROOT / "examples" / "config.yaml")["data"])[0][:ROWS]
    seconds(SHARED, rows[:16])  # the first time compiles and caches
    turns = [(seconds(SHARED, rows), seconds(RandomOrder, rows)) for _ in range(TURNS)]
    shared, mixed = (statistics.median(column) for column in zip(*turns))
    print(
        f"{ROWS} rows, medians of {TURNS} turns: shared tools {shared:.1f} s, random order {mixed:.1f} s, ratio {mixed / shared:.2f}"
    )


if __name__ == "__main__":
    main()
