"""The embedded tiny model, and how it is made."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conversations": ["make_conversations"],
        "course": ["course_config", "course_model", "course_picture", "course_splits"],
        "model": ["new_model"],
        "tokenizer": ["train_tokenizer"],
        "train": ["train_tiny"],
    },
)
