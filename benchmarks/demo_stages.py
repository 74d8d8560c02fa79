"""Where the time of `make demo` went: one row for each stage, from a summary.json."""
import json
import sys
from pathlib import Path


def stage_table(summary: dict) -> str:
    "Seconds and share of every stage, as a markdown table."
    seconds = summary["seconds"]
    total = sum(seconds.values()) or 1
    rows = [f"| {name} | {taken:.1f} | {100 * taken / total:.0f} % |" for name, taken in seconds.items()]
    return "\n".join(["| stage | seconds | share |", "|---|---:|---:|", *rows, f"| all | {total:.1f} | 100 % |"])


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/summary.json")
    if not path.exists():
        print(f"{path}: not there. Run `make demo` first, or name another summary.json.", file=sys.stderr)
        return 2
    print(stage_table(json.loads(path.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__": sys.exit(main())
