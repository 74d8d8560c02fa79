"""How many threads should llama-server have, and should they spin while they wait? Alone, and beside one busy process; turn by turn.

    python benchmarks/threads.py [--requests 25] [--turns 3] [--slots 1,8] [--models tiny,135m]

Writes benchmarks/results/threads.json and prints a table: medians of the seconds that all requests take together.
"""
import argparse
import json
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

from toolcall_ft.data import read_examples
from toolcall_ft.evaluate import to_requests
from toolcall_ft.export import export_gguf
from toolcall_ft.serve import LlamaServer, openai_answerer
from toolcall_ft.tools import read_tools
from toolcall_ft.train import machine_name

VARIANTS = {"all cores, spinning": ["--threads", "2", "--poll", "50"], "all cores": ["--threads", "2", "--poll", "0"],
            "one thread, spinning": ["--threads", "1", "--poll", "50"], "one thread": ["--threads", "1", "--poll", "0"]}
FOLDERS = {"tiny": lambda: "tiny-qwen2", "135m": smollm2}


@contextmanager
def load(busy: bool):
    "For the time of the block, another process that computes without a pause."
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try: yield
    finally:
        if other:
            other.kill()
            other.wait()


def seconds(gguf, requests: list, options: list, slots: int, busy: bool) -> float:
    "How long all requests take together; one has been asked before, so that the model is in memory."
    with LlamaServer(gguf, slots=slots, options=options) as server:
        ask = openai_answerer(server.url, server.model, max_new_tokens=24, workers=slots)
        ask(requests[:1])
        with load(busy):
            start = time.perf_counter()
            ask(requests)
            return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=25)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--slots", default="1,8")
    parser.add_argument("--models", default="tiny,135m")
    arguments = parser.parse_args()
    examples, _ = read_examples(ROOT / "examples" / "logs.jsonl", read_tools(ROOT / "examples" / "tools.json"))
    requests = [request for request, _ in to_requests(examples[:arguments.requests])]
    models, slots = arguments.models.split(","), [int(text) for text in arguments.slots.split(",")]
    taken = {}
    with tempfile.TemporaryDirectory() as work:
        files = {model: export_gguf(FOLDERS[model](), Path(work) / model, ["Q8_0"])["Q8_0"] for model in models}
        for _, model, slot, busy, variant in product(range(arguments.turns), models, slots, (False, True), VARIANTS):
            took = seconds(files[model], requests, VARIANTS[variant], slot, busy)
            taken.setdefault((model, slot, variant), {}).setdefault(busy, []).append(took)
            print(f"{model:5} {slot} slots {'busy' if busy else 'idle'} {variant:22} {took:7.1f} s", flush=True)
    rows = [{"model": model, "slots": slot, "variant": variant, "idle": statistics.median(found[False]), "busy": statistics.median(found[True])}
            for (model, slot, variant), found in taken.items()]
    record = {"machine": machine_name(), "requests": arguments.requests, "turns": arguments.turns, "rows": rows}
    (ROOT / "benchmarks" / "results" / "threads.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{record['machine']}; {arguments.requests} requests, medians of {arguments.turns} turns\n")
    print("| model | slots | llama-server with | idle, s | beside a busy process, s |\n|---|---:|---|---:|---:|")
    for row in rows: print(f"| {row['model']} | {row['slots']} | {row['variant']} | {row['idle']:.1f} | {row['busy']:.1f} |")
    return 0


if __name__ == "__main__": sys.exit(main())
