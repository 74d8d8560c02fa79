"""Where the time of `make demo` went: one row for each stage, from a summary.json; and the demo on machines that compute in other number formats."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def stage_table(summary: dict) -> str:
    "Seconds and share of every stage, as a markdown table."
    seconds = summary["seconds"]
    total = sum(seconds.values()) or 1
    rows = [
        f"| {name} | {taken:.1f} | {100 * taken / total:.0f} % |" for name, taken in seconds.items()
    ]
    return "\n".join(
        ["| stage | seconds | share |", "|---|---:|---:|", *rows, f"| all | {total:.1f} | 100 % |"]
    )


def machine_row(summary: dict) -> str:
    "What the number format of a training decides: its time, and the model that comes out."
    facts, seconds, exact = summary["facts"]["train"], summary["seconds"], summary["free"]
    low, high = exact["exact_interval"]
    right = f"{100 * exact['exact']:.1f} % | {100 * low:.1f} to {100 * high:.1f}"
    return f"| {facts['compute_type']} | {facts.get('machine', '–')} | {seconds['train']:.0f} s | {right} | {exact['n']} |"


def machine_table() -> str:
    "The demo in bfloat16 (`make demo`, `make figures`) and in float32 (`demo_float32.py`), one row each."
    paths = [
        path
        for path in (HERE / "demo_summary.json", HERE / "results" / "demo_float32.json")
        if path.exists()
    ]
    rows = [machine_row(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    head = [
        "| trained in | on | training | exact match after LoRA | 95 % interval | n |",
        "|---|---|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows])


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/summary.json")
    if not path.exists():
        print(
            f"{path}: not there. Run `make demo` first, or name another summary.json.",
            file=sys.stderr,
        )
        return 2
    print(stage_table(json.loads(path.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
