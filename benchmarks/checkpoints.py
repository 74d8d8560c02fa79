"""Quantised checkpoints of a finished run: bytes, seconds, and exact calls in Transformers and in vLLM.

    python benchmarks/checkpoints.py [--run runs/demo] [--samples 64] [--limit 336] [NAME ...]

Makes each checkpoint (FP8, INT8, GPTQ, AWQ; `merged` is the model they are made from) in a temporary folder, and asks it the run's test split, which nothing was calibrated on.
Without vLLM (`make vllm`) its column says so. Results are added to benchmarks/results/checkpoints.json after each checkpoint, so that it can be run name by name.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.export.compressed import SCHEMES, compress_model, compressed_table
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.model import load_model
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.vllm import VllmServer
from toolcall_ft.serve.vllm_install import find_vllm

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"


def short(report, seconds):
    "The figures of a report that the table shows."
    return {key: report[key] for key in ("exact", "exact_interval", "exact_n", "tool", "kinds")} | {
        "seconds": round(seconds, 1)
    }


def in_transformers(folder, test):
    start = time.perf_counter()
    return short(
        evaluate(test, transformers_predictor(*load_model(str(folder)))),
        time.perf_counter() - start,
    )


def in_vllm(folder, test):
    if not find_vllm()["python"]:
        return "not run"
    try:
        with VllmServer(folder) as server:
            start = time.perf_counter()
            return short(
                evaluate(test, openai_client(server.url, server.model, workers=8)),
                time.perf_counter() - start,
            )
    except UserError as error:
        print(error)
        return "does not load"


def measure(name, run, place, samples, test):
    "One row of the table."
    folder = run / "merged"
    row = {"bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}
    if name in SCHEMES:
        folder, rows = place / name, read_jsonl(run / "data" / "train.jsonl")
        row = compress_model(
            run / "merged", folder, name, rows[:: len(rows) // samples][:samples]
        ) | {"model": str(run / "merged")}
    return row | {"transformers": in_transformers(folder, test), "vllm": in_vllm(folder, test)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["merged", *SCHEMES])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--limit", type=int)
    wanted = parser.parse_args()
    test = read_jsonl(wanted.run / "data" / "test.jsonl")[: wanted.limit]
    for name in wanted.names:
        with tempfile.TemporaryDirectory() as place:
            row = measure(name, wanted.run, Path(place), wanted.samples, test)
        rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else {}
        rows = {
            key: {**rows, name: row}[key]
            for key in ["merged", *SCHEMES]
            if key in {**rows, name: row}
        }
        versions = {
            package: version(package)
            for package in ("llmcompressor", "compressed-tensors", "transformers", "torch")
        } | {"vllm": find_vllm()["version"]}
        write_text(
            RESULTS,
            json.dumps(
                {
                    "date": str(date.today()),
                    "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
                    "versions": versions,
                    "rows": rows,
                },
                indent=1,
            )
            + "\n",
        )
        print(compressed_table(rows), flush=True)


if __name__ == "__main__":
    main()
