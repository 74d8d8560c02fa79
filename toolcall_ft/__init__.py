"""Teach a small language model to call your tools, and prove that what you train is what you serve."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "base",
        "tools",
        "data",
        "template",
        "train",
        "generate",
        "evaluate",
        "export",
        "serve",
        "parity",
        "tiny",
        "cli",
        "config",
    ],
    submod_attrs={
        "config": ["read_config"],
        "data.examples": ["read_examples"],
        "data.prepare": ["prepare_data"],
        "data.split": ["split_examples"],
        "evaluate.report": ["report_table"],
        "export.gguf": ["export_gguf"],
        "generate.answers": ["generate_answers"],
        "generate.grammar": ["tool_grammar"],
        "generate.loop": ["chat_with_tools"],
        "generate.model": ["load_model"],
        "parity.measure": ["measure_parity"],
        "serve.client": ["openai_client"],
        "serve.llama": ["LlamaServer"],
        "serve.modelfile": ["write_modelfile"],
        "serve.ollama": ["OllamaServer"],
        "serve.vllm": ["VllmServer"],
        "template.compare": ["diff"],
        "template.dataset": ["encode_dataset"],
        "template.look": ["show_tokens"],
        "template.models": ["load_tokenizer"],
        "template.rows": ["encode_example", "encode_prompt"],
        "tools.check": ["check_call"],
        "tools.clean": ["clean_tools"],
        "tools.formats": ["parse_calls"],
        "tools.load": ["read_tools"],
        "train.lora": ["train_lora"],
        "train.merge": ["merge_adapter"],
    },
)
