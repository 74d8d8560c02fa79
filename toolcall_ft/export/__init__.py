"""GGUF files and smaller models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter": ["export_adapter"],
        "compressed": ["compress_model", "compressed_table"],
        "convert": ["check_gguf", "convert_gguf", "read_gguf"],
        "formats": ["format_table"],
        "gguf": ["export_gguf"],
        "imatrix": ["make_imatrix"],
        "llamacpp": ["build_llama_cpp", "find_llama_cpp"],
    },
)
