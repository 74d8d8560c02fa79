"""The tools module against input that is wrong, hostile or merely unusual."""
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from toolcall_ft.tools import (UserError, check_call, clean_tools, dump_json, parse_calls, parse_json, read_functions, read_json, read_tools, tool_schema)

EXAMPLES = Path(__file__).parent.parent / "examples"
ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                            ["name", "type", "function", "parameters", "properties", "required", "enum", "items", "description", "$ref", "pattern", "x"]), inner, max_size=4), max_leaves=12)
GUIDE = [{"name": "HandleTongzhiTonggao", "description": "notices", "parameters": [
    {"name": "operation", "description": "操作方式，从列表中选择其中一个：['ADD', 'DELETE', 'UPDATE', 'LIST']", "required": True},
    {"name": "type", "description": '类型，从列表中选择其中一个：["时讯消息", "通告"]', "required": True}, {"name": "content", "description": "内容", "required": True}]},
    {"name": "WaterMachineApi", "description": "water", "parameters": [
        {"name": "operation", "description": "可选择的指令包含：[水壶取水, 水壶停水, 停止加热, 开始保温, 停止保温, 打开语音, 关闭语音]", "required": True}]}]


@pytest.fixture(scope="module")
def tools():
    return read_tools(EXAMPLES / "tools.json")


def test_the_loose_list_of_the_guide():
    (notice, water), repairs = clean_tools(GUIDE)
    fields = notice["function"]["parameters"]["properties"]
    assert fields["operation"]["enum"] == ["ADD", "DELETE", "UPDATE", "LIST"] and fields["type"]["enum"] == ["时讯消息", "通告"]
    assert notice["function"]["parameters"]["required"] == ["operation", "type", "content"]
    assert len(water["function"]["parameters"]["properties"]["operation"]["enum"]) == 7
    assert len(repairs) == 2 + 2 + 4 + 3  # wrapped, lists, 'required' moved, values lifted
    assert not any("required" in field for field in fields.values())


def test_python_type_names_become_json_schema():
    fields = {"a": {"type": "list"}, "b": {"type": "dict"}, "c": {"type": "float"}, "d": {"type": "tuple"}, "e": {"type": "any"}, "f": {"type": "List[int]"}}
    (tool,), repairs = clean_tools([{"name": "t", "parameters": {"type": "dict", "properties": fields}}])
    schema = tool["function"]["parameters"]
    assert schema["properties"] == {"a": {"type": "array"}, "b": {"type": "object"}, "c": {"type": "number"}, "d": {"type": "array"}, "e": {},
                                    "f": {"type": "array", "items": {"type": "integer"}}}
    assert len(repairs) == 7
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("key", ["parameters", "inputSchema", "input_schema"])
def test_the_keys_of_other_protocols(key):
    (tool,), _ = clean_tools([{"name": "t", key: {"type": "object", "properties": {"x": {"type": "string"}}}}])
    assert tool["function"]["parameters"]["properties"] == {"x": {"type": "string"}}


@settings(max_examples=300, deadline=None)
@given(ANY_JSON)
def test_cleaning_any_json_gives_valid_schemas_or_a_user_error(value):
    for tools in (value, [value], [{"name": "t", "parameters": value}], [{"name": "t", "parameters": {"type": "object", "properties": {"x": value}}}]):
        try:
            cleaned, _ = clean_tools(tools)
        except UserError as error:
            assert str(error)
            continue
        for tool in cleaned:
            Draft202012Validator.check_schema(tool["function"]["parameters"])
            assert isinstance(check_call({"name": tool["function"]["name"], "arguments": {"x": value}}, [tool]), list)
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
    assert "unknown tool" in fits("WeatherAPI", query_key="北京")[0] and "WeatherApi" in fits("WeatherAPI")[0]
    assert "'query_key' is a required property" in fits("WeatherApi")[0]
    assert "not one of" in fits("WaterMachineApi", operation="爆炸")[0]
    assert "WeatherApi.query_key" in fits("WeatherApi", query_key=3)[0]
    assert "city" in fits("WeatherApi", query_key="北京", city="北京")[0]


def test_a_remote_reference_is_never_fetched():
    (tool,), _ = clean_tools([{"name": "t", "parameters": {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/schema.json"}}}}])
    assert "cannot be used" in check_call({"name": "t", "arguments": {"x": 1}}, [tool])[0]


def test_a_broken_pattern_in_a_schema_is_refused():
    with pytest.raises(UserError, match="x.pattern"):
        clean_tools([{"name": "t", "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}}])


def test_every_prefix_of_a_call_through_the_parser():
    calls = [{"name": "a", "arguments": {"t": "</tool_call> {\"x\": [1, \"北京\"]} \\n \\\" <tool_call>"}}, {"name": "b", "arguments": {}}]
    text = "Well.\n" + "\n".join(f"<tool_call>\n{dump_json(call)}\n</tool_call>" for call in calls) + "<|im_end|>\n"
    assert parse_calls(text) == ("Well.", calls, [])
    for n in range(len(text)):
        content, found, errors = parse_calls(text[:n])
        assert found == calls[:len(found)]
        assert content.startswith("Well."[:n])
        assert errors or "<tool_call>" not in text[:n].rpartition("</tool_call>")[2]


@pytest.mark.parametrize("inside", ['{"name": "a"}', '{"arguments": {}}', '{"name": 1, "arguments": {}}', '{"name": "a", "arguments": "{}"}', '[]', 'null', '',
                                    '{"name": "a", "arguments": {"x": NaN}}', '{"name": "a", "name": "b", "arguments": {}}', '{"name": "a", "arguments": {"x": "\\ud800"}}',
                                    "{'name': 'a', 'arguments': {}}", '{"name": "a", "arguments": ' + "[" * 3000 + "}"])
def test_blocks_that_are_no_call(inside):
    good = '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    _, calls, errors = parse_calls(f"<tool_call>\n{inside}\n</tool_call>\n{good}")
    assert calls == [{"name": "b", "arguments": {}}] and len(errors) == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', "{", "}", '"', "\n", "x", "<|im_end|>", "\\"]), max_size=12).map("".join))
def test_the_parser_never_raises(text):
    content, calls, errors = parse_calls(text)
    assert isinstance(content, str) and all(set(call) == {"name", "arguments"} for call in calls)


def test_json_that_python_would_take():
    for text in ('{"a": Infinity}', '{"a": 1, "a": 1}', '"\\udc00"', "[" * 101 + "]" * 101, "9" * 5000, "[1e999]"):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json("[" * 99 + "]" * 99)


@pytest.mark.parametrize("data, words", [(b"", "empty"), (b"\xff\xfe[\x00", "UTF-16"), (b"\xb1\xb1", "not UTF-8"), (b'{"a": 1,\n}', "line 2"), (b'{"a": 1, "a": 2}', "twice")])
def test_files_that_cannot_be_read(tmp_path, data, words):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_json(tmp_path / "x.json")


def test_tools_files(tmp_path):
    for text, words in (("[]", "no tools"), ("3", "must be a list"), ('[{"name": "t"}, {"name": "t"}]', "Rename"), ('[{"description": "x"}]', "'name'")):
        (tmp_path / "tools.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_tools(tmp_path / "tools.json")
    with pytest.raises(UserError, match="no such file"):
        read_tools(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize("source, words", [("def f(:\n", "line 1"), ("\n\n1 / 0\n", "line 3"), ("import sys\nsys.path.gone\n", "line 2")])
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
    assert schema["parameters"]["required"] == ["names", "when"] and schema["parameters"]["properties"]["when"]["enum"] == ["today", "tomorrow"]
    assert "return" not in schema
    for wrong in (lambda x: x, len, 3):
        with pytest.raises(UserError, match="no tool can be made"):
            tool_schema(wrong)


def test_the_functions_of_the_demo_are_its_tools(tools):
    functions = read_functions(EXAMPLES / "functions.py")
    assert sorted(functions) == sorted(tool["function"]["name"] for tool in tools)
    for tool in tools:
        written, derived = tool["function"]["parameters"], tool_schema(functions[tool["function"]["name"]])["function"]["parameters"]
        assert list(written["properties"]) == list(derived["properties"]) and written.get("required") == derived["required"]
        assert {k: v.get("enum") for k, v in written["properties"].items()} == {k: v.get("enum") for k, v in derived["properties"].items()}
        arguments = {k: (v.get("enum") or ["北京"])[0] for k, v in written["properties"].items()}
        parse_json(dump_json(functions[tool["function"]["name"]](**arguments)))


def test_the_import_is_light():
    code = "import sys, toolcall_ft.tools, toolcall_ft.data; print([m for m in ('torch', 'transformers', 'datasets', 'jsonschema', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
