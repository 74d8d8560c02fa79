"""How many threads should llama-server have, and should they spin while they wait? Alone, and beside one busy process; turn by turn.

    python benchmarks/threads.py [--requests 25] [--turns 3] [--slots 1,8] [--models tiny,135m]

Writes benchmarks/results/threads.json and prints a table: medians of the seconds that all requests take together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from golden.smollm2 import smollm2

from toolcall_ft.data.examples import read_examples
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.serve.client import openai_answerer
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.tools.load import read_tools
from toolcall_ft.train.backend import machine_name

CORES = len(os.sched_getaffinity(0))
VARIANTS = {  # name: (threads, --poll, OMP_WAIT_POLICY)
    "all cores, spinning (its own default)": (CORES, 50, None),
    "all cores, --poll 0": (CORES, 0, None),
    "one thread, --poll 0": (1, 0, None),
    "all cores, sleeping": (CORES, 0, "passive"),
    "one thread, sleeping": (1, 0, "passive"),
}
FOLDERS = {"tiny": lambda: "tiny-qwen2", "135m": smollm2}


@contextmanager
def load(busy: bool):
    "For the time of the block, another process that computes without a pause."
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def seconds(gguf, requests: list, variant: tuple, slots: int, busy: bool, runtime: str) -> float:
    "How long all requests take together; one has been asked before, so that the model is in memory."
    threads, poll, policy = variant
    os.environ["OMP_WAIT_POLICY"] = (
        policy or "undefined"
    )  # a word that OpenMP does not know leaves it at its default
    with (
        OllamaServer(gguf, slots=slots, threads=threads)
        if runtime == "ollama"
        else LlamaServer(gguf, slots=slots, threads=threads, options=["--poll", poll]) as server
    ):
        ask = openai_answerer(server.url, server.model, max_new_tokens=24, workers=slots)
        ask(requests[:1])
        with load(busy):
            start = time.perf_counter()
            ask(requests)
            return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=25)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--slots", default="1,8")
    parser.add_argument("--models", default="tiny,135m")
    parser.add_argument("--runtimes", default="llama-server,ollama")
    arguments = parser.parse_args()
    examples, _ = read_examples(
        ROOT / "examples" / "logs.jsonl", read_tools(ROOT / "examples" / "tools.json")
    )
    requests = [request for request, _ in to_requests(examples[: arguments.requests])]
    models, slots = arguments.models.split(","), [int(text) for text in arguments.slots.split(",")]
    taken = {}
    with tempfile.TemporaryDirectory() as work:
        files = {
            model: export_gguf(FOLDERS[model](), Path(work) / model, ["Q8_0"])["Q8_0"]
            for model in models
        }
        for _, runtime, model, slot, busy, variant in product(
            range(arguments.turns),
            arguments.runtimes.split(","),
            models,
            slots,
            (False, True),
            VARIANTS,
        ):
            if runtime == "ollama" and "--poll" in variant:
                continue  # it does not hand on that option
            took = seconds(files[model], requests, VARIANTS[variant], slot, busy, runtime)
            taken.setdefault((runtime, model, slot, variant), {}).setdefault(busy, []).append(took)
            print(
                f"{runtime:12} {model:5} {slot} slots {'busy' if busy else 'idle'} {variant:38} {took:7.1f} s",
                flush=True,
            )
    rows = [
        {
            "runtime": runtime,
            "model": model,
            "slots": slot,
            "variant": variant,
            "idle": statistics.median(found[False]),
            "busy": statistics.median(found[True]),
        }
        for (runtime, model, slot, variant), found in taken.items()
    ]
    record = {
        "machine": machine_name(),
        "requests": arguments.requests,
        "turns": arguments.turns,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "results" / "threads.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )
    print(
        f"\n{record['machine']}; {arguments.requests} requests, medians of {arguments.turns} turns\n"
    )
    print(
        "| server | model | slots | threads | idle, s | beside a busy process, s |\n|---|---|---:|---|---:|---:|"
    )
    for row in rows:
        print(
            f"| {row['runtime']} | {row['model']} | {row['slots']} | {row['variant']} | {row['idle']:.1f} | {row['busy']:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
