"""How many threads should llama-server have, and should they spin while they wait? Alone, and beside one busy process; turn by turn.

    python benchmarks/threads.py [--requests 25] [--turns 3] [--slots 1,8] [--models tiny,135m]

Adds to benchmarks/results/threads.json and prints a table: medians of the seconds that a request takes.
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
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.tools.load import read_tools
from toolcall_ft.train.backend import machine_name

CORES = len(os.sched_getaffinity(0))
RESULTS = ROOT / "benchmarks" / "results" / "threads.json"
LIMIT = 15  # seconds; a variant that waits takes longer than anybody wants to
DEFAULT = {
    "OMP_WAIT_POLICY": "undefined"
}  # a word that OpenMP does not know leaves it at its default
VARIANTS = {  # name: (threads, --poll, environment)
    "all cores, spinning (its own default)": (CORES, 50, DEFAULT),
    "all cores, --poll 0": (CORES, 0, DEFAULT),
    "one thread": (1, 0, DEFAULT),
    "all cores, sleeping": (CORES, 0, {"OMP_WAIT_POLICY": "passive"}),
    "all cores, 1,000 turns, then sleeping": (
        CORES,
        0,
        {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    ),
    "all cores, 10,000 turns, then sleeping": (
        CORES,
        0,
        {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"},
    ),
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
    "Seconds a request, `slots` of them at a time until LIMIT is over; one has been asked before, so that the model is in memory."
    threads, poll, environment = variant
    os.environ.pop("GOMP_SPINCOUNT", None)
    os.environ.update(environment)
    with (
        OllamaServer(gguf, slots=slots, threads=threads)
        if runtime == "ollama"
        else LlamaServer(gguf, slots=slots, threads=threads, options=["--poll", poll]) as server
    ):
        ask = openai_client(server.url, server.model, max_new_tokens=24, workers=slots)
        ask(requests[:1])
        with load(busy):
            start, asked = time.perf_counter(), 0
            while asked < len(requests) and time.perf_counter() < start + LIMIT:
                asked += len(ask(requests[asked : asked + slots]))
            return (time.perf_counter() - start) / asked


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
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
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
            print(
                f"{runtime:12} {model:5} {slot} slots {'busy' if busy else 'idle'} {variant:38} {took:7.3f} s",
                flush=True,
            )
            rows.append(
                {
                    "machine": machine_name(),
                    "runtime": runtime,
                    "model": model,
                    "slots": slot,
                    "busy": busy,
                    "threads": variant,
                    "seconds": round(took, 3),
                }
            )
            RESULTS.write_text(
                json.dumps({"limit": LIMIT, "rows": rows}, indent=1) + "\n", encoding="utf-8"
            )  # a stopped run keeps what it has
    print(f"\n{machine_name()}; medians\n")
    print(
        "| server | model | slots | threads | idle, s a request | beside a busy process |\n|---|---|---:|---|---:|---:|"
    )
    for place in dict.fromkeys(
        (row["runtime"], row["model"], row["slots"], row["threads"])
        for row in rows
        if row["machine"] == machine_name()
    ):
        found = {
            busy: [
                row["seconds"]
                for row in rows
                if (row["runtime"], row["model"], row["slots"], row["threads"], row["busy"])
                == (*place, busy)
            ]
            for busy in (False, True)
        }
        print(
            f"| {' | '.join(map(str, place))} | {' | '.join(f'{statistics.median(each):.3f}' if each else '' for each in found.values())} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
