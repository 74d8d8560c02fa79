"""A penalty for repeated tokens, as chat models are published with one: what it does to the calls of a trained model.

python benchmarks/penalty.py      # after `make demo-real`, with `make vllm`; figures in benchmarks/results/penalty.json

Qwen2.5's Instruct models are published with 1.05 (https://github.com/PrimeIntellect-ai/prime-rl/pull/886), and Ollama punished with 1.1 until
August 2026 (https://github.com/ollama/ollama/pull/17679). Each request is asked at temperature 0, as in the evaluation. vLLM counts the prompt's tokens
as repeated, too; llama.cpp looks at the last 64 tokens of prompt and answer.
"""

import json
from datetime import date
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.base.table import markdown_table
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.modelfile import write_modelfile
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.vllm import VllmServer
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs/home"
PENALTIES = (1.0, 1.05, 1.1)
TOKENS, SLOTS = 96, 4
N = 72  # the first of 216 test requests


def llama_server(penalty: float) -> LlamaServer:
    "llama-server with another penalty; the last option counts."
    options = ["--repeat-penalty", str(penalty)]
    return LlamaServer(RUN / "gguf/model-Q8_0.gguf", slots=SLOTS, options=options)


def ollama(penalty: float) -> OllamaServer:
    "Ollama with another penalty in the Modelfile."
    modelfile = write_modelfile(
        RUN / "gguf/model-Q8_0.gguf", RUN / "gguf/Modelfile-penalty", max_new_tokens=TOKENS
    )
    text = modelfile.read_text(encoding="utf-8")
    write_text(modelfile, text.replace("repeat_penalty 1\n", f"repeat_penalty {penalty}\n"))
    return OllamaServer(modelfile, slots=SLOTS)


def vllm(penalty: float) -> VllmServer:
    "vLLM as if the folder had been published with another penalty."
    settings = json.dumps({"temperature": 0, "repetition_penalty": penalty})
    options = ["--override-generation-config", settings]
    return VllmServer(RUN / "merged", slots=SLOTS, options=options)


SERVERS = {"llama-server, Q8_0": llama_server, "Ollama, Q8_0": ollama, "vLLM": vllm}


def exact_share(serve, penalty: float, test: list) -> dict:  # exact, exact_interval
    "How many requests are answered rightly with a penalty."
    with serve(penalty) as server:
        client = openai_client(server.url, server.model, TOKENS, workers=SLOTS)
        report = evaluate(test, client, limit=N)
    return {key: report[key] for key in ("exact", "exact_interval")}


def shown(report: dict) -> str:
    "A share with its interval."
    low, high = report["exact_interval"]
    return f"{report['exact']:.1%} [{low:.1%}–{high:.1%}]"


def penalty_table(facts: dict) -> str:
    "The figures of a run as Markdown."
    heads = ["exact match", *(f"penalty {each:g}" for each in PENALTIES)]
    rows = [[name, *map(shown, each.values())] for name, each in facts["exact"].items()]
    said = f"n={facts['n']}; {facts['date']}, {facts['machine']}. Made by `python benchmarks/penalty.py`."
    return f"{markdown_table(heads, rows, 'lrrr')}\n\n{said}"


def main() -> None:
    test, found = read_jsonl(RUN / "data/test.jsonl"), {}
    for name, serve in SERVERS.items():
        found[name] = {str(penalty): exact_share(serve, penalty, test) for penalty in PENALTIES}
        print(name, *map(shown, found[name].values()), flush=True)
    facts = {"date": str(date.today()), "machine": machine_name(), "n": N, "exact": found}
    write_text(ROOT / "benchmarks/results/penalty.json", json.dumps(facts, indent=1))
    print(penalty_table(facts))


if __name__ == "__main__":
    main()
