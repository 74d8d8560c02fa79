"""The demo's training as a processor without bfloat16 does it: in float32, merged and measured. Writes benchmarks/results/demo_float32.json.

python benchmarks/demo_float32.py
"""

import shutil
import sys
from pathlib import Path

import yaml

from toolcall_ft.cli import main as cli
from toolcall_ft.train import backend, lora, trainer

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
RUN = HERE.parent / "runs" / "demo-float32"


def main() -> int:
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    settings = yaml.safe_load((EXAMPLES / "config.yaml").read_text(encoding="utf-8"))
    data = settings["data"]
    data["logs"] = [
        str(EXAMPLES / name)
        for name in ([data["logs"]] if isinstance(data["logs"], str) else data["logs"])
    ]
    for key in ("tools", "functions"):
        data[key] = str(EXAMPLES / data[key])
    settings["run"] = str(RUN)
    (RUN / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for module in (backend, lora, trainer):
        module.compute_type = lambda: "float32"
    for words in (["data"], ["train"], ["merge"], ["eval", "free"]):
        code = cli.main([*words, "--config", str(RUN / "config.yaml")])
        if code:
            return code
    shutil.copy(RUN / "summary.json", HERE / "results" / "demo_float32.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
