"""Teach a small language model to call your tools, and prove that what you train is what you serve."""
__version__ = "0.1.0"


def __dir__():
    "The modules too, so that `toolcall_ft.<tab>` shows them; none is imported for that."
    from pkgutil import iter_modules
    modules = [module.name for module in iter_modules(__path__)]
    return sorted([*globals(), *(name for name in modules if not name.startswith("_"))])


def __getattr__(name):
    "A module of this package, imported when it is asked for."
    from importlib import import_module
    if name.startswith("_") or name not in __dir__(): raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
