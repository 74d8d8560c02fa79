"""Does memory stay flat as rows grow? The most that `encode_dataset` held at 3,000 and at 30,000 rows, each in a fresh process, its examples read from a file one by one.

    python benchmarks/memory.py FILE                                      # FILE: LLaMA-Factory's data/glaive_toolcall_en_demo.json

The rows are those of `preprocess.py`, so the memory of words grows as well, up to the 200,000 words at which it is emptied. Figures are VmHWM, the kernel's record of
the most memory that a process held; with two processes that of the parent, and beside it the largest worker's (shared pages count in both).
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from preprocess import ROOT, load_examples, tiled

RESULTS, ROWS = ROOT / "benchmarks" / "results" / "memory.json", (3000, 30000)


def high_water() -> float:
    "The most memory that this process held, in MB."
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def child(path: Path, processes: int) -> None:
    "One measurement, printed as JSON."
    from qwen_tokenizer import qwen_tokenizer

    from toolcall_ft.template.dataset import encode_dataset

    tokenizer = qwen_tokenizer()
    with path.open(encoding="utf-8") as lines:
        encode_dataset([json.loads(next(lines))], tokenizer)
    before = high_water()
    with path.open(encoding="utf-8") as lines:
        dataset, left_out = encode_dataset(map(json.loads, lines), tokenizer, num_proc=processes)
    assert not left_out
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if processes > 1 else 0
    print(
        json.dumps(
            {
                "processes": processes,
                "rows": len(dataset),
                "before": round(before),
                "most": round(high_water()),
                "worker": round(worker),
            }
        )
    )


def measure(examples: list, rows: int, processes: int) -> dict:
    "One measurement in a fresh process."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in tiled(examples, rows))
        command = [sys.executable, __file__, str(path), "--child", str(processes)]
        settings = {
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return json.loads(
            subprocess.run(
                command, env=os.environ | settings, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="LLaMA-Factory's data/glaive_toolcall_en_demo.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.file, options.child)
    examples, found = load_examples(options.file), []
    print(
        "| processes | rows | before, MB | at most, MB | its largest worker, MB |\n|---:|---:|---:|---:|---:|"
    )
    for processes in (1, 2):
        found += [measure(examples, rows, processes) for rows in ROWS]
        for one in found[-2:]:
            print("| " + " | ".join(str(value) for value in one.values()) + " |")
        few, many = (one["most"] + one["worker"] for one in found[-2:])
        print(
            f"\n{processes}: {ROWS[1] // ROWS[0]} times the rows, {many / few:.2f} times the memory\n",
            flush=True,
        )
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
