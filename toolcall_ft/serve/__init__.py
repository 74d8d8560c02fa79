"""llama-server, Ollama and vLLM, and the clients that ask them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "client": ["ask_server", "ids_client", "openai_client", "wire_messages"],
        "llama": ["LlamaServer", "server_prompt", "server_tokens"],
        "modelfile": ["write_modelfile"],
        "ollama": ["OllamaServer", "create_model", "ollama_prompt", "ollama_tokens"],
        "ollama_build": ["build_ollama", "find_ollama"],
        "vllm": ["VllmServer"],
        "vllm_install": ["find_vllm"],
    },
)
