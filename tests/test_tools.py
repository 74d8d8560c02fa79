"""The tools module against input that is wrong, hostile or merely unusual."""

import json
import random
import subprocess
import sys
import time
import unicodedata
from copy import deepcopy
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_json
from toolcall_ft.base.jsontext import dump_json, parse_json
from toolcall_ft.tools.check import check_call
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import parse_calls
from toolcall_ft.tools.load import match_functions, python_name, read_functions, read_tools
from toolcall_ft.tools.loose import clean_type
from toolcall_ft.tools.normalize import (
    canonical,
    canonical_argument,
    canonical_number,
    normalize_messages,
)
from toolcall_ft.tools.schema import tool_schema

EXAMPLES = Path(__file__).parent.parent / "examples"
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "type",
                    "function",
                    "parameters",
                    "properties",
                    "required",
                    "enum",
                    "items",
                    "description",
                    "$ref",
                    "pattern",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
GUIDE = [
    {
        "name": "HandleTongzhiTonggao",
        "description": "notices",
        "parameters": [
            {
                "name": "operation",
                "description": "操作方式，从列表中选择其中一个：['ADD', 'DELETE', 'UPDATE', 'LIST']",
                "required": True,
            },
            {
                "name": "type",
                "description": '类型，从列表中选择其中一个：["时讯消息", "通告"]',
                "required": True,
            },
            {"name": "content", "description": "内容", "required": True},
        ],
    },
    {
        "name": "WaterMachineApi",
        "description": "water",
        "parameters": [
            {
                "name": "operation",
                "description": "可选择的指令包含：[水壶取水, 水壶停水, 停止加热, 开始保温, 停止保温, 打开语音, 关闭语音]",
                "required": True,
            }
        ],
    },
]


def is_valid(schema):
    "Raises an error if a schema is not valid; a pattern is one that the module `regex` takes, as JavaScript's are."
    formats = FormatChecker(Draft202012Validator.FORMAT_CHECKER.checkers)
    formats.checks("regex")(lambda text: not isinstance(text, str) or bool(regex.compile(text)))
    Draft202012Validator.check_schema(schema, formats)


@pytest.fixture(scope="module")
def tools():
    return read_tools(EXAMPLES / "tools.json")


def test_the_loose_list_of_the_guide():
    (notice, water), repairs = clean_tools(GUIDE)
    fields = notice["function"]["parameters"]["properties"]
    assert fields["operation"]["enum"] == ["ADD", "DELETE", "UPDATE", "LIST"] and fields["type"][
        "enum"
    ] == ["时讯消息", "通告"]
    assert notice["function"]["parameters"]["required"] == ["operation", "type", "content"]
    assert len(water["function"]["parameters"]["properties"]["operation"]["enum"]) == 7
    assert (
        len(repairs) == 2 + 2 + 4 and sum("lifted" in repair for repair in repairs) == 3
    )  # wrapped, lists, four arguments
    assert not any("required" in field for field in fields.values())


def test_python_type_names_become_json_schema():
    fields = {
        "a": {"type": "list"},
        "b": {"type": "dict"},
        "c": {"type": "float"},
        "d": {"type": "tuple"},
        "e": {"type": "any"},
        "f": {"type": "List[int]"},
    }
    (tool,), repairs = clean_tools(
        [{"name": "t", "parameters": {"type": "dict", "properties": fields}}]
    )
    schema = tool["function"]["parameters"]
    assert schema["properties"] == {
        "a": {"type": "array"},
        "b": {"type": "object"},
        "c": {"type": "number"},
        "d": {"type": "array"},
        "e": {},
        "f": {"type": "array", "items": {"type": "integer"}},
    }
    assert (
        len(repairs) == 8
        and 't.parameters.f: type \'List[int]\' became {"type": "array", "items": {"type": "integer"}}'
        in repairs
    )
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("key", ["parameters", "inputSchema", "input_schema"])
def test_the_keys_of_other_protocols(key):
    (tool,), _ = clean_tools(
        [{"name": "t", key: {"type": "object", "properties": {"x": {"type": "string"}}}}]
    )
    assert tool["function"]["parameters"]["properties"] == {"x": {"type": "string"}}


@settings(max_examples=300, deadline=None)
@given(ANY_JSON)
def test_cleaning_any_json_gives_valid_schemas_or_a_user_error(value):
    for tools in (
        value,
        [value],
        [{"name": "t", "parameters": value}],
        [{"name": "t", "parameters": {"type": "object", "properties": {"x": value}}}],
    ):
        try:
            cleaned, _ = clean_tools(tools)
        except UserError as error:
            assert str(error)
            continue
        for tool in cleaned:
            is_valid(tool["function"]["parameters"])
            assert isinstance(
                check_call({"name": tool["function"]["name"], "arguments": {"x": value}}, [tool]),
                list,
            )
        assert clean_tools(cleaned) == (cleaned, []), "cleaning twice is cleaning once"


@settings(max_examples=300, deadline=None)
@given(ANY_JSON)
def test_checking_any_json_never_raises(value):
    tools = read_tools(EXAMPLES / "tools.json")
    assert check_call(value, tools)
    assert isinstance(check_call({"name": "WeatherApi", "arguments": value}, tools), list)
    assert check_call({"name": value, "arguments": {}}, tools)


def test_calls_that_do_not_fit(tools):
    fits = lambda name, **arguments: check_call({"name": name, "arguments": arguments}, tools)
    assert fits("WeatherApi", query_key="北京") == []
    assert (
        "unknown tool" in fits("WeatherAPI", query_key="北京")[0]
        and "WeatherApi" in fits("WeatherAPI")[0]
    )
    assert fits("WeatherApi") == ["WeatherApi.query_key: is required and missing"]
    assert (
        "WaterMachineApi.operation: must be one of ["
        in fits("WaterMachineApi", operation="爆炸")[0]
        and 'got "爆炸"' in fits("WaterMachineApi", operation="爆炸")[0]
    )
    assert fits("WeatherApi", query_key=3) == [
        "WeatherApi.query_key: must be of type string, got 3"
    ]
    assert fits("WeatherApi", query_key="北京", city="北京") == [
        "WeatherApi.city: is no argument here. There is: query_key."
    ]


def test_a_reference_that_leads_out_of_the_schema_is_refused_and_never_fetched(monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was touched"))
    for reference in (
        "http://127.0.0.1:9/schema.json",
        "other.json",
        "#/$defs/gone",
        "file:///etc/passwd",
        "#missing",
        "urn:x",
    ):
        with pytest.raises(UserError, match="no place in the schema"):
            clean_tools(
                [
                    {
                        "name": "t",
                        "parameters": {"type": "object", "properties": {"x": {"$ref": reference}}},
                    }
                ]
            )
        raw = [
            {
                "type": "function",
                "function": {
                    "name": "t",
                    "parameters": {"type": "object", "properties": {"x": {"$ref": reference}}},
                },
            }
        ]
        assert "cannot be used" in check_call({"name": "t", "arguments": {"x": 1}}, raw)[0]
    (tool,), _ = clean_tools(
        [
            {
                "name": "t",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"$ref": "#/$defs/a"}},
                    "$defs": {"a": {"type": "int"}},
                },
            }
        ]
    )
    assert check_call({"name": "t", "arguments": {"x": 1}}, [tool]) == [] and check_call(
        {"name": "t", "arguments": {"x": "1"}}, [tool]
    )


def test_a_broken_pattern_in_a_schema_is_refused():
    with pytest.raises(UserError, match="x.pattern"):
        clean_tools(
            [
                {
                    "name": "t",
                    "parameters": {
                        "type": "object",
                        "properties": {"x": {"type": "string", "pattern": "("}},
                    },
                }
            ]
        )


@pytest.mark.parametrize(
    "written, schema",
    [
        ("str, optional", {"type": "string"}),
        ("Optional[int]", {"type": ["integer", "null"]}),
        ("string/None", {"type": ["string", "null"]}),
        ("str or None", {"type": ["string", "null"]}),
        (
            "List[List[int]]",
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        ),
        ("List[Union[int, float]]", {"type": "array", "items": {"type": "number"}}),
        ("Tuple[int, str]", {"type": "array", "items": {"type": ["integer", "string"]}}),
        ("Tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        (
            "typing.Dict[str, List[str]]",
            {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
            },
        ),
        ("Dict[str, Any]", {"type": "object"}),
        ("string[]", {"type": "array", "items": {"type": "string"}}),
        ("Array<number>", {"type": "array", "items": {"type": "number"}}),
        ("list of strings", {"type": "array", "items": {"type": "string"}}),
        ("int, default=3", {"type": "integer"}),
        ("Callable[[float], float]", {"type": "string"}),
        ("np.ndarray", {"type": "array"}),
        ("HashMap", {"type": "object"}),
        ("STRING", {"type": "string"}),
        (
            "Optional[List[str]]",
            {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        ),
        ("Literal['a', \"b\"]", {"enum": ["a", "b"]}),
        ("Literal[1, 2, 1]", {"enum": [1, 2]}),
        (
            "Literal['it\\'s', low, True, 1, None, 0.5]",
            {"enum": ["it's", "low", True, 1, None, 0.5]},
        ),
        ("Literal[1.0, 1]", {"enum": [1]}),
        ("", {}),
        ("Any", {}),
    ],
)
def test_types_that_people_write(written, schema):
    assert clean_type(written) == schema
    cleaned, repairs = clean_tools(
        [{"name": "t", "parameters": {"type": "object", "properties": {"x": {"type": written}}}}]
    )
    assert cleaned[0]["function"]["parameters"]["properties"]["x"] == schema
    assert any("t.parameters.x: type" in repair for repair in repairs) and clean_tools(cleaned) == (
        cleaned,
        [],
    )


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "list",
                "dict",
                "Optional",
                "Union",
                "Literal",
                "str",
                "int",
                "[",
                "]",
                "<",
                ">",
                "(",
                ")",
                ",",
                "|",
                "/",
                " of ",
                " or ",
                "[]",
                "...",
                "'a'",
                ".",
                " ",
                "x",
                "optional",
            ]
        ),
        max_size=60,
    ).map("".join)
)
def test_any_type_expression_is_translated_or_refused(text):
    try:
        schema = clean_type(text)
    except ValueError as error:
        assert "no type" in str(error)
    else:
        Draft202012Validator.check_schema(schema)


def test_the_table_of_xlam():
    fields = {
        "type": {"description": "The kind", "type": "str", "default": "game"},
        "limit": {"type": "int"},
        "tag": {"type": "str, optional", "default": ""},
    }
    (tool,), repairs = clean_tools(
        json.dumps([{"name": "giveaways", "description": "d", "parameters": fields}])
    )
    schema = tool["function"]["parameters"]
    assert schema["required"] == ["limit"] and {
        name: field["type"] for name, field in schema["properties"].items()
    } == {"limit": "integer", "type": "string", "tag": "string"}
    assert any("limit: not marked 'optional', so required" in repair for repair in repairs)


@pytest.mark.parametrize(
    "parameters, properties, required",
    [
        (
            {"city": "The city to look up", "days": "int", "required": ["city"]},
            {
                "city": {"type": "string", "description": "The city to look up"},
                "days": {"type": "integer"},
            },
            ["city"],
        ),
        ({"type": "object", "city": {"type": "string"}}, {"city": {"type": "string"}}, None),
        (
            {
                "type": "object",
                "properties": {"x": None, "y": {"type": "string", "enum": None}},
                "required": ["x", "y", "y"],
            },
            {"y": {"type": "string"}},
            ["y"],
        ),
        (
            {"type": "object", "properties": {"x": {"type": "string", "nullable": True}}},
            {"x": {"type": ["string", "null"]}},
            None,
        ),
        (
            {"type": "object", "properties": {"x": {"items": [{"type": "int"}]}}},
            {"x": {"prefixItems": [{"type": "integer"}]}},
            None,
        ),
        (
            {"type": "object", "properties": {"x": {"minimum": 0, "exclusiveMinimum": True}}},
            {"x": {"exclusiveMinimum": 0}},
            None,
        ),
        (
            {"type": "object", "properties": {"x": {"type": "array", "items": "str"}}},
            {"x": {"type": "array", "items": {"type": "string"}}},
            None,
        ),
        (
            {"type": "object", "properties": {"x": {"anyOf": [{"type": "int"}, {"type": "None"}]}}},
            {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
            None,
        ),
        (
            {
                "type": "object",
                "properties": {
                    "x": {
                        "type": "dict",
                        "properties": [{"name": "k", "type": "str", "required": "true"}],
                    }
                },
            },
            {"x": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}},
            None,
        ),
    ],
)
def test_looseness_is_repaired_and_said(parameters, properties, required):
    cleaned, repairs = clean_tools(
        [{"type": "function", "function": {"name": "t", "parameters": parameters}}]
    )
    assert (
        cleaned[0]["function"]["parameters"]["properties"] == properties
        and cleaned[0]["function"]["parameters"].get("required") == required
    )
    assert repairs and clean_tools(cleaned) == (cleaned, [])


def test_a_list_of_examples_forbids_nothing():
    for text in (
        "A city, e.g.: [Paris, Rome]",
        "城市，例如：[北京, 上海]",
        "Format: [lat, lon]",
        "A range: [0, 1]",
    ):
        cleaned, repairs = clean_tools(
            [
                {
                    "type": "function",
                    "function": {
                        "name": "t",
                        "parameters": {
                            "type": "object",
                            "properties": {"x": {"type": "string", "description": text}},
                        },
                    },
                }
            ]
        )
        assert (
            "enum" not in cleaned[0]["function"]["parameters"]["properties"]["x"] and repairs == []
        )


FIELDS = {
    "s": {"type": "string", "minLength": 2, "maxLength": 4},
    "n": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 2},
    "x": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "e": {"type": "string", "enum": ["red", "green"]},
    "c": {"const": "yes"},
    "p": {"type": "string", "pattern": r"^\d{3}$"},
    "d": {"type": "string", "format": "date"},
    "a": {
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 1,
        "maxItems": 2,
        "uniqueItems": True,
    },
    "u": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "ty": {"type": ["integer", "null"]},
    "o": {
        "type": "object",
        "properties": {
            "k": {
                "type": "object",
                "properties": {"z": {"type": "integer"}},
                "required": ["z"],
                "additionalProperties": False,
            }
        },
    },
    "w": {"type": "object", "minProperties": 1, "maxProperties": 1},
    "r": {"$ref": "#/$defs/R"},
    "dep": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "no": {"not": {"type": "string"}},
}
KEYWORDS = [
    {
        "type": "function",
        "function": {
            "name": "t",
            "description": "",
            "parameters": {
                "type": "object",
                "properties": FIELDS,
                "$defs": {
                    "R": {
                        "type": "object",
                        "properties": {"next": {"$ref": "#/$defs/R"}, "v": {"type": "integer"}},
                    }
                },
            },
        },
    }
]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"s": "a"}, 't.s: must have at least 2 character(s), got "a"'),
        ({"s": "abcde"}, 't.s: must have at most 4 character(s), got "abcde"'),
        ({"s": 3}, "t.s: must be of type string, got 3"),
        ({"n": 0}, "t.n: must be at least 1, got 0"),
        ({"n": 10}, "t.n: must be at most 9, got 10"),
        ({"n": 3}, "t.n: must be a multiple of 2, got 3"),
        ({"n": "2"}, 't.n: must be of type integer, got "2"'),
        ({"x": 0}, "t.x: must be more than 0, got 0"),
        ({"x": 1}, "t.x: must be less than 1, got 1"),
        ({"e": "Red"}, 't.e: must be one of ["red", "green"], got "Red". Did you mean \'red\'?'),
        ({"e": "blue-ish"}, 't.e: must be one of ["red", "green"], got "blue-ish"'),
        ({"c": "no"}, 't.c: must be "yes", got "no"'),
        ({"p": "12"}, r't.p: must match the pattern ^\d{3}$, got "12"'),
        ({"d": "2026-13-01"}, 't.d: must be a valid date, such as 2026-11-21, got "2026-13-01"'),
        ({"a": []}, "t.a: must have at least 1 item(s), got []"),
        ({"a": [1, 2, 3]}, "t.a: must have at most 2 item(s), got [1, 2, 3]"),
        ({"a": [1, 1]}, "t.a: must not hold an item twice, got [1, 1]"),
        ({"a": [1, "2"]}, 't.a.1: must be of type integer, got "2"'),
        ({"u": 3}, "t.u: must be of type string, or must be of type null, got 3"),
        ({"ty": "x"}, 't.ty: must be of type integer or null, got "x"'),
        ({"o": {"k": {}}}, "t.o.k.z: is required and missing"),
        ({"o": {"k": {"z": 1, "y": 2}}}, "t.o.k.y: is no argument here. There is: z."),
        ({"w": {}}, "t.w: must have at least 1 key(s), got {}"),
        ({"w": {"a": 1, "b": 2}}, 't.w: must have at most 1 key(s), got {"a": 1, "b": 2}'),
        ({"dep": {"a": 1}}, "t.dep.b: is required where 'a' is given"),
        (
            {"r": {"next": {"next": {"v": "x"}}}},
            't.r.next.next.v: must be of type integer, got "x"',
        ),
        ({"no": "x"}, 't.no: must not fit {"type": "string"}, got "x"'),
        ({"zz": 1}, "t.zz: is no argument here."),
    ],
)
def test_every_keyword_says_where_what_is_allowed_and_what_came(arguments, sentence):
    assert clean_tools(KEYWORDS) == (KEYWORDS, [])
    (said,) = check_call({"name": "t", "arguments": arguments}, KEYWORDS)
    assert said.startswith(sentence) and (said == sentence or "zz" in arguments)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.floats(-1, 2)
    | st.sampled_from(["red", "yes", "123", "2026-11-21", "", "abc"])
    | st.lists(st.integers(0, 3), max_size=3)
)


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "other"]),
        VALUES | st.dictionaries(st.sampled_from(["k", "z", "a", "v", "next"]), VALUES, max_size=3),
        max_size=5,
    )
)
def test_complaints_agree_with_the_library(arguments):
    from jsonschema import FormatChecker

    plain = Draft202012Validator(
        {**KEYWORDS[0]["function"]["parameters"], "additionalProperties": False},
        format_checker=FormatChecker(["date"]),
    )
    said = check_call({"name": "t", "arguments": arguments}, KEYWORDS)
    assert bool(said) == (not plain.is_valid(arguments))
    assert {sentence.split(":")[0].split(".")[1] for sentence in said} == {
        str(error.absolute_path[0]) if error.absolute_path else "other"
        for error in plain.iter_errors(arguments)
    }


def test_arguments_of_composed_schemas_are_known():
    tools, _ = clean_tools(
        [
            {
                "name": "t",
                "parameters": {
                    "type": "object",
                    "allOf": [{"properties": {"a": {"type": "integer"}}}],
                    "properties": {"b": {"type": "string"}},
                },
            }
        ]
    )
    assert check_call({"name": "t", "arguments": {"a": 1, "b": "x"}}, tools) == []
    assert (
        "'z' was unexpected" in check_call({"name": "t", "arguments": {"a": 1, "z": "x"}}, tools)[0]
    )


def wrapped(parameters):
    return [
        {"type": "function", "function": {"name": "t", "description": "", "parameters": parameters}}
    ]


def test_schemas_that_would_keep_a_computer_busy_for_ever():
    branching = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)} | {
        "d60": {"type": "integer"}
    }
    tree = {"type": "object", "properties": {"x": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
    deep = 1
    for _ in range(60):
        deep = {"x": deep}
    cases = [
        (
            wrapped(
                {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": branching}
            ),
            {"x": 1},
        ),
        (wrapped(tree), deep),
        (wrapped({"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}), {"x": 1}),
        *[
            (
                wrapped(
                    {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}
                ),
                {"x": "a" * 60 + "!"},
            )
            for pattern in ("(a|a)*$", "^(a|aa)+$", "^(a?){60}a{60}$")
        ],
    ]
    for tools, arguments in cases:
        assert clean_tools(tools) == (tools, [])
        assert len(check_call({"name": "t", "arguments": arguments}, tools)) == 1


def test_patterns_of_keys_have_the_same_clock_and_the_same_meaning():
    slow = {
        "type": "object",
        "properties": {
            "x": {
                "type": "object",
                "patternProperties": {"^(a|aa)+$": {"type": "integer"}},
                "additionalProperties": False,
            }
        },
    }
    [said] = check_call({"name": "t", "arguments": {"x": {"a" * 60 + "!": 1}}}, wrapped(slow))
    assert "takes too long" in said
    unseen = {
        "type": "object",
        "allOf": [{"patternProperties": {"^n_": {"type": "integer"}}}],
        "properties": {"n_b": {"minimum": 3}},
        "unevaluatedProperties": False,
    }
    assert (
        check_call({"name": "t", "arguments": {"n_a": 1, "n_b": 4}}, wrapped(unseen)) == []
        and check_call({"name": "t", "arguments": {"n_a": "x"}}, wrapped(unseen))[0]
        == 't.n_a: must be of type integer, got "x"'
    )
    assert check_call({"name": "t", "arguments": {"m_a": 1}}, wrapped(unseen))
    plain = {
        "type": "object",
        "properties": {"n_b": {"minimum": 3}},
        "patternProperties": {"^n_": {"type": "integer"}, "_z$": False},
        "additionalProperties": False,
    }
    cases = (
        {"n_a": 1},
        {"n_b": 2},
        {"n_b": 3},
        {"n_b": 3.5},
        {"x": 1},
        {"n_z": 1},
        {},
        {"n_a": "1", "x": 2},
    )
    from jsonschema import Draft202012Validator

    for arguments in cases:
        assert bool(
            check_call({"name": "t", "arguments": arguments}, wrapped(plain))
        ) != Draft202012Validator(plain).is_valid(arguments), arguments


@pytest.mark.parametrize(
    "written, values",
    [
        ("enum: a, b", ["a", "b"]),
        ("enum(a|b)", ["a", "b"]),
        ("Enum['a', 'b']", ["a", "b"]),
        ("one of: red, dark blue", ["red", "dark blue"]),
        ("enum：高、低", ["高", "低"]),
    ],
)
def test_choices_written_as_a_type(written, values):
    for parameters in ({"kind": written}, {"kind": {"type": written}}):
        (tool,), repairs = clean_tools([{"name": "t", "parameters": parameters}])
        assert tool["function"]["parameters"]["properties"]["kind"] == {
            "type": "string",
            "enum": values,
        }
        assert len([repair for repair in repairs if repair.startswith("t.parameters.kind:")]) == 1


def test_one_sentence_for_each_place():
    _, repairs = clean_tools(
        [
            {
                "name": "t",
                "inputSchema": {
                    "x": {"type": "str", "required": True, "description": "One of: [a, b]"},
                    "y": "int",
                },
            }
        ]
    )
    places = [repair.partition(": ")[0] for repair in repairs]
    assert places == list(dict.fromkeys(places)) and [
        repair
        for repair in repairs
        if repair.startswith("t.parameters.x: ") and "required" in repair and "lifted" in repair
    ]


def test_schemas_that_are_too_deep_circular_or_no_json():
    deep, circular = {"type": "integer"}, {"type": "object", "properties": {}}
    for _ in range(200):
        deep = {"type": "object", "properties": {"x": deep}}
    circular["properties"]["x"] = circular
    for parameters in (
        deep,
        circular,
        {"properties": {"x": {"default": float("nan")}}},
        {"properties": {"x": {"default": {1, 2}}}},
        {"properties": {"x": {"default": "\ud800"}}},
    ):
        with pytest.raises(UserError):
            clean_tools(wrapped(parameters))
    for depth in (20, 40, 44):
        nested = {"type": "integer"}
        for _ in range(depth):
            nested = {"type": "object", "properties": {"x": nested}}
        assert clean_tools(wrapped(nested)) == (wrapped(nested), [])


SHAPES = [
    GUIDE,
    json.loads((EXAMPLES / "tools.json").read_text(encoding="utf-8")),
    KEYWORDS,
    json.dumps(GUIDE),
    {"tools": GUIDE},
    {"functions": KEYWORDS},
    [
        {
            "name": "shop.search",
            "description": "d",
            "parameters": {
                "type": "dict",
                "required": ["q"],
                "properties": {
                    "q": {"type": "String", "description": "text"},
                    "box": {"type": "tuple", "items": {"type": "float"}},
                    "how": {"type": "any"},
                    "more": {
                        "type": "dict",
                        "properties": {"deep": {"type": "ArrayList", "items": {"type": "long"}}},
                    },
                },
            },
            "response": {"type": "dict"},
        }
    ],
    [
        {
            "name": "xlam_like",
            "description": "d",
            "parameters": {
                "ids": {"type": "List[int]", "description": "i"},
                "f": {"type": "Callable[[float], float]"},
                "tag": {"type": "str, optional", "default": ""},
            },
        }
    ],
    [
        {
            "name": "anthropic_like",
            "type": "custom",
            "input_schema": {
                "type": "object",
                "properties": {"a": {"type": ["string", "null"]}},
                "required": ["a"],
            },
        }
    ],
    [
        {
            "name": "mcp_like",
            "inputSchema": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {"to": {"$ref": "#/$defs/A"}},
                "$defs": {
                    "A": {
                        "type": "object",
                        "properties": {"z": {"type": "string", "pattern": "^a$"}},
                    }
                },
            },
        }
    ],
    [
        {
            "type": "function",
            "function": {
                "name": "arrow_like",
                "description": None,
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "string", "enum": None, "items": None}, "b": None},
                    "required": None,
                },
            },
        }
    ],
]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    2.5,
    "",
    "list",
    "x" * 300,
    "optional",
    "\ud800",
    [],
    ["a"],
    [None],
    {},
    {"a": None},
    {"type": "object"},
    {"$ref": "#"},
    {"$ref": "#/$defs/x"},
    {"type": "List[List["},
    [{"name": "n"}],
    {"enum": []},
]
KEYS = [
    "type",
    "name",
    "function",
    "parameters",
    "properties",
    "required",
    "enum",
    "items",
    "description",
    "$ref",
    "$defs",
    "pattern",
    "anyOf",
    "nullable",
    "default",
    "additionalProperties",
    "inputSchema",
    "$id",
    "$schema",
    "$anchor",
    "format",
]


def mutate(value, chance):
    "The value with one thing in it replaced, removed, renamed, doubled or added."
    places = []

    def walk(node):
        if isinstance(node, (dict, list)) and node:
            places.append(node)
        for child in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        ):
            walk(child)

    walk(value)
    if not places:
        return chance.choice(ODD)
    node = chance.choice(places)
    key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    what = chance.randrange(4)
    if what == 0:
        node[key] = deepcopy(chance.choice(ODD))
    elif what == 1:
        del node[key]
    elif isinstance(node, list):
        node.append(deepcopy(node[key] if what == 2 else chance.choice(ODD)))
    elif what == 2:
        node[chance.choice(KEYS)] = node.pop(key)
    else:
        node[chance.choice(KEYS)] = deepcopy(chance.choice(ODD))
    return value


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_mutated_lists_of_every_shape(shape):
    chance, outcomes = random.Random(shape), {"clean": 0, "refused": 0}
    for _ in range(400):
        text = isinstance(SHAPES[shape], str)
        tools = json.loads(SHAPES[shape]) if text else deepcopy(SHAPES[shape])
        for _ in range(chance.randint(1, 4)):
            tools = mutate(tools, chance)
        before = deepcopy(tools)
        try:
            cleaned, repairs = clean_tools(json.dumps(tools) if text else tools)
        except UserError as error:
            assert str(error)
            outcomes["refused"] += 1
            continue
        assert tools == before, "the input is left as it was"
        assert clean_tools(cleaned) == (cleaned, []), "cleaning twice is cleaning once"
        for tool in cleaned:
            is_valid(tool["function"]["parameters"])
            assert set(tool) == {"type", "function"} and list(tool["function"]) == [
                "name",
                "description",
                "parameters",
            ]
            said = check_call({"name": tool["function"]["name"], "arguments": {"a": 1}}, [tool])
            assert all(isinstance(sentence, str) for sentence in said)
        outcomes["clean"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_texts_that_hold_a_list(tools):
    assert (
        clean_tools(json.dumps(tools))
        == clean_tools(json.dumps({"tools": tools}))
        == clean_tools([json.dumps(tool) for tool in tools])
        == (tools, [])
    )
    for text, words in (
        ("", "not JSON"),
        ("[", "not JSON"),
        ("3", "must be a list"),
        ('[{"name": "t", "name": "u"}]', "twice"),
    ):
        with pytest.raises(UserError, match=words):
            clean_tools(text)


def test_repairs_of_a_file_can_be_seen(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(GUIDE), encoding="utf-8")
    repairs = ["before"]
    assert read_tools(tmp_path / "tools.json", repairs) == clean_tools(GUIDE)[0] and repairs == [
        "before",
        *clean_tools(GUIDE)[1],
    ]


def test_every_prefix_of_a_call_through_the_parser():
    calls = [
        {"name": "a", "arguments": {"t": '</tool_call> {"x": [1, "北京"]} \\n \\" <tool_call>'}},
        {"name": "b", "arguments": {}},
    ]
    text = (
        "Well.\n"
        + "\n".join(f"<tool_call>\n{dump_json(call)}\n</tool_call>" for call in calls)
        + "<|im_end|>\n"
    )
    assert parse_calls(text) == ("Well.", calls, [])
    for n in range(len(text)):
        content, found, errors = parse_calls(text[:n])
        assert found == calls[: len(found)]
        assert content.startswith("Well."[:n])
        assert errors or "<tool_call>" not in text[:n].rpartition("</tool_call>")[2]


@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "a"}',
        '{"arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"name": "a", "arguments": "{}"}',
        "[]",
        "null",
        "",
        '{"name": "a", "arguments": {"x": NaN}}',
        '{"name": "a", "name": "b", "arguments": {}}',
        '{"name": "a", "arguments": {"x": "\\ud800"}}',
        "{'name': 'a', 'arguments': {}}",
        '{"name": "a", "arguments": ' + "[" * 3000 + "}",
    ],
)
def test_blocks_that_are_no_call(inside):
    good = '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    _, calls, errors = parse_calls(f"<tool_call>\n{inside}\n</tool_call>\n{good}")
    assert calls == [{"name": "b", "arguments": {}}] and len(errors) == 1


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "a", "arguments": {}}',
                "{",
                "}",
                '"',
                "\n",
                "x",
                "<|im_end|>",
                "\\",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_the_parser_never_raises(text):
    content, calls, errors = parse_calls(text)
    assert isinstance(content, str) and all(set(call) == {"name", "arguments"} for call in calls)


def test_json_that_python_would_take():
    for text in (
        '{"a": Infinity}',
        '{"a": 1, "a": 1}',
        '"\\udc00"',
        "[" * 101 + "]" * 101,
        "9" * 5000,
        "[1e999]",
    ):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json("[" * 99 + "]" * 99)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "empty"),
        (b"\xff\xfe[\x00", "UTF-16"),
        (b"\xb1\xb1", "not UTF-8"),
        (b'{"a": 1,\n}', "line [12]"),  # Python 3.13 points at the comma
        (b'{"a": 1, "a": 2}', "twice"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, data, words):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_json(tmp_path / "x.json")


def test_tools_files(tmp_path):
    for text, words in (
        ("[]", "no tools"),
        ("3", "must be a list"),
        ('[{"name": "t"}, {"name": "t"}]', "Rename"),
        ('[{"description": "x"}]', "'name'"),
    ):
        (tmp_path / "tools.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_tools(tmp_path / "tools.json")
    with pytest.raises(UserError, match="no such file"):
        read_tools(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "source, words",
    [
        ("def f(:\n", "f.py, line 1:"),
        ("\n\n1 / 0\n", "f.py, line 3:"),
        ("import sys\nsys.path.gone\n", "f.py, line 2:"),
        ("import json\n\njson.loads('{')\n", "f.py, line 3:"),
        (
            "from dataclasses import dataclass\n\n\n@dataclass\nclass Place:\n    names: list = []\n",
            "f.py, line 4:",
        ),
        ("def f(): 1 / 0\nf()\n", "f.py, line 1:"),
        ("\neval('1 +')\n", "f.py, line 2:"),
    ],
)
def test_functions_that_do_not_load(tmp_path, source, words):
    (tmp_path / "f.py").write_text(source)
    with pytest.raises(UserError, match=words):
        read_functions(tmp_path / "f.py")


def test_schemas_of_functions():
    def late(names: list[str], when: str, urgent: bool = False):
        """Say who is late.

        Args:
            names: Who
            when: The day (choices: ["today", "tomorrow"])
            urgent: Is it urgent
        """

    schema = tool_schema(late)["function"]
    assert schema["parameters"]["required"] == ["names", "when"] and schema["parameters"][
        "properties"
    ]["when"]["enum"] == ["today", "tomorrow"]
    assert "return" not in schema
    for wrong in (lambda x: x, len, 3):
        with pytest.raises(UserError, match="no tool can be made"):
            tool_schema(wrong)


def test_the_functions_of_the_demo_are_its_tools(tools):
    functions = read_functions(EXAMPLES / "functions.py")
    assert sorted(functions) == sorted(tool["function"]["name"] for tool in tools)
    for tool in tools:
        written, derived = (
            tool["function"]["parameters"],
            tool_schema(functions[tool["function"]["name"]])["function"]["parameters"],
        )
        assert (
            list(written["properties"]) == list(derived["properties"])
            and written.get("required") == derived["required"]
        )
        assert {k: v.get("enum") for k, v in written["properties"].items()} == {
            k: v.get("enum") for k, v in derived["properties"].items()
        }
        arguments = {k: (v.get("enum") or ["北京"])[0] for k, v in written["properties"].items()}
        parse_json(dump_json(functions[tool["function"]["name"]](**arguments)))


def test_the_import_is_light():
    code = "import sys, toolcall_ft.tools, toolcall_ft.data; print([m for m in ('torch', 'transformers', 'datasets', 'jsonschema', 'yaml') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# ---- one spelling for all servers


@settings(max_examples=500, deadline=None)
@given(ANY_JSON)
def test_canonical_values_are_equal_and_stay(value):
    once = canonical(value)
    assert dump_json(canonical(once)) == dump_json(once) and unicodedata.normalize(
        "NFC", dump_json(once)
    ) == dump_json(once)

    def numbers(inside):
        return (
            [
                found
                for part in (inside.values() if isinstance(inside, dict) else inside)
                for found in numbers(part)
            ]
            if isinstance(inside, (dict, list))
            else [inside]
            if isinstance(inside, (int, float))
            else []
        )

    assert numbers(once) == numbers(value) and not [
        number
        for number in numbers(once)
        if isinstance(number, float) and number.is_integer() and abs(number) < 2**53
    ]


@settings(max_examples=500, deadline=None)
@given(ANY_JSON, st.text(max_size=4))
def test_normalize_messages_stay_and_say_the_same(value, words):
    "Equal as data, but for numbers that a float does not hold safely (text) and digits beyond the 15th."
    message = {
        "role": "assistant",
        "content": words,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"b": value, "a": 0}}}
        ],
    }
    before = json.dumps(message)
    once = normalize_messages([message])
    assert dump_json(normalize_messages(once)) == dump_json(once) and json.dumps(message) == before

    def same(old, new):
        if isinstance(old, dict):
            return (
                list(new) == sorted(new)
                and len(old) == len(new)
                and all(
                    same(
                        old[key], new[key] if key in new else new[unicodedata.normalize("NFC", key)]
                    )
                    for key in old
                )
            )
        if isinstance(old, list):
            return len(old) == len(new) and all(map(same, old, new))
        if (
            isinstance(old, (int, float))
            and not isinstance(old, bool)
            and abs(old) >= 2**53
            and isinstance(new, str)
        ):
            return int(new) == int(old)
        if isinstance(old, int) and isinstance(new, float):
            return abs(old) >= 10**21 and float(old) == new
        if isinstance(old, float):
            return new == old or abs(new - old) <= 1e-14 * abs(old)
        return new == (unicodedata.normalize("NFC", old) if isinstance(old, str) else old)

    arguments = once[0]["tool_calls"][0]["function"]["arguments"]
    assert (
        list(arguments) == ["b", "a"]
        and same(value, arguments["b"])
        and once[0]["content"] == unicodedata.normalize("NFC", words).lstrip()
    )


@pytest.mark.parametrize(
    "value, sent",
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, "9007199254740992"),
        (-(2**53), "-9007199254740992"),
        (10**25, 1e25),
        (10**25 + 1, "1" + "0" * 24 + "1"),
        (1e16, 10**16),
        (-(10**18), -(10**18)),
        (2**60, "1152921504606846976"),
        (9.1234567890123456e17, "912345678901234560"),
        (-1e20, "-1" + "0" * 20),
        (10**19, "1" + "0" * 19),
        (1e21, 1e21),
        (10**400, "1" + "0" * 400),
        (6.02214076e23, 6.02214076e23),
        (0.1 + 0.2, 0.3),
        (0.9999999999999999, 1),
        (True, True),
        (False, False),
    ],
)
def test_numbers_as_every_server_shows_them(value, sent):
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": [value]}}}],
    }
    assert dump_json(
        normalize_messages([message])[0]["tool_calls"][0]["function"]["arguments"]["x"][0]
    ) == dump_json(sent)


def test_numbers_at_the_ends_of_what_a_float_holds_stay():
    assert [
        canonical_number(value)
        for value in (1.7976931348623157e308, 5e-324, -2.2250738585072014e-308)
    ] == [1.7976931348623157e308, 5e-324, -2.2250738585072e-308]
    assert [canonical_number(value) for value in (10**308, -(10**309))] == [
        "1" + "0" * 308,
        "-1" + "0" * 309,
    ]  # no float is as large


def test_calls_in_openais_shape_become_ours():
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": {"b": 1.0, "a": 2}}'},
    }
    tidy = {"type": "function", "function": {"name": "f", "arguments": {"x": {"a": 2, "b": 1}}}}
    none = {"name": "f", "arguments": None}
    said = normalize_messages(
        (
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": None, "tool_calls": [call, none]},
            {"role": "assistant", "tool_calls": None},
        )
    )
    assert (
        dump_json(said[1]["tool_calls"])
        == dump_json([tidy, {"type": "function", "function": {"name": "f", "arguments": {}}}])
        and said[1]["content"] is None
    )
    for wrong in ("{", "[1]", 5):
        with pytest.raises(UserError, match="arguments of a call of f"):
            normalize_messages(
                [
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"function": {"name": "f", "arguments": wrong}}],
                    }
                ]
            )


NESTED = {
    "name": "send",
    "parameters": {
        "type": "object",
        "required": ["to"],
        "properties": {
            "to": {
                "type": "object",
                "required": ["street", "city"],
                "properties": {
                    "street": {"type": "string"},
                    "city": {"type": "string"},
                    "at": {
                        "type": "array",
                        "items": {
                            "properties": {"z": {"type": "integer"}, "a": {"type": "number"}}
                        },
                    },
                },
            },
            "kind": {"enum": [{"z": 1, "a": 0.30000000000000004}, "x"]},
        },
    },
}


def test_schemas_name_arguments_in_the_order_of_calls():
    "Required ones first, else as written; inside of lists by the alphabet. So a row, its schema and a grammar that is made of it agree."
    (tool,), repairs = clean_tools([NESTED])
    fields = tool["function"]["parameters"]["properties"]
    assert (
        list(fields) == ["to", "kind"]
        and list(fields["to"]["properties"]) == ["street", "city", "at"]
        and list(fields["to"]["properties"]["at"]["items"]["properties"]) == ["a", "z"]
    )
    assert (
        dump_json(fields["kind"]["enum"]) == '[{"a": 0.3, "z": 1}, "x"]'
        and any("order of calls" in repair for repair in repairs)
        and clean_tools([tool]) == ([tool], [])
    )


ORDER = {
    "name": "create_order",
    "parameters": {
        "type": "object",
        "required": ["customer"],
        "properties": {
            "note": {"type": "string"},
            "customer": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "address": {
                        "type": "object",
                        "properties": {"zip": {"type": "string"}, "city": {"type": "string"}},
                    },
                    "name": {"type": "string"},
                },
            },
            "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
        },
        "$defs": {
            "Line": {
                "type": "object",
                "required": ["sku", "qty"],
                "properties": {
                    "sku": {"type": "string"},
                    "gift": {"type": "boolean"},
                    "qty": {"type": "integer"},
                },
            }
        },
    },
}


@pytest.mark.parametrize(
    "written, ordered",
    [
        (
            {"customer": {"address": {"city": "Oslo", "zip": "1"}, "name": "Li"}},
            '{"customer": {"name": "Li", "address": {"zip": "1", "city": "Oslo"}}}',
        ),
        ({"note": "n", "customer": {"name": "Li"}}, '{"customer": {"name": "Li"}, "note": "n"}'),
        (
            {
                "lines": [{"gift": True, "qty": 1, "sku": "a"}, {"sku": "b", "qty": 2}],
                "customer": {"zone": {"b": 1, "a": 2}, "name": "Li", "age": 3},
            },
            '{"customer": {"name": "Li", "age": 3, "zone": {"a": 2, "b": 1}}, "lines": [{"qty": 1, "sku": "a", "gift": true}, {"qty": 2, "sku": "b"}]}',
        ),
    ],
)
def test_arguments_come_in_the_order_of_their_schema(written, ordered):
    tools, _ = clean_tools([ORDER])
    call = {"type": "function", "function": {"name": "create_order", "arguments": written}}
    once = normalize_messages([{"role": "assistant", "content": "", "tool_calls": [call]}], tools)
    assert (
        dump_json(once[0]["tool_calls"][0]["function"]["arguments"]) == ordered
        and normalize_messages(once, tools) == once
    )


@pytest.mark.parametrize(
    "parts",
    [
        [
            {
                "allOf": [
                    {"properties": {"z": {}, "a": {}}},
                    {"properties": {"b": {}}, "required": ["b"]},
                ]
            }
        ],
        [
            {
                "anyOf": [{"properties": {"b": {}, "z": {}}, "required": ["b"]}, {"type": "null"}],
                "properties": {},
            },
            {"properties": {"a": {}}},
        ],
        [{"$ref": "#/$defs/Loop"}, {"properties": {"a": {}}}],
    ],
)
def test_composed_schemas_have_an_order_too(parts):
    top = {
        "$defs": {"Loop": {"properties": {"b": {}, "z": {}}, "allOf": [{"$ref": "#/$defs/Loop"}]}}
    }
    assert list(canonical_argument({"a": 1, "b": 2, "z": 3}, {"anyOf": parts}, top)) == [
        "b",
        "z",
        "a",
    ]


def test_keys_that_only_look_alike_stay_two():
    assert canonical({"\u00e9": "e\u0301", "e\u0301": 2.0}) == {"\u00e9": "\u00e9", "e\u0301": 2}


def test_an_accent_behind_a_line_break_does_not_change_the_escape():
    "As JSON, `\\n` and an accent would be `\\` and one letter, which nobody can read back."
    once = canonical(
        ["a\n\u0303", "\u000e\u0301", "\n\u03b1", "n\u0303", "\n\n\u05b0\u0301", "\t\u3099\u0303"]
    )
    assert (
        once
        == [
            "a\n\u00a0\u0303",
            "\u000e\u00a0\u0301",
            "\n\u03b1",
            "\u00f1",
            "\n\n\u00a0\u05b0\u0301",
            "\t\u00a0\u3099\u0303",
        ]
        == canonical(once)
    )
    assert json.loads(unicodedata.normalize("NFC", dump_json(once))) == once


def test_tools_are_canonical_and_say_so():
    tools, repairs = clean_tools(
        [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "cafe\u0301",
                    "parameters": {
                        "type": "object",
                        "properties": {"n": {"type": "number", "minimum": 1.0}},
                    },
                },
            }
        ]
    )
    assert (
        dump_json(tools[0]["function"])
        == '{"name": "f", "description": "café", "parameters": {"type": "object", "properties": {"n": {"type": "number", "minimum": 1}}}}'
        and "NFC" in repairs[0]
    )
    assert clean_tools(tools) == (tools, [])


@pytest.mark.parametrize(
    "limit, kept",
    [
        (2**63 - 1, True),
        (-(2**63), True),
        (2**63, False),
        (-(2**63) - 1, False),
        (1e21, False),
        (2**53, True),
    ],
)
@pytest.mark.parametrize("key", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
def test_bounds_beyond_64_bits_are_dropped(key, limit, kept):
    (tool,), repairs = clean_tools(
        [
            {
                "name": "f",
                "parameters": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", key: limit}},
                },
            }
        ]
    )
    assert (key in tool["function"]["parameters"]["properties"]["n"]) is kept and any(
        "64 bits" in repair for repair in repairs
    ) is not kept


# ---- what a review found


@pytest.mark.parametrize(
    "field",
    [
        {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        {"$ref": "#/$defs/K"},
        {"const": "a"},
        {"allOf": [{"$ref": "#/$defs/K"}]},
        {"properties": {}},
        {"items": {"type": "string"}},
    ],
)
def test_choices_in_prose_are_lifted_only_for_a_text(field):
    "Pydantic writes Optional[list[str]] as anyOf: the choices are those of the items, and an enum would forbid every list."
    written = [
        {
            "type": "function",
            "function": {
                "name": "t",
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {**field, "description": "Tags (choices: ['a', 'b'])"}},
                    "$defs": {"K": {"type": "integer"}},
                },
            },
        }
    ]
    assert clean_tools(written) == (written, [])


@pytest.mark.parametrize(
    "pattern, good, bad",
    [
        (r"^\p{L}+$", "Zürich", "a1"),
        (r"^\p{Lu}{2}\d+$", "ÄB7", "ab7"),
        (r"^(?<year>\d{4})$", "2026", "26"),
        (r"^[\p{L}\p{N}]$", "é", "-"),
    ],
)
def test_patterns_of_javascript(pattern, good, bad):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "t",
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "string", "pattern": pattern}},
                },
            },
        }
    ]
    assert clean_tools(tools) == (tools, [])
    assert (
        check_call({"name": "t", "arguments": {"x": good}}, tools) == []
        and "must match" in check_call({"name": "t", "arguments": {"x": bad}}, tools)[0]
    )
    for wrong in ({"pattern": "("}, {"pattern": r"\p{Nothing}"}, {"patternProperties": {"[": {}}}):
        with pytest.raises(UserError, match="not valid JSON Schema"):
            clean_tools(
                [{"name": "t", "parameters": {"type": "object", "properties": {"x": wrong}}}]
            )


@pytest.mark.parametrize(
    "field, cleaned",
    [
        (
            {"$ref": "#/$defs/K", "description": "d"},
            {"description": "d", "anyOf": [{"$ref": "#/$defs/K"}, {"type": "null"}]},
        ),
        ({"const": "a"}, {"anyOf": [{"const": "a"}, {"type": "null"}]}),
        (
            {"type": "string", "const": "a"},
            {"anyOf": [{"type": "string", "const": "a"}, {"type": "null"}]},
        ),
        (
            {"allOf": [{"$ref": "#/$defs/K"}], "default": None},
            {"default": None, "anyOf": [{"allOf": [{"$ref": "#/$defs/K"}]}, {"type": "null"}]},
        ),
        ({"type": "integer", "enum": [1, 2]}, {"type": ["integer", "null"], "enum": [1, 2, None]}),
        ({"description": "anything"}, {"description": "anything"}),
    ],
)
def test_nullable_permits_null_whatever_stands_beside_it(field, cleaned):
    kinds = {"K": {"type": "integer"}}
    tools, repairs = clean_tools(
        [
            {
                "name": "t",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {**field, "nullable": True}},
                    "$defs": kinds,
                },
            }
        ]
    )
    assert (
        tools[0]["function"]["parameters"]["properties"]["x"] == cleaned
        and any("nullable" in repair for repair in repairs)
        and clean_tools(tools) == (tools, [])
    )
    assert check_call({"name": "t", "arguments": {"x": None}}, tools) == []
    assert bool(check_call({"name": "t", "arguments": {"x": []}}, tools)) == (
        len(field) > 1 or "const" in field
    )


def test_functions_beside_a_dataclass_with_late_annotations(tmp_path):
    (tmp_path / "shop.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\nfrom typing import ClassVar\n\n@dataclass\nclass Item:\n    name: str\n    kinds: ClassVar[int] = 2\n\n"
        'def price(item: str) -> int:\n    """The price.\n\n    Args:\n        item: What\n    """\n    return len(Item(item).name)\n'
    )
    functions = read_functions(tmp_path / "shop.py")
    assert (
        list(functions) == ["price"]
        and functions["price"]("tea") == 3
        and tool_schema(functions["price"])["function"]["name"] == "price"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match="line 1"):
        read_functions(tmp_path / "broken.py")
    assert "functions_broken" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\n" * 40_000 + "b",
        "\n" * 40_000,
        "<|im_end|>\n" * 4_000 + "x",
        "x" + " <|endoftext|>" * 4_000,
        "\n" * 40_000 + "<|im_end|",
        "a<|im_end|>" + "\t" * 40_000,
    ],
)
def test_white_space_without_end_takes_no_time(text):
    started = time.perf_counter()
    content, calls, errors = parse_calls(text)
    assert (
        time.perf_counter() - started < 0.5
        and not calls
        and not errors
        and not content.endswith(("<|im_end|>", "<|endoftext|>"))
    )


def test_stop_tokens_go_only_at_the_end():
    assert (
        parse_calls("a <|im_end|> b \n<|im_end|>\n<|endoftext|> ")[0] == "a <|im_end|> b"
        and parse_calls("<|im_end|>")[0] == ""
        and parse_calls("a<|im_end|>.")[0] == "a<|im_end|>."
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "^((b{2000}){2000}){2000}$",
        r"^((\p{L}{2000}){2000}){2000}$",
        "(){1000000000}",
        "^((?:[ab]{2000}){2000}c){2000}",
    ],
)
def test_repeats_that_would_fill_the_memory_are_never_written_out(pattern):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "t",
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "string", "pattern": pattern}},
                },
            },
        }
    ]
    assert clean_tools(tools) == (tools, [])
    [said] = check_call({"name": "t", "arguments": {"x": "bbb"}}, tools)
    assert "takes too long" in said
    long = [
        {
            "type": "function",
            "function": {
                "name": "t",
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "x": {"type": "string", "pattern": r"^[A-Za-z0-9+/=\p{Lu}]{2000}$"}
                    },
                },
            },
        }
    ]
    assert (
        clean_tools(long) == (long, [])
        and check_call({"name": "t", "arguments": {"x": "a" * 2000}}, long) == []
    )


@pytest.mark.parametrize(
    "tool, name",
    [
        ("track-parcel", "track_parcel"),
        ("shop.track", "shop_track"),
        ("add", "add"),
        ("天气-查询", "天气_查询"),
        ("3d-print", "tool_3d_print"),
        ("import", "tool_import"),
        ("_hidden", "tool__hidden"),
    ],
)
def test_every_tool_has_a_name_that_a_public_function_can_have(tmp_path, tool, name):
    assert python_name(tool) == name
    (tmp_path / "f.py").write_text(f"def {name}(): return 1\n", encoding="utf-8")
    assert match_functions(read_functions(tmp_path / "f.py"), [tool])[tool]() == 1


def test_a_function_of_exactly_the_tools_name_comes_first():
    mcp = {"a-b": "exact", "a_b": "other"}
    assert match_functions(mcp, ["a-b", "a_b"]) == mcp and match_functions(
        {"a_b": "other"}, ["a-b", "a_b", "lost"]
    ) == {"a_b": "other"}
    assert match_functions({"a_b": "both"}, ["a-b", "a.b"]) == {"a-b": "both", "a.b": "both"}
