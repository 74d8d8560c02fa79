"""Do optional arguments inside of objects come back? A control training: the same rows, in the order of the schema and by the alphabet, then llama-server with and without its grammar.

python benchmarks/nested.py        # about eight minutes on two cores; writes benchmarks/results/nested.json
"""

import json
import random
import tempfile
from pathlib import Path

from toolcall_ft.data.examples import build_example
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.serve.client import openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import model_path
from toolcall_ft.template.portable import make_portable
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import HERMES
from toolcall_ft.train.backend import machine_name
from toolcall_ft.train.lora import train_lora
from toolcall_ft.train.merge import merge_adapter

CUSTOMER = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "Name"},
        "address": {
            "type": "object",
            "description": "Where to",
            "properties": {"city": {"type": "string"}},
        },
    },
}
TOOLS, _ = clean_tools(
    [
        {
            "name": "create_order",
            "description": "Order for a customer",
            "parameters": {
                "type": "object",
                "required": ["customer"],
                "properties": {"customer": CUSTOMER},
            },
        }
    ]
)
NAMES = "Ann Bo Cy Dan Eva Finn Gry Hal Ida Jan Kim Liv Mo Nils Ole Pia".split()
CITIES = "Oslo Rome Bergen Paris Lima Cairo Tokyo Bonn".split()


def rows() -> list:
    "A row for each name with each city, and as many without a city."
    made = []
    for name in NAMES:
        for city in CITIES:
            made.append(
                {
                    "user": f"Order for {name} in {city}",
                    "tool_name": "create_order",
                    "arguments": {"customer": {"address": {"city": city}, "name": name}},
                }
            )
            made.append(
                {
                    "user": f"Order for {name}",
                    "tool_name": "create_order",
                    "arguments": {"customer": {"name": name}},
                }
            )
    random.Random(0).shuffle(made)
    return [build_example(record, TOOLS) for record in made]


def by_the_alphabet(example: dict) -> dict:
    "The row as it was before: the keys of `customer` sorted."
    turned = json.loads(json.dumps(example))
    for call in turned["messages"][-1]["tool_calls"]:
        customer = call["function"]["arguments"]["customer"]
        call["function"]["arguments"]["customer"] = dict(sorted(customer.items()))
    return turned


def measure(examples: list, folder: Path) -> dict:
    "Train, serve, and count how many answers with a city have it, with llama-server's grammar and without."
    train, held = examples[:-48], examples[-48:]
    model = model_path("tiny-qwen2")
    train_lora(
        train,
        held[:8],
        model,
        folder,
        epochs=6,
        learning_rate=2e-3,
        batch_size=8,
        lora_rank=16,
        lora_alpha=32,
    )
    merge_adapter(model, folder / "adapter", folder / "merged", held[:4])
    make_portable(folder / "merged", TOOLS)
    gguf = export_gguf(folder / "merged", folder / "gguf", ["F16"])["F16"]
    asked = [
        example
        for example in held
        if "address"
        in example["messages"][-1]["tool_calls"][0]["function"]["arguments"]["customer"]
    ]
    found = {"n": len(asked)}
    with LlamaServer(gguf) as server:
        for name, form in (("tool_choice none", HERMES), ("tool_choice auto", None)):
            kept = []
            predictor = openai_client(server.url, server.model, form=form)
            report = evaluate(asked, lambda requests: kept.extend(predictor(requests)) or kept)
            given = [
                call["arguments"].get("customer", {}) for answer in kept for call in answer["calls"]
            ]
            found[name] = {
                "with the address": sum(
                    "address" in customer for customer in given if isinstance(customer, dict)
                ),
                "exact": report["exact"],
            }
    return found


if __name__ == "__main__":
    examples = rows()
    results = {"machine": machine_name()}
    with tempfile.TemporaryDirectory() as work:
        for name, given in (
            ("in the schema's order", examples),
            ("by the alphabet, as before", [by_the_alphabet(example) for example in examples]),
        ):
            results[name] = measure(given, Path(work) / name.split()[0])
    Path(__file__).with_name("results").joinpath("nested.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    print(
        "| rows | grammar | answers with the address | exact match | n |\n|---|---|---:|---:|---:|"
    )
    for name in list(results)[1:]:
        for choice in ("tool_choice none", "tool_choice auto"):
            row = results[name][choice]
            print(
                f"| {name} | {choice} | {row['with the address']} | {row['exact']:.1%} | {results[name]['n']} |"
            )
