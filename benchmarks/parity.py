"""Are the demo's prompts and answers the same at every runtime? After `make demo`:

    python benchmarks/parity.py                    # all 336 test requests to every runtime of this machine, some minutes
    python benchmarks/parity.py --answers 100      # prompts of all, answers of the first 100
    python benchmarks/parity.py --real-tokenizer   # prompts alone, with Qwen2.5's own vocabulary of 151,665 tokens and random weights

Every answer that differs from that of the first runtime is listed with the margin where they part. Exit code 1 if a prompt is another one, or if more than
--max-differing answers of a runtime have other calls that nothing explains.

What every runtime is compared with are the tokens of training: the template of the model that was trained from, not the one that is served.
Writes benchmarks/results/parity.json (or parity_real_tokenizer.json), which lesson 08c shows; the run folder is read and never changed.
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

from toolcall_ft.base.files import read_jsonl, write_text
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.config import read_config
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.parity.measure import model_runtimes, parity
from toolcall_ft.parity.report import breaks, claims, parity_table
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.portable import make_portable

RUNTIMES = ["training row", "Transformers", "llama-server", "Ollama", "vLLM"]


def random_model(folder):
    "A model of one layer with random weights and the real Qwen2.5 tokenizer: it renders and cuts as a real one, and has nothing to say."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from golden.qwen_tokenizer import CACHE, qwen_tokenizer

    tokenizer = qwen_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(CACHE)


def measure(options, work):
    "The report of all runtimes, with the tools of every case written into the template."
    examples, corpus, folder = (
        read_jsonl(options.run / "data" / "test.jsonl"),
        hard_corpus(),
        work / "merged",
    )
    tools = {dump_json(tool): tool for case in [*examples, *corpus] for tool in case["tools"]}
    if options.real_tokenizer:
        trained = random_model(folder)
    else:
        trained = model_path(read_config(options.config)["model"])
        shutil.copytree(options.run / "merged", folder)
    make_portable(folder, list(tools.values()))
    runtimes, missing = model_runtimes(
        folder,
        export_gguf(folder, work / "gguf", ["F16"])["F16"],
        [name.lower() for name in options.runtimes],
        trained,
    )
    answers = 0 if options.real_tokenizer else options.answers
    report = parity(examples, runtimes, load_tokenizer(trained), corpus, answers)
    return report | {"missing": missing, "max_differing": options.max_differing}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/demo"),
        help="a run folder with a merged model and a test split",
    )
    parser.add_argument(
        "--config",
        default="examples/config.yaml",
        help="of that run: names the model that was trained from",
    )
    parser.add_argument(
        "--answers",
        type=int,
        help="requests to answer, all if not given; the prompts of all are compared anyway",
    )
    parser.add_argument(
        "--max-differing",
        type=int,
        default=0,
        help="answers of a runtime that may have other calls without a reason",
    )
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, help="the runtimes to ask")
    parser.add_argument(
        "--real-tokenizer",
        action="store_true",
        help="Qwen2.5's own vocabulary, random weights, prompts only",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        report = measure(options, Path(work))
        about = {
            "command": shlex.join(["python", "benchmarks/parity.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        }
        name = "parity_real_tokenizer.json" if options.real_tokenizer else "parity.json"
        write_text(
            Path(__file__).parent / "results" / name,
            json.dumps({**about, **report}, ensure_ascii=False, indent=1).replace(work, "RUN"),
        )
    print(parity_table(report))
    for name, why in report["missing"].items():
        print(f"not measured: {name}: {why}")
    print("", *claims(report), *breaks(report), sep="\n")
    return bool(breaks(report))


if __name__ == "__main__":
    sys.exit(main())
