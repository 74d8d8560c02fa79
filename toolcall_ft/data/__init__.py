"""From request logs to training rows: read, check, split, synthesise."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "charts": ["check_chart", "check_table", "write_report"],
        "checks": ["check_examples"],
        "examples": ["build_example", "convert_records", "iter_examples", "read_examples"],
        "logs": ["read_logs"],
        "prepare": ["prepare_data"],
        "readers": ["detect_format", "read_record"],
        "records": ["read_records"],
        "rewrite": ["phrase_rows", "synthesise_with"],
        "sample": ["match_pattern", "sample_value"],
        "split": ["group_examples", "measure_leakage", "split_examples", "split_rows"],
        "store": ["from_dataset", "push_examples", "save_dataset", "to_dataset", "write_examples"],
        "synthetic": ["synthesise"],
        "turns": ["RecordError"],
        "writers": ["dataset_info", "to_chatml", "to_openai", "to_sharegpt"],
    },
)
