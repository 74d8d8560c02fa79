"""Rows made from schemas: valid, readable, distinct and repeatable, whatever the schema; and a model's words, whatever the server does."""

import hashlib
import ipaddress
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.data.examples import read_examples
from toolcall_ft.data.phrases import label_of, leaves, task_of
from toolcall_ft.data.rewrite import (
    certain,
    read_texts,
    rejection,
    spoken_values,
    synthesise_with,
    turns_to_phrase,
)
from toolcall_ft.data.sample import SHAPES, match_pattern
from toolcall_ft.data.synthetic import ROWS, make_kit, row_kind, synthesise, unsaid
from toolcall_ft.data.words import word_lists
from toolcall_ft.tools.check import check_call
from toolcall_ft.tools.load import read_tools

EXAMPLES = Path(__file__).parent.parent / "examples"


def tool(name, properties=None, required=None, description="", **more):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties or {},
                **({"required": required} if required else {}),
                **more,
            },
        },
    }


TEXT, DESK = (
    {"type": "string"},
    tool(
        "find_person",
        {"name": {"type": "string", "description": "Full name"}},
        ["name"],
        "Look up where a colleague sits.",
    ),
)
BOOK = tool(
    "book_room",
    {
        "room": {"type": "string", "pattern": "^[A-D]\\d{2}$"},
        "day": {"type": "string", "format": "date"},
        "people": {"type": "integer", "minimum": 2, "maximum": 20},
        "catering": {"type": "boolean"},
    },
    ["room", "day"],
    "Book a meeting room.",
)
ORDER = tool(
    "createOrder",
    {
        "lines": {
            "type": "array",
            "minItems": 2,
            "uniqueItems": True,
            "items": {"$ref": "#/$defs/Line"},
        },
        "ship": {"enum": ["standard", "next_day"]},
        "note": {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}]},
        "confirm": {"const": True},
    },
    ["lines", "confirm"],
    "Places an order",
    **{
        "$defs": {
            "Line": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
                    "quantity": {"type": "integer", "multipleOf": 5},
                },
                "required": ["sku", "quantity"],
            }
        }
    },
)
TOOLS = [DESK, BOOK, ORDER]


def calls_of(row):
    return [
        made["function"] for message in row["messages"] for made in message.get("tool_calls", [])
    ]


def check_rows(rows, pools=None):
    "What every row must be, whatever it was made from."
    for row in rows:
        assert (
            list(row) == ["messages", "tools"]
            and row["messages"][0]["role"] == "user"
            and row["messages"][-1]["role"] == "assistant"
        )
        assert all(isinstance(message["content"], str) for message in row["messages"])
        assert not [problem for call in calls_of(row) for problem in check_call(call, row["tools"])]
        assert not unsaid(row, pools), row
        names = [offered["function"]["name"] for offered in row["tools"]]
        assert names and len(names) == len(set(names))
        expected = [
            call["name"]
            for message in row["messages"]
            for call in (made["function"] for made in message.get("tool_calls", []))
        ]
        assert all(
            message["name"] in expected for message in row["messages"] if message["role"] == "tool"
        )
    turns = [
        tuple(message["content"] for message in row["messages"] if message["role"] == "user")
        for row in rows
    ]
    assert len(set(turns)) == len(turns)


# --- Rows ----------------------------------------------------------------------------------------------------------------


def test_rows_of_tools_with_everything():
    rows = synthesise(TOOLS, 600, seed=3)
    check_rows(rows)
    assert Counter(map(row_kind, rows)) == {
        "call": 240,
        "parallel": 72,
        "missing": 84,
        "refusal": 72,
        "answer": 84,
        "error": 48,
    }
    assert all(
        call["arguments"]["confirm"] is True
        for row in rows
        for call in calls_of(row)
        if call["name"] == "createOrder"
    )


def test_the_demos_tools_in_chinese():
    rows = synthesise(read_tools(EXAMPLES / "tools.json"), 500)
    check_rows(rows)
    assert all(re.search("[\u4e00-\u9fff]", row["messages"][0]["content"]) for row in rows)
    refused = [row for row in rows if row_kind(row) == "refusal"]
    assert refused and not any("回答其他问题" in dump_json(row["tools"]) for row in refused), (
        "the tool for everything else would have served"
    )


def test_the_rows_are_examples_that_read_examples_takes(tmp_path):
    rows = synthesise(TOOLS, 80)
    (tmp_path / "rows.jsonl").write_text(
        "".join(dump_json(row) + "\n" for row in rows), encoding="utf-8"
    )
    examples, errors = read_examples(tmp_path / "rows.jsonl")
    assert examples == rows and not errors


def test_the_same_rows_in_another_process():
    code = (
        "import hashlib, json, sys\nfrom toolcall_ft.data.synthetic import synthesise\n"
        "print(hashlib.sha256(json.dumps(synthesise(json.loads(sys.argv[1]), 120, seed=7)).encode()).hexdigest())"
    )
    here = hashlib.sha256(json.dumps(synthesise(TOOLS, 120, seed=7)).encode()).hexdigest()
    for seed in ("1", "2"):
        finished = subprocess.run(
            [sys.executable, "-c", code, json.dumps(TOOLS)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert finished.stdout.strip() == here
    assert synthesise(TOOLS, 120, seed=8) != synthesise(TOOLS, 120, seed=7)


def test_the_tools_are_left_as_they_were_and_rows_share_no_values():
    before = json.dumps(TOOLS)
    rows = synthesise(
        TOOLS,
        50,
        pools={
            "createOrder.lines": [
                [{"sku": "ABC-1234", "quantity": 5}, {"sku": "ABC-1235", "quantity": 10}]
            ]
        },
    )
    lines = [
        call["arguments"]["lines"]
        for row in rows
        for call in calls_of(row)
        if call["name"] == "createOrder"
    ]
    lines[0].clear()
    assert all(lines[1:]) and json.dumps(TOOLS) == before


@pytest.mark.parametrize("kind", ROWS)
def test_each_kind_alone(kind):
    rows = synthesise(TOOLS, 60, shares={kind: 1})
    check_rows(rows)
    assert {row_kind(row) for row in rows} == {kind}


def test_shares_are_exact_for_any_count():
    for count in range(1, 60, 7):
        assert (
            len(synthesise(TOOLS, count, shares={"call": 0.7, "parallel": 1, "error": 0})) == count
        )


def test_what_each_kind_looks_like():
    rows = {kind: synthesise(TOOLS, 80, shares={kind: 1}) for kind in ROWS}
    for row in rows["missing"]:
        first, question, reply, call = row["messages"]
        values = [value for where, value in leaves(calls_of(row)[0]["arguments"], ("x",))]
        assert (
            question["role"] == "assistant"
            and not question.get("tool_calls")
            and any(str(value) in reply["content"] for value in values)
        )
    assert all(not calls_of(row) and row["tools"] for row in rows["refusal"])
    assert {len(calls_of(row)) for row in rows["parallel"]} == {2, 3}
    assert any(len(calls_of(row)) > 1 for row in rows["answer"])
    for row in rows["answer"]:
        for message in row["messages"]:
            if message["role"] == "tool":
                assert all(
                    str(value) in row["messages"][-1]["content"]
                    for value in json.loads(message["content"]).values()
                )
    shapes = Counter(
        (len(calls_of(row)), len({dump_json(call) for call in calls_of(row)}))
        for row in rows["error"]
    )
    assert set(shapes) == {(1, 1), (2, 1), (2, 2)}, (
        "an apology, the same call again, a corrected call"
    )


def test_other_tools_are_offered_in_any_place_and_eight_at_most():
    many = [
        tool(f"tool_{word}", {"value": TEXT}, ["value"], f"Handle the {word}")
        for word in "apple bread chair door eagle flute grape horse igloo juice kite lemon".split()
    ]
    rows = synthesise(many, 300, shares={"call": 1})
    places = Counter(
        [offered["function"]["name"] for offered in row["tools"]].index(calls_of(row)[0]["name"])
        for row in rows
    )
    assert {len(row["tools"]) for row in rows} == set(range(1, 9)) and set(places) == set(range(8))


def test_a_refused_request_is_for_no_offered_tool():
    twins = [
        tool("find_flight", {"to": TEXT}, ["to"], "Find a flight"),
        tool("flight_search", {"to": TEXT}, ["to"], "Search flights"),
        tool("cook", {"dish": TEXT}, ["dish"], "Cook dinner"),
    ]
    for row in synthesise(twins, 100, shares={"refusal": 1}):
        if "light" in row["messages"][0]["content"]:
            assert [offered["function"]["name"] for offered in row["tools"]] == ["cook"]


def test_tools_without_arguments_and_one_tool_alone():
    rows = synthesise([tool("ping", description="Check the service")], 40)
    check_rows(rows)
    assert "missing" not in set(map(row_kind, rows))
    check_rows(synthesise([DESK], 100))


# --- Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, good",
    [
        ("date", date.fromisoformat),
        ("date-time", lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo),
        ("time", lambda text: re.fullmatch(r"\d\d:\d\d:\d\dZ", text)),
        ("duration", lambda text: re.fullmatch(r"P(\d+[DW]|T\d+[HM])", text)),
        ("email", lambda text: re.fullmatch(r"[a-z]+\.[a-z]+@example\.(com|org|net)", text)),
        ("hostname", lambda text: re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)+", text)),
        (
            "uri",
            lambda text: (
                urlsplit(text).scheme == "https" and urlsplit(text).netloc and " " not in text
            ),
        ),
        ("ipv4", ipaddress.IPv4Address),
        ("ipv6", ipaddress.IPv6Address),
        ("uuid", UUID),
    ],
)
def test_formats(shape, good):
    assert set(SHAPES) == {
        "date",
        "date-time",
        "time",
        "duration",
        "email",
        "hostname",
        "uri",
        "ipv4",
        "ipv6",
        "uuid",
    }
    assert all(good(SHAPES[shape](Random(seed))) for seed in range(200))
    rows = synthesise(
        [tool("t", {"value": {"type": "string", "format": shape}}, ["value"])],
        40,
        shares={"call": 1},
    )
    check_rows(rows)
    assert all(good(call["arguments"]["value"]) for row in rows for call in calls_of(row))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "maximum": 3},
        {"type": "integer", "multipleOf": 250, "minimum": 1},
        {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7},
        {"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.25},
        {"type": "number", "maximum": -10},
        {"minimum": 10**15},
        {"type": "string", "minLength": 90},
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^(red|green)-[0-9a-f]{4,8}$"},
        {"type": "string", "pattern": "^[A-Z]{3}$", "description": "The currency"},
        {"type": "string", "enum": ["a_b", "c d"]},
        {"enum": [1, 2.5, "three", None]},
        {"type": ["string", "null"]},
        {"type": ["integer", "boolean"]},
        {"anyOf": [{"type": "integer"}, {"type": "string", "format": "email"}]},
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": "a"}, "size": {"type": "integer"}},
                    "required": ["kind", "size"],
                },
                {
                    "type": "object",
                    "properties": {"kind": {"const": "b"}, "name": TEXT},
                    "required": ["kind", "name"],
                },
            ]
        },
        {"type": "array"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 5},
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "uniqueItems": True},
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 4},
        {
            "type": "array",
            "prefixItems": [{"type": "number"}, {"enum": ["km", "mi"]}],
            "items": False,
            "minItems": 2,
        },
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"allOf": [{"type": "string"}, {"minLength": 20}]},
        {},
        {"type": "string", "examples": ["Oslo"]},
        {
            "type": "object",
            "properties": {
                "a": {
                    "type": "object",
                    "properties": {
                        "b": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {"c": TEXT},
                                "required": ["c"],
                            },
                        }
                    },
                    "required": ["b"],
                }
            },
            "required": ["a"],
        },
        {"type": "integer", "not": {"multipleOf": 2}},
    ],
    ids=lambda schema: dump_json(schema)[:60],
)
def test_a_value_for_every_schema(schema):
    rows = synthesise(
        [tool("t", {"value": schema, "other": {"type": "integer"}}, ["value"])],
        40,
        shares={"call": 1, "parallel": 1, "error": 1},
    )
    check_rows(rows)


def test_a_schema_that_contains_itself():
    node = {
        "type": "object",
        "properties": {
            "name": TEXT,
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        },
        "required": ["name"],
    }
    check_rows(
        synthesise(
            [
                tool(
                    "tree",
                    {"root": {"$ref": "#/$defs/Node"}},
                    ["root"],
                    **{"$defs": {"Node": node}},
                )
            ],
            40,
        )
    )
    endless = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/Node"}},
        "required": ["next"],
    }
    with pytest.raises(UserError, match="pools"):
        synthesise(
            [
                tool(
                    "tree",
                    {"root": {"$ref": "#/$defs/Node"}},
                    ["root"],
                    **{"$defs": {"Node": endless}},
                )
            ],
            4,
        )


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "^(?=.*1)\\d+$"},
        {"type": "string", "pattern": r"^(a)\1$"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "minimum": 2, "maximum": 3, "not": {"minimum": 1}},
        {"type": "array", "items": {"enum": ["x"]}, "minItems": 3, "uniqueItems": True},
    ],
)
def test_where_no_value_can_be_found_the_argument_is_named(value):
    with pytest.raises(UserError, match=r"\bt\.value\b.*pools"):
        synthesise([tool("t", {"value": value}, ["value"])], 3)


def test_a_tree_comes_to_an_end():
    node = {
        "type": "object",
        "properties": {
            "name": TEXT,
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        },
        "required": ["name", "children"],
    }
    rows = synthesise(
        [tool("tree", {"root": {"$ref": "#/$defs/Node"}}, ["root"], **{"$defs": {"Node": node}})],
        20,
        shares={"call": 1},
    )
    check_rows(rows)
    assert all(call["arguments"]["root"]["children"] for row in rows for call in calls_of(row)), (
        "it ends, but not at once"
    )
    lines = {"type": "array", "items": TEXT}
    for name in ("address", "customer", "order", "shop"):
        lines = {
            "type": "object",
            "properties": {name if name != "address" else "lines": lines},
            "required": [name if name != "address" else "lines"],
        }
    rows = synthesise([tool("ship", {"parcel": lines}, ["parcel"])], 5, shares={"call": 1})
    assert all(
        call["arguments"]["parcel"]["shop"]["order"]["customer"]["lines"]
        for row in rows
        for call in calls_of(row)
    ), "depth alone empties no list"


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "minLength": 3_000_000},
        {"type": "string", "pattern": "^(a{2000}){2000}$"},
        {"type": "string", "pattern": "^((b{2000}){2000}){2000}$"},
        {"type": "string", "pattern": "^(){1000000000}$"},
        {"type": "string", "pattern": "^(a{100}b?){101,}$"},
        {"type": "array", "items": TEXT, "minItems": 1_000_000_000},
    ],
)
def test_values_that_are_too_long_are_refused_soon(value):
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"\bt\.value\b.*more than 10,000.*pools"):
        synthesise([tool("t", {"value": value}, ["value"])], 3)
    assert time.perf_counter() - started < 10
    if value["type"] == "string" and "minLength" in value:
        assert (
            len(
                synthesise(
                    [tool("t", {"value": {"type": "string", "minLength": 9_000}}, ["value"])], 2
                )
            )
            == 2
        )


def test_a_pool_helps_where_the_pattern_is_too_hard():
    hard = tool(
        "pay",
        {"card": {"type": "string", "pattern": "^(?=.*7)\\d{4}$"}, "amount": {"type": "integer"}},
        ["card", "amount"],
    )
    rows = synthesise([hard], 30, pools={"card": ["1237", "7000"]}, shares={"call": 1})
    check_rows(rows)
    assert {call["arguments"]["card"] for row in rows for call in calls_of(row)} == {"1237", "7000"}
    with pytest.raises(UserError, match="does not fit pay.card"):
        synthesise([hard], 3, pools={"card": ["1111"]})


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"\A(\^?([a-c]|\[A-F0-9_\]|\\d|\\w|\(x\|yz\)|\.)(\{1,3\}|\+|\?|\*)?){1,5}\$?\Z"),
    st.integers(0, 9),
)
def test_a_match_matches(pattern, seed):
    try:
        assert re.search(pattern, match_pattern(pattern, Random(seed)))
    except ValueError:
        assert re.search(r".\^", pattern), "only an anchor in the middle has no match"


LEAF = st.one_of(
    st.just({"type": "string"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-50, 50),
        st.integers(0, 9),
    ),
    st.just({"type": "boolean"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text("abc xyz", min_size=1, max_size=6), min_size=1, max_size=3, unique=True),
    ),
    st.sampled_from([{"type": "string", "format": shape} for shape in SHAPES]),
    st.builds(
        lambda step: {"type": "number", "multipleOf": step}, st.sampled_from([0.1, 0.25, 3, 7.5])
    ),
    st.sampled_from(
        [
            {},
            {"type": "null"},
            {"const": 4},
            {"type": "string", "minLength": 30},
            {"type": "string", "maxLength": 1},
            {"type": ["number", "null"]},
        ]
    ),
)
SCHEMA = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 3),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(
            lambda fields, needed: {
                "type": "object",
                "properties": fields,
                "required": [name for name in fields if name in needed],
            },
            st.dictionaries(st.sampled_from(["name", "city", "size", "内容"]), inner, max_size=3),
            st.sets(st.sampled_from(["name", "city"])),
        ),
    ),
    max_leaves=6,
)


@st.composite
def tools_and_seeds(draw):
    "Any fields, some of them required; a description; a seed."
    fields = draw(
        st.dictionaries(
            st.sampled_from(["query", "when", "to", "amount", "options", "标题"]),
            SCHEMA,
            max_size=4,
        )
    )
    required = draw(st.lists(st.sampled_from(sorted(fields)), unique=True)) if fields else []
    return (
        fields,
        required,
        draw(
            st.sampled_from(
                ["", "Finds a {thing}. Then more.", "查询资料。", "a" * 200, "Sends it"]
            )
        ),
        draw(st.integers(0, 3)),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tools_and_seeds())
@example(
    ({"query": {"enum": ["a"]}}, ["query"], "", 0)
)  # nobody says the only permitted value, and few sentences hold an "a" by chance
@example(({"query": {"const": {"name": "x", "size": [1, 2]}}}, ["query"], "", 0))
def test_any_tool_gives_good_rows_or_a_user_error(case):
    fields, required, description, seed = case
    try:
        rows = synthesise([tool("t", fields, required, description), DESK], 12, seed=seed)
    except UserError as error:
        assert re.search("pools|draws", str(error))
        return
    check_rows(rows)


def test_a_value_without_an_alternative_needs_no_words_and_any_other_does():
    kinds = {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
            for kind in ("van", "bus")
        ]
    }
    hire = tool(
        "hire",
        {"unit": {"enum": ["day"]}, "what": kinds, "days": {"type": "integer"}},
        ["unit", "what", "days"],
    )
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {
                    "name": "hire",
                    "arguments": {"unit": "day", "what": {"kind": "bus"}, "days": 3},
                },
            }
        ],
    }
    row = lambda text: {"messages": [{"role": "user", "content": text}, call], "tools": [hire]}
    assert unsaid(row("a bus, 3 please")) == []
    assert unsaid(row("something with wheels, 3 please")) == [
        'hire.what.kind: "bus" stands nowhere before the call'
    ], "one of two is a choice"
    check_rows(
        synthesise([hire], 30, pools={"unit": {"day": ["by the day"]}}),
        {"unit": {"day": ["by the day"]}},
    )


def test_lists_within_lists_of_one_value_take_no_time():
    inner = {"const": 4}
    for _ in range(4):
        inner = {"type": "array", "items": inner, "minItems": 3}
    check_rows(
        synthesise([tool("t", {"options": inner, "city": TEXT}, ["options", "city"]), DESK], 12)
    )


# --- The user's own words ------------------------------------------------------------------------------------------------


def test_pools_by_the_longest_name_and_inside_objects_and_lists():
    tools = [
        tool("a", {"city": TEXT, "stops": {"type": "array", "items": TEXT}}, ["city", "stops"]),
        tool(
            "b",
            {
                "city": TEXT,
                "address": {"type": "object", "properties": {"city": TEXT}, "required": ["city"]},
            },
            ["city", "address"],
        ),
    ]
    rows = synthesise(
        tools,
        60,
        pools={
            "city": ["Ghent"],
            "b.city": ["Turin"],
            "b.address.city": ["Lyon"],
            "stops": ["Graz", "Linz", "Wels"],
        },
        shares={"call": 1},
    )
    check_rows(rows)
    for call in (call for row in rows for call in calls_of(row)):
        if call["name"] == "a":
            assert call["arguments"]["city"] == "Ghent" and set(call["arguments"]["stops"]) <= {
                "Graz",
                "Linz",
                "Wels",
            }
        else:
            assert call["arguments"] == {"city": "Turin", "address": {"city": "Lyon"}}


def test_a_table_says_how_people_say_a_value():
    sort = tool(
        "search",
        {"place": TEXT, "sort": {"enum": ["price", "rating"]}, "open": {"type": "boolean"}},
        ["place", "sort", "open"],
    )
    pools = {
        "sort": {"price": ["cheap", "low-priced"], "rating": "well liked"},
        "open": {True: ["open now"], False: ["at any time"]},
    }
    rows = synthesise(
        [sort],
        60,
        pools=pools,
        phrasings={"search": ["Find a {sort} place in {place}, {open}"]},
        shares={"call": 1},
    )
    check_rows(rows, pools)
    for row in rows:
        text, arguments = row["messages"][0]["content"], calls_of(row)[0]["arguments"]
        assert ("well liked" in text) == (arguments["sort"] == "rating") and (
            "open now" in text
        ) == arguments["open"]


def test_phrasings_that_leave_out_something_open_a_dialogue():
    phrasings = {
        "book_room": [
            "Book {room} on {day}",
            "Book a room for {people}",
            "{room}, {day}, lunch: {catering}",
        ],
        "(none)": ["What is for lunch?"] + [f"Who is number {n}?" for n in range(30)],
    }
    rows = synthesise(
        [BOOK], 90, phrasings=phrasings, shares={"call": 1, "missing": 1, "refusal": 0.3}
    )
    check_rows(rows)
    for row in rows:
        text = row["messages"][0]["content"]
        assert text.startswith("Book a room for") == (row_kind(row) == "missing") and (
            text in phrasings["(none)"]
        ) == (row_kind(row) == "refusal")
        if row_kind(row) == "call":
            assert ("people" in calls_of(row)[0]["arguments"]) is False
        if text.startswith("Book a room for"):
            assert {"room", "day", "people"} == set(calls_of(row)[0]["arguments"])


def test_a_value_that_looks_like_a_field_is_not_filled_again():
    rows = synthesise(
        [DESK],
        4,
        pools={"name": ["{name}", "{x} \\1", "{}", "a{name}b"]},
        phrasings={"find_person": ["Where is {name}?"]},
        shares={"call": 1},
    )
    check_rows(rows)
    assert {row["messages"][0]["content"] for row in rows} == {
        "Where is {name}?",
        "Where is {x} \\1?",
        "Where is {}?",
        "Where is a{name}b?",
    }


@pytest.mark.parametrize(
    "settings_, words",
    [
        ({"count": 0}, "count"),
        ({"count": True}, "count"),
        ({"count": 2.0}, "count"),
        ({"shares": {"cal": 1}}, "'call'"),
        ({"shares": {"call": -1}}, "'call'"),
        ({"shares": {"call": float("nan")}}, "'call'"),
        ({"shares": {}}, "zero"),
        ({"shares": {"call": 0}}, "zero"),
        ({"languages": ()}, "languages"),
        ({"languages": ["de"]}, "'de'"),
        ({"tools": []}, "no tools"),
        ({"pools": {"nam": ["x"]}}, "'name'"),
        ({"pools": {"name": []}}, "'name'"),
        ({"pools": {"name": "Anna"}}, "list"),
        ({"pools": {"name": [3]}}, "does not fit find_person.name"),
        ({"pools": {"name": [""]}}, "empty"),
        ({"pools": {"people": [3, 99]}}, "book_room.people"),
        ({"pools": {"lines": [[1]]}}, "createOrder.lines"),
        ({"phrasings": {"find_persn": ["x"]}}, "'find_person'"),
        ({"phrasings": {"find_person": []}}, "list"),
        ({"phrasings": {"find_person": "Where is {name}?"}}, "list"),
        ({"phrasings": {"find_person": ["{nme}?"]}}, "'name'"),
        ({"phrasings": {"(none)": ["{name}"]}}, "no argument"),
        ({"tools": [tool("ping")], "shares": {"missing": 1}}, "'missing'"),
        (
            {"tools": [tool("t", description="Anything else")], "shares": {"refusal": 1}},
            "'refusal'",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_named(settings_, words):
    arguments = {"tools": TOOLS, "count": 5, **settings_}
    with pytest.raises(UserError, match=re.escape(words)):
        synthesise(**arguments)


def test_a_space_that_is_too_small_is_said():
    fixed = {"find_person": ["Where is {name}?"]}
    assert (
        len(
            synthesise(
                [DESK], 2, pools={"name": ["Anna", "Tom"]}, phrasings=fixed, shares={"call": 1}
            )
        )
        == 2
    )
    with pytest.raises(UserError, match=r"after 2 row\(s\).*'call'"):
        synthesise([DESK], 3, pools={"name": ["Anna", "Tom"]}, phrasings=fixed, shares={"call": 1})


def test_languages():
    assert all(
        row["messages"][0]["content"].isascii() for row in synthesise(TOOLS, 60, languages="en")
    )
    chinese = synthesise([DESK], 60, languages=["zh"], shares={"call": 1})
    check_rows(chinese)
    assert all(re.search("[\u4e00-\u9fff]", row["messages"][0]["content"]) for row in chinese)


@pytest.mark.parametrize(
    "description, task",
    [
        ("This function returns the names of all users.", "return the names of all users"),
        ("Function to retrieve prime factors of a number", "retrieve prime factors of a number"),
        ("Finds a flight. Then more.", "find a flight"),
        ("查询天气。", "查询天气"),
        ("", "t"),
        (
            "Calculate the return on investment for a given deposit amount, annual interest rate, and number of years",
            "calculate the return on investment for a given deposit amount, annual interest rate",
        ),
        (
            "Fetch the current weather information for a specified location using the OpenWeatherMap API of 2019",
            "fetch the current weather information for a specified location",
        ),
        ("a" * 200, "a" * 90),
    ],
)
def test_a_description_becomes_a_task(description, task):
    assert task_of(tool("t", {}, [], description)["function"]) == task


def test_the_words_of_a_label_and_of_the_second_request():
    weather = tool(
        "weather",
        {
            "location": {**TEXT, "description": "The city and state, e.g. San Francisco, CA"},
            "metric": {"type": "boolean", "description": "Whether metric"},
        },
        ["location", "metric"],
        "Get the weather",
    )
    kit = make_kit([weather])
    assert {label_of(kit, weather["function"], "location") for _ in range(40)} == {
        "location",
        "city and state",
    } and {label_of(kit, weather["function"], "metric") for _ in range(40)} == {"metric"}
    openings = [text for text in word_lists()["openings"]["en"][0].split("|") if text]
    for row in synthesise([weather], 60, shares={"parallel": 1}, languages="en"):
        text = row["messages"][0]["content"]
        assert sum(text.count(opening) for opening in openings) <= 1, "one greeting is enough"


def test_every_list_of_words_is_there_in_both_languages():
    words = word_lists()
    for entry in words["values"].values():
        assert set(entry) == {"hints", "en", "zh"} and entry["en"] and entry["zh"]
    for name, entry in words.items():
        if name not in ("values", "errors"):
            assert set(entry) == {"en", "zh"}, name
    assert [key for key, *_ in words["results"]["en"]] == [
        key for key, *_ in words["results"]["zh"]
    ]


def test_unsaid_finds_what_was_made_up():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {
                    "name": "book_room",
                    "arguments": {
                        "room": "A12",
                        "day": "2026-01-05",
                        "people": 12,
                        "catering": True,
                    },
                },
            }
        ],
    }
    row = lambda text: {"messages": [{"role": "user", "content": text}, call], "tools": [BOOK]}
    assert unsaid(row("Room A12 on 2026-01-05 for 12 of us")) == []
    assert (
        len(unsaid(row("Room A12 on 2026-01-05 for 120 of us"))) == 1
        and len(unsaid(row("Room A12 on 2026-01-05 for 1.12 of us"))) == 1
        and len(unsaid(row("a room"))) == 3
    )
    assert unsaid(row("A12, 2026-01-05, 12 people"), {"catering": {True: ["with lunch"]}}) == [
        "book_room.catering: true stands nowhere before the call"
    ]


# --- A model's words -----------------------------------------------------------------------------------------------------


class Script(ThreadingHTTPServer):
    "A server on 127.0.0.1 whose replies a function decides: (number, texts, messages) -> text, (status, body) or bytes."

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.count, self.lock, self.keys = reply, 0, threading.Lock(), []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.count += 1
            number = self.server.count
            self.server.keys.append(self.headers["Authorization"])
        assert self.path == "/v1/chat/completions" and asked["model"] == "m"
        made = self.server.reply(
            number,
            json.loads(asked["messages"][1]["content"].rpartition("\n")[2]),
            asked["messages"],
        )
        if isinstance(made, str):
            made = (
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": made},
                        }
                    ],
                },
            )
        body = made if isinstance(made, bytes) else json.dumps(made[1]).encode()
        self.send_response(made[0] if isinstance(made, tuple) else 200)
        self.send_header(
            "Content-Type", "text/html" if isinstance(made, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass  # the client has left

    def log_message(self, *_):
        pass


@contextmanager
def served(reply):
    server = Script(reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def good(number, texts, messages):
    return json.dumps([f"well, {text}" for text in texts], ensure_ascii=False)


def ask(server, path, count=12, **more):
    return synthesise_with(
        server.url,
        "m",
        more.pop("tools", TOOLS),
        count,
        path,
        progress=False,
        **{"timeout": 20, **more},
    )


def test_a_model_writes_the_words_and_never_the_label(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    plain = synthesise(TOOLS, 30, seed=4)
    with served(good) as server:
        examples, errors = ask(server, tmp_path / "new" / "rows.jsonl", 30, seed=4, api_key=None)
    assert not errors and server.count == 30 and set(server.keys) == {"Bearer none"}, (
        "no key of the environment goes to a server that it is not for"
    )
    check_rows(examples)
    for before, after in zip(plain, examples):
        assert before["tools"] == after["tools"] and calls_of(before) == calls_of(after)
        for old, new in zip(before["messages"], after["messages"]):
            assert new == (
                {**old, "content": f"well, {old['content']}"} if old["role"] == "user" else old
            )
    assert read_examples(tmp_path / "new" / "rows.jsonl")[1] == [], "the file is a data set too"


def test_the_model_keeps_the_words_for_a_value_and_not_the_value(tmp_path):
    search = tool(
        "search", {"place": TEXT, "sort": {"enum": ["price", "rating"]}}, ["place", "sort"]
    )
    options = {
        "tools": [search],
        "pools": {"sort": {"price": ["cheap"], "rating": ["well liked"]}},
        "phrasings": {"search": ["A {sort} place in {place}"]},
        "shares": {"call": 1},
    }
    rules = []

    def reply(number, texts, messages):
        rules.append(messages[0]["content"])
        return json.dumps(
            [
                re.sub("(?i)cheap|well liked", "nice", text) if number % 2 else f"Any {text}?"
                for text in texts
            ]
        )

    with served(reply) as server:
        examples, errors = ask(server, tmp_path / "rows.jsonl", 8, workers=1, **options)
    assert len(examples) == 8 and not errors and server.count == 16
    assert all(
        ('"cheap"' in text or '"well liked"' in text) and '"price"' not in text for text in rules
    )


def test_whole_dialogues_and_the_tone_of_real_users(tmp_path):
    seen = []

    def reply(number, texts, messages):
        seen.append(messages[0]["content"])
        return good(number, texts, messages)

    with served(reply) as server:
        examples, errors = ask(
            server,
            tmp_path / "rows.jsonl",
            20,
            dialogues=True,
            api_key="secret",
            examples=[
                {"messages": [{"role": "user", "content": "yo, desk of bob??"}], "tools": []}
            ],
        )
    assert (
        not errors
        and all("yo, desk of bob??" in text for text in seen)
        and set(server.keys) == {"Bearer secret"}
    )
    assert all(
        message["content"].startswith("well, ")
        for row in examples
        for message in row["messages"]
        if message["content"] and message["role"] != "tool"
    )


@pytest.mark.parametrize(
    "bad, word",
    [
        (lambda texts: "I would be glad to help!", "no JSON list"),
        (lambda texts: json.dumps(texts + ["more"]), "texts is needed"),
        (lambda texts: json.dumps([3] * len(texts)), "texts is needed"),
        (lambda texts: '["half', "Unterminated"),
        (lambda texts: "[" * 5000, "nested"),
        (lambda texts: json.dumps([text + "<|im_end|>" for text in texts]), "im_end"),
        (lambda texts: json.dumps(["</tool_call> " + text for text in texts]), "tool_call"),
        (lambda texts: json.dumps([re.sub(r"\d", "?", text) for text in texts]), "lacks the value"),
        (lambda texts: json.dumps(["" for text in texts]), "empty"),
        (lambda texts: json.dumps([text * 400 for text in texts]), "2000"),
        (lambda texts: json.dumps([text + " (use book_room)" for text in texts]), "book_room"),
        (lambda texts: '["\\ud800"]', "surrogate|encode|texts is needed"),
        (lambda texts: "[NaN]", "NaN"),
    ],
)
def test_rubbish_is_rejected_with_the_reason_and_asked_again(tmp_path, bad, word):
    with served(lambda number, texts, messages: bad(texts)) as server:
        examples, errors = ask(
            server, tmp_path / "rows.jsonl", 6, tools=[BOOK], shares={"call": 1}, retries=1
        )
    assert (
        not examples
        and len(errors) == 6
        and server.count == 12
        and not (tmp_path / "rows.jsonl").exists()
    )
    assert all(
        re.search(word, error["reason"])
        and list(error) == ["file", "line", "field", "reason", "record"]
        for error in errors
    ), errors[0]["reason"]
    assert [error["line"] for error in errors] == [1, 2, 3, 4, 5, 6]


def test_the_reason_is_told_and_the_second_attempt_is_taken(tmp_path):
    def reply(number, texts, messages):
        return (
            good(number, texts, messages) if "cannot be used" in messages[-1]["content"] else "no"
        )

    with served(reply) as server:
        examples, errors = ask(server, tmp_path / "rows.jsonl", 10)
    assert len(examples) == 10 and not errors and server.count == 20


def test_a_value_said_too_early_and_the_same_words_twice(tmp_path):
    def early(number, texts, messages):
        return json.dumps([" ".join(texts), texts[-1]])

    with served(early) as server:
        examples, errors = ask(
            server, tmp_path / "a.jsonl", 6, shares={"missing": 1}, retries=0, tools=[DESK]
        )
    assert not examples and all("already says" in error["reason"] for error in errors)
    with served(lambda number, texts, messages: json.dumps(["Please check it"])) as server:
        examples, errors = ask(
            server, tmp_path / "b.jsonl", 6, tools=[tool("ping")], shares={"call": 1}, retries=0
        )
    assert (
        len(examples) == 1
        and len(errors) == 5
        and all("same texts" in error["reason"] for error in errors)
    )


@pytest.mark.parametrize(
    "broken, word",
    [
        (lambda: (500, {"error": {"message": "boom"}}), "status 500"),
        (lambda: (401, {"error": {"message": "no key"}}), "status 401"),
        (lambda: b"<html>hello</html>", "OpenAI's shape"),
        (lambda: (200, {"choices": []}), "OpenAI's shape"),
        (lambda: (200, {"hello": 1}), "OpenAI's shape"),
        (lambda: (200, [1]), "OpenAI's shape"),
    ],
)
def test_a_server_that_fails_gives_errors_and_is_soon_left_alone(tmp_path, broken, word):
    with served(lambda *_: broken()) as server:
        examples, errors = ask(server, tmp_path / "rows.jsonl", 40, retries=0)
    assert not examples and len(errors) == 40 and server.count < 20
    assert sum(bool(re.search(word, error["reason"])) for error in errors) >= 5 and any(
        "not asked" in error["reason"] for error in errors
    )


def test_a_server_that_is_not_there_or_too_slow(tmp_path):
    examples, errors = synthesise_with(
        "http://127.0.0.1:9", "m", TOOLS, 8, tmp_path / "rows.jsonl", retries=0, progress=False
    )
    assert (
        not examples
        and len(errors) == 8
        and any("no answer" in error["reason"] for error in errors)
    )
    with served(lambda *_: time.sleep(1.5) or "late") as server:
        examples, errors = ask(server, tmp_path / "rows.jsonl", 2, retries=0, timeout=0.3)
    assert (
        not examples
        and len(errors) == 2
        and all("no answer" in error["reason"] for error in errors)
    )


def test_a_failure_now_and_then_loses_nothing(tmp_path):
    def reply(number, texts, messages):
        return (500, {"error": "boom"}) if number % 4 == 0 else good(number, texts, messages)

    with served(reply) as server:
        examples, errors = ask(server, tmp_path / "rows.jsonl", 12, workers=2)
    assert len(examples) == 12 and not errors


def test_a_second_run_goes_on_from_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with served(good) as server:
        first, _ = ask(server, path, 20)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        assert len(lines) == 20 and server.count == 20
        path.write_text(
            "".join(lines[:12]) + lines[12][:70], encoding="utf-8"
        )  # killed while it wrote
        second, errors = ask(server, path, 20)
        assert server.count == 28 and second == first and not errors
        ask(server, path, 20)
        assert server.count == 28
        ask(server, path, 20, seed=1)
        assert server.count == 48, "rows of another seed are other rows"
        assert ask(server, path, 20)[0] == first and server.count == 48
    assert len(read_examples(path)[0]) == 40 and len(read_examples(path)[1]) == 1


def test_a_killed_process_leaves_what_it_had(tmp_path):
    path = tmp_path / "rows.jsonl"
    stop = threading.Event()

    def reply(number, texts, messages):
        if number > 6:
            stop.wait(20)
        return good(number, texts, messages)

    code = (
        "import json, sys\nfrom toolcall_ft.data.rewrite import synthesise_with\n"
        "synthesise_with(sys.argv[1], 'm', json.loads(sys.argv[2]), 20, sys.argv[3], workers=1, progress=False)"
    )
    with served(reply) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, json.dumps(TOOLS), str(path)]
        )
        deadline = time.monotonic() + 50
        while server.count < 7 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
        stop.set()
        assert len(path.read_text(encoding="utf-8").splitlines()) == 6
        examples, errors = ask(server, path, 20)
        assert len(examples) == 20 and not errors and server.count == 7 + 14


def test_a_file_that_somebody_changed_cannot_change_a_label(tmp_path):
    path = tmp_path / "rows.jsonl"
    with served(good) as server:
        first, _ = ask(server, path, 6, tools=[BOOK], shares={"call": 1})
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["room"] = "Z99"
        lines[1]["messages"][0]["content"] = "Book something"
        lines[2]["messages"] = [1, None]
        lines[3] = 5
        lines[4]["key"] = 7
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        again, errors = ask(server, path, 6, tools=[BOOK], shares={"call": 1})
    assert again == first and not errors and server.count == 6 + 4, (
        "the first call is ours again, and four rows are asked for anew"
    )


def test_a_disk_that_refuses_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with served(good) as server, pytest.raises(UserError, match="cannot be written"):
        ask(server, tmp_path / "file" / "rows.jsonl", 3)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.none(),
        st.text(max_size=60),
        st.builds(
            lambda value: "so: " + json.dumps(value),
            st.recursive(
                st.none() | st.integers() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=5,
            ),
        ),
    ),
    st.integers(1, 3),
)
def test_reading_any_reply_gives_texts_or_a_value_error(reply, number):
    try:
        texts = read_texts(reply, number)
    except ValueError:
        return
    assert len(texts) == number and all(isinstance(text, str) for text in texts)


def test_each_rejection_has_its_cause():
    "Each row's own texts pass; without a value that stood there they do not."
    kit = make_kit(TOOLS)
    checked = 0
    for row in synthesise(TOOLS, 200):
        turns = turns_to_phrase(row, True)
        texts = [row["messages"][turn]["content"] for turn in turns]
        assert rejection(kit, row, turns, texts) is None, (row, rejection(kit, row, turns, texts))
        said = [str(value) for where, value in spoken_values(row) if certain(kit, where, value)]
        longest = max(said, key=len, default=None)
        if longest and any(longest in text for text in texts):
            checked += 1
            assert "lacks the value" in rejection(
                kit, row, turns, [text.replace(longest, "it") for text in texts]
            )
    assert checked > 120
