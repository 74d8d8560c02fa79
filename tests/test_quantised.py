"""The measures of quantising: each against a figure worked out by hand, and all of them on a model that knows its answers."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.formats import GGUF_TYPES
from toolcall_ft.export.llamacpp import build_llama_cpp
from toolcall_ft.parity.quantization import (
    call_rows,
    compare_rows,
    divergence,
    imatrix_table,
    measure_formats,
    measure_speed,
    quantization_chart,
    quantization_table,
    resample_interval,
)
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.train.memorise import memorise_answers

TOOLS, _ = clean_tools(
    [{"name": "get_weather", "description": "Weather", "parameters": {"city": {"type": "string"}}}]
)
CITIES = ["北京", "Lima", "Oslo"]


def example(city):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return {
        "messages": [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": TOOLS,
    }


def fixed_model(logits):
    "A model that predicts the same at every place."
    return lambda ids, logits_to_keep: SimpleNamespace(
        logits=torch.tensor([[logits] * len(logits_to_keep)], dtype=torch.float64)
    )


ROW = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
NUMBERS = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


# ---- the divergence -------------------------------------------------------------------------------------------------


def test_the_divergence_by_hand():
    found = divergence(
        fixed_model([math.log(0.5), math.log(0.25), math.log(0.25)]),
        fixed_model([math.log(0.25), math.log(0.5), math.log(0.25)]),
        [ROW],
    )
    assert (
        found["kl"] == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
        and found["kl_n"] == 2
        and found["same_token"] == 0
    )


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_it_is_never_negative_and_zero_for_the_same(one, other):
    found = divergence(fixed_model(one), fixed_model(other), [ROW, ROW])
    low, high = found["kl_interval"]
    assert 0 <= found["kl"] and low <= found["kl"] + 1e-12 and found["kl"] <= high + 1e-12
    assert divergence(fixed_model(one), fixed_model(one), [ROW])["kl"] == 0


def test_long_rows_weigh_more():
    "The mean is that of tokens, not of rows."
    assert resample_interval([(3.0, 3)]) == [1, 1]
    low, high = resample_interval([(0.0, 90), (10.0, 10)] * 20)
    assert low < 0.1 < high < 0.2


def test_only_calls_are_counted():
    tokenizer = load_tokenizer("tiny-qwen2")
    plain = {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}],
        "tools": TOOLS,
    }
    rows = call_rows([plain, example("Lima"), plain, example("Oslo")], tokenizer, limit=1)
    assert len(rows) == 1 and "Lima" in tokenizer.decode(
        [label for label in rows[0]["labels"] if label != -100]
    )
    with pytest.raises(UserError, match="no tool call in any of the examples"):
        call_rows([plain], tokenizer)


# ---- with and without -----------------------------------------------------------------------------------------------


def measured(wrong, kl):
    return {
        "wrong": wrong,
        "kl_rows": kl,
        "bytes": 10,
        "exact": 0.5,
        "exact_interval": [0.4, 0.6],
        "exact_n": 20,
        "kl": 1e-3,
        "kl_interval": [0, 2e-3],
        "same_token": 0.99,
        "prompt_speed": 100,
        "answer_speed": 10,
    }


def test_the_coin_by_hand():
    found = compare_rows(measured([*range(2, 10)], [1, 1]), measured([0, 1], [1, 1]))
    assert (found["only_one"], found["only_other"]) == (2, 8)
    assert found["p"] == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert compare_rows(measured([3], [1]), measured([3], [1]))["p"] == 1


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_the_coin_has_no_side(one, other):
    there, back = (
        compare_rows(measured(one, [1.0, 2.0]), measured(other, [1.5, 2.0])),
        compare_rows(measured(other, [1.5, 2.0]), measured(one, [1.0, 2.0])),
    )
    assert there["p"] == back["p"] <= 1 and there["kl_change"] == -back["kl_change"]


@pytest.mark.parametrize("change, verdict", [(-0.5, "helps"), (0.5, "harms"), (0, "no difference")])
def test_the_verdict(change, verdict):
    before = [1.0, 1.2, 0.9, 1.1] * 5
    table = imatrix_table(
        {
            "Q4_0": measured([1], before),
            "Q4_0 + imatrix": measured([1], [value + change for value in before]),
            "Q8_0": measured([], before),
        }
    )
    assert len(table.splitlines()) == 3 and verdict in table


def test_rows_of_another_length_are_no_pair():
    with pytest.raises(ValueError):
        compare_rows(measured([], [1.0]), measured([], [1.0, 2.0]))


# ---- all of it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    build_llama_cpp()
    work = tmp_path_factory.mktemp("heart")
    texts = [
        (
            {"messages": example(city)["messages"][:1], "tools": TOOLS},
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
            % city,
        )
        for city in CITIES
    ]
    assert memorise_answers(texts, work / "heart")["wrong tokens"] == 0
    return export_gguf(work / "heart", work / "gguf", ["F16", "Q8_0"])


def test_a_model_that_knows_its_answers(files):
    rows = measure_formats(
        files, [example(city) for city in CITIES], load_tokenizer("tiny-qwen2"), context=1024
    )
    assert rows["F16"]["exact"] == 1 and rows["F16"]["wrong"] == [] and rows["F16"]["kl"] == 0
    assert (
        rows["Q8_0"]["exact"] == 1
        and 0 < rows["Q8_0"]["kl"] < 0.01
        and rows["Q8_0"]["same_token"] == 1
    )
    assert (
        rows["Q8_0"]["bytes"] == files["Q8_0"].stat().st_size and rows["Q8_0"]["answer_speed"] > 0
    )
    table = quantization_table(rows)
    assert f"{files['Q8_0'].stat().st_size:,} | 54% | 100.0 % [43.9–100.0] n=3" in table
    assert len(quantization_chart(rows).axes) == 3


def test_without_f16_there_is_nothing_to_compare_with(files):
    with pytest.raises(UserError, match="compared with F16"):
        measure_formats({"Q8_0": files["Q8_0"]}, [example("Lima")], load_tokenizer("tiny-qwen2"))


def test_a_prompt_that_does_not_fit(files):
    with LlamaServer(files["Q8_0"], context=256) as server:
        with pytest.raises(UserError, match="Is the context large enough"):
            measure_speed(server, [{"input_ids": [5] * 300}])


def test_the_stored_figures_are_of_every_format(repository):
    stored = json.loads(
        (repository / "benchmarks/results/quantised.json").read_text(encoding="utf-8")
    )
    formats = stored["formats"]
    assert {name.removesuffix(" + imatrix") for name in formats} == set(GGUF_TYPES) and {
        row["exact_n"] for row in formats.values()
    } == {336}
    assert all(len(row["wrong"]) == round(336 * (1 - row["exact"])) for row in formats.values())
    assert len(imatrix_table(formats).splitlines()) == 2 + 5
