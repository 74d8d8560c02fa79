"""How long until the program answers: whole processes, median of several, beside an empty Python."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "toolcall-ft")
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "import toolcall_ft": ([sys.executable, "-c", "import toolcall_ft"], 0.3),
    "import toolcall_ft.cli": ([sys.executable, "-c", "import toolcall_ft.cli"], None),
    "toolcall-ft --help": ([PROGRAM, "--help"], 0.6),
}


def seconds(command: list) -> float:
    "Wall time of one process."
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(rounds: int = 15) -> None:
    print("| process | median s | fastest s | goal s |\n|---|---:|---:|---:|")
    for name, (command, goal) in COMMANDS.items():
        seconds(command)  # once for the disk cache
        taken = [seconds(command) for _ in range(rounds)]
        print(f"| `{name}` | {statistics.median(taken):.3f} | {min(taken):.3f} | {goal or ''} |")


if __name__ == "__main__":
    main()
