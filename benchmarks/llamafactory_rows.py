"""LLaMA-Factory's own rows and how fast it makes them; `preprocess.py` runs this with the python of an environment that has LLaMA-Factory.

    PYTHON benchmarks/llamafactory_rows.py FOLDER TOKENIZER PROCESSES     # FOLDER: rows.json and dataset_info.json, as `write_examples` makes them

Its loader, converter and processor, with its template `qwen`; timed is the processor alone, by its own function with its own batch size.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version

SHOWN = 600


def prepare(folder: str, tokenizer_folder: str, processes: int) -> tuple:
    "(the loaded data set in its own columns, what its processor is called with)"
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import AutoTokenizer, Seq2SeqTrainingArguments

    data = DataArguments(
        dataset="rows",
        dataset_dir=folder,
        template="qwen",
        cutoff_len=32768,
        preprocessing_num_workers=processes if processes > 1 else None,
        overwrite_cache=True,
    )
    training = Seq2SeqTrainingArguments(output_dir=folder, report_to=[], use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    dataset = _get_merged_dataset(
        data.dataset, ModelArguments(model_name_or_path=tokenizer_folder), data, training, "sft"
    )
    return dataset, (data, training, "sft", template, tokenizer)


def main(folder: str, tokenizer_folder: str, processes: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        from llamafactory.data.loader import _get_preprocessed_dataset

        dataset, settings = prepare(folder, tokenizer_folder, processes)
        _get_preprocessed_dataset(
            dataset.select(range(1)), *settings
        )  # once, for what is imported and compiled when first used
        start = [time.perf_counter(), sum(os.times()[:4])]
        done = _get_preprocessed_dataset(dataset, *settings)
        seconds = [time.perf_counter() - start[0], sum(os.times()[:4]) - start[1]]
        assert len(done) == len(dataset)
        rows = [
            {name: row[name] for name in ("input_ids", "labels")}
            for row in done.select(range(min(SHOWN, len(done))))
        ]
        versions = {
            name: version(name)
            for name in ("llamafactory", "transformers", "tokenizers", "datasets")
        }
        print(
            "\n"
            + json.dumps(
                {
                    "rate": len(done) / seconds[0],
                    "cpu": len(done) / seconds[1],
                    "rows": rows,
                    "versions": versions,
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
