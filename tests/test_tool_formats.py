"""Which format a model has is read off its chat template; of the templates that TRL ships, those of two formats are known."""

from pathlib import Path

import pytest
import trl

from toolcall_ft.base.errors import UserError
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.tools.formats import HERMES, LLAMA3, TOOL_FORMATS, tool_format

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def borrow(name):
    "The embedded tokenizer with the chat template of another family."
    tokenizer = load_tokenizer("tiny-qwen2")
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.mark.parametrize(
    "name, form",
    [
        ("qwen2_5", HERMES),
        ("qwen3", HERMES),
        ("qwen3_instruct_2507", HERMES),
        ("llama3_1", LLAMA3),
        ("llama3_2", LLAMA3),
    ],
)
def test_known_formats_are_recognised(name, form):
    assert tool_format(borrow(name)) is form


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "qwen3_5_nothink",
            "a format that is not known here: .*function=probe_tool.*Known are: hermes, llama3",
        ),
        ("lfm2_2_5_v2", "a format that is not known here: .*probe_tool"),
        ("phi3", "leaves out tool calls"),
        ("gemma3", "leaves out tool calls|refuses a tool call"),
    ],
)
def test_an_unknown_one_says_what_was_seen(name, words):
    with pytest.raises(UserError, match=words):
        tool_format(borrow(name))


CALLS = [
    {"name": "find", "arguments": {}},
    {"name": "say", "arguments": {"text": 'a "quote" } and { 你好\n', "n": [1, {"x": None}]}},
]


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)
def test_what_is_written_is_read_and_half_of_it_is_no_call(form):
    for call in CALLS:
        text = form.write([call])
        assert form.parse(text) == ("", [call], [])
        assert all(form.parse(text + stop) == ("", [call], []) for stop in form.stops)
        assert all(form.parse(text[:end])[1] == [] for end in range(len(text)))
    if form.between is None:
        with pytest.raises(UserError, match="one call a turn"):
            form.write(CALLS)
    else:
        assert form.parse(form.write(CALLS)) == ("", CALLS, [])
