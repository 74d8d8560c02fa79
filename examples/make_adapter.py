"""Put the adapter that lesson 03 trained into the package, for lessons that are opened first.

    python make_adapter.py [--adapter ../nbs/runs/course/adapter]

The weights are kept in bfloat16, half the size; the base model is named and not given as a path.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "toolcall_ft" / "course" / "adapter"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", default=str(ROOT / "nbs" / "runs" / "course" / "adapter"))
    folder = Path(parser.parse_args().adapter)
    weights = load_file(folder / "adapter_model.safetensors")
    small = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    PLACE.mkdir(parents=True, exist_ok=True)
    save_file(small, PLACE / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "tiny-qwen2"
    settings["target_modules"].sort()
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    (PLACE / "adapter_config.json").write_text(text, encoding="utf-8")
    print(f"{PLACE.relative_to(ROOT)}: {(PLACE / 'adapter_model.safetensors').stat().st_size:,} bytes")
