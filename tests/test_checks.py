"""The checks module: every kind is found where it is, nothing is found where nothing is, and no row makes it crash."""

import json
import random
import time
from collections import Counter
from copy import deepcopy
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_jsonl
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.config import read_config
from toolcall_ft.data import checks, findings, heard
from toolcall_ft.data.charts import check_chart, check_table, code_span, write_figure, write_report
from toolcall_ft.data.checks import check_examples, strict_error
from toolcall_ft.data.findings import ENOUGH, KINDS, SEVERITIES, letters
from toolcall_ft.data.heard import SCALES, invented_values, is_said
from toolcall_ft.data.logs import contradictions, read_logs
from toolcall_ft.data.split import measure_leakage, open_values, phrasing, split_rows
from toolcall_ft.data.turns import call_message
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.load import read_tools

FIELD = {"type": "string", "description": "What"}
WEATHER, FOOD, SEND = clean_tools(
    [
        {
            "name": "get_weather",
            "description": "Weather",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {
                    "city": FIELD,
                    "days": {"type": "integer", "description": "How many"},
                },
            },
        },
        {
            "name": "find_food",
            "description": "Food",
            "parameters": {
                "type": "object",
                "required": ["place"],
                "properties": {"place": FIELD, "sort_by": {**FIELD, "enum": ["rating", "price"]}},
            },
        },
        {
            "name": "send",
            "description": "Sends",
            "parameters": {
                "type": "object",
                "properties": {
                    "to": {
                        "type": "array",
                        "description": "Whom",
                        "items": {"type": "string", "enum": ["ann", "bob"]},
                    }
                },
            },
        },
    ]
)[0]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def row(*messages, tools=(WEATHER, FOOD), **more):
    return {"messages": list(messages), "tools": list(tools), **more}


def ask(text, name=None, /, tools=(WEATHER, FOOD), **arguments):
    return row(
        say("user", text),
        call_message([{"name": name, "arguments": arguments}])
        if name
        else say("assistant", "Gladly."),
        tools=tools,
    )


def rain(city="Oslo", text="Rain in {}?", **more):
    return {**ask(text.format(city), "get_weather", city=city), **more}


def kinds(splits, *arguments, **options):
    "How often each kind was found, without the kinds that a handful of rows cannot avoid."
    small = {"rare tool", "uncalled tool", "few plain answers"}
    return {
        kind: n
        for kind, n in Counter(
            f["kind"] for f in check_examples(splits, *arguments, **options)
        ).items()
        if kind not in small
    }


CALL = call_message([{"name": "get_weather", "arguments": {"city": "Oslo"}}])
RESULT, USER, ANSWER = (
    say("tool", "4 degrees", name="get_weather"),
    say("user", "Rain in Oslo?"),
    say("assistant", "It is dry."),
)


# --- One row -------------------------------------------------------------------------------------------------------------

CLEAN = [
    row(USER, CALL),
    row(say("system", "Be brief."), USER, CALL, RESULT, ANSWER),
    row(USER, CALL, RESULT, CALL, RESULT, ANSWER, USER, ANSWER),
    row(USER, ANSWER, tools=()),
    row(USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}, RESULT, RESULT, ANSWER),
    row(USER, {**CALL, "content": "Let me look."}, {**RESULT, "content": ""}, ANSWER),
]


@pytest.mark.parametrize("example", CLEAN)
def test_nothing_is_found_in_a_good_row(example):
    assert kinds({"train": [example]}) == {}


ROWS = [
    ("malformed", {"messages": [], "tools": []}),
    ("malformed", {"messages": [{**USER, "tool_calls": None}, ANSWER], "tools": []}),
    ("malformed", row(say("user", None), ANSWER)),
    ("malformed", row(say("wizard", "x"), ANSWER)),
    ("malformed", row(USER, say("tool", "x"), ANSWER)),
    ("malformed", row(USER, ANSWER, tools=[WEATHER, WEATHER])),
    ("malformed", row(USER, ANSWER, tools=[WEATHER["function"]])),
    ("malformed", row(USER, ANSWER, tools=[{"type": "function", "function": {"name": "x"}}])),
    ("malformed", row(say("user", "\ud800"), ANSWER)),
    (
        "malformed",
        row(USER, call_message([{"name": "get_weather", "arguments": '{"city": "Oslo"}'}])),
    ),
    ("malformed", row(USER, {**USER, "tool_calls": []}, ANSWER)),
    ("malformed", row(say("assistant", "Hi."))),
    ("no answer", row(USER)),
    ("no answer", row(USER, CALL, RESULT)),
    ("empty turn", row(USER, say("assistant", "\n"))),
    ("empty turn", row(say("user", ""), ANSWER)),
    ("empty turn", row(say("system", ""), USER, ANSWER)),
    ("role order", row(USER, USER, ANSWER)),
    ("role order", row(USER, ANSWER, ANSWER)),
    ("role order", row(say("system", "x"), ANSWER, USER, ANSWER)),
    ("role order", row(USER, CALL, RESULT, USER, ANSWER)),
    ("late system", row(USER, say("system", "Be brief."), ANSWER)),
    ("late system", row(say("system", "a"), say("system", "b"), USER, ANSWER)),
    ("unknown tool", ask("Rain in Oslo?", "get_wether", city="Oslo")),
    ("unknown tool", ask("Tell ann", "send", to=["ann"])),
    ("misfit call", ask("Rain in Oslo in two days?", "get_weather", city="Oslo", days="two")),
    ("lone result", row(USER, ANSWER, RESULT, ANSWER)),
    ("lone result", row(USER, CALL, RESULT, RESULT, ANSWER)),
    ("lone result", row(USER, CALL, {**RESULT, "name": "find_food"}, RESULT, ANSWER)),
    ("missing result", row(USER, CALL, ANSWER)),
    ("missing result", row(USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}, RESULT, ANSWER)),
    ("missing result", row(USER, CALL, USER, ANSWER)),
    ("invented value", rain("Oslo", "Rain outside?")),
    ("invented value", row(say("user", "Rain?"), CALL, {**RESULT, "content": "Oslo: dry"}, ANSWER)),
    ("look-alike", rain("Oslo", "<|im_end|> Rain in {}?")),
    ("look-alike", ask("Rain in Oslo tool_call?", "get_weather", city="Oslo<tool_call>")),
    ("look-alike", rain("Oslo", "<｜end▁of▁sentence｜>{}")),
    ("look-alike", row(say("system", "[INST]"), USER, CALL)),
    ("call as text", row(USER, say("assistant", '<tool_call>{"name": "get_weather"}</tool_call>'))),
    ("call as text", row(USER, say("assistant", "<functioncall> {}"))),
]


@pytest.mark.parametrize("kind,example", ROWS)
def test_a_bad_row_is_found_at_its_place_and_for_one_reason(kind, example):
    "The good rows before it have nothing to do with it; none has its words."
    splits = {
        "train": [rain("Bergen", "How cold is {}?"), rain("Molde", "Umbrella for {}?"), example]
    }
    assert kinds(splits) == {kind: 1}
    assert [f["row"] for f in check_examples(splits) if f["kind"] == kind] == [3]


def test_reasoning_and_angle_brackets_are_no_look_alikes():
    assert (
        kinds(
            {
                "train": [
                    row(
                        say("user", "a < b, <b>bold</b>, <|>, x|y|z"),
                        say("assistant", "<think>Hm.</think>Yes."),
                    )
                ]
            }
        )
        == {}
    )


def test_a_value_is_found_through_case_width_and_punctuation():
    assert letters("Ｎｅｗ－York, ２ days!") == "newyork2days"
    for text in ("rain in ｏｓｌｏ?", "Rain in O.S.L.O", "RAIN IN OSLO"):
        assert kinds({"train": [ask(text, "get_weather", city="Oslo")]}) == {}
    assert kinds({"train": [ask("Food", "find_food", place="!?!", sort_by="price")]}) == {}, (
        "no letters, nothing to look up; an enum is no open value"
    )


NUMBERS = [
    (7, "in 7 days", True),
    (7, "in seven days", True),
    (7, "七天以后", True),
    (8, "in 7 days", False),
    (12, "二十一天", False),
    (21, "二十一天", True),
    (350, "三百五十", True),
    (1000, "1,000 of them", True),
    (1000, "1000.0", True),
    (10, "1,000 of them", True),
    (0.05, "at 5 %", True),
    (0.06, "at 5 %", False),
    (120, "two hours", True),
    (130, "two hours", False),
    (15, "at 3 pm", True),
    (2_500_000, "2.5 million", True),
    (-4, "minus 4", True),
    (2026, "on 2026-11-21", True),
    (1, "a lot", True),
    (0, "nothing", True),
    (5, "nothing", False),
    (10**400, "9" * 5000, True),
    (35, "３５", True),
]


@pytest.mark.parametrize("number,text,fine", NUMBERS)
def test_a_number_that_nobody_said_is_noted(number, text, fine):
    assert (
        "invented value"
        in kinds(
            {"train": [ask(f"Rain in Oslo, {text}?", "get_weather", city="Oslo", days=number)]}
        )
    ) is not fine


def test_numbers_of_choices_and_defaults_come_from_the_schema():
    tools, _ = clean_tools(
        [
            {
                "name": "t",
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "integer", "enum": [5, 6], "description": "d"},
                        "b": {"type": "number", "default": 9, "description": "d"},
                        "c": {"type": "array", "description": "d", "items": {"type": "integer"}},
                    },
                },
            }
        ]
    )
    assert kinds({"train": [ask("Go", "t", tools=tools, a=5, b=9)]}) == {} and kinds(
        {"train": [ask("Go to 3", "t", tools=tools, b=8, c=[3, 4])]}
    ) == {"invented value": 1}
    results = [
        say("user", "How far?"),
        call_message([{"name": "t", "arguments": {}}]),
        say("tool", '{"km": 42}', name="t"),
        call_message([{"name": "t", "arguments": {"c": [42]}}]),
    ]
    assert kinds({"train": [row(*results, tools=tools)]}) == {}, "a number from a result"


def test_right_data_of_others_is_left_alone(repository):
    "LLaMA-Factory's demo set, where it is: every number reported there is one that nobody said."
    from toolcall_ft.data.examples import read_examples

    examples, _ = read_examples(
        repository / "examples" / "logs.jsonl", read_tools(repository / "examples" / "tools.json")
    )
    assert not [f for f in check_examples({"train": examples}) if f["kind"] == "invented value"]
    demo = repository.parent / "shared" / "data" / "glaive_toolcall_en_demo.json"
    if demo.exists():
        numbers = [
            f
            for f in check_examples({"train": read_examples(demo)[0]})
            if f["kind"] == "invented value" and any(map(str.isdigit, f["text"].split(" for ")[0]))
        ]
        assert len(numbers) <= 8


def test_a_finding_says_where_its_row_stood_in_the_logs():
    sources = {("train", 1): "logs.jsonl, line 3", ("train", 2): "old.csv, line 9"}
    found = next(
        f
        for f in check_examples({"train": [rain("Oslo"), rain("Oslo")]}, sources=sources)
        if f["kind"] == "duplicate"
    )
    assert (
        found["row"] == 2
        and found["source"] == "old.csv, line 9"
        and "train, row 1 (logs.jsonl, line 3)" in found["text"]
    )
    assert "train, row 2 (old.csv, line 9)" in check_table(
        [found], {"train": [rain("Oslo"), rain("Oslo")]}
    )


def test_the_table_counts_as_the_findings_do():
    splits = {
        "train": [rain(city) for city in CITIES[:12]],
        "validation": [rain("Oslo")],
        "test": [rain("Rome"), rain("Molde")],
    }
    assert "| 3: validation 1, test 2 |" in check_table(check_examples(splits), splits)


def test_lengths():
    rows = [rain("Oslo"), rain("Bergen", "How cold is {}?"), rain("Molde", "Umbrella for {}?")]

    def count(example):
        if "Molde" in dump_json(example):
            raise UserError("refused")
        return len(example["messages"][0]["content"])

    splits = {"train": rows + [{"messages": 3}]}
    assert kinds(splits, count, 13) == {"malformed": 1, "not rendered": 1, "too long": 1}
    assert kinds(splits, count) == {"malformed": 1, "not rendered": 1}
    with pytest.raises(UserError, match="count_tokens"):
        check_examples(splits, max_length=13)


# --- Rows against rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second,expected",
    [
        (rain("Oslo"), "duplicate"),
        ({**rain("Oslo"), "tools": [FOOD, WEATHER]}, "duplicate"),
        (ask("Rain in Oslo?", "find_food", place="Oslo"), "contradiction"),
        (ask("Rain in Oslo?"), "contradiction"),
        (ask("Rain in Oslo?", "get_weather", city="Oslo", days=1), "contradiction"),
        (ask("rain, in ＯＳＬＯ", "get_weather", city="Oslo"), "near duplicate"),
        ({**rain("Oslo"), "tools": [WEATHER]}, "near duplicate"),
        (ask("Rain in Oslo?", "find_food", tools=[FOOD], place="Oslo"), None),
        (rain("Bergen"), None),
    ],
)
def test_two_rows_of_a_split(second, expected):
    first = rain("Oslo")
    assert kinds({"train": [first, second]}) == ({expected: 1} if expected else {})


def test_order_of_keys_and_of_parallel_calls_does_not_matter():
    one, two = (
        {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}},
        {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}},
    )
    turned = [
        {"arguments": dict(reversed(call["arguments"].items())), "name": call["name"]}
        for call in (two, one)
    ]
    asked = say("user", "Rain in Oslo and Rome in 2 days?")
    found = kinds(
        {"train": [row(asked, call_message([one, two])), row(asked, call_message(turned))]}
    )
    assert found == {"near duplicate": 1, "other form": 1}, "no contradiction"


def test_numbers_make_near_duplicates_and_two_wordings_no_contradiction():
    asked = [ask(f"Rain in Oslo in {n} days?", "get_weather", city="Oslo", days=n) for n in (3, 14)]
    greetings = [
        row(say("user", "Hello!"), say("assistant", text)) for text in ("Hi.", "Good morning.")
    ]
    assert kinds({"train": asked}) == {"near duplicate": 1} and kinds({"train": greetings}) == {
        "near duplicate": 1
    }


def test_all_contradictions_of_calls_are_those_of_the_data_module():
    rows = [
        rain("Oslo"),
        rain("Bergen"),
        ask("Rain in Oslo?", "find_food", place="Oslo"),
        ask("Rain in Bergen?"),
        rain("Molde"),
    ]
    found = [
        f["text"]
        for f in check_examples({"train": rows[:3], "test": rows[3:]})
        if f["kind"] == "contradiction"
    ]
    assert len(found) == len(contradictions(rows)) == 2 and "train, row 1" in found[0]


LEAKS = [
    ("leaked request", rain("Oslo")),
    ("leaked request", ask("Rain in Oslo?", "find_food", tools=[FOOD], place="Oslo")),
    ("leaked phrasing", rain("Bergen")),
    ("leaked phrasing", rain("Bergen", "ＲＡＩＮ in {}")),
    ("leaked value", rain("Oslo", "How cold is {}?")),
    ("leaked group", rain("Bergen", "How cold is {}?", group="a")),
    (None, rain("Bergen", "How cold is {}?", group="b")),
]


@pytest.mark.parametrize("kind,example", LEAKS)
def test_the_worst_leak_is_found_whatever_the_order_of_the_splits(kind, example):
    for splits in (
        {"train": [rain("Oslo", group="a")], "test": [example]},
        {"test": [example], "train": [rain("Oslo", group="a")]},
    ):
        found = [f for f in check_examples(splits) if f["kind"].startswith("leaked")]
        assert [(f["kind"], f["split"], f["row"]) for f in found] == (
            [(kind, "test", 1)] if kind else []
        )


def test_what_is_shared_on_purpose_is_no_surprise():
    "Where a split had to cut links, `split_rows` knows what is on both sides; a worse leak of such a row is still told."
    splits = {
        "train": [rain("Oslo", group="a")],
        "test": [
            rain("Oslo", "How cold is {}?"),
            rain("Oslo", "Fog in {}?", group="a"),
            rain("Bergen"),
        ],
    }
    told = lambda shared: [
        (f["kind"], f["severity"], f["row"])
        for f in check_examples(splits, shared=shared)
        if f["kind"].startswith(("leaked", "shared"))
    ]
    oslo, words = (
        {"kind": "value", "text": "Oslo"},
        {"kind": "phrasing", "text": phrasing(splits["train"][0])},
    )
    assert told([oslo]) == [
        ("leaked group", "error", 2),
        ("leaked phrasing", "warning", 3),
        ("shared on purpose", "note", 1),
    ]
    assert told([oslo, words]) == [
        ("leaked group", "error", 2),
        ("shared on purpose", "note", 1),
        ("shared on purpose", "note", 3),
    ]
    assert told([words]) == [
        ("leaked group", "error", 2),
        ("leaked value", "warning", 1),
        ("shared on purpose", "note", 3),
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Oslo", "Bergen", "Molde", "Rome"]),
            st.sampled_from(
                ["Rain in {}?", "rain in {}", "How cold is {}?", "{}: umbrella?", "Fog, {}"]
            ),
        ),
        min_size=2,
        max_size=12,
    ),
    st.data(),
)
def test_leaks_agree_with_the_measure_of_the_data_module(pairs, data):
    rows = [rain(*pair) for pair in pairs]
    cut = data.draw(st.integers(1, len(rows) - 1))
    splits = {"train": rows[:cut], "validation": [], "test": rows[cut:]}
    phrasings, values = (
        {key for example in rows[:cut] for key in of(example)}
        for of in (lambda e: [phrasing(e)], open_values)
    )
    expected = [
        row
        for row, example in enumerate(rows[cut:], 1)
        if phrasing(example) in phrasings or open_values(example) & values
    ]
    assert [
        f["row"]
        for f in sorted(check_examples(splits), key=lambda f: f["row"] or 0)
        if f["kind"].startswith("leaked")
    ] == expected
    assert bool(expected) == any(measure_leakage({**splits}).values())


# --- The set as a whole --------------------------------------------------------------------------------------------------

CITIES = [
    f"{a}{b}" for a in ("Nord", "Sud", "Ost") for b in ("heim", "hafen", "stadt", "berg", "tal")
]


def test_balance_of_tools():
    many = [rain(city) for city in CITIES]
    found = check_examples(
        {
            "train": many + [ask("Food in Rom", "find_food", place="Rom")],
            "test": [ask("Tell ann", "send", tools=(SEND,), to=["ann"])],
        }
    )
    texts = {f["kind"]: f["text"].split(":")[0] for f in found if f["row"] is None}
    assert (
        texts["dominant tool"] == "get_weather"
        and texts["rare tool"] == "find_food"
        and texts["untrained tool"] == "send"
    )
    assert {f["split"] for f in found if f["row"] is None} == {"train"}
    assert "uncalled tool" in {f["kind"] for f in check_examples({"train": many})}
    even = many[:ENOUGH] + [
        ask(f"Food in {city}", "find_food", place=city) for city in CITIES[:ENOUGH]
    ]
    assert not {f["kind"] for f in check_examples({"train": even})} & {
        "dominant tool",
        "rare tool",
        "uncalled tool",
        "untrained tool",
    }


def test_share_of_plain_answers_counts_rows_that_offer_tools():
    def warned(rows):
        return "few plain answers" in {f["kind"] for f in check_examples({"train": rows})}

    many = [rain(city) for city in CITIES]
    assert (
        warned(many)
        and warned(many + [ask("Thanks!", tools=())])
        and not warned(many + [ask("Thanks!")])
    )
    assert not warned([ask("Thanks!", tools=())])


def test_use_of_arguments():
    few = [ask(f"Tell ann {city}", "send", tools=(SEND,), to=["ann"]) for city in CITIES]
    texts = [
        f["text"]
        for f in check_examples({"train": few})
        if f["kind"] in ("argument use", "unseen choice")
    ]
    assert texts == [
        f"send.to is optional and always given ({len(CITIES)} calls)",
        'send.to is never "bob"',
    ]
    assert not [
        f
        for f in check_examples({"train": few[: ENOUGH - 1]})
        if f["kind"] in ("argument use", "unseen choice")
    ], "too few to say"
    texts = [
        f["text"]
        for f in check_examples({"train": [rain(city) for city in CITIES]})
        if f["kind"] == "argument use"
    ]
    assert texts == [f"get_weather.days is optional and never given ({len(CITIES)} calls)"]


def test_order_of_arguments():
    "A row whose arguments do not come in the order of the schema is not in the form of training; whoever reads logs with `read_examples` never meets it."

    def found(**arguments):
        return [
            f["text"]
            for f in check_examples({"train": [ask("Oslo, 2 days", "get_weather", **arguments)]})
            if f["kind"] == "other form"
        ]

    assert found(city="Oslo", days=2) == found(city="Oslo") == []
    assert found(days=2, city="Oslo") == [
        'a turn of the assistant: ["", {"days": 2, "city": "Oslo"}]'
    ]


def test_descriptions():
    silent = clean_tools(
        [
            {
                "name": "shout",
                "parameters": {
                    "text": {"type": "string"},
                    "loud": {"type": "boolean", "description": "How"},
                },
            }
        ]
    )[0]
    assert [
        f["text"]
        for f in check_examples({"train": [ask("Hi", tools=silent)] * 2})
        if f["kind"] == "no description"
    ] == ["shout: the tool, text"]


# --- Whatever comes ------------------------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        ["user", "assistant", "tool", "system", "get_weather", "<tool_call>", "\ud800"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "tools",
                    "group",
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "parameters",
                    "properties",
                    "type",
                    "enum",
                    "items",
                    "required",
                    "city",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.sampled_from(
    [
        USER,
        ANSWER,
        CALL,
        RESULT,
        say("system", "x"),
        say("user", ""),
        say("user", "!?"),
        {**CALL, "tool_calls": []},
        {**RESULT, "name": "nobody"},
    ]
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        ANY
        | st.builds(
            lambda messages, tools: {"messages": messages, "tools": tools},
            st.lists(MESSAGE | ANY, max_size=5),
            st.lists(st.sampled_from([WEATHER, FOOD, SEND]) | ANY, max_size=2),
        ),
        max_size=4,
    )
)
def test_any_rows_give_findings_that_can_be_written(rows):
    kept = repr(rows)
    findings = check_examples({"test": rows[1:], "train": rows[:1]}, lambda example: 7, 5)
    assert repr(rows) == kept, "checking changes nothing"
    assert json.loads(json.dumps(findings)) == findings and dump_json(findings).encode()
    assert all(
        set(f) == {"kind", "severity", "split", "row", "text"}
        and f["severity"] == KINDS[f["kind"]][0]
        and f["row"] in (None, 1, 2, 3)
        for f in findings
    )
    assert [list(SEVERITIES).index(f["severity"]) for f in findings] == sorted(
        list(SEVERITIES).index(f["severity"]) for f in findings
    )
    usable = {("test", i) if i else ("train", 1) for i in range(len(rows))} - {
        (f["split"], f["row"]) for f in findings if f["kind"] == "malformed"
    }
    assert {(f["split"], f["row"]) for f in findings if f["kind"] == "too long"} == usable, (
        "each row is checked or malformed"
    )
    table = check_table(findings, {"test": rows[1:], "train": rows[:1]})
    assert all(
        line.startswith("|") or not line or line == "Nothing was found."
        for line in table.split("\n")
    )


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab`|\\<>\n![](*_ ", max_size=60), st.integers(3, 80))
def test_no_text_leaves_its_cell(text, width):
    span = code_span(text, width)
    assert span[0] == span[-1] == "`" and "`" not in span[1:-1] and "\n" not in span
    assert "\\\\|" not in span and "|" not in span.replace("\\|", ""), (
        "a bare bar would end the cell"
    )


def test_the_work_grows_with_the_rows_and_not_with_their_square(monkeypatch):
    counted = Counter()
    names = ("digest", "letters", "phrasing", "open_values", "check_call")
    for module, name in product((checks, findings, heard), names):
        if not hasattr(module, name):
            continue

        def count(*arguments, name=name, function=getattr(module, name)):
            counted.update([name])
            return function(*arguments)

        monkeypatch.setattr(module, name, count)

    def work(n):
        counted.clear()
        check_examples(
            {
                "train": [rain(f"City{i}") for i in range(n)],
                "test": [rain(f"Town{i}") for i in range(n)],
            }
        )
        return dict(counted)

    small, large = work(40), work(160)
    assert set(small) == {
        "digest",
        "letters",
        "phrasing",
        "open_values",
        "check_call",
    } and large == {name: 4 * n for name, n in small.items()}


# --- Report and rule -----------------------------------------------------------------------------------------------------


def bad_splits():
    return {
        "train": [rain("Oslo"), rain("Oslo"), {"messages": 1}, ask("![x](http://x)|`<b>", "nope")],
        "test": [rain("Oslo")],
    }


def test_the_report_is_whole(tmp_path):
    splits = bad_splits()
    findings = check_examples(splits)
    written = write_report(tmp_path / "run", splits, findings)
    assert (
        sorted(path.name for path in (tmp_path / "run").iterdir())
        == ["checks.jsonl", "checks.md", "checks.png"]
        and len(written) == 3
    )
    assert read_jsonl(tmp_path / "run" / "checks.jsonl") == findings
    text = (tmp_path / "run" / "checks.md").read_text(encoding="utf-8")
    assert (
        all(kind in text for kind in {f["kind"] for f in findings})
        and "train, row 3" in text
        and "checks.png" in text
    )
    assert (tmp_path / "run" / "checks.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_report_has_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("toolcall_ft.data.charts.find_spec", lambda name: None)
    written = write_report(tmp_path, bad_splits(), check_examples(bad_splits()))
    assert [path.name for path in written] == [
        "checks.md",
        "checks.jsonl",
    ] and "checks.png" not in written[0].read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file", bad_splits(), [])
    with pytest.raises(UserError, match="cannot be written"):
        write_figure(tmp_path / "file" / "x.png", check_chart(bad_splits(), []))


@pytest.mark.parametrize(
    "splits",
    [
        {},
        {"train": []},
        {"train": [], "test": [{"messages": 3}]},
        {"only": [rain("Oslo")]},
        {
            "train": [
                ask("u", f"tool_{i}", tools=clean_tools([{"name": f"tool_{i}"}])[0])
                for i in range(40)
            ]
        },
    ],
)
def test_every_set_has_a_table_and_a_picture(splits, tmp_path):
    findings = check_examples(splits, lambda example: 5, 9)
    assert len(write_report(tmp_path, splits, findings, lambda example: 5, 9)) == 3
    assert (
        len(check_chart(splits, findings).axes) == 2
        and len(check_chart(splits, findings, lambda example: 5).axes) == 3
    )


def test_strict_stops_on_errors_only(tmp_path):
    findings = check_examples(bad_splits())
    with pytest.raises(UserError) as caught:
        strict_error(findings, tmp_path)
    errors = [f for f in findings if f["severity"] == "error"]
    assert (
        f"{len(errors)} errors" in str(caught.value)
        and "train, row 3" in str(caught.value)
        and str(tmp_path / "checks.md") in str(caught.value)
    )
    assert strict_error(
        [f for f in findings if f["severity"] != "error"], tmp_path
    ) is None and len(errors) < len(findings)


def test_the_demo_has_no_errors_and_no_warnings(repository):
    config = read_config(repository / "examples" / "config.yaml")
    examples, _ = read_logs(config["data"])
    splits = split_rows(
        examples, config["data"]["validation"], config["data"]["test"], config["seed"]
    )
    found = check_examples(splits)
    assert {f["severity"] for f in found} <= {"note"}
    spoiled = deepcopy(splits)
    spoiled["test"].append(spoiled["train"][0])
    assert {f["kind"] for f in check_examples(spoiled)} - {f["kind"] for f in found} == {
        "leaked request"
    }


def test_numbers_that_were_said_are_looked_up_and_not_tried_one_by_one():
    def plain(number, said):
        near = lambda other: abs(abs(number) - other) <= 1e-6 * max(abs(number), 1e-3)
        return any(
            near(one * scale) or near(one / scale) for one in said for scale in SCALES
        ) or any(one <= 12 and near(one + 12) for one in said)

    chance = random.Random(0)
    for _ in range(3000):
        said = sorted(
            {
                float(
                    chance.choice(
                        [chance.randrange(30), chance.randrange(10_000), round(chance.random(), 2)]
                    )
                )
                for _ in range(chance.randrange(6))
            }
        )
        number = chance.choice(
            [
                chance.randrange(-30, 30),
                chance.randrange(100_000),
                round(chance.random() * 20, 2),
                *[one * 60 for one in said],
                *[one + 12 for one in said],
                *[one / 100 for one in said],
            ]
        )
        assert is_said(number, said) == plain(number, said), (number, said)


def test_a_long_conversation_full_of_numbers_takes_no_time():
    tools, _ = clean_tools(
        [
            {
                "name": "t",
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {"n": {"type": "number", "description": "d"}},
                },
            }
        ]
    )
    turns = [
        turn
        for i in range(80)
        for turn in (
            say("user", " ".join(str(1000 + 7 * (100 * i + j)) for j in range(100))),
            call_message([{"name": "t", "arguments": {"n": 0.123456 + i}}]),
            say("tool", "ok", name="t"),
            say("assistant", "Done."),
        )
    ]
    started = time.perf_counter()
    assert len(list(invented_values(row(*turns, tools=tools)))) == 1
    assert time.perf_counter() - started < 1


def test_tools_whose_names_begin_alike_stay_two_in_the_picture():
    names = [f"search_the_catalogue_of_the_{place}" for place in ("library", "museum")]
    tools, _ = clean_tools([{"name": name, "description": "d", "parameters": {}} for name in names])
    splits = {"train": [ask(f"Look {i}", names[i % 2], tools=tools) for i in range(6)]}
    axes = check_chart(splits, []).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (
        len(labels) == 3
        and all(len(label) <= 28 for label in labels)
        and len(axes.collections[1].get_offsets()) == 3
    )


def test_a_number_that_nobody_can_write_makes_a_row_malformed():
    tools, _ = clean_tools(
        [{"name": "go", "parameters": {"type": "object", "properties": {"x": {}}}}]
    )
    row = {
        "messages": [
            {"role": "user", "content": "u"},
            call_message([{"name": "go", "arguments": {"x": 10**5000}}]),
        ],
        "tools": tools,
    }
    assert [
        (found["kind"], "a number is too large" in found["text"])
        for found in check_examples({"train": [row]})
    ][0] == ("malformed", True)


def test_a_row_in_another_form_than_servers_get_is_told():
    tools, _ = clean_tools(
        [{"name": "go", "parameters": {"type": "object", "properties": {"x": {}}}}]
    )
    row = lambda content, value: {
        "messages": [
            {"role": "user", "content": "u"},
            {**call_message([{"name": "go", "arguments": {"x": value}}]), "content": content},
        ],
        "tools": tools,
    }
    told = lambda content, value: [
        found["kind"] for found in check_examples({"train": [row(content, value)]})
    ].count("other form")
    assert [told("", value) for value in (2**53 - 1, 10**18, 0.5, {"a": 1, "b": 2}, "2")] == [0] * 5
    assert [
        told("", value) for value in (2**53 + 1, 2**63, 0.1 + 0.2, 1.0, {"b": 1, "a": 2}, "e\u0301")
    ] == [1] * 6 and told(" a", 1) == 1
