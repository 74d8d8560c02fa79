"""A small random model of each family that people fine-tune, without a model hub: its architecture, its chat template, and its vocabulary where llama.cpp carries it for its own tests.

python tests/golden/families.py          # makes them all and says where they are
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from toolcall_ft.base.files import replace_folder
from toolcall_ft.export.convert import LLAMA3_SPLIT, read_gguf
from toolcall_ft.export.llamacpp import fetch_llama_source, find_llama_cpp, llama_cache
from toolcall_ft.template.models import load_tokenizer

CACHE = llama_cache().parent
GRANITE = "templates/ibm-granite-granite-4.0.jinja"
SOURCES = [*(f"ggml-vocab-{name}.gguf" for name in ("qwen2", "llama-bpe", "gemma-4")), GRANITE]
QWEN_ADDED = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>
    <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|>
    <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|>
    <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>""".split()
QWEN_SPECIAL = QWEN_ADDED[:14]  # the others are words that one may see
QWEN3_ADDED = [*QWEN_ADDED, "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA_NAMES = {  # what Llama 3.1 made of Llama 3's reserved tokens
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_3|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}
GEMMA_SPECIAL = """<pad> <eos> <bos> <unk> <mask> <|tool> <tool|> <|tool_call> <tool_call|>
    <|tool_response> <tool_response|> <|"|> <|think|> <|channel> <channel|> <|turn> <turn|>
    <|image> <|audio> <|image|> <|audio|> <image|> <audio|> <|video|>""".split()


@dataclass(frozen=True)
class Family:
    "What a small model of a family is made of."

    name: str
    form: str  # the name of its `ToolFormat`
    template: str  # TRL's name of its chat template, or a file of llama.cpp or of this folder
    tokenizer: callable  # (folder of SOURCES, target): writes the tokenizer
    config: str  # Transformers' class
    settings: dict = field(default_factory=dict)  # of its architecture


def sources() -> Path:
    "The vocabularies and templates from llama.cpp's source, fetched once."
    folder = CACHE / "llama.cpp-vocabularies"
    if folder.exists():
        return folder
    own = Path(os.environ.get("LLAMA_CPP_DIR", "")) / "models"
    with tempfile.TemporaryDirectory() as work, replace_folder(folder) as target:
        found = all((own / name).is_file() for name in SOURCES)
        models = own if found else fetch_llama_source(Path(work)) / "models"
        for name in SOURCES:
            (Path(target) / name).parent.mkdir(exist_ok=True)
            shutil.copy2(models / name, Path(target) / name)
    return folder


def settle(folder: Path, kind: str = "PreTrainedTokenizerFast", **tokens: str) -> None:
    "The settings of a tokenizer whose tokens are all in its `tokenizer.json`."
    settings = {
        "tokenizer_class": kind,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        **tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@lru_cache
def from_vocabulary(models: Path, name: str) -> str:
    "The `tokenizer.json` that Transformers makes of a vocabulary of llama.cpp, in half a minute."
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=f"ggml-vocab-{name}.gguf")
    return tokenizer.backend_tokenizer.to_str()


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def added(number: int, token: str, special: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}


def qwen(tokens: list, pattern: str = None):
    "Qwen's vocabulary: llama.cpp's file fills it up with nameless tokens; these get their names, the rest goes."

    def write(models: Path, folder: Path) -> None:
        backend = json.loads(from_vocabulary(models, "qwen2"))
        words = backend["model"]["vocab"]
        first = words.get("<|endoftext|>", 151643)
        backend["model"]["vocab"] = {word: id for word, id in words.items() if id < first}
        backend["added_tokens"] = [
            added(id, token, token in QWEN_SPECIAL) for id, token in enumerate(tokens, first)
        ]
        if pattern:
            backend["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
        write_json(folder / "tokenizer.json", backend)
        kind = "PreTrainedTokenizerFast" if pattern else "Qwen2Tokenizer"
        settle(folder, kind, eos_token="<|im_end|>", pad_token="<|endoftext|>")

    return write


def qwen35(models: Path, folder: Path) -> None:
    "Qwen3.5 cuts marks of vowels otherwise. llama.cpp's file for it holds Qwen2's words; its own 248,000 are only on the hub."
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

    qwen(QWEN3_ADDED, PRETOKENIZE_REGEX)(models, folder)


def llama3_tokenizer(models: Path, folder: Path) -> None:
    "Llama 3's vocabulary with the names that Llama 3.1 gave to reserved tokens."
    text = from_vocabulary(models, "llama-bpe")
    for old, new in LLAMA_NAMES.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    backend = json.loads(text)
    words = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated"}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [{**words, "invert": False}, {**bytes_of, "use_regex": False}]
    backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    backend["decoder"] = bytes_of
    backend["model"]["ignore_merges"] = True
    write_json(folder / "tokenizer.json", backend)
    pad = "<|finetune_right_pad_id|>"
    settle(folder, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token=pad)


def gemma4(models: Path, folder: Path) -> None:
    "Gemma 4's vocabulary, which Transformers does not read from a GGUF."
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    llama = find_llama_cpp(["convert"])
    fields = read_gguf(models / "ggml-vocab-gemma-4.gguf", llama)["fields"]
    words = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = GemmaTokenizer(vocab=words, merges=merges, eos_token="<turn|>")
    tokenizer.add_special_tokens({"additional_special_tokens": GEMMA_SPECIAL})
    begin = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder)


def tiny(begins: str, ends: str, pad: str, *tokens: str):
    "The embedded model's vocabulary with a family's control tokens: its own one is nowhere but on the hub."

    def write(models: Path, folder: Path) -> None:
        tokenizer = load_tokenizer("tiny-qwen2")
        known = tokenizer.get_added_vocab()
        new = [token for token in (begins, ends, pad, *tokens) if token and token not in known]
        words = [token for token in new if token in QWEN3_ADDED[14:]]  # that one may see
        tokenizer.add_tokens([token for token in new if token not in words], special_tokens=True)
        tokenizer.add_tokens(words)
        tokenizer.eos_token, tokenizer.pad_token = ends, pad
        if begins:
            tokenizer.bos_token = begins
        tokenizer.save_pretrained(folder)

    return write


LFM2_TOKENS = [
    f"<|tool_{what}_{end}|>" for what in ("list", "call", "response") for end in ("start", "end")
]
LFM2 = tiny("<|startoftext|>", "<|im_end|>", "<|pad|>", *LFM2_TOKENS)
QWEN_TINY = tiny("", "<|im_end|>", "<|endoftext|>", *QWEN3_ADDED)  # quicker: once is enough
ROLES = ("<|start_of_role|>", "<|end_of_role|>", "<tool_response>", "</tool_response>")
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 64,
    "linear_key_head_dim": 128,  # vLLM's kernel for processors has no small ones
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
CONV = {
    "layer_types": ["conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "conv_dim": 128,
    "block_dim": 128,
}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 0,
}
FUNCTION_TOKENS = [
    f"<{end}_function_{what}>"
    for what in ("declaration", "call", "response")
    for end in ("start", "end")
]
TURNS = ("<start_of_turn>", "<escape>", *FUNCTION_TOKENS)
SCALES = {
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
FAMILIES = [
    Family("Qwen2.5", "hermes", "qwen2_5", qwen(QWEN_ADDED), "Qwen2Config"),
    Family("Qwen3", "hermes", "qwen3", qwen(QWEN3_ADDED), "Qwen3Config", {"head_dim": 32}),
    Family(
        "Qwen3-2507",
        "hermes",
        "qwen3_instruct_2507",
        QWEN_TINY,
        "Qwen3Config",
        {"head_dim": 32},
    ),
    Family("Qwen3.5", "qwen3.5", "qwen3_5_nothink", qwen35, "Qwen3_5TextConfig", LINEAR),
    Family("Qwen3.6", "qwen3.6", "qwen3_6", QWEN_TINY, "Qwen3_5TextConfig", LINEAR),
    Family("Qwen3.8", "qwen3.6", "qwen3_8", QWEN_TINY, "Qwen3_5TextConfig", LINEAR),
    Family("Llama 3.2", "llama3", "llama3_2", llama3_tokenizer, "LlamaConfig"),
    Family("LFM2", "lfm2", "lfm2_v2", LFM2, "Lfm2Config", CONV),
    Family("LFM2.5", "lfm2.5", "lfm2_2_5_v2", LFM2, "Lfm2Config", CONV),
    Family(
        "Granite 4",
        "granite",
        GRANITE,
        tiny("", "<|end_of_text|>", "<|pad|>", *ROLES),
        "GraniteConfig",
        SCALES,
    ),
    Family("Gemma 4", "gemma4", "gemma4_v5", gemma4, "Gemma4TextConfig", SLIDING),
    Family(
        "FunctionGemma",
        "functiongemma",
        "functiongemma.jinja",
        tiny("<bos>", "<end_of_turn>", "<pad>", *TURNS),
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention"] * 2},
    ),
]
BY_NAME = {family.name: family for family in FAMILIES}


def save_random_model(folder: Path, family: Family) -> None:
    "Two layers of a family's architecture with random weights."
    import torch
    import transformers

    tokenizer = load_tokenizer(str(folder))
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **family.settings,
        }
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.get_input_embeddings().weight.data *= 10  # so far apart that they need not be trained
    model.to(torch.bfloat16).save_pretrained(folder)


def template_text(family: Family, models: Path) -> str:
    "A family's chat template, as TRL or llama.cpp ships it; our own where neither does."
    import trl

    shipped = Path(trl.__file__).parent / "chat_templates"
    places = (Path(__file__).parent, models, shipped)
    files = (place / f"{family.template.removesuffix('.jinja')}.jinja" for place in places)
    return next(file for file in files if file.is_file()).read_text(encoding="utf-8")


def recipe() -> str:
    "A hash of what the models are made by: this file and the templates beside it."
    files = [Path(__file__), *sorted(Path(__file__).parent.glob("*.jinja"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def family_model(name: str) -> Path:
    "The folder of a family's model, made on first use and when its recipe has changed."
    family = BY_NAME[name]
    target = CACHE / f"family-{name.lower().replace(' ', '-')}"
    made_by = target / "recipe.txt"
    if not made_by.exists() or made_by.read_text(encoding="utf-8") != recipe():
        models = sources()
        with replace_folder(target) as temporary:
            folder = Path(temporary)
            family.tokenizer(models, folder)
            (folder / "chat_template.jinja").write_text(
                template_text(family, models), encoding="utf-8"
            )
            save_random_model(folder, family)
            (folder / made_by.name).write_text(recipe(), encoding="utf-8")
    return target


def llama3() -> Path:
    "The folder of Llama 3.2's model."
    return family_model("Llama 3.2")


# ---- what a model of each family learns by heart ----


def tool(name: str, description: str, /, **properties) -> dict:
    "A tool with all arguments required."
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TEXT = {"type": "string"}
TOOLS = [
    tool("book_room", "Book a room", room=TEXT, seats={"type": "integer"}),
    tool("find_person", "Find a person", name=TEXT),
    tool("what_time", "Say what time it is"),
    tool("take_note", "Write something down", text=TEXT),
    tool(
        "set_alarm",
        "Wake somebody up",
        loud={"type": "boolean"},
        days={"type": "array", "items": TEXT},
        snooze={"type": ["number", "null"]},
    ),
]
WORDS = "Good morning. 早上好！"  # the same in Chinese
NOTE = "He said \"hi\",\nit's 5 o'clock: 你好 <b>"  # 你好: hello
ANSWERS = {  # question: (calls, words)
    "Book the Fjord for 4.": ([("book_room", {"room": "Fjord", "seats": 4})], ""),
    "Where are Ann and 李伟?": (  # 李伟: Li Wei
        [("find_person", {"name": "Ann"}), ("find_person", {"name": "李伟"})],
        "",
    ),
    "What time is it?": ([("what_time", {})], ""),
    "Write that down.": ([("take_note", {"text": NOTE})], ""),
    "Wake me.": ([("set_alarm", {"loud": True, "days": ["Mo", "Tu"], "snooze": None})], ""),
    "Hello": ([], WORDS),
}
THOUGHT = "I know this.\n</think>\n\n"  # where the prompt has opened a thought


def learnt(form, tokenizer) -> list:  # of (request, calls, words, the text that a model writes)
    "The answers that a family's model is to know by heart; two calls only where it may make two."
    from toolcall_ft.template.rows import encode_prompt

    found = []
    for question, (pairs, words) in ANSWERS.items():
        request = {"messages": [{"role": "user", "content": question}], "tools": TOOLS}
        calls = [{"name": name, "arguments": arguments} for name, arguments in pairs]
        if len(calls) > 1 and form.between is None:
            continue
        opened = tokenizer.decode(encode_prompt(request, tokenizer)).rstrip().endswith("<think>")
        text = form.write(calls) if calls else words
        found.append((request, calls, words, (THOUGHT if opened else "") + text))
    return found


def memorise_family(name: str, folder: Path) -> list:  # from `learnt`
    "A copy of a family's model that knows its answers by heart."
    from toolcall_ft.tools.formats import tool_format
    from toolcall_ft.train.memorise import memorise_answers

    base = str(family_model(name))
    tokenizer = load_tokenizer(base)
    answers = learnt(tool_format(tokenizer), tokenizer)
    pairs = [(request, text) for request, _, _, text in answers]
    report = memorise_answers(pairs, folder, base, steps=600, embeddings=False)
    assert report["wrong tokens"] == 0, (name, report)
    return answers


if __name__ == "__main__":
    for each in BY_NAME:
        print(family_model(each))
