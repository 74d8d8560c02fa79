"""A small model on the Berkeley leaderboard (non-live, simple and multiple): before and after training on one half, judged by the leaderboard's own checker on the other.

python benchmarks/bfcl.py [MODEL]          # smollm2, if no other model is named

No tool is in both halves: rows that share a tool stay together. The checker and the data are the package bfcl-eval, fetched by name.
"""

import importlib
import json
import random
import subprocess
import sys
import types
import zipfile
from datetime import date
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.data.examples import convert_records
from toolcall_ft.evaluate.results import to_requests, wilson_interval
from toolcall_ft.generate.answers import generate_answers
from toolcall_ft.generate.model import load_model
from toolcall_ft.train.backend import machine_name
from toolcall_ft.train.lora import train_lora

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "bfcl"
PACKAGE = "bfcl-eval==2026.3.23"
CATEGORIES = ("simple_python", "multiple")
TRAINING = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
TOKENS = 96  # of an answer
N = 120  # rows of the other half that are judged, drawn by chance
CHECKER = "bfcl_eval.eval_checker.ast_eval.ast_checker"


def fetch_package() -> Path:
    "The package, unpacked and without its dependencies: the checker needs none."
    folder = WORK / "package"
    if not folder.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(WORK)]
        subprocess.run([*command, PACKAGE], check=True)
        with zipfile.ZipFile(next(WORK.glob("bfcl_eval*.whl"))) as wheel:
            wheel.extractall(folder)
    return folder


def load_checker(folder: Path):
    "The leaderboard's `ast_checker`. Its list of models, which imports every vendor's library, is replaced by a rule for all."
    sys.path.insert(0, str(folder))
    same_names = types.SimpleNamespace(underscore_to_dot=False)
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = type("Models", (dict,), {"__missing__": lambda *_: same_names})()
    sys.modules[stub.__name__] = stub
    return importlib.import_module(CHECKER).ast_checker


def read_category(folder: Path, category: str) -> list:  # of records with "ground_truth"
    "The rows of a category with their right answers."
    data = folder / "bfcl_eval" / "data"
    rows = read_jsonl(data / f"BFCL_v4_{category}.json")
    right = {
        row["id"]: row for row in read_jsonl(data / f"possible_answer/BFCL_v4_{category}.json")
    }
    return [{**row, "ground_truth": right[row["id"]]["ground_truth"]} for row in rows]


def as_examples(records: list) -> list:  # of (record, example)
    "Records with the example that is trained from each; those that cannot be read are left out and counted."
    path = WORK / "records.jsonl"
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    pairs = []
    for kind, value, _, line in convert_records(path, [], "bfcl", None, None):
        if kind == "example":
            pairs.append((records[line - 1], value))
        else:
            print(f"left out: {records[line - 1]['id']}: {value['reason']}")
    return pairs


def two_halves(pairs: list, seed: int = 0) -> list:  # [half, half]
    "Rows dealt into two halves; rows that share a tool are in the same one."
    groups = []
    for pair in pairs:
        names = {function["name"] for function in pair[0]["function"]}
        touching = [group for group in groups if group[0] & names]
        merged = (names.union(*(group[0] for group in touching)), [pair])
        for group in touching:
            merged[1].extend(group[1])
            groups.remove(group)
        groups.append(merged)
    random.Random(seed).shuffle(groups)
    halves = [[], []]
    for _, rows in sorted(groups, key=lambda group: -len(group[1])):
        min(halves, key=len).extend(rows)
    return halves


def judge(checker, record: dict, answer: dict) -> bool:
    "What the leaderboard says of an answer."
    from bfcl_eval.constants.enums import Language

    calls = [{call["name"]: call["arguments"]} for call in answer["calls"]]
    category = record["id"].rpartition("_")[0]
    verdict = checker(
        record["function"], calls, record["ground_truth"], Language.PYTHON, category, "model"
    )
    return bool(verdict["valid"]) and not answer["errors"]


def measure(checker, loaded: tuple, half: list, constrained: bool = False) -> dict:
    "The share of right answers in each category and in all."
    requests = [request for request, _ in to_requests([example for _, example in half])]
    answers = generate_answers(*loaded, requests, constrained, max_new_tokens=TOKENS, batch_size=24)
    right = [judge(checker, record, answer) for (record, _), answer in zip(half, answers)]
    found = {}
    for category in (*CATEGORIES, "all"):
        chosen = [
            ok
            for ok, (record, _) in zip(right, half)
            if category in (record["id"].rpartition("_")[0], "all")
        ]
        found[category] = {
            "right": sum(chosen),
            "n": len(chosen),
            "interval": wilson_interval(sum(chosen), len(chosen)),
        }
    return found


def show(results: dict) -> str:
    "A Markdown table."
    lines = ["| | " + " | ".join((*CATEGORIES, "all")) + " |", "|---|" + "---|" * 3]
    for name, found in results.items():
        cells = []
        for each in found.values():
            low, high = each["interval"]
            cells.append(f"{each['right'] / each['n']:.1%} [{low:.1%}–{high:.1%}] n={each['n']}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bfcl_table(facts: dict) -> str:
    "The figures of a run as Markdown."
    said = f"{facts['rows']} training rows; {facts['date']}, {facts['machine']}. Made by `python benchmarks/bfcl.py`."
    return f"{show(facts['results'])}\n\n{said}"


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    folder = fetch_package()
    checker = load_checker(folder)
    records = [row for category in CATEGORIES for row in read_category(folder, category)]
    train, test = two_halves(as_examples(records))
    test = random.Random(0).sample(test, N)
    # rows of like length side by side, so that batches have little padding
    test.sort(key=lambda pair: len(json.dumps(pair[0]["function"])))
    print(f"{len(train)} rows to train on, {len(test)} to judge; no tool is in both", flush=True)
    results = {"before": measure(checker, load_model(model), test)}
    print(show(results), flush=True)
    run = WORK / "run"
    report = train_lora([example for _, example in train], [], model, run, **TRAINING)
    loaded = load_model(model, run / "adapter")
    for name, constrained in {"after": False, "after, with grammar": True}.items():
        results[name] = measure(checker, loaded, test, constrained)
        print(show(results), flush=True)
    facts = {"date": str(date.today()), "machine": machine_name(), "model": model}
    facts |= {"rows": len(train), "settings": TRAINING, "training": report, "results": results}
    write_text(ROOT / "benchmarks/results/bfcl.json", json.dumps(facts, indent=1, default=str))


if __name__ == "__main__":
    main()
