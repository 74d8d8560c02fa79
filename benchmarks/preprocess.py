"""From conversations to rows of ids and labels: `encode_dataset` against TRL's own way, LLaMA-Factory's processor and the bare tokenizer, turn by turn, in processes of their own.

    python benchmarks/preprocess.py FILE                                  # FILE: LLaMA-Factory's data/glaive_toolcall_en_demo.json
    python benchmarks/preprocess.py FILE --processes 2 --turns 1          # a part; parts add up in benchmarks/results/preprocess.json
    python benchmarks/preprocess.py FILE --llamafactory PYTHON            # with LLaMA-Factory: PYTHON is the interpreter of an environment that has it

The conversations of FILE are repeated up to --rows, but not word for word. In natural text the later rows still bring words that no row before had. So whatever word
stands in one conversation only ends, in each of its copies, in two other letters (`tiled`): every copy brings as many new words as the end of the file itself, and
nothing that remembers rows, tool lists or words gains from the tiling. Words are remembered, by `encode_pieces` as by the tokenizer; so the file itself, once, in a
process that has seen no word of it, is measured too. `limit` is `encode_batch` of the tokenizer on text that is rendered already, with as many threads as the others
have processes.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "preprocess.json"
sys.path.insert(0, str(ROOT / "tests" / "golden"))
ABSENT = """{}: not there. Give LLaMA-Factory's demo set, data/glaive_toolcall_en_demo.json of
https://github.com/hiyouga/LLaMA-Factory, or any other file of conversations that `toolcall-ft convert` reads."""
NO_PEER = """LLaMA-Factory was not measured. To have it: `python3.11 -m venv FOLDER && FOLDER/bin/pip install llamafactory torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0`, then --llamafactory FOLDER/bin/python"""
CLOCKS = {"by the wall": "rate", "of CPU": "cpu"}
KINDS = ("ours", "trl", "limit", "llamafactory")


def load_examples(path: Path) -> list:
    "The conversations of a file."
    from toolcall_ft.data.examples import read_examples

    if not path.exists():
        raise SystemExit(ABSENT.format(path))
    examples, errors = read_examples(path)
    if not examples:
        raise SystemExit(f"{path}: no conversation in it can be used: {errors[:1]}")
    return examples


def tiled(examples: list, rows: int):
    "`rows` examples, as JSON; in a copy, each word that no other conversation has, nor its tools, ends in two letters that stand for the number of the copy."
    find = lambda value: set(re.findall("[A-Za-z]{4,}", json.dumps(value, ensure_ascii=False)))
    words = [find(example["messages"]) - find(example["tools"]) for example in examples]
    count = Counter(word for each in words for word in each)
    rare = [{word for word in each if count[word] == 1} for each in words]
    texts = [json.dumps(example, ensure_ascii=False) for example in examples]
    for number in range(rows):
        copy, place = divmod(number, len(examples))
        mark = chr(97 + copy // 26 % 26) + chr(97 + copy % 26)
        yield (
            texts[place]
            if not copy
            else re.sub(
                "[A-Za-z]{4,}",
                lambda found: found[0][:-2] + mark if found[0] in rare[place] else found[0],
                texts[place],
            )
        )


def clock() -> list:
    "Seconds by the wall, and seconds of CPU that this process and its finished children took."
    return [time.perf_counter(), sum(os.times()[:4])]


def run_ours(lines, tokenizer, processes):
    "When `encode_dataset` began."
    from toolcall_ft.template.dataset import encode_dataset

    examples = list(map(json.loads, lines))
    start = clock()
    dataset, left_out = encode_dataset(examples, tokenizer, num_proc=processes)
    assert len(dataset) == len(examples) and not left_out
    return start


def trl_template() -> str:
    "TRL's template for Qwen2.5, with the marks that its mask is made from."
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_training.jinja").read_text(
        encoding="utf-8"
    )


def trl_row(row: dict, tokenizer, template: str) -> dict:
    "What TRL's trainer does with one row of a dataset; the example is JSON text there, because Arrow would give every call the arguments of all."
    example = json.loads(row["example"])
    return tokenizer.apply_chat_template(
        example["messages"],
        tools=example["tools"] or None,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )


def run_trl(lines, tokenizer, processes):
    "When `datasets.map` began."
    from datasets import Dataset
    from datasets.fingerprint import get_temporary_cache_files_directory

    table = Dataset.from_dict({"example": lines})
    work, name = partial(trl_row, tokenizer=tokenizer, template=trl_template()), f"trl{len(lines)}"
    start = clock()
    table.map(
        work,
        remove_columns=["example"],
        num_proc=processes if processes > 1 else None,
        cache_file_name=f"{get_temporary_cache_files_directory()}/{name}.arrow",
        new_fingerprint=name,
    )
    return start


def run_limit(lines, tokenizer, processes):
    "When the bare tokenizer began, on text that is ready; its threads are set from outside."
    from toolcall_ft.template.habits import render

    texts = [render(json.loads(line), tokenizer) for line in lines]
    start = clock()
    for first in range(0, len(texts), 1000):
        tokenizer.backend_tokenizer.encode_batch(
            texts[first : first + 1000], add_special_tokens=False
        )
    return start


def child(kind: str, path: Path, processes: int) -> None:
    "One measurement, printed as JSON."
    from qwen_tokenizer import qwen_tokenizer

    lines, tokenizer = path.read_text(encoding="utf-8").splitlines(), qwen_tokenizer()
    run = globals()[f"run_{kind}"]
    run(lines[:1], tokenizer, 1)  # once, for what is imported and compiled when first used
    start = run(lines, tokenizer, processes)
    wall, cpu = (after - before for before, after in zip(start, clock()))
    print(json.dumps({"rate": len(lines) / wall, "cpu": len(lines) / cpu}))


def measure(kind: str, path: Path, processes: int, peer: Path = None) -> dict:
    "One measurement in a fresh process."
    threads = processes if kind == "limit" else 1
    settings = {
        "TOKENIZERS_PARALLELISM": str(threads > 1).lower(),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, __file__, str(path), "--child", kind, "--processes", str(processes)]
    if kind == "llamafactory":
        from qwen_tokenizer import CACHE

        command = [
            str(peer),
            str(ROOT / "benchmarks" / "llamafactory_rows.py"),
            str(path.parent),
            str(CACHE),
            str(processes),
        ]
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def check_ids(path: Path, rows: int, peer_rows: list) -> dict:
    "On the first rows: our ids are TRL's, the bare tokenizer's and LLaMA-Factory's; TRL's labels differ only by the newline behind each opener, LLaMA-Factory's not at all."
    from qwen_tokenizer import qwen_tokenizer

    from toolcall_ft.template.habits import render
    from toolcall_ft.template.rows import encode_rows

    tokenizer, template = qwen_tokenizer(), trl_template()
    lines = path.read_text(encoding="utf-8").splitlines()[:rows]
    examples = list(map(json.loads, lines))
    bare = tokenizer.backend_tokenizer.encode_batch(
        [render(example, tokenizer) for example in examples], add_special_tokens=False
    )
    same = {"rows": len(lines), "llamafactory ids": 0, "llamafactory labels": 0}
    for number, row in enumerate(encode_rows(examples, tokenizer)):
        theirs = trl_row({"example": lines[number]}, tokenizer, template)
        assert row["input_ids"] == theirs["input_ids"] == bare[number].ids, number
        differ = sum(
            bool(mask) != (label != -100)
            for mask, label in zip(theirs["assistant_masks"], row["labels"])
        )
        assert differ == sum(
            message["role"] == "assistant" for message in examples[number]["messages"]
        ), number
        if number < len(peer_rows):
            same["llamafactory ids"] += row["input_ids"] == peer_rows[number]["input_ids"]
            same["llamafactory labels"] += row["labels"] == peer_rows[number]["labels"]
    return same


def add_results(found: dict) -> dict:
    "What was measured so far, with what is new; parts of another number of rows are dropped."
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if kept.get("rows") != found["rows"]:
        kept = {}
    merged = {
        **kept,
        **found,
        "turns": kept.get("turns", []) + found["turns"],
        "first pass": kept.get("first pass", []) + found["first pass"],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    return merged


def table(turns: list) -> str:
    "Medians of all turns, and of their ratios; first by the wall, then per second of CPU, which other work on the machine changes less."
    lines = [
        "| rows per second | processes | turns | "
        + " | ".join(KINDS)
        + " | ours / limit | ours / TRL | ours / LLaMA-Factory |",
        "|---|" + "---:|" * 9,
    ]
    for processes, clock_name in dict.fromkeys(
        (turn["processes"], name)
        for name in CLOCKS
        for turn in sorted(turns, key=lambda turn: turn["processes"])
    ):
        these = [
            turn for turn in turns if turn["processes"] == processes and turn["clock"] == clock_name
        ]
        middle = lambda value, kind: (
            f"{statistics.median(values):,.{2 if kind == 'ratio' else 0}f}"
            if (values := [value(turn) for turn in these if value(turn)])
            else ""
        )
        rates = [middle(lambda turn: turn.get(kind), "rate") for kind in KINDS]
        ratios = [
            middle(lambda turn: turn.get(other) and turn["ours"] / turn[other], "ratio")
            for other in KINDS[2:0:-1] + KINDS[3:]
        ]
        lines.append(
            f"| {clock_name} | {processes} | {len(these)} | {' | '.join(rates + ratios)} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="LLaMA-Factory's data/glaive_toolcall_en_demo.json")
    parser.add_argument("--rows", type=int, default=30000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--llamafactory", type=Path, help="the python of an environment with LLaMA-Factory"
    )
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.file, options.processes[0])
    examples = load_examples(options.file)
    with tempfile.TemporaryDirectory() as folder:
        from toolcall_ft.data.store import write_examples

        path, once = Path(folder, "rows.jsonl"), Path(folder, "once.jsonl")
        path.write_text("\n".join(tiled(examples, options.rows)), encoding="utf-8")
        once.write_text("\n".join(tiled(examples, len(examples))), encoding="utf-8")
        write_examples(
            Path(folder, "rows.json"),
            map(json.loads, path.read_text(encoding="utf-8").splitlines()),
            "sharegpt",
        )
        kinds = KINDS if options.llamafactory else KINDS[:3]
        turns, first = [], []
        for processes in [number for number in options.processes for _ in range(options.turns)]:
            found = {kind: measure(kind, path, processes, options.llamafactory) for kind in kinds}
            turns += [
                {
                    "processes": processes,
                    "clock": name,
                    **{kind: round(found[kind][key]) for kind in kinds},
                }
                for name, key in CLOCKS.items()
            ]
            peer_rows, peer_versions = (
                found.get("llamafactory", {}).get(name) for name in ("rows", "versions")
            )
        for _ in range(options.turns if 1 in options.processes else 0):
            found = {kind: measure(kind, once, 1) for kind in KINDS[:3]}
            first += [
                {"processes": 1, "clock": name, **{kind: round(found[kind][key]) for kind in found}}
                for name, key in CLOCKS.items()
            ]
        same = check_ids(path, 2 * len(examples), peer_rows or [])
    versions = {
        name: version(name) for name in ("transformers", "tokenizers", "trl", "datasets")
    } | {"in LLaMA-Factory's environment": peer_versions}
    merged = add_results(
        {
            "file": options.file.name,
            "conversations": len(examples),
            "rows": options.rows,
            "cores": os.cpu_count(),
            "versions": versions,
            "same": same,
            "turns": turns,
            "first pass": first,
        }
    )
    print(
        f"{same['rows']} rows: the ids are TRL's and the bare tokenizer's; LLaMA-Factory's ids are the same in {same['llamafactory ids']} of {same['rows'] if peer_rows else 0}, its labels in {same['llamafactory labels']}"
    )
    print(f"rows/s on {merged['rows']:,} rows, medians\n\n{table(merged['turns'])}\n")
    print(
        f"the {len(examples)} conversations once, no word of them seen before\n\n{table(merged['first pass'])}"
    )
    if not options.llamafactory:
        print(NO_PEER)


if __name__ == "__main__":
    main()
