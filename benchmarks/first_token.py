"""Where the home model should answer in words: how likely is a call to it, and does it call? Its first token decides. After `make demo-real`.

python benchmarks/first_token.py        # figures in benchmarks/results/first_token.json
"""

import json
from datetime import date
from pathlib import Path

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.generate.model import load_model
from toolcall_ft.generate.reading import request_prompt
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs/home"


def first_tokens(model, tokenizer, requests: list) -> list:  # of (probability of a call, is it the likeliest?)
    "What a model thinks of opening a call, for each request."
    import torch

    opening = tokenizer("<tool_call>", add_special_tokens=False)["input_ids"][0]
    found = []
    for request in requests:
        ids = torch.tensor([request_prompt(request, tokenizer, None)])
        with torch.no_grad():
            shares = model(ids, logits_to_keep=1).logits[0, -1].softmax(-1)
        found.append((shares[opening].item(), shares.argmax().item() == opening))
    return found


def main() -> None:
    model, tokenizer = load_model(RUN / "merged")
    pairs = to_requests(read_jsonl(RUN / "data/test.jsonl"))
    asked = [request for request, calls in pairs if not calls]
    found = first_tokens(model, tokenizer, asked)
    calls = [share for share, likeliest in found if likeliest]
    facts = {
        "date": str(date.today()),
        "machine": machine_name(),
        "n": len(found),
        "mean probability of a call": sum(share for share, _ in found) / len(found),
        "opens a call": len(calls),
        "of these with less than half of the probability": sum(share < 0.5 for share in calls),
    }
    write_text(ROOT / "benchmarks/results/first_token.json", json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
