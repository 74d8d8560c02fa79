"""Tool schemas, the check of a call, and how a model writes calls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "check": ["check_call", "schema_validator"],
        "clean": ["clean_tools", "order_schema"],
        "formats": ["HERMES", "LLAMA3", "TOOL_FORMATS", "parse_calls", "tool_format"],
        "load": ["match_functions", "read_functions", "read_tools"],
        "mcp": ["mcp_connection", "mcp_functions", "mcp_servers", "mcp_tools"],
        "normalize": ["normalize_messages"],
        "schema": ["tool_schema"],
        "wire": ["ToolFormat"],
    },
)
