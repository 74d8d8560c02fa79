"""The embedded model's training: Muon for the matrices against AdamW for all, the same start and the same steps. Prints loss on fresh conversations and seconds."""

import argparse
import random
import time
from itertools import islice

import torch

from toolcall_ft.tiny.model import new_model
from toolcall_ft.tiny.tokenizer import train_tokenizer
from toolcall_ft.tiny.train import (
    all_batches,
    make_optimizers,
    summed_loss,
    tool_batches,
    train_step,
)

RATE = 2e-3


def adamw(model, learning_rate: float) -> list:
    "The peer: one optimizer for all weights."
    return [
        torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
    ]


def trained(make_optimizers, tokenizer, held_out: list, steps: int) -> tuple:
    "(loss on the held-out batches, seconds) after so many steps from seed 0."
    model, started = new_model(tokenizer), time.time()
    optimizers = make_optimizers(model, RATE)
    for step, batches in enumerate(
        islice(all_batches(tokenizer, random.Random(0), copy_steps=steps * 2 // 5), steps)
    ):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 30)
        train_step(model, batches, optimizers)
    seconds = time.time() - started
    with torch.no_grad():
        losses, counts = zip(*(summed_loss(model, batch) for batch in held_out))
    return float(sum(losses)) / sum(counts), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps, tokenizer = parser.parse_args().steps, train_tokenizer()
    held_out = list(islice(tool_batches(tokenizer, random.Random(99)), 40))
    results = {
        name: trained(make, tokenizer, held_out, steps)
        for name, make in {"Muon": make_optimizers, "AdamW": adamw}.items()
    }
    for name, (loss, seconds) in results.items():
        print(f"{name}: loss {loss:.3f} after {steps} steps in {seconds:.0f} s")
    print(
        f"ratio of the losses {results['AdamW'][0] / results['Muon'][0]:.2f}, of the seconds {results['Muon'][1] / results['AdamW'][1]:.2f}"
    )


if __name__ == "__main__":
    main()
