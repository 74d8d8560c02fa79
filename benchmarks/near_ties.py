"""At which margin does another number type choose another token? After `make demo`, or `merge` of any run:

    python benchmarks/near_ties.py runs/demo

The merged model answers the requests of the test and the validation split in float32. Then each answer is read again in
float16 and in bfloat16: how far does the margin between the two best tokens move, and where is another token the best one?
The bound of `toolcall-ft parity` for a near tie, `NEAR_TIE`, is above all margins at which that was seen in float16.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from toolcall_ft.base.files import read_jsonl
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.model import load_model
from toolcall_ft.parity.compare import NEAR_TIE, answer_ids, row_cases
from toolcall_ft.template.rows import encode_prompt


def answer_rows(folder, examples):
    "(token ids of the prompt, of the answer) of every request whose answer can be read."
    model, tokenizer = load_model(str(folder))
    cases = row_cases(examples)
    answers = transformers_predictor(model.float(), tokenizer)(cases)
    rows = [
        (list(encode_prompt(case, tokenizer)), answer_ids(answer, case, tokenizer))
        for case, answer in zip(cases, answers)
    ]
    return [row for row in rows if row[1]]


def answer_logits(folder, rows, dtype):
    "Logits at every token of the answers, computed in `dtype`, one tensor (tokens, vocabulary) a row."
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for prompt, answer in rows:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits
        yield logits[0, len(prompt) - 1 : -1].float()


def main():
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    examples = [
        example
        for part in ("test", "validation")
        for example in read_jsonl(run / "data" / f"{part}.jsonl")
    ]
    rows = answer_rows(run / "merged", examples)
    best = [logits.topk(2) for logits in answer_logits(run / "merged", rows, torch.float32)]
    exact = torch.cat([each.values[:, 0] - each.values[:, 1] for each in best])
    print(f"{len(rows)} answers, {len(exact)} tokens; bound of a near tie: {NEAR_TIE}")
    for dtype in (torch.float16, torch.bfloat16):
        margins = []
        flipped = []
        for logits, two in zip(answer_logits(run / "merged", rows, dtype), best):
            pair = logits.gather(1, two.indices)
            margins.append(pair[:, 0] - pair[:, 1])
            flipped.append(logits.argmax(-1) != two.indices[:, 0])
        moved = abs(torch.cat(margins) - exact)
        at = exact[torch.cat(flipped)]
        print(
            f"{dtype}: margins move by {moved.median():.3f} (median), {moved.quantile(0.99):.3f} (99 %), {moved.max():.3f} (most); "
            f"another token {len(at)} times, at margins up to {at.max() if len(at) else 0:.3f}"
        )


if __name__ == "__main__":
    main()
