"""Every GGUF format of a finished run, with and without an importance matrix, and the adapter by itself on its base.

    python benchmarks/quantised.py runs/demo runs/quantised        # 10 minutes on two free cores; run it again after an interruption, it goes on

The files are written into the second folder; the figures go into benchmarks/results/quantised.json, a file at a time.
"""

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

from toolcall_ft.base.files import read_json, read_jsonl, write_text
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.export.adapter import export_adapter
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.formats import GGUF_TYPES
from toolcall_ft.export.imatrix import make_imatrix
from toolcall_ft.parity.quantization import call_rows, measure_format, open_gguf, quantization_table
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "quantised.json"
AIDED = [
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "Q4_0",
    "IQ4_XS",
]  # the others do not look at an importance matrix


def make_files(run: Path, work: Path) -> dict:
    "Every file that is measured, by its name in the table."
    if not (work / "ready").exists():
        matrix = make_imatrix(
            run / "merged", read_jsonl(run / "data" / "train.jsonl"), work / "imatrix.gguf"
        )
        export_gguf(run / "merged", work / "plain", list(GGUF_TYPES))
        export_gguf(run / "merged", work / "aided", AIDED, imatrix=matrix)
        export_gguf("tiny-qwen2", work / "base", ["F16"])
        export_adapter(run / "adapter", "tiny-qwen2", work / "adapter.gguf")
        (work / "ready").touch()
    plain = {form: work / "plain" / f"model-{form}.gguf" for form in GGUF_TYPES}
    return plain | {f"{form} + imatrix": work / "aided" / f"model-{form}.gguf" for form in AIDED}


def measure_adapter(work: Path, files: dict, examples: list) -> dict:
    "Base and adapter against the merged model, answer by answer."
    said = {}

    def keep(name, server):
        ask = openai_client(server.url, server.model)

        def answer(requests):
            said[name] = ask(requests)
            return said[name]

        return answer

    with LlamaServer(
        work / "base" / "model-F16.gguf", options=["--lora", str(work / "adapter.gguf")]
    ) as server:
        report = evaluate(examples, keep("adapter", server))
    with LlamaServer(files["F16"]) as server:
        evaluate(examples, keep("merged", server))
    equal = sum(
        one["calls"] == other["calls"] and one["content"] == other["content"]
        for one, other in zip(said["adapter"], said["merged"])
    )
    sizes = {
        "bytes": (work / "adapter.gguf").stat().st_size,
        "base_bytes": (work / "base" / "model-F16.gguf").stat().st_size,
    }
    return {
        **sizes,
        **{key: report[key] for key in ("exact", "exact_interval", "exact_n")},
        "answers_equal_to_merged": equal,
    }


def main(run: Path, work: Path) -> None:
    "Measure what has not been measured yet."
    examples = read_jsonl(run / "data" / "test.jsonl")
    files, rows = make_files(run, work), call_rows(examples, load_tokenizer(str(run / "merged")))
    about = {
        "command": "python benchmarks/quantised.py runs/demo runs/quantised",
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "model": "runs/demo (tiny-qwen2, LoRA, merged)",
        "requests": len(examples),
        "rows_for_divergence": len(rows),
        "llama_cpp": read_json(work / "plain" / "export.json")["llama_cpp"],
        "imatrix": read_json(work / "aided" / "export.json")["imatrix"],
    }
    record = read_json(RESULTS) if RESULTS.exists() else {"formats": {}}
    record |= about
    original = open_gguf(files["F16"])
    for name in files:
        if name in record["formats"]:
            continue
        record["formats"][name] = measure_format(files[name], original, examples, rows)
        write_text(RESULTS, json.dumps(record) + "\n")
        print(
            quantization_table({key: record["formats"][key] for key in ("F16", name)}).splitlines()[
                -1
            ],
            flush=True,
        )
    if "adapter" not in record:
        record["adapter"] = measure_adapter(work, files, examples)
    record["formats"] = {name: record["formats"][name] for name in files}
    write_text(RESULTS, json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
