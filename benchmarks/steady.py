"""Which test requests does every training of the course answer rightly, and how clearly? Lessons 00, 03 and 07 show such requests and assert their answers.

python benchmarks/steady.py [TRAININGS]      # 4 are the default; figures in benchmarks/results/steady.json

Processors round differently, so the same cells train another model on each machine, as another seed does here. The margin is the logarithm of a
ratio: the probability of the right token over that of the likeliest other one, at the least certain token of a call. Above 0 the call is the right one.
Where words are right it is taken at the first token, against the opening of a call: above 0 none is opened. Whether the words end is not looked at.
"""

import json
import os
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import toolcall_ft
from toolcall_ft.base.files import read_json, write_text
from toolcall_ft.base.table import markdown_table
from toolcall_ft.evaluate import to_requests
from toolcall_ft.template import encode_example
from toolcall_ft.tools.formats import HERMES
from toolcall_ft.train.backend import machine_name, start_backend

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = {"00_quickstart": 2, "03_unsloth_lora": 3, "07_ollama_test": 3}


def shown(lesson: str) -> list:  # of numbers of test requests
    "The requests that a lesson shows."
    cells = read_json(ROOT / f"nbs/{lesson}.ipynb")["cells"]
    source = "".join("".join(cell["source"]) for cell in cells)
    numbers = re.search(r"for index in \(([\d, ]+)\)", source)[1]
    return [int(number) for number in numbers.split(",")]


def margin(model, tokenizer, example: dict) -> float:
    "How clearly a model prefers the right answer; of an answer in words, that it opens no call."
    import torch

    row = encode_example(example, tokenizer, train_on="last")
    ids, labels = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        scores = model(ids[None]).logits[0, :-1]
    places = (labels[1:] != -100).nonzero()[:, 0]
    opening = tokenizer.convert_tokens_to_ids(HERMES.tags[0])
    if not example["messages"][-1].get("tool_calls"):
        first = scores[places[0]]
        others = torch.cat([first[:opening], first[opening + 1 :]])
        return (others.max() - first[opening]).item()
    scores, right = scores[places], labels[1:][places, None]
    others = scores.scatter(1, right, float("-inf")).max(1).values
    return (scores.gather(1, right)[:, 0] - others).min().item()


def train(config: dict, splits: dict, epochs: int, seed: int):  # (model, tokenizer)
    "One training of the course's model, merged."
    run = Path(config["run"]) / f"{epochs}-{seed}"
    settings = config["train"] | {"epochs": epochs, "seed": seed}
    toolcall_ft.train_lora(splits["train"], splits["validation"], config["model"], run, **settings)
    toolcall_ft.merge_adapter(config["model"], run / "adapter", run / "merged")
    return toolcall_ft.load_model(run / "merged")


def least_margins(epochs: int, trainings: int) -> list:  # of floats, one for each test request
    "The smallest margin of every test request in several trainings."
    config = toolcall_ft.course_config("steady")
    splits = toolcall_ft.course_splits(config)
    found = []
    for seed in range(trainings):
        learnt = train(config, splits, epochs, seed)
        found.append([margin(*learnt, example) for example in splits["test"]])
    return [min(each) for each in zip(*found)]


def main(trainings: int) -> None:
    start_backend()
    splits = toolcall_ft.course_splits(toolcall_ft.course_config("steady"))
    asked = [request["messages"][-1]["content"] for request, _ in to_requests(splits["test"])]
    margins = {epochs: least_margins(epochs, trainings) for epochs in {*EPOCHS.values()}}
    rows = [
        [lesson, number, asked[number], f"{margins[epochs][number]:.2f}"]
        for lesson, epochs in EPOCHS.items()
        for number in shown(lesson)
    ]
    print(markdown_table(["lesson", "number", "request", "smallest margin"], rows, "lrlr"))
    for epochs, each in margins.items():
        print(
            f"{epochs} epochs: {sum(one > 0 for one in each)} of {len(each)} with a margin above 0 in all trainings"
        )
    facts = {"date": str(date.today()), "machine": machine_name(), "trainings": trainings}
    text = json.dumps({**facts, "margins": margins}, indent=1)
    write_text(ROOT / "benchmarks/results/steady.json", text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOOLCALL_FT_RUNS"] = folder
        main(int(sys.argv[1]) if sys.argv[1:] else 4)
