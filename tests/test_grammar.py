"""The grammar against `check_call`, both ways, over random schemas: never narrower, and wider only where a note says so."""

import json
import os
import random
from itertools import islice, permutations, product

import pytest
import xgrammar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers_cfg.parser import parse_ebnf
from transformers_cfg.recognizer import StringRecognizer

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.generate.engines import grammar_accepts
from toolcall_ft.generate.grammar import Rules, grammar_notes, possible, tool_grammar
from toolcall_ft.tools.check import check_call, panic_as_error, validator_for
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import TOOL_FORMATS
from toolcall_ft.tools.wire import XmlFormat, survives

KEYS = ["a", "b", "ab"]
CONDITIONS = {"anyOf", "oneOf", "if"}  # what they hold in one case is named in all


def tool(parameters):
    return {
        "type": "function",
        "function": {"name": "f", "description": "", "parameters": parameters},
    }


def taking(schema):
    "A tool with one argument."
    return tool({"type": "object", "properties": {"x": schema}, "required": ["x"]})


def call_of(arguments):
    return {"name": "f", "arguments": arguments}


def call_text(arguments_text):
    return f'<tool_call>\n{{"name": "f", "arguments": {arguments_text}}}\n</tool_call>'


def admits(schema, value):
    return grammar_accepts(tool_grammar([taking(schema)]), call_text(dump_json({"x": value})))


def fits(schema, value):
    return check_call({"name": "f", "arguments": {"x": value}}, [taking(schema)]) == []


def record(**fields):
    return {"type": "object", "properties": fields, "required": list(fields)}


INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    "schema, good, bad",
    [
        (
            {"allOf": [record(a=INTEGER), record(b=INTEGER)]},
            [{"a": 1, "b": 2}],
            [{"b": 2}, {"a": 1}, {"a": 1, "b": "2"}],
        ),
        (
            {"allOf": [{"properties": {"c": {}}}, record(b=INTEGER)], "properties": {"a": {}}},
            [{"b": 1}, {"b": 1, "a": 1, "c": 1}],
            [{"a": 1}, "a"],
        ),
        (
            {
                "allOf": [
                    {"minItems": 1, "items": {"type": ["integer", "string"]}},
                    {"type": "array", "maxItems": 2, "items": {"type": ["string", "null"]}},
                ]
            },
            [["a"], ["a", "b"]],
            [[], [1], [None], ["a"] * 3],
        ),
        (
            {"allOf": [{"enum": [1, 2, "a"]}, {"enum": [2, "a", 3], "type": "integer"}]},
            [2],
            [1, 3, "a"],
        ),
        ({"enum": [1, 50, "long"], "maximum": 9, "maxLength": 3}, [1], [50, "long"]),
        (
            {"type": "object", "patternProperties": {"^n": INTEGER}, "additionalProperties": False},
            [{}, {"n1": 1}],
            [{"n1": "1"}],
        ),
        (
            {
                "$ref": "#/properties/x/$defs/A",
                "required": ["b"],
                "$defs": {"A": record(a=INTEGER)},
            },
            [{"a": 1, "b": 2}],
            [{"a": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"n": {"$ref": "#/properties/x"}},
                "additionalProperties": False,
            },
            [{}, {"n": {"n": {}}}],
            [{"n": 1}, {"n": {"m": {}}}],
        ),
        (
            {
                "anyOf": [record(a=INTEGER), record(b=INTEGER)],
                "required": ["c"],
                "properties": {"c": {}},
            },
            [{"c": 1, "a": 1}, {"c": 1, "b": 1}, {"c": 1, "a": 1, "b": 1}],
            [{"c": 1}, {"a": 1}],
        ),
        (
            {"type": "array", "prefixItems": [INTEGER, {"type": "string"}], "items": False},
            [[], [1], [1, "a"]],
            [["a"], [1, "a", 2]],
        ),
        ({"type": "array", "items": False}, [[]], [[1]]),
        (
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "anyOf": [INTEGER, {"type": "array", "items": {"$ref": "#/properties/x"}}]
                },
            },
            [[1], [[[1]]]],
            [[], [[1]]],
        ),
        (
            {
                "type": "object",
                "required": ["a"],
                "properties": {"a": {"type": ["integer", "object"], "additionalProperties": {}}},
            },
            [{"a": {"b": [[[[1]]]]}}],
            [{}, {"a": "b"}],
        ),
        (
            {"type": "object", "properties": {"a": False}, "additionalProperties": False},
            [{}],
            [{"a": 1}],
        ),
        ({"properties": {"a": INTEGER}}, [1, None, [{}], {}, {"a": 1}], []),
        (
            {
                "type": "object",
                "properties": {"k": {"enum": ["a", "b"]}},
                "required": ["k"],
                "if": {"properties": {"k": {"const": "a"}}},
                "then": {"required": ["a"]},
            },
            [{"k": "a", "a": 1}, {"k": "b"}],
            [{}],
        ),
        ({"type": "integer"}, [0, -5, 10**18, 1e22, 1.5e300], [0.5, 1e-5]),
        ({"type": "number"}, [1e22, 1e-100, 0.00012345678901234567, -1.5e200], []),
    ],
)
def test_each_keyword(schema, good, bad):
    for value in good:
        assert admits(schema, value) and fits(schema, value), value
    for value in bad:
        assert not admits(schema, value) and not fits(schema, value), value


def test_the_order_of_keys_in_a_schema_made_of_parts():
    "Those of the parts in turn, but first what is required."
    schema = {
        "allOf": [{"properties": {"c": {}}}, record(b=INTEGER)],
        "properties": {"a": {}},
        "unevaluatedProperties": False,
    }
    assert admits(schema, {"b": 1, "a": 1, "c": 1}) and not admits(schema, {"b": 1, "c": 1, "a": 1})


@pytest.mark.parametrize(
    "schema, keyword",
    [
        ({"type": "integer", "maximum": 4}, "maximum"),
        ({"type": "array", "items": {"type": "string", "pattern": "^a"}}, "pattern"),
        ({"type": "string", "format": "date"}, "format"),
        (
            {"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False},
            "patternProperties",
        ),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf"),
        ({"not": INTEGER}, "not"),
        ({"type": "array", "maxItems": 1000}, "maxItems"),
        ({"type": "object", "properties": {"a": INTEGER}}, "properties"),
    ],
)
def test_what_is_wider_has_a_note(schema, keyword):
    assert [note.split("'")[1] for note in grammar_notes([taking(schema)])] == [
        keyword
    ] and grammar_notes([taking(schema)])[0].startswith("f.x: ")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "float", "minLength": 0},
        {"enum": [1, 2], "minimum": 0},
        {"oneOf": [INTEGER, {"type": "null"}]},
        {"type": "string", "title": "t"},
        {"type": "array", "maxItems": 3},
        {"anyOf": [record(a=INTEGER), INTEGER]},
        {"type": "string", "minimum": 3},
    ],
)
def test_what_is_held_has_none(schema):
    assert grammar_notes([taking(schema)]) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "enum": [1, 2]},
        False,
        {"allOf": [INTEGER, {"type": "string"}]},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "object", "required": ["n"], "properties": {"n": {"$ref": "#/properties/x"}}},
    ],
)
def test_what_nothing_fits_is_never_forced(schema):
    "The tool has no call, an optional argument is left out, and the note says so."
    empty, other = (
        taking(schema),
        {
            "type": "function",
            "function": {"name": "ping", "description": "", "parameters": {"type": "object"}},
        },
    )
    assert grammar_notes([empty]) == [
        "f: no arguments fit its schema, so the grammar has no call of it"
    ]
    assert [
        grammar_accepts(tool_grammar([empty, other]), call_text("{}").replace('"f"', f'"{name}"'))
        for name in ("f", "ping")
    ] == [False, True]
    assert grammar_accepts(tool_grammar([empty]), "No.")
    with pytest.raises(UserError, match="f: no arguments fit"):
        tool_grammar([empty], required=True)
    optional = tool({"type": "object", "properties": {"x": schema}})
    assert (
        grammar_accepts(tool_grammar([optional]), call_text("{}"))
        and grammar_notes([optional]) == []
    )


def test_schemas_that_multiply_come_to_an_end():
    "Six definitions, each of which is all the others at once, and cases that would make a million."
    names = [f"D{i}" for i in range(6)]
    definitions = {
        name: {
            "type": "object",
            "properties": {
                other: {"allOf": [{"$ref": f"#/$defs/{one}"} for one in names if one != other]}
                for other in names
            },
        }
        for name in names
    }
    cases = [
        {"if": {"properties": {key: {"const": 1}}}, "then": {"required": [key + "s"]}}
        for key in "abcdefghijklmnopqrst"
    ]
    for parameters in (
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/D0"}}, "$defs": definitions},
        {"type": "object", "allOf": cases, "properties": {key: INTEGER for key in "abs"}},
    ):
        assert (
            grammar_accepts(tool_grammar([tool(parameters)]), call_text("{}"))
            and len(tool_grammar([tool(parameters)])) < 5_000_000
        )


def test_a_reference_in_a_circle_is_refused_in_words():
    "The validator's own library panics there, which is no `Exception`."
    circle = tool(
        {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/R"}},
            "$defs": {"R": {"anyOf": [{"not": {"$ref": "#/$defs/R"}}, INTEGER]}},
        }
    )
    assert "cannot be used" in check_call({"name": "f", "arguments": {"x": "a"}}, [circle])[0]


@pytest.mark.parametrize(
    "written, cleaned, said",
    [
        ({"type": "string", "enum": [1, 2]}, {"enum": [1, 2]}, "the type is dropped"),
        ({"type": "string", "const": 1}, {"const": 1}, "the type is dropped"),
        ({"type": "string", "enum": ["a", 1]}, {"type": "string", "enum": ["a"]}, "dropped"),
        ({"type": "str", "enum": [True, False]}, {"enum": [True, False]}, "the type is dropped"),
        (
            {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]},
            {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            "they are those of its items",
        ),
        (
            {"type": "array", "enum": ["a", "b"]},
            {"type": "array", "items": {"enum": ["a", "b"]}},
            "they are those of its items",
        ),
    ],
)
def test_values_that_their_type_refuses_are_repaired(written, cleaned, said):
    tools, repairs = clean_tools([taking(written)])
    assert tools[0]["function"]["parameters"]["properties"]["x"] == cleaned
    assert (
        len(repairs) == 1
        and repairs[0].startswith("f.parameters.x: ")
        and repairs[0].endswith(said)
        and clean_tools(tools) == (tools, [])
    )


@pytest.mark.parametrize(
    "field",
    [
        {"type": ["string", "null"], "enum": ["a", None]},
        {"type": "number", "enum": [1, 2.5]},
        {"enum": ["a", 1]},
        {"type": "array", "enum": [["a"]]},
    ],
)
def test_values_that_fit_their_type_stay(field):
    assert clean_tools([taking(field)]) == ([taking(field)], [])


# ---- random schemas


def subsets(of):
    return st.lists(st.sampled_from(of), unique=True, max_size=2)


LEAVES = [
    {},
    True,
    False,
    {"type": "integer"},
    {"type": "string"},
    {"type": ["boolean", "null"]},
    {"type": "number"},
    {"type": "object"},
    {"type": "array"},
    {"enum": [1, "a", None, {"a": 1}]},
    {"const": "a"},
    {"const": 1},
    {"type": "string", "enum": [1, "a"]},
    {"type": "string", "enum": [1]},
    {"type": "integer", "minimum": 1},
    {"type": "string", "minLength": 1},
    {"type": "string", "pattern": "^a"},
    {"type": "string", "format": "date"},
    {"multipleOf": 2},
    {"$ref": "#/$defs/R"},
    {"$ref": "#/$defs/S"},
    {"$ref": "#"},
]


def fragments(inner):
    "Pieces of a schema; a few of them together are one."
    fields = st.dictionaries(st.sampled_from(KEYS), inner, max_size=2)
    several = st.lists(inner, min_size=1, max_size=2)
    size = st.integers(0, 2)
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": fields, "required": subsets(KEYS)}
        ),
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": fields,
                "required": subsets(KEYS),
                "additionalProperties": st.just(False),
            }
        ),
        st.fixed_dictionaries(
            {"properties": fields},
            optional={"required": subsets(KEYS), "additionalProperties": inner},
        ),
        st.fixed_dictionaries(
            {"patternProperties": st.fixed_dictionaries({"^a": inner})},
            optional={"additionalProperties": st.booleans()},
        ),
        st.fixed_dictionaries(
            {},
            optional={
                "minProperties": size,
                "maxProperties": size,
                "propertyNames": st.just({"pattern": "^a"}),
            },
        ),
        st.fixed_dictionaries({"dependentRequired": st.fixed_dictionaries({"a": subsets(KEYS)})}),
        st.fixed_dictionaries({"dependentSchemas": st.fixed_dictionaries({"a": inner})}),
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={"items": inner, "prefixItems": several, "minItems": size, "maxItems": size},
        ),
        st.fixed_dictionaries({}, optional={"uniqueItems": st.booleans(), "contains": inner}),
        st.fixed_dictionaries({"allOf": several}),
        st.fixed_dictionaries({"anyOf": several}),
        st.fixed_dictionaries({"oneOf": several}),
        st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"unevaluatedProperties": st.booleans()}),
        st.sampled_from(
            [
                {"$ref": "#/$defs/R"},
                {"type": "object"},
                {"type": ["object", "null"]},
                {"enum": [{"a": 1}, {"b": "a"}, 1]},
            ]
        ),
    )


def joined(parts):
    return {key: value for part in parts for key, value in part.items()}


LEAF = st.sampled_from(LEAVES)
INNER = LEAF | st.lists(fragments(LEAF), min_size=1, max_size=2).map(joined)
SCHEMA = LEAF | st.lists(fragments(INNER), min_size=1, max_size=3).map(joined)
COMPOSED = st.just({}) | fragments(st.sampled_from(LEAVES[3:])) | fragments(SCHEMA)


def with_one(more, fields, required, **definitions):
    "A tool with up to two arguments, composed or not, and two definitions to refer to."
    own = {
        "type": "object",
        "properties": fields,
        "required": [key for key in required if key in fields],
    }
    return tool({**more, **own, "$defs": definitions})


TOOLS = st.builds(
    with_one,
    COMPOSED,
    st.dictionaries(st.sampled_from(["a", "b"]), SCHEMA, max_size=2),
    subsets(["a", "b"]),
    R=SCHEMA,
    S=SCHEMA,
)


# ---- values that may fit


def target(reference, top):
    for part in reference.removeprefix("#").strip("/").split("/"):
        top = top[part] if part else top
    return top


def parts_of(schema, top, rng, depth):
    "A schema and, by chance, what it is composed of."
    if not isinstance(schema, dict) or depth > 5:
        return []
    inner = [
        *schema.get("allOf", []),
        *(rng.choice(schema[key]) for key in ("anyOf", "oneOf") if key in schema),
        *schema.get("dependentSchemas", {}).values(),
    ]
    if "$ref" in schema:
        inner.append(target(schema["$ref"], top))
    inner += [schema[key] for key in rng.choice([["if", "then"], ["else"]]) if key in schema]
    return [schema] + [part for one in inner for part in parts_of(one, top, rng, depth + 1)]


def guess(schema, top, rng, depth=0):
    "A value that may well fit."
    parts = parts_of(schema, top, rng, 0)
    listed = [
        value
        for part in parts
        for value in [*part.get("enum", []), *([part["const"]] if "const" in part else [])]
    ]
    if listed:
        return rng.choice(listed)
    types = [part["type"] for part in parts if "type" in part]
    kinds = (
        rng.choice(types)
        if types
        else ["object"] * 4 + ["array", "array", "string", "integer", "null", "number", "boolean"]
    )
    kind = kinds if isinstance(kinds, str) else rng.choice(kinds)
    if depth > 3 and kind in ("object", "array"):
        return {} if kind == "object" else []
    if kind == "object":
        named = {
            key: part["properties"][key] for part in parts for key in part.get("properties", {})
        }
        needed = {key for part in parts for key in part.get("required", [])}
        keys = [
            key
            for key in [*named, *KEYS, "other"]
            if key in needed or rng.random() < (0.5 if key in named else 0.15)
        ]
        return {key: guess(named.get(key, True), top, rng, depth + 1) for key in keys}
    if kind == "array":
        low = max([part.get("minItems", 0) for part in parts], default=0)
        items = [part["items"] for part in parts if "items" in part] + [
            item for part in parts for item in part.get("prefixItems", [])
        ]
        return [
            guess(rng.choice(items) if items else True, top, rng, depth + 1)
            for _ in range(low + rng.choice([0, 0, 1, 2]))
        ]
    return {
        "string": rng.choice(["", "a", "ab", "2026-11-21", 'é\n"<']),
        "integer": rng.choice([0, 2, -7, 10**18]),
        "number": rng.choice([0.5, 2, 1e-7, 1e22, 1e-100]),
        "boolean": rng.random() < 0.5,
        "null": None,
    }[kind]


def orders(value):
    "The same value, with the keys of its objects in any order."
    if isinstance(value, dict):
        for order in permutations(value.items()):
            for items in product(*(list(islice(orders(item), 24)) for _, item in order)):
                yield {key: item for (key, _), item in zip(order, items)}
    elif isinstance(value, list):
        for items in product(*(list(islice(orders(item), 24)) for item in value)):
            yield list(items)
    else:
        yield value


# ---- texts that the grammar admits

BYTES = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo(
        [bytes([i]) for i in range(256)] + [b""], xgrammar.VocabType.RAW, stop_token_ids=[256]
    )
)
CLOSING, LIKED = {256, *b'"}]'}, {*b"ab"}


def walk(compiled, rng, steps=300):
    "A text of bytes that the engine leaves open, chosen by chance, with a liking for short ones; None if it comes to no end."
    matcher, mask, text = (
        xgrammar.GrammarMatcher(compiled),
        xgrammar.allocate_token_bitmask(1, 257),
        b"",
    )
    for step in range(steps):
        matcher.fill_next_token_bitmask(mask)
        bits = mask[0].tolist()
        open_ = [i for i in range(257) if bits[i // 32] >> i % 32 & 1]
        ending = [i for i in open_ if i in CLOSING] if rng.random() < 0.3 + step / steps else []
        liked = [i for i in open_ if i in LIKED] if rng.random() < 0.5 else []
        byte = rng.choice(ending or liked or [i for i in open_ if i < 128 or i == 256] or open_)
        matcher.accept_token(byte)
        if byte == 256:
            return text.decode()
        text += bytes([byte])
    return None


def as_written(form, arguments):
    "XML has no types, so a value that does not fit is a text: what it stands for tells which keyword it breaks."
    if not isinstance(form, XmlFormat):
        return arguments
    read = {}
    for key, value in arguments.items():
        try:
            read[key] = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            read[key] = value
    return read


def explained(error, noted):
    "Does a note name the keyword for which `check_call` refuses a call?"
    path = list(error.absolute_path)
    said = noted.get(None, set()) | (
        noted.get(path[0], set()) if path else set().union(*noted.values())
    )
    path = {
        "if" if step in ("then", "else") else step
        for step in [error.validator, *error.absolute_schema_path]
    }  # jsonschema leaves out `if`
    if "patternProperties" in said or path & said:
        return True
    if error.validator is None:
        return bool(said)  # of a schema that is `false` jsonschema tells no path
    if error.validator == "unevaluatedProperties" and said & CONDITIONS:
        return True
    branches = {}
    for inner in error.context:
        branches.setdefault(next(iter(inner.schema_path), None), []).append(inner)
    return any(all(explained(inner, noted) for inner in branch) for branch in branches.values())


def noted_keywords(one):
    "argument -> keywords; None for those of the tool as a whole."
    noted = {}
    for place, _, sentence in (note.partition(": ") for note in grammar_notes([one])):
        if sentence.startswith("'"):
            noted.setdefault(place[2:] or None, set()).add(sentence.split("'")[1])
    return noted


def is_possible(one):
    rules = Rules(one["function"]["parameters"])
    return possible(rules.top, rules)


EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", 120)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


EACH = pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)


@EACH
@EXAMPLES
@given(TOOLS, st.integers(0, 2**32))
def test_never_narrower(form, one, seed):
    "What `check_call` accepts, and the family can carry, is in the grammar."
    parameters, rng = one["function"]["parameters"], random.Random(seed)
    guesses = [guess(parameters, parameters, rng) for _ in range(12)]
    right = {
        dump_json(value): value
        for value in guesses
        if isinstance(value, dict) and check_call(call_of(value), [one]) == []
    }
    carried = [value for value in right.values() if survives(form, [call_of(value)], [one])]
    if not carried:
        return
    parsed = parse_ebnf(tool_grammar([one], required=True, form=form))
    recognizer = StringRecognizer(parsed.grammar_encoding, parsed.symbol_table["root"])
    for value in carried[:3]:
        texts = (form.write([call_of(same)]) for same in islice(orders(value), 200))
        assert any(map(recognizer._accept_string, texts)), (value, parameters)


@EACH
@EXAMPLES
@given(TOOLS, st.integers(0, 2**32))
def test_wider_only_where_a_note_says_so(form, one, seed):
    "What the grammar admits is accepted by `check_call`, or a note names tool, argument and keyword."
    parameters, rng = one["function"]["parameters"], random.Random(seed)
    if not is_possible(one):
        return
    grammar, noted = tool_grammar([one], required=True, form=form), noted_keywords(one)
    compiled = BYTES.compile_grammar(grammar)
    for text in filter(None, (walk(compiled, rng) for _ in range(4))):
        _, calls, faults = form.parse(text, [one])
        if faults:
            assert all("twice" in fault for fault in faults), text
        for call in calls:
            refused = check_call(call, [one])
            if not refused:
                continue
            arguments = as_written(form, call["arguments"])
            try:
                with panic_as_error():
                    found = validator_for(arguments, parameters).iter_errors(arguments)
                    errors = list(islice(found, 20))
            except RecursionError:
                assert noted, (refused, parameters)  # a circle, within a keyword that is not held
            else:
                told = [error for error in errors if explained(error, noted)]
                rest = {error.validator for error in errors} - {error.validator for error in told}
                assert told and rest <= {"unevaluatedProperties"}, (
                    refused,
                    noted,
                    parameters,
                )  # a part that does not fit names no keys
