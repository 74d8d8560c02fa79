"""A real pretrained model learns a real task: SmolLM2-135M on the home requests, from two authors' own words to llama-server and Ollama.

python benchmarks/home.py         # `make demo-real` does the same; figures in benchmarks/results/home.json

Before training the model is asked as it is, and with three examples in its prompt, which is what one would try first.
"""

import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.config import read_config
from toolcall_ft.evaluate.report import report_table
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.model import load_model
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.modelfile import write_modelfile
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples/home/config.yaml"
TOKENS = 96  # of an answer; the longest right one has 84
SHOTS = 3
SLOTS = 4  # requests in flight at the same time
PEAK = "gigabytes at most so far"  # of a stage and all before it


def run_stage(name: str) -> dict:  # {"seconds", PEAK}
    "One command of the chain, in a process of its own."
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("toolcall-ft")), name, "--config", str(CONFIG)]
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {
        "seconds": round(time.perf_counter() - start),
        PEAK: round(peak, 1),
    }


def with_shots(predictor, examples: list):
    "A predictor that sees some examples as earlier turns of every conversation."
    shots = [message for example in examples for message in example["messages"]]

    def answer(requests):
        return predictor([{**each, "messages": shots + each["messages"]} for each in requests])

    return answer


def three_examples(rows: list) -> list:
    "The first training rows of three kinds: a call, two calls, and words."
    kinds = {}
    for row in rows:
        last = row["messages"][-1]
        if len(row["messages"]) == 2:
            kinds.setdefault(len(last.get("tool_calls") or ()), row)
    return [kinds[count] for count in (1, 2, 0)][:SHOTS]


def ask_model(test: list, train: list, config: dict) -> dict:  # name -> report
    "The answers in Transformers: before and after."
    base, options = load_model(config["model"]), {"max_new_tokens": TOKENS, "batch_size": 72}
    before = transformers_predictor(*base, **options)
    shown = with_shots(before, three_examples(train))
    trained = load_model(str(Path(config["run"], "merged")))
    ways = {
        "before": before,
        "before, three examples in the prompt": shown,
        "after LoRA": transformers_predictor(*trained, **options),
        "after LoRA, with grammar": transformers_predictor(*trained, constrained=True, **options),
    }
    return {name: evaluate(test, predictor) for name, predictor in ways.items()}


def ask_servers(test: list, config: dict) -> dict:  # name -> report
    "The answers of each file at llama-server and Ollama."
    found, folder = {}, Path(config["run"], "gguf")
    for form in ("Q8_0", "Q4_K_M"):
        gguf = folder / f"model-{form}.gguf"
        with LlamaServer(gguf, slots=SLOTS) as server:
            client = openai_client(server.url, max_new_tokens=TOKENS, workers=SLOTS)
            found[f"{form}, llama-server"] = evaluate(test, client)
        modelfile = write_modelfile(gguf, folder / f"Modelfile-{form}", max_new_tokens=TOKENS)
        with OllamaServer(modelfile, slots=SLOTS) as server:
            client = openai_client(server.url, server.model, TOKENS, workers=SLOTS)
            found[f"{form}, Ollama"] = evaluate(test, client)
    return found


def home_table(facts: dict) -> str:
    "The figures of a run as Markdown."
    table = report_table(facts["reports"]).partition("\n\n")[0]
    seconds = ", ".join(f"{name} {each['seconds']} s" for name, each in facts["stages"].items())
    memory = max(each[PEAK] for each in facts["stages"].values())
    said = f"{facts['rows']} training rows; {facts['date']}, {facts['machine']}: {seconds}"
    said = f"{said}; {facts['seconds'] / 60:.0f} minutes in all, {memory} GB at most in a stage."
    return f"{table}\n\n{said} Made by `python benchmarks/home.py`."


def main() -> None:
    config, start = read_config(CONFIG), time.perf_counter()
    stages = {name: run_stage(name) for name in ("data", "train", "merge", "export")}
    data = Path(config["run"], "data")
    test, train = read_jsonl(data / "test.jsonl"), read_jsonl(data / "train.jsonl")
    reports = {}
    for part in (lambda: ask_model(test, train, config), lambda: ask_servers(test, config)):
        reports |= part()
        print(report_table(reports), flush=True)
    facts = {
        "date": str(date.today()),
        "machine": machine_name(),
        "rows": len(train),
        "stages": stages,
        "seconds": round(time.perf_counter() - start),
        "reports": {
            name: {key: value for key, value in report.items() if key != "failures"}
            for name, report in reports.items()
        },
    }
    write_text(ROOT / "benchmarks/results/home.json", json.dumps(facts, indent=1, default=str))
    print(f"{facts['seconds']} s in all on {facts['machine']}; stages: {json.dumps(stages)}")


if __name__ == "__main__":
    main()
