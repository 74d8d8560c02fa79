"""The proof that what was trained is what is served."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "corpus": ["hard_corpus"],
        "measure": ["measure_parity", "parity"],
        "pair": ["check_pair", "pair_table"],
        "quantization": ["measure_formats", "quantization_chart", "quantization_table"],
        "report": ["parity_html", "parity_table"],
        "strings": ["hard_strings"],
    },
)
