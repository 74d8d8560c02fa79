"""Grammar-constrained generation, and the tool loop."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["generate_answers", "generate_text", "transformers_predictor"],
        "engines": ["compile_grammar"],
        "grammar": ["grammar_notes", "tool_grammar"],
        "loop": ["chat_with_tools", "run_calls"],
        "model": ["load_model"],
    },
)
