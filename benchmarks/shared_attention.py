"""Answers to prompts that begin alike, on a processor: with one copy of their start and with a copy for each row, turn by turn in one process.

python benchmarks/shared_attention.py [MODEL]      # smollm2, if no other model is named
"""

import json
import statistics
import sys
import time
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.generate.batch import generate_batch
from toolcall_ft.generate.model import load_model
from toolcall_ft.generate.reading import request_prompt
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.train import shared
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "examples" / "home"
ROWS, TOKENS, TURNS = 16, 32, 3


def home_prompts(tokenizer) -> list:  # of token ids
    "The first questions of the home task."
    tools, _ = clean_tools(json.loads((HOME / "tools.json").read_text(encoding="utf-8")))
    rows = [row for row in read_jsonl(HOME / "test.jsonl") if "user" in row][:ROWS]
    asked = [[{"role": "user", "content": row["user"]}] for row in rows]
    requests = [{"messages": messages, "tools": tools} for messages in asked]
    return [request_prompt(request, tokenizer, None) for request in requests]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    model, tokenizer = load_model(name)
    prompts = home_prompts(tokenizer)
    ways = {"ours": shared.is_plain, "Transformers'": lambda model: False}
    seconds, answers = {way: [] for way in ways}, {}
    for _ in range(TURNS):
        for way, is_plain in ways.items():
            shared.is_plain = is_plain
            start = time.perf_counter()
            answers[way] = generate_batch(model, tokenizer, prompts, max_new_tokens=TOKENS)
            seconds[way].append(time.perf_counter() - start)
            print(f"{way}: {seconds[way][-1]:.1f} s", flush=True)
    ours, theirs = (statistics.median(each) for each in seconds.values())
    same = sum(one == other for one, other in zip(*answers.values()))
    print(
        f"{theirs / ours:.1f} times as fast; {same} of {ROWS} answers are the same token by token"
    )
    facts = {"model": name, "machine": machine_name(), "rows": ROWS, "tokens": TOKENS}
    facts |= {"seconds": seconds, "same answers": same}
    write_text(ROOT / "benchmarks/results/shared_attention.json", json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
