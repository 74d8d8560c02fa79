"""How much data does a tool need? The demo's training on parts of its rows, more epochs for fewer rows, measured on the whole test split."""

import tempfile
from pathlib import Path

from toolcall_ft.config import read_config
from toolcall_ft.data.logs import read_logs
from toolcall_ft.data.split import split_rows
from toolcall_ft.evaluate.report import show_rate
from toolcall_ft.evaluate.results import evaluate
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.model import load_model
from toolcall_ft.train.backend import start_backend
from toolcall_ft.train.lora import train_lora

ROOT, SHARES = (
    Path(__file__).resolve().parents[1],
    {1 / 16: 12, 1 / 4: 6},
)  # share of the rows: epochs


def measured(splits: dict, config: dict, share: float, epochs: int) -> str:
    "One row of the table: rows, rows per tool, steps, exact match with its interval."
    rows = splits["train"][: round(len(splits["train"]) * share)]
    with tempfile.TemporaryDirectory() as folder:
        report = train_lora(
            rows,
            splits["validation"],
            config["model"],
            folder,
            **{**config["train"], "epochs": epochs},
            seed=config["seed"],
        )
        result = evaluate(
            splits["test"],
            transformers_predictor(*load_model(config["model"], f"{folder}/adapter")),
        )
    return f"| {len(rows)} | {len(rows) / 8:.0f} | {epochs} | {report['steps']} | {show_rate(result, 'exact')} |"


def main():
    config = read_config(ROOT / "examples" / "config.yaml")
    start_backend(config["train"]["backend"])
    data = config["data"]
    splits = split_rows(read_logs(data)[0], data["validation"], data["test"], config["seed"])
    lines = [measured(splits, config, share, epochs) for share, epochs in SHARES.items()]
    print(
        "| rows | rows per tool | epochs | steps | exact match |\n|---:|---:|---:|---:|---|",
        *lines,
        sep="\n",
    )


if __name__ == "__main__":
    main()
