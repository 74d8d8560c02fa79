"""Llama 3.2's tokenizer and a small random model of its architecture, without a model hub: from the vocabulary that llama.cpp carries for its own tests.

python tests/golden/llama3.py        # makes both and says where they are
"""

import json
import os
import tempfile
from pathlib import Path

from toolcall_ft.base.files import replace_folder
from toolcall_ft.export.llamacpp import fetch_llama_source, llama_cache

CACHE = llama_cache().parent / "llama3-random"
NEW_NAMES = {  # what Llama 3.1 made of Llama 3's reserved tokens
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_3|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}


def rename_tokens(folder: Path) -> None:
    "The names of Llama 3.1 and later for tokens that the vocabulary still calls reserved."
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    for old, new in NEW_NAMES.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    path.write_text(text, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def save_random_model(folder: Path, tokens: int) -> None:
    "Two layers of Llama's architecture with random weights."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128009,
        pad_token_id=128004,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_model(llama_cpp: Path) -> None:
    "Write tokenizer, TRL's chat template of Llama 3.2 and the model into the cache."
    import trl
    from transformers import AutoTokenizer

    with replace_folder(CACHE) as temporary:
        folder = Path(temporary)
        tokenizer = AutoTokenizer.from_pretrained(
            llama_cpp / "models", gguf_file="ggml-vocab-llama-bpe.gguf"
        )
        tokenizer.save_pretrained(folder)
        rename_tokens(folder)
        template = Path(trl.__file__).parent / "chat_templates" / "llama3_2.jinja"
        text = template.read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
        save_random_model(folder, len(tokenizer))


def llama3() -> Path:
    "The folder of the model, made on first use."
    if not CACHE.exists():
        own = os.environ.get("LLAMA_CPP_DIR", "")
        with tempfile.TemporaryDirectory() as work:
            found = own and (Path(own) / "models" / "ggml-vocab-llama-bpe.gguf").exists()
            make_model(Path(own) if found else fetch_llama_source(Path(work)))
    return CACHE


if __name__ == "__main__":
    print(llama3())
