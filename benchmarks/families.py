"""Every family of models all the way: its template, a small random model of its architecture that knows six answers by heart, and each server.

    python benchmarks/families.py --work runs/families      # an hour on two cores; what is measured already is kept
    python benchmarks/families.py --work runs/families --families Qwen3 --runtimes llama-server --again
    python benchmarks/families.py --table                   # print the table of the last run

A server is asked for prompts, which must be the tokens of training: of the hard corpus with the six requests, and of the demo's test requests.
Then it is asked for the six answers: whole, streamed, and from token ids. Writes benchmarks/results/families.json.
"""

import argparse
import sys
import tempfile
from datetime import date
from functools import cache
from pathlib import Path

import openai

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from golden.families import BY_NAME, family_model, learnt, memorise_family

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_json, read_jsonl, write_text
from toolcall_ft.base.jsontext import dump_json, parse_json
from toolcall_ft.base.table import markdown_table
from toolcall_ft.config import read_config
from toolcall_ft.data.prepare import prepare_data
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.parity.cases import encode_cases
from toolcall_ft.parity.compare import prompt_differences, row_cases
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.serve.client import ids_client, openai_client, wire_messages
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.vllm import VllmServer
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_example
from toolcall_ft.tools.formats import tool_format
from toolcall_ft.train.backend import machine_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/families.json"
RUNTIMES = {
    "llama-server": lambda folder, gguf, options: LlamaServer(gguf, options=options),
    "Ollama": lambda folder, gguf, options: OllamaServer(gguf),
    "vLLM": lambda folder, gguf, options: VllmServer(folder),
}
TOKENS = 120  # of an answer


def asked(answers):
    "The six requests as cases of the corpus."
    return [
        {**request, "name": request["messages"][0]["content"], "kind": "asked"}
        for request, *_ in answers
    ]


@cache
def demo_cases():
    "The test requests of the demo as cases of the corpus."
    config = read_config(ROOT / "examples/config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        prepare_data(config | {"run": folder})
        return row_cases(read_jsonl(Path(folder, "data/test.jsonl")))


def make_files(name, work):
    "The model that knows its answers, with a portable template where there can be one, as folder and GGUF."
    folder = work / name.replace(" ", "-")
    if not (folder / "model.safetensors").exists():
        memorise_family(name, folder)
    cases = [*hard_corpus(), *demo_cases()]
    tools = {dump_json(tool): tool for case in cases for tool in case["tools"]}
    tools |= {dump_json(tool): tool for tool in learnt_by(name)[0][0]["tools"]}
    not_portable = ""
    try:
        make_portable(folder, list(tools.values()))
    except UserError as error:
        not_portable = str(error).partition(": ")[2].partition(" Known are")[0]
    gguf = folder / "gguf" / "model-F16.gguf"
    if not gguf.exists():
        export_gguf(folder, gguf.parent, ["F16"])
    return folder, gguf, not_portable


def learnt_by(name):
    "What a family's model knows, with the tokenizer that it was trained with."
    tokenizer = load_tokenizer(str(family_model(name)))
    return learnt(tool_format(tokenizer), tokenizer)


def count_rows(cases, tokenizer):
    "How many conversations become rows, and why the others do not."
    refused = {}
    for case in cases:
        answer = {"role": "assistant", "content": "Done."}
        example = {"messages": [*case["messages"], answer], "tools": case["tools"]}
        try:
            encode_example(example, tokenizer)
        except UserError as error:
            refused[case["name"]] = str(error)
    return {"n": len(cases), "refused": refused}


def streamed(server, request):
    "A server's streamed answer: the calls by their index."
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options = {"temperature": 0, "max_tokens": TOKENS, "parallel_tool_calls": True}
    options |= {"tools": request["tools"], "stream": True, **server.asks}
    calls, content = {}, ""
    chunks = client.chat.completions.create(
        model=server.model, messages=wire_messages(request), **options
    )
    for chunk in chunks:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for part in delta.tool_calls or []:
            call = calls.setdefault(part.index, {"name": "", "arguments": ""})
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    if [*calls] != list(range(len(calls))):
        raise ValueError(f"the indexes of the calls are {[*calls]}")
    read = [{**call, "arguments": parse_json(call["arguments"])} for call in calls.values()]
    return {"calls": read, "content": content.strip(), "errors": []}


def safely(ask, request):
    "An answer; what goes wrong is in its errors."
    try:
        return ask(request)
    except (openai.OpenAIError, ValueError, KeyError) as error:
        return {"calls": [], "content": "", "errors": [f"{type(error).__name__}: {error}"[:300]]}


def check_answers(ask, answers, thought=False):
    "How many answers are right to the letter, and what is wrong with the others."
    wrong = {}
    for request, calls, words, _ in answers:
        found = safely(ask, request)
        content = found["content"]
        if thought:  # by ids the thought is part of the text
            content = content.rpartition("</think>")[2].strip()
        # the order of keys is not a server's to keep
        same = dump_json(sort_keys(found["calls"])) == dump_json(sort_keys(calls))
        if not same or content != words or found["errors"]:
            kept = {key: found[key] for key in ("calls", "content", "errors")}
            wrong[request["messages"][0]["content"]] = {**kept, "text": found.get("text", "")}
    return {"right": [len(answers) - len(wrong), len(answers)], "wrong": wrong}


def sort_keys(value):
    "A value with its keys in the order of the alphabet."
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    return [sort_keys(item) for item in value] if isinstance(value, list) else value


def ask_runtime(name, server, answers, prompts, tokenizer):
    "Everything that one server makes of a family's model."
    whole = openai_client(server.url, server.model, TOKENS, asks=server.asks)
    row = {
        "whole": check_answers(lambda request: whole([request])[0], answers),
        "streamed": check_answers(lambda request: streamed(server, request), answers),
    }
    if name != "Ollama":  # it takes no token ids
        ids = ids_client(server.url, tokenizer, server.model, TOKENS)
        row["ids"] = check_answers(lambda request: ids([request])[0], answers, thought=True)
    for kind, (cases, wanted, _) in prompts.items():
        different = prompt_differences(server, cases, wanted, tokenizer)
        row[kind] = [len(cases) - len(different), len(cases)]
        row[f"different {kind}"] = different
    return row


def measure(name, runtimes, work, record, again):
    "Fill in what is not measured yet of a family."
    row = record.setdefault(name, {})
    left = [runtime for runtime in runtimes if again or runtime not in row.get("runtimes", {})]
    if not left:
        return
    tokenizer = load_tokenizer(str(family_model(name)))
    form = tool_format(tokenizer)
    answers = learnt_by(name)
    try:
        folder, gguf, not_portable = make_files(name, work)
    except UserError as error:
        row["failed"] = str(error)
        return
    every = [*hard_corpus(), *asked(answers)]
    prompts = {
        "prompts": encode_cases(every, tokenizer),
        "demo prompts": encode_cases(demo_cases(), tokenizer),
    }
    row |= {"format": form.name, "rows": count_rows(every, tokenizer)}
    row |= {"architecture": read_json(folder / "config.json")["architectures"][0]}
    row |= {"portable": not_portable or True, "tokens": len(tokenizer)}
    for runtime in left:
        try:
            with RUNTIMES[runtime](folder, gguf, form.llama_options) as server:
                found = ask_runtime(runtime, server, answers, prompts, tokenizer)
        except UserError as error:
            found = {"failed": str(error).strip().splitlines()[-1]}  # the others name folders
        row.setdefault("runtimes", {})[runtime] = found


def cell(found):
    "What one server made of a family: hard and demo prompts that are those of training, and answers right in every way of asking."
    if "prompts" not in found:
        return "failed" if found else "–"
    ways = [found[way]["right"] for way in ("whole", "streamed", "ids") if way in found]
    right, asked = min(ways)
    shares = [found["prompts"], found["demo prompts"], [right, asked]]
    return " · ".join(f"{part}/{whole}" for part, whole in shares)


def families_table(record):
    "One row a family: conversations that become rows, then hard prompts, demo prompts and answers at each server."
    header = ["family", "its calls", "rows", *RUNTIMES]
    rows = []
    for name in BY_NAME:
        row = record["families"].get(name, {})
        if "rows" in row:
            n, refused = row["rows"]["n"], len(row["rows"]["refused"])
            cells = [cell(row["runtimes"].get(runtime, {})) for runtime in RUNTIMES]
            rows.append([name, row["format"], f"{n - refused}/{n}", *cells])
    return markdown_table(header, rows, "l" * len(header))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/families"), help="for the models")
    parser.add_argument("--families", nargs="+", default=list(BY_NAME), help="only these")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), help="only these")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--table", action="store_true", help="print the table of the last run")
    options = parser.parse_args()
    record = read_json(RESULTS) if RESULTS.exists() else {"families": {}}
    for name in [] if options.table else options.families:
        measure(name, options.runtimes, options.work, record["families"], options.again)
        record |= {"date": str(date.today()), "machine": machine_name()}
        record["command"] = "python benchmarks/families.py --work runs/families"
        text = dump_json(record).replace(str(options.work.absolute()), "runs/families")
        write_text(RESULTS, text.replace(str(options.work), "runs/families") + "\n")
        print(record["families"][name].get("failed") or name, flush=True)
    print(families_table(record))


if __name__ == "__main__":
    main()
