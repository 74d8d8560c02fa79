"""Requests a second and latencies of every runtime, on the same requests: the test split of a run (`make demo` makes one).

    python benchmarks/serve.py --run runs/demo                              # all that is here; what is not is named
    python benchmarks/serve.py --run runs/demo --parts ollama-8 --requests 100
    python benchmarks/serve.py --run runs/demo --soak 2000                  # every fourth request malformed; of each server, or of --parts
    python benchmarks/serve.py --table                                      # results/serve.json as markdown

A part is a runtime with so many slots; each is measured with the cache of shared prompt beginnings and without (Ollama has no switch for it: there every request begins with a number of its own). As many clients as slots ask without a pause, at temperature 0.
A latency is the time from a client's question to its whole answer; for Transformers in batches that of the batch. Before the clock runs, each runtime answers eight requests.
The parts add up in results/serve.json, so a run may be cut into pieces; the soak is written to results/soak.json.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.base.http import NEAR
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.evaluate.results import to_requests
from toolcall_ft.serve.client import openai_client, wire_messages
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer
from toolcall_ft.serve.vllm import VllmServer

RESULTS = Path(__file__).parent / "results" / "serve.json"
PARTS = "transformers-1,transformers-32,llama-server-1,llama-server-8,ollama-1,ollama-8,vllm-8"
SERVERS = "llama-server-8,ollama-8,vllm-8"  # that are soaked, if no others are named
TOKENS = 160


def send(url, body, timeout=120):
    "A request and its status, and the reply if there is one; None and None if the server hung up."
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with NEAR.open(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, http.client.HTTPException, ValueError):
        return None, None


def open_server(run, part, cache):
    "The server of a part, not yet started."
    kind, slots = part.rsplit("-", 1)
    if kind not in ("llama-server", "ollama", "vllm"):
        raise UserError("it is no server")
    settings = {"slots": int(slots), "context": 2048}
    if kind == "vllm":
        return VllmServer(
            run / "merged",
            options=[
                "--enable-prompt-tokens-details",
                *([] if cache else ["--no-enable-prefix-caching"]),
            ],
            **settings,
        )
    if kind == "ollama":
        return OllamaServer(run / "gguf/model-F16.gguf", **settings)
    return LlamaServer(
        run / "gguf/model-F16.gguf",
        options=[] if cache else ["--no-cache-prompt", "--cache-ram", "0"],
        **settings,
    )


def unlike(requests):
    "The same requests, none of which begins as another: a cache of beginnings has nothing to offer."
    system = lambda request: next(
        (message["content"] for message in request["messages"] if message["role"] == "system"),
        "You are a helpful assistant.",
    )
    others = lambda request: [
        message for message in request["messages"] if message["role"] != "system"
    ]
    return [
        {
            **request,
            "messages": [
                {"role": "system", "content": f"{number}. {system(request)}"},
                *others(request),
            ],
        }
        for number, request in enumerate(requests)
    ]


def measure_server(run, part, cache, requests):
    "Seconds of the whole and of each request, and the share of prompt tokens that came from the cache."
    if part.startswith("ollama") and not cache:
        requests = unlike(requests)
    with (
        open_server(run, part, cache) as server,
        ThreadPoolExecutor(int(part.rsplit("-", 1)[1])) as clients,
    ):

        def ask(request):
            tools = {"tools": request["tools"]} if request["tools"] else {}
            body = dump_json(
                {
                    "model": server.model,
                    "messages": wire_messages(request),
                    "temperature": 0,
                    "max_tokens": TOKENS,
                    **tools,
                }
            ).encode()
            start = time.perf_counter()
            status, reply = send(server.url, body)
            return time.perf_counter() - start, status, (reply or {}).get("usage") or {}

        list(clients.map(ask, requests[:8]))
        start = time.perf_counter()
        answers = list(clients.map(ask, requests))
        seconds = time.perf_counter() - start
    usage = [used for _, _, used in answers]
    cached = sum(
        (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for used in usage
    )
    return {
        "seconds": seconds,
        "latencies": [one for one, _, _ in answers],
        "errors": sum(status != 200 for _, status, _ in answers),
        "prompt tokens from cache": cached
        / max(1, sum(used.get("prompt_tokens", 0) for used in usage)),
    }


def measure_transformers(run, part, requests):
    "The same of Transformers: one request after the other as in guide 2 (the model stays in memory), or in batches."
    from toolcall_ft.generate.answers import transformers_predictor
    from toolcall_ft.generate.model import load_model

    size = int(part.rsplit("-", 1)[1])
    predictor = transformers_predictor(
        *load_model(run / "merged"), max_new_tokens=TOKENS, batch_size=size
    )
    predictor(requests[:8])
    latencies, begin = [], time.perf_counter()
    for first in range(0, len(requests), size):
        start, batch = time.perf_counter(), requests[first : first + size]
        predictor(batch)
        latencies += [time.perf_counter() - start] * len(batch)
    return {
        "seconds": time.perf_counter() - begin,
        "latencies": latencies,
        "errors": 0,
        "prompt tokens from cache": 0,
    }


def record(name, found):
    "One row of results/serve.json."
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    latencies = found.pop("latencies")
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    rows[name] = {
        "requests": len(latencies),
        "requests_per_second": len(latencies) / found["seconds"],
        **{f"p{share}": cuts[share - 1] for share in (50, 95, 99)},
        **found,
        "load_before": found["load_before"],
    }
    write_text(RESULTS, json.dumps({key: rows[key] for key in sorted(rows)}, indent=1))
    print(f"{name}: {rows[name]['requests_per_second']:.1f} requests/s", flush=True)


def table(rows):
    "The rows as markdown; times in seconds."
    lines = [
        "| runtime, slots | cache | requests/s | p50 | p95 | p99 | from cache | errors | n |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        part, cache = name.split(", ")
        lines.append(
            f"| {part} | {cache} | {row['requests_per_second']:.1f} | {row['p50']:.3f} | {row['p95']:.3f} | {row['p99']:.3f} | {row['prompt tokens from cache']:.0%} | {row['errors']} | {row['requests']} |"
        )
    return "\n".join(lines)


# --- soak; tests/test_load.py does the same with fewer requests ---

HELLO = [{"role": "user", "content": "x"}]
MALFORMED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    *map(
        str.encode,
        map(
            json.dumps,
            [
                {"messages": 1},
                {"messages": []},
                {"messages": [{"role": "user"}], "tools": 3},
                {"messages": HELLO, "tools": [{"type": "function"}]},
                {
                    "messages": HELLO,
                    "tools": [
                        {
                            "type": "function",
                            "function": {
                                "name": "f",
                                "parameters": {
                                    "type": "object",
                                    "properties": {"a": {"type": "nonsense"}},
                                },
                            },
                        }
                    ],
                },
                {"messages": [{"role": "user", "content": "tea " * 6000}]},
            ],
        ),
    ),
]


def resident(group):
    "Megabytes that all processes of a group hold."
    listed = subprocess.run(
        ["ps", "-eo", "pgid,rss"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    return sum(int(line.split()[1]) for line in listed if line.split()[0] == str(group)) / 1024


def said(answer):
    "What counts of an answer."
    return answer["content"], answer["calls"], answer["errors"]


def soak(server, clients, requests, count):
    "So many requests from several clients at once, every fourth malformed: which are lost, which differ from the same request asked alone, what the malformed ones got, memory."
    ask = openai_client(server.url, server.model, 40)
    alone = ask(requests)
    if all("unanswered" in answer for answer in alone):
        raise UserError(
            f"asked alone, no request got an answer; the first: {alone[0]['errors']}"
        )  # Ollama refuses to hand over half a call, so some may have none
    alone = list(map(said, alone))
    before = resident(server.process.pid)
    turn = lambda number: (
        (number - number // 4) % len(requests)
    )  # all of them, although every fourth is malformed

    def one(number):
        if number % 4 == 3:
            return send(server.url, MALFORMED[number // 4 % len(MALFORMED)])[0]
        answer = ask([requests[turn(number)]])[0]
        return None if answer.get("unanswered") == "lost" else said(answer)

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, range(count)))
    wrong = [
        number
        for number, answer in enumerate(answers)
        if number % 4 != 3 and answer != alone[turn(number)]
    ]
    statuses = {status: answers[3::4].count(status) for status in set(answers[3::4])}
    return {
        "requests": count,
        "lost": answers.count(None),
        "wrong": wrong,
        "statuses": statuses,
        "megabytes_before": before,
        "megabytes_after": resident(server.process.pid),
    }


def record_soak(run, part, requests, count):
    "One row of results/soak.json: a server in its second soak, since a process grows at the beginning."
    path = RESULTS.with_name("soak.json")
    with open_server(run, part, True) as server:
        reports = [soak(server, int(part.rsplit("-", 1)[1]), requests, count) for _ in range(2)]
    rows = json.loads(path.read_text()) if path.exists() else {}
    write_text(path, json.dumps({**rows, part: reports[1]}, indent=1))
    print(part, json.dumps(reports[1]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--parts")
    parser.add_argument("--cache", choices=["on", "off", "both"], default="both")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--soak", type=int)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        return print(table(json.loads(RESULTS.read_text())))
    requests = [
        request for request, _ in to_requests(read_jsonl(arguments.run / "data/test.jsonl"))
    ]
    random.Random(0).shuffle(requests)
    if arguments.soak:
        for part in (arguments.parts or SERVERS).split(","):
            try:
                record_soak(arguments.run, part, requests, arguments.soak)
            except UserError as error:
                print(f"{part}: NOT MEASURED: {error}")
        return
    requests = requests[: arguments.requests]
    for part in (arguments.parts or PARTS).split(","):
        for cache in [True, False] if arguments.cache == "both" else [arguments.cache == "on"]:
            if part.startswith("transformers") and cache:
                continue  # it has none
            load = os.getloadavg()[0]
            try:
                found = (
                    measure_transformers(arguments.run, part, requests)
                    if part.startswith("transformers")
                    else measure_server(arguments.run, part, cache, requests)
                )
            except UserError as error:
                print(f"{part}: NOT MEASURED: {error}")
                break
            record(f"{part}, {'on' if cache else 'off'}", {**found, "load_before": load})


if __name__ == "__main__":
    main()
