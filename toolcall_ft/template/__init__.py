"""From a conversation to token ids and labels, and pictures of both."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compare": ["diff"],
        "control": ["split_tokenizer"],
        "dataset": ["encode_dataset"],
        "fetch": ["fetch_model"],
        "habits": ["render"],
        "learn": ["template_facts"],
        "look": ["show_tokens", "token_roles"],
        "models": ["load_tokenizer", "model_path"],
        "portable": ["make_portable"],
        "rows": ["encode_example", "encode_prompt", "encode_rows"],
        "viewer": ["render_row", "row_html", "show_rows", "token_table", "write_page"],
    },
)
