"""Are the demo's prompts and answers the same at every hop? After `make demo`:

    python benchmarks/parity.py                  # all 336 test requests to every hop of this machine, some minutes
    python benchmarks/parity.py --answers 100    # prompts of all, answers of the first 100

Writes benchmarks/results/parity.json, which lesson 08c shows; the run folder is read and never changed.
"""
import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from toolcall_ft.data import read_jsonl, write_text
from toolcall_ft.export import export_gguf
from toolcall_ft.portable import make_portable
from toolcall_ft.serve import breaks, hard_corpus, model_hops, parity, parity_table
from toolcall_ft.template import load_tokenizer
from toolcall_ft.tools import dump_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a merged model and a test split")
    parser.add_argument("--answers", type=int, help="requests to answer, all if not given; the prompts of all are compared anyway")
    parser.add_argument("--hops", nargs="+", default=["training row", "Transformers", "llama-server", "Ollama", "vLLM"], help="the hops to ask")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/parity.json"))
    options = parser.parse_args()
    examples, corpus = read_jsonl(options.run / "data" / "test.jsonl"), hard_corpus()
    tools = {dump_json(tool): tool for case in [*examples, *corpus] for tool in case["tools"]}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "merged"
        shutil.copytree(options.run / "merged", folder)
        make_portable(folder, list(tools.values()))
        hops, missing = model_hops(folder, export_gguf(folder, Path(work) / "gguf", ["F16"])["F16"])
        report = parity(examples, {name: hop for name, hop in hops.items() if name in options.hops}, load_tokenizer(str(folder)), corpus, options.answers)
    text = json.dumps({"command": shlex.join(["python", "benchmarks/parity.py", *sys.argv[1:]]), "date": datetime.date.today().isoformat(),
                       "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU, other work beside it", **report, "missing": missing}, ensure_ascii=False, indent=1)
    write_text(options.output, text.replace(work, "RUN"))
    print(parity_table(report))
    for name, why in missing.items(): print(f"not measured: {name}: {why}")
    found = breaks(report)
    print(*(found or ["parity holds at every hop that was measured"]), sep="\n")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
