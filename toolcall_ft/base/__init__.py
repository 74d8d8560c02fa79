"""What every other folder needs: errors, JSON, files, processes, HTTP."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["UserError"],
        "files": ["read_json", "read_jsonl", "read_text", "write_jsonl", "write_text"],
        "jsontext": ["dump_json", "parse_json"],
        "setup": ["set_up"],
    },
)
