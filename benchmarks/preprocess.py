"""From conversations to rows of ids and labels: `encode_dataset` against TRL's own way and against the bare tokenizer, turn by turn, in processes of their own.

    python benchmarks/preprocess.py ../shared/data/glaive_toolcall_en_demo.json      # LLaMA-Factory's demo set; without a file: examples/logs.jsonl
    python benchmarks/preprocess.py FILE --rows 6000 --turns 5

The conversations of the file are repeated up to --rows, each with its own number in its first question. No row and no list of tools is remembered; words are, by
`encode_pieces` as by the tokenizer itself, so the rate of the first pass is printed too. `limit` is `encode_batch` of the tokenizer on finished text, where rendering,
labels and writing cost nothing, with as many threads as the others have processes.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
KINDS = ("ours", "trl", "limit")


def tiled(examples: list, rows: int):
    "`rows` examples, no two the same."
    for number in range(rows):
        example = examples[number % len(examples)]
        place = next(place for place, message in enumerate(example["messages"]) if message["role"] == "user")
        messages = list(example["messages"])
        messages[place] = {**messages[place], "content": f"{messages[place]['content']} ({number})"}
        yield {**example, "messages": messages}


def run_ours(examples, tokenizer, rows, processes):
    "Seconds of `encode_dataset`."
    from toolcall_ft.template import encode_dataset
    start = time.perf_counter()
    dataset, left_out = encode_dataset(tiled(examples, rows), tokenizer, num_proc=processes)
    seconds = time.perf_counter() - start
    assert len(dataset) == rows and not left_out
    return seconds


def trl_row(row: dict, tokenizer, template: str) -> dict:
    "What TRL's trainer does with one row of a dataset; the example is JSON text there, because Arrow would give every call the arguments of all."
    example = json.loads(row["example"])
    return tokenizer.apply_chat_template(example["messages"], tools=example["tools"] or None, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)


def run_trl(examples, tokenizer, rows, processes):
    "Seconds of `datasets.map` with TRL's template for Qwen2.5."
    import trl
    from datasets import Dataset
    from datasets.fingerprint import get_temporary_cache_files_directory
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_training.jinja").read_text(encoding="utf-8")
    table = Dataset.from_dict({"example": [json.dumps(example) for example in tiled(examples, rows)]})
    work = partial(trl_row, tokenizer=tokenizer, template=template)
    start = time.perf_counter()
    table.map(work, remove_columns=["example"], num_proc=processes if processes > 1 else None, cache_file_name=f"{get_temporary_cache_files_directory()}/{rows}.arrow", new_fingerprint=f"trl{rows}")
    return time.perf_counter() - start


def run_limit(examples, tokenizer, rows, processes):
    "Seconds of the bare tokenizer on text that is ready."
    from toolcall_ft.template import render
    texts = [render(example, tokenizer) for example in tiled(examples, rows)]
    start = time.perf_counter()
    for first in range(0, rows, 1000): tokenizer.backend_tokenizer.encode_batch(texts[first:first + 1000], add_special_tokens=False)
    return time.perf_counter() - start


def load_examples(path: Path) -> list:
    "The conversations of a file."
    from toolcall_ft.data import read_examples
    from toolcall_ft.tools import read_json
    examples, errors = read_examples(path, read_json(ROOT / "examples" / "tools.json") if path.name == "logs.jsonl" else None)
    if not examples: raise SystemExit(f"{path}: no conversation in it can be used: {errors[:1]}")
    return examples


def child(kind: str, path: Path, rows: int, processes: int) -> None:
    "One measurement, printed as JSON."
    from qwen_tokenizer import qwen_tokenizer
    examples, tokenizer = load_examples(path), qwen_tokenizer()
    run = globals()[f"run_{kind}"]
    run(examples, tokenizer, 10, 1)  # once, for what is imported and compiled when first used
    seconds = run(examples, tokenizer, rows, processes)
    peak = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"rate": rows / seconds, "peak": peak}))


def measure(kind: str, path: Path, rows: int, processes: int) -> dict:
    "One measurement in a fresh process: rows a second, and the most memory that it and its largest worker held, in MB."
    threads = str(processes if kind == "limit" else 1)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": str(threads != "1").lower(), "RAYON_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, __file__, str(path), "--child", kind, "--rows", str(rows), "--processes", str(processes)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def check_ids(path: Path) -> int:
    "Every conversation of the file once: our ids are those of `apply_chat_template`, and TRL's labels differ only by the newline behind each opener."
    import trl
    from qwen_tokenizer import qwen_tokenizer
    from toolcall_ft.template import encode_rows
    examples, tokenizer = load_examples(path), qwen_tokenizer()
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_training.jinja").read_text(encoding="utf-8")
    for number, row in enumerate(encode_rows(examples, tokenizer)):
        theirs = trl_row({"example": json.dumps(examples[number])}, tokenizer, template)
        assert row["input_ids"] == theirs["input_ids"], number
        differ = sum(bool(mask) != (label != -100) for mask, label in zip(theirs["assistant_masks"], row["labels"]))
        assert differ == sum(message["role"] == "assistant" for message in examples[number]["messages"]), number
    return len(examples)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "examples" / "logs.jsonl")
    parser.add_argument("--rows", type=int, default=30000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child: return child(options.child, options.file, options.rows, options.processes)
    print(f"{check_ids(options.file)} conversations: the ids of all three are the same\n")
    print("| processes | ours, rows/s | TRL | limit | ours / limit | ours / TRL |\n|---:|---:|---:|---:|---:|---:|")
    for processes in (1, 2):
        turns = [{kind: measure(kind, options.file, options.rows, processes)["rate"] for kind in KINDS} for _ in range(options.turns)]
        rates = [statistics.median(turn[kind] for turn in turns) for kind in KINDS]
        ratios = [statistics.median(turn["ours"] / turn[other] for turn in turns) for other in ("limit", "trl")]
        print(f"| {processes} | {' | '.join(f'{rate:,.0f}' for rate in rates)} | {ratios[0]:.0%} | {ratios[1]:.2f} × |", flush=True)
    few = len(load_examples(options.file))
    print(f"\nthe first {few} rows, whose words are all new: {measure('ours', options.file, few, 1)['rate']:,.0f} rows/s, limit {measure('limit', options.file, few, 1)['rate']:,.0f}")
    for rows in (options.rows // 5, options.rows): print(f"\n{rows} rows: at most {measure('ours', options.file, rows, 1)['peak'][0]} MB", end="")
    print()


if __name__ == "__main__": main()
