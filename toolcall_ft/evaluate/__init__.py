"""Scores of answers, with intervals, tables and charts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "match": ["same_value"],
        "report": ["answer_table", "report_chart", "report_html", "report_table", "tool_table"],
        "results": ["evaluate", "rate", "to_requests", "wilson_interval"],
        "score": ["score_answer"],
    },
)
