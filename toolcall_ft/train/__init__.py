"""LoRA training, and the merge of an adapter into its model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backend": ["compute_type", "load_peft", "load_unsloth", "machine_name", "start_backend"],
        "lora": ["train_lora"],
        "memorise": ["memorise_answers"],
        "merge": ["merge_adapter"],
        "tokens": ["add_tokens"],
        "trainer": ["draw_curves"],
    },
)
