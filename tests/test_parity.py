"""Do all runtimes make the same tokens, and does a GGUF belong to its folder? Real servers, files that were broken on purpose, and the peers' own programs."""

import json
import os
import random
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
from golden.qwen_tokenizer import CACHE, qwen_tokenizer

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.http import ask_json
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.cli.main import main
from toolcall_ft.export.convert import convert_gguf, read_gguf
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.export.llamacpp import build_llama_cpp, find_llama_cpp
from toolcall_ft.generate.reading import read_answer
from toolcall_ft.parity.compare import (
    NEAR_TIE,
    answer_ids,
    other_calls,
    prompt_differences,
    same_output,
)
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.parity.measure import measure_parity, model_runtimes, parity
from toolcall_ft.parity.pair import check_pair, finding, pair_table
from toolcall_ft.parity.report import breaks, claims, parity_html, parity_table
from toolcall_ft.parity.runtimes import TrainingRow, TransformersRuntime, later_logits
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.serve.ollama import OllamaServer, modelfile_sources, ollama_tokens
from toolcall_ft.serve.ollama_build import find_ollama
from toolcall_ft.template.models import load_tokenizer, model_path
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_prompt
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.normalize import normalize_messages
from toolcall_ft.train.memorise import memorise_answers

CORPUS = hard_corpus()
ALL_TOOLS = list({dump_json(tool): tool for case in CORPUS for tool in case["tools"]}.values())
CI = os.environ.get("CI")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-qwen2")


@pytest.fixture(scope="module")
def stock():
    return model_path("tiny-qwen2")


@pytest.fixture(scope="module")
def gguf(stock, tmp_path_factory):
    "The embedded model with Qwen's own template."
    build_llama_cpp()
    return export_gguf(stock, tmp_path_factory.mktemp("stock"), ["F16"])["F16"]


@pytest.fixture(scope="module")
def portable(stock, tmp_path_factory):
    "(folder, GGUF) with the portable template."
    build_llama_cpp()
    folder = tmp_path_factory.mktemp("portable")
    shutil.copytree(stock, folder / "model")
    make_portable(folder / "model", ALL_TOOLS)
    return folder / "model", export_gguf(folder / "model", folder / "gguf", ["F16"])["F16"]


def peer(requirement):
    "A package to compare with; on CI it must be there."
    name = requirement.partition("==")[0]
    return (
        import_module(name)
        if CI
        else pytest.importorskip(name, reason=f"{name} is not installed: pip install {requirement}")
    )


# ---- the corpus -----------------------------------------------------------------------------------------------------


def test_every_case_can_be_asked_of_any_runtime(tokenizer):
    assert len({case["name"] for case in CORPUS}) == len(CORPUS) > 60
    for case in CORPUS:
        assert (
            json.loads(json.dumps(case)) == case
            and normalize_messages(case["messages"], case["tools"]) == case["messages"]
        )
        assert clean_tools(case["tools"])[0] == case["tools"]  # they are clean already
        assert case["messages"][-1]["role"] in ("user", "tool") and encode_prompt(case, tokenizer)


def test_the_issue_is_covered():
    text = json.dumps(CORPUS, ensure_ascii=False)
    for thing in (
        "Be brief.",
        "北京",
        "🦙",
        "$defs",
        "1e+21",
        "39.904211",
        "18446744073709551616",
        "\\u2028",
        '"arguments": {}',
        "<|im_end|>",
    ):
        assert (
            thing in text
            or json.dumps(thing)[1:-1] in text
            or thing == "\\u2028"
            and "\u2028" in text
        ), thing
    assert any(
        sum(len(message.get("tool_calls", [])) for message in case["messages"]) == 2
        for case in CORPUS
    )
    assert any(tool["function"]["description"] == "" for tool in ALL_TOOLS)


def test_with_tools_of_ones_own_no_others_are_offered():
    tools, _ = clean_tools([{"name": "own", "parameters": {"city": {"type": "string"}}}])
    own = hard_corpus(tools)
    assert all(case["tools"] in (tools, []) for case in own) and {
        call["function"]["name"]
        for case in own
        for message in case["messages"]
        for call in message.get("tool_calls", [])
    } == {"own"}


# ---- comparing ------------------------------------------------------------------------------------------------------


class Runtime:
    "A runtime that renders rightly, but for what `change` does to the tokens; and answers what it is told to."

    def __init__(self, tokenizer, change=lambda case, ids: ids, calls=()):
        self.tokenizer, self.change, self.calls = tokenizer, change, list(calls)

    def prompt_ids(self, request):
        return self.change(request, list(encode_prompt(request, self.tokenizer)))

    def answer(self, requests):
        return [
            {"content": "", "calls": self.calls, "errors": [], "text": "", "seconds": 0.1}
            for _ in requests
        ]


TOOLS, _ = clean_tools([{"name": "get_weather", "parameters": {"city": {"type": "string"}}}])
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
EXAMPLES = [
    {
        "messages": [
            {"role": "user", "content": f"Weather {number}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": CALL}],
            },
        ],
        "tools": TOOLS,
    }
    for number in range(40)
]


def test_right_runtimes_have_nothing_to_say(tokenizer):
    report = parity(
        EXAMPLES,
        {
            "row": TrainingRow(tokenizer),
            "one": Runtime(tokenizer, calls=[CALL]),
            "two": Runtime(tokenizer, calls=[CALL]),
        },
        tokenizer,
    )
    assert breaks(report) == [] and report["runtimes"]["two"]["outputs"] == report["runtimes"][
        "two"
    ]["calls"] == [40, 40]
    assert (
        report["runtimes"]["row"]["prompts"]["test"] == [40, 40]
        and "evaluation" not in report["runtimes"]["row"]
    )
    assert json.loads(json.dumps(report)) == report and "40 of 40" in parity_table(report)


def test_one_token_breaks_it_and_is_named(tokenizer):
    wrong = Runtime(
        tokenizer, lambda case, ids: ids[:-1] if case["name"] in ("test 3", "emoji") else ids
    )
    report = parity(EXAMPLES, {"wrong": wrong}, tokenizer, answers=0)
    row = report["runtimes"]["wrong"]
    assert [difference["case"] for difference in row["differences"]] == ["test 3", "emoji"] and row[
        "prompts"
    ]["test"] == [39, 40]
    assert all(
        "- " in difference["tokens"] and "token " in difference["words"]
        for difference in row["differences"]
    )
    assert len(breaks(report)) == 1 and "'test 3'" in breaks(report)[0] and "evaluation" not in row


def test_a_refusal_and_a_dead_server_are_reported_in_their_words(tokenizer):
    def refuse(case, ids):
        if case["name"] == "emoji":
            raise UserError("status 400: no emoji here")
        return ids

    class Dead:
        def __enter__(self):
            raise UserError("it ended while starting")

        def __exit__(self, *exception):
            pass

    report = parity([], {"refusing": Runtime(tokenizer, refuse), "dead": Dead()}, tokenizer)
    assert (
        "no emoji here" in parity_table(report)
        and "it ended while starting" in parity_table(report)
        and len(breaks(report)) == 2
    )
    assert "it ended while starting" in parity_html(report)


def said(*cities, words=""):
    "An answer that calls for the weather of some cities."
    return {
        "content": words,
        "calls": [{"name": "get_weather", "arguments": {"city": city}} for city in cities],
        "errors": [],
        "text": "",
    }


class Script(Runtime):
    "A runtime with an answer for each request, in order; `logits` makes it one with a model."

    def __init__(self, tokenizer, answers, logits=None):
        super().__init__(tokenizer)
        self.answers = answers
        if logits:
            self.next_logits = logits

    def answer(self, requests):
        return [{**answer, "seconds": 0.1} for answer in self.answers[: len(requests)]]


def test_four_calls_of_thirty_that_differ_are_listed_and_break_parity(tokenizer):
    "The issue's case: less than half of them, and below no interval."
    right, wrong = (
        Script(tokenizer, [said("Oslo")] * 30),
        Script(tokenizer, [said("Rome")] * 4 + [said("Oslo")] * 26),
    )
    report = parity(EXAMPLES[:30], {"right": right, "wrong": wrong}, tokenizer, [])
    row = report["runtimes"]["wrong"]
    assert row["calls"] == row["outputs"] == [26, 30] and [
        found["case"] for found in row["differing"]
    ] == ["test 1", "test 2", "test 3", "test 4"]
    assert (
        row["differing"][0]["answers"]
        == ['get_weather({"city": "Oslo"})', 'get_weather({"city": "Rome"})']
        and row["differing"][0]["verdict"] == "unexplained"
    )
    assert claims(report) == [
        "right: prompts 30 of 30.",
        "wrong: prompts 30 of 30; calls 26 of 30; 4 unexplained.",
    ]
    assert breaks(report) == [
        "wrong: 4 of 30 answers have other calls that nothing explains (0 allowed), the first is 'test 1': token 20: 'O' or 'R'"
    ]
    assert breaks(report | {"max_differing": 3}) and not breaks(report | {"max_differing": 4})
    table, page = parity_table(report), parity_html(report)
    for number in (1, 2, 3, 4):
        assert (
            f"| test {number} | wrong | get_weather" in table
            and f"answer of test {number}: token 20" in page
        )
    assert (
        "| not measured | unexplained |" in table
        and "margin not measured: unexplained" in page
        and json.loads(json.dumps(report)) == report
    )
    for letter, sign in zip("OR", "-+"):
        assert any(
            line.startswith(sign) and line.endswith(f"'{letter}'")
            for line in row["differing"][0]["tokens"].splitlines()
        )


def logits_with(tokenizer, first, second):
    "A model of one state: the logits of 'O' and 'R' are given, all others are 0."
    token = {letter: tokenizer(letter)["input_ids"][0] for letter in "OR"}
    return lambda ids: [
        {token["O"]: first, token["R"]: second}.get(place, 0.0) for place in range(len(tokenizer))
    ]


@pytest.mark.parametrize(
    "first, second, margin, verdict",
    [
        (9.0, 8.99, 0.01, "near tie"),
        (8.99, 9.0, 0.01, "near tie"),
        (9.0, 9.0, 0.0, "near tie"),
        (9.0, 9.0 - 2 * NEAR_TIE, 2 * NEAR_TIE, "unexplained"),
        (-5.0, -5.001, 5.001, "unexplained"),
    ],
)  # of the two alone it would be a near tie, and both are wrong
def test_the_margin_tells_a_near_tie_from_what_no_float_sum_explains(
    tokenizer, first, second, margin, verdict
):
    runtimes = {
        "one": Script(tokenizer, [said("Oslo")], logits_with(tokenizer, first, second)),
        "two": Script(tokenizer, [said("Rome")]),
    }
    report = parity(EXAMPLES[:1], runtimes, tokenizer, [])
    (found,) = report["runtimes"]["two"]["differing"]
    assert (
        found["margin"] == pytest.approx(margin)
        and found["verdict"] == verdict
        and bool(breaks(report)) == (verdict == "unexplained")
    )
    said_of_it = f"1 near tie (margin {margin:.3f})" if verdict == "near tie" else "1 unexplained"
    assert claims(report)[1] == f"two: prompts 1 of 1; calls 0 of 1; {said_of_it}."


def test_only_answers_that_differ_are_put_to_the_model(tokenizer):
    asked = []

    def logits(ids):
        asked.append(list(ids))
        return logits_with(tokenizer, 9.0, 8.99)(ids)

    parity(
        EXAMPLES[:5],
        {
            "one": Script(tokenizer, [said("Oslo")] * 5, logits),
            "two": Script(tokenizer, [said("Oslo")] * 4 + [said("Rome")]),
        },
        tokenizer,
        [],
    )
    start = [
        *encode_prompt({**EXAMPLES[4], "messages": EXAMPLES[4]["messages"][:-1]}, tokenizer),
        *tokenizer('<tool_call>\n{"name": "get_weather", "arguments": {"city": "')["input_ids"],
    ]
    assert asked == [start]


def test_other_words_with_the_same_calls_are_listed_and_break_nothing(tokenizer):
    runtimes = {
        "one": Script(tokenizer, [said("Oslo")]),
        "two": Script(tokenizer, [said("Oslo", words="Sure.")]),
    }
    report = parity(EXAMPLES[:1], runtimes, tokenizer, [])
    assert (
        report["runtimes"]["two"]["outputs"] == [0, 1]
        and report["runtimes"]["two"]["calls"] == [1, 1]
        and breaks(report) == []
    )
    assert (
        "unexplained (same calls)" in parity_table(report)
        and claims(report)[1] == "two: prompts 1 of 1; calls 1 of 1."
    )


def test_a_call_that_the_server_left_in_the_text_or_lost_is_unexplained(tokenizer):
    "The tokens are the same; only the reading differs. No margin explains that."
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    broken = {**said(), "errors": ["tool call not readable: x"], "text": '{"role": "assistant"}'}
    refused = {**said(), "errors": ["status 500"], "unanswered": "refused"}
    answers = [said(words=text), said(), broken, refused]
    report = parity(
        EXAMPLES[:4],
        {
            "one": Script(tokenizer, [said("Oslo")] * 4, lambda ids: [0.0] * len(tokenizer)),
            "two": Script(tokenizer, answers),
        },
        tokenizer,
        [],
    )
    left, lost, unread, none = report["runtimes"]["two"]["differing"]
    assert (
        left["words"] == "the same tokens, read otherwise"
        and left["margin"] is None
        and left["verdict"] == "unexplained"
        and left["answers"][1] == text
    )
    assert (
        lost["words"] == "token 1: '<tool_call>' or '<|im_end|>'"
        and lost["answers"][1] == "(nothing)"
    )
    assert (
        unread["words"]
        == none["words"]
        == "no answer, one that cannot be read, or half a character"
        and "status 500" in none["answers"][1]
    )
    assert [found["verdict"] for found in other_calls(report["runtimes"]["two"])].count(
        "unexplained"
    ) == 3  # `lost`: all logits of this model are equal


def test_an_answer_to_another_prompt_has_its_reason(tokenizer):
    other = Script(tokenizer, [said("Rome")])
    other.change = lambda case, ids: ids[:-1]
    report = parity(
        EXAMPLES[:1],
        {"one": Script(tokenizer, [said("Oslo")], logits_with(tokenizer, 9.0, 8.99)), "two": other},
        tokenizer,
        [],
    )
    assert (
        report["runtimes"]["two"]["differing"][0]["verdict"] == "other prompt"
        and len(breaks(report)) == 2
    )


def differing(tokenizer, ones, twos, logits=None):
    "The differing answers of a second runtime."
    runtimes = {"one": Script(tokenizer, ones, logits), "two": Script(tokenizer, twos)}
    return parity(EXAMPLES[: len(ones)], runtimes, tokenizer, [])["runtimes"]["two"]["differing"]


def test_a_call_that_a_grammar_would_not_admit_is_said(tokenizer):
    wrong_type = {**said(), "calls": [{"name": "get_weather", "arguments": {"city": 7}}]}
    verdicts = lambda *pair: [found["verdict"] for found in differing(tokenizer, *pair)]
    assert verdicts([wrong_type] * 2, [said("Oslo")] * 2) == ["held to schema"] * 2 and verdicts(
        [said("Oslo")], [wrong_type]
    ) == ["unexplained"]
    report = parity(
        EXAMPLES[:2],
        {"one": Script(tokenizer, [wrong_type] * 2), "two": Script(tokenizer, [said("Oslo")] * 2)},
        tokenizer,
        [],
    )
    assert claims(report)[1].endswith("calls 0 of 2; 2 held to schema.") and breaks(report) == []


def test_two_answers_that_cannot_be_read_have_no_call_that_differs(tokenizer):
    broken = lambda text: {
        **said(),
        "content": "",
        "calls": [],
        "errors": [f"not readable: {text}"],
    }
    runtimes = {name: Script(tokenizer, [broken(name)]) for name in ("one", "two")}
    report = parity(EXAMPLES[:1], runtimes, tokenizer, [])
    (found,) = report["runtimes"]["two"]["differing"]
    assert found["verdict"] == "unreadable at both" and breaks(report) == []
    assert claims(report)[1].endswith("1 unreadable at both.")


def test_half_a_character_has_no_tokens_that_could_be_compared(tokenizer):
    (found,) = differing(
        tokenizer, [said("Os\ufffd")], [said("Oslo")], lambda ids: [0.0] * len(tokenizer)
    )
    assert (
        found["margin"] is None
        and found["verdict"] == "unexplained"
        and "half a character" in found["words"]
    )


def test_what_the_template_refuses_is_said(tokenizer):
    strict = load_tokenizer("tiny-qwen2")
    strict.chat_template = (
        "{% if messages[-1].content == 'no' %}{{ raise_exception('never no') }}{% endif %}"
        + strict.chat_template
    )
    cases = [
        {
            "name": name,
            "kind": "turns",
            "messages": [{"role": "user", "content": name}],
            "tools": [],
        }
        for name in ("no", "yes")
    ]
    report = parity([], {"one": Runtime(strict)}, strict, cases)
    assert (
        [case["case"] for case in report["refused"]] == ["no"]
        and report["runtimes"]["one"]["prompts"]["hard"] == [1, 1]
        and "never no" in parity_table(report)
    )


def test_a_template_that_refuses_requests_of_the_test_set_breaks_it(tokenizer):
    strict = load_tokenizer("tiny-qwen2")
    strict.chat_template = (
        "{% if messages[0].content == 'Weather 7?' %}{{ raise_exception('not seven') }}{% endif %}"
        + strict.chat_template
    )
    assert (
        "refuses 1 requests of the test set, the first is 'test 8': "
        in breaks(parity(EXAMPLES, {"one": Runtime(strict)}, strict, answers=0))[0]
    )
    assert breaks(
        {
            "cases": {},
            "refused": [],
            "runtimes": {
                "llama-server": {"prompts": {"test": [0, 0], "hard": [0, 0]}, "differences": []}
            },
        }
    ) == ["no prompt was compared with the training rows"]


def test_answer_ids_are_those_of_training(tokenizer):
    "What a model wrote as text, and what a server made of it, are the same tokens again; an answer that was cut off has no end."
    case = {"messages": EXAMPLES[0]["messages"][:-1], "tools": TOOLS}
    text = (
        'Sure.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    )
    whole = tokenizer(text + "<|im_end|>")["input_ids"]
    assert (
        answer_ids({**said("Oslo", words="Sure."), "text": text}, case, tokenizer)
        == answer_ids(said("Oslo", words="Sure."), case, tokenizer)
        == whole
    )
    half = "<tool_call>\n{"
    cut = read_answer(tokenizer, tokenizer(half)["input_ids"])
    assert answer_ids(cut, case, tokenizer) == tokenizer(half)["input_ids"]
    assert (
        answer_ids({**said(words="So"), "errors": ["cut off"]}, case, tokenizer)
        == tokenizer("So")["input_ids"]
    )


def test_same_output():
    said = lambda calls, content="", errors=(): {
        "content": content,
        "calls": calls,
        "errors": list(errors),
    }
    assert same_output(said([CALL]), said([CALL])) == (True, True) and same_output(
        said([CALL]), said([])
    ) == (False, False)
    assert same_output(said([], "a"), said([], "b")) == (False, True) and same_output(
        said([], errors=["cut off"]), said([])
    ) == (False, False)


def test_the_page_and_the_table_escape_everything(tokenizer):
    def refuse(case, ids):
        raise UserError("<script>alert(1)</script> | a\nb")

    report = parity(
        [],
        {"<b>runtime</b>": Runtime(tokenizer, refuse)},
        tokenizer,
        [{**CORPUS[0], "name": "<i>|"}],
    )
    assert (
        "<script>" not in parity_html(report)
        and "<i>" not in parity_html(report)
        and "<b>" not in parity_html(report)
    )
    table = parity_table(report)
    assert "<" not in table.replace("<script>", "&lt;script>") or "<" not in table
    assert all(
        line.count("|") - line.count(r"\|") == 8
        for line in table.splitlines()
        if line.startswith("|")
    )


# ---- differing answers of real models -------------------------------------------------------------------------------

CITY_CASES = [
    {
        **EXAMPLES[0],
        "messages": [{"role": "user", "content": question}, *EXAMPLES[0]["messages"][1:]],
    }
    for question in ("Weather?", "Is it cold?", "Rain?", "And now?", "Wind?", "Sun?")
]


def teach(city_of, folder, model="tiny-qwen2"):
    "A model that knows six answers by heart: the weather of a city."
    call = lambda city: (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    )
    learnt = memorise_answers(
        [
            ({"messages": example["messages"][:-1], "tools": TOOLS}, call(city))
            for example, city in zip(CITY_CASES, city_of)
        ],
        folder,
        model,
    )
    assert learnt["wrong tokens"] == 0
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return teach(["Oslo"] * 6, tmp_path_factory.mktemp("taught"))


def test_a_model_that_was_changed_on_the_way_is_found_with_large_margins(taught, tmp_path):
    "The file that is served comes from other weights, which answer two requests of six otherwise."
    build_llama_cpp()
    other = teach(["Oslo", "Rome", "Oslo", "Oslo", "Rome", "Oslo"], tmp_path / "other", taught)
    gguf = export_gguf(other, tmp_path / "gguf", ["F16"])["F16"]
    report = measure_parity(
        taught,
        gguf,
        CITY_CASES,
        tmp_path,
        names=["transformers", "llama-server"],
        trained="tiny-qwen2",
    )
    row = report["runtimes"]["llama-server"]
    assert row["calls"] == [4, 6] and [
        (found["case"], found["verdict"]) for found in row["differing"]
    ] == [("test 2", "unexplained"), ("test 5", "unexplained")]
    assert all(
        found["margin"] > 2 for found in row["differing"]
    ) and "2 of 6 answers have other calls" in "".join(breaks(report))
    alone = measure_parity(
        taught, gguf, CITY_CASES, tmp_path, names=["llama-server"], trained="tiny-qwen2"
    )
    assert "differing" not in alone["runtimes"]["llama-server"]  # nobody to compare with
    assert (tmp_path / "parity.html").read_text(encoding="utf-8").count("<details>") == sum(
        len(row["differences"]) for row in alone["runtimes"].values()
    )


def test_a_near_tie_of_a_real_model_has_the_margin_that_its_logits_have(
    taught, tokenizer, tmp_path
):
    "'R' gets the output weights of 'O', a thousandth smaller: the model knows no more which city it is, and a float sum may decide."
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(taught, dtype=torch.float32)
    o, r = (tokenizer(letter)["input_ids"][0] for letter in "OR")
    weights = model.get_input_embeddings().weight.data
    weights[r] = weights[o] * 0.999
    model.save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    runtime = TransformersRuntime(tmp_path / "tied")
    report = parity(
        CITY_CASES,
        {"Transformers": runtime, "server": Script(tokenizer, [said("Oslo")] * 5 + [said("Rslo")])},
        tokenizer,
        [],
    )
    (found,) = report["runtimes"]["server"]["differing"]
    start = [
        *encode_prompt({"messages": CITY_CASES[5]["messages"][:-1], "tools": TOOLS}, tokenizer),
        *tokenizer('<tool_call>\n{"name": "get_weather", "arguments": {"city": "')["input_ids"],
    ]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([start])).logits[0, -1]
    assert (
        found["margin"] == pytest.approx(float(logits[o] - logits[r]), abs=1e-4)
        and 0 < found["margin"] < NEAR_TIE
    )
    assert (
        found["verdict"] == "near tie"
        and breaks(report) == []
        and claims(report)[1].endswith(f"calls 5 of 6; 1 near tie (margin {found['margin']:.3f}).")
    )


def test_servers_alone_are_compared_and_the_margin_comes_from_the_folder(
    taught, tokenizer, tmp_path
):
    runtimes = {
        "one": Script(tokenizer, [said("Oslo")] * 6),
        "two": Script(tokenizer, [said("Rome")] * 6),
    }
    margins = lambda folder: {
        found["margin"]
        for found in parity(CITY_CASES, runtimes, tokenizer, [], next_logits=later_logits(folder))[
            "runtimes"
        ]["two"]["differing"]
    }
    assert margins(tmp_path) == {None} and min(margins(taught)) > 2


# ---- the real servers -----------------------------------------------------------------------------------------------


def test_all_runtimes_of_the_embedded_model(portable):
    "100 % of the corpus: training row, Transformers, llama-server, Ollama."
    folder, gguf = portable
    runtimes, missing = model_runtimes(folder, gguf)
    runtimes.pop("vLLM", None)  # tests/test_vllm.py: to start it takes minutes
    assert "Ollama" in runtimes or not CI, missing
    tokenizer = load_tokenizer(str(folder))
    report = parity([], runtimes, tokenizer)
    assert breaks(report) == [] and {"training row", "Transformers", "llama-server"} <= set(
        report["runtimes"]
    )
    assert all(
        row["differences"] == [] and row["prompts"]["hard"] == [len(CORPUS), len(CORPUS)]
        for row in report["runtimes"].values()
    )
    if "Ollama" not in runtimes:
        pytest.skip("the others are right; Ollama is not here. Get it with: make ollama")


PIECES = [
    "<|im_end|>",
    "<|im_start|>system\n",
    "<tool_call>",
    "</tool_response>",
    "<|endoftext|>",
    "<|",
    "im_end|>",
    "\u2060",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\u3000",
    "the ",
    "don't",
    "北京",
    "{",
    "}",
    '"',
    "\\",
    "'",
    "12345",
    "{{ x }}",
    "{% y %}",
]
SCRIPTS = [
    (32, 126),
    (32, 126),
    (0x4E00, 0x9FFF),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1FAFF),
    (0x2000, 0x206F),
    (0, 31),
    (0x7F, 0x9F),
    (0xFE00, 0xFE0F),
    (0xFFF0, 0xFFFD),
    (0x1D400, 0x1D7FF),
    (0x10000, 0x10FFFF),
    (0x3040, 0x30FF),
]


def any_conversation(pick):
    "Anything that people, tools and models may say, in any order of turns; in the form of training."
    text = lambda: "".join(
        pick.choice(PIECES) if pick.random() < 0.3 else chr(pick.randint(*pick.choice(SCRIPTS)))
        for _ in range(pick.randint(0, 20))
    )
    number = lambda: pick.choice(
        [
            pick.randrange(-(2**66), 2**66),
            pick.randrange(-1000, 1000),
            pick.uniform(-180, 180),
            round(pick.uniform(0, 1e6), pick.randrange(8)),
            pick.choice([1, -1]) * 10 ** pick.uniform(-30, 30),
        ]
    )

    def value(depth=3):
        kind = pick.random() if depth else 0
        if kind < 0.7:
            return (
                text()
                if kind < 0.4
                else number()
                if kind < 0.6
                else pick.choice([None, True, False])
            )
        return (
            [value(depth - 1) for _ in range(pick.randint(0, 3))]
            if kind < 0.85
            else {text(): value(depth - 1) for _ in range(pick.randint(0, 4))}
        )

    def some(fields):
        return {
            key: make()
            for key, make in pick.sample(sorted(fields.items()), pick.randint(0, len(fields)))
        }  # any of them, in any order

    def customer(depth=2):
        return some(
            {
                "name": text,
                "address": lambda: some({"zip": text, "city": text}),
                "zone": value,
                **({"agent": lambda: customer(depth - 1)} if depth else {}),
            }
        )

    def line():
        return some({"sku": text, "qty": number, "gift": text})

    def order():
        return some(
            {
                "note": text,
                "customer": customer,
                "lines": lambda: [line() for _ in range(pick.randint(0, 3))],
                "prices": lambda: {
                    text(): some({"sum": number, "currency": text})
                    for _ in range(pick.randint(0, 3))
                },
                "shop": lambda: some({"name": text, "city": text, "area": text}),
            }
        )

    tools = pick.choice([ALL_TOOLS, CORPUS[0]["tools"], []])
    messages = [{"role": "system", "content": text()} for _ in range(pick.choice([0, 0, 1, 2]))]
    for _ in range(pick.randint(1, 3)):
        messages.append({"role": "user", "content": text()})
        makers = [
            lambda: {
                "name": "look_up",
                "arguments": {text(): value() for _ in range(pick.randint(0, 4))},
            },
            *[lambda: {"name": "objects_inside", "arguments": order()}] * (tools is ALL_TOOLS),
        ]
        calls = [
            {"type": "function", "function": pick.choice(makers)()}
            for _ in range(pick.randint(0, 3))
        ]
        if calls:
            messages += [
                {
                    "role": "assistant",
                    "content": pick.choice(["", None, text()]),
                    "tool_calls": calls,
                },
                *(
                    {"role": "tool", "name": call["function"]["name"], "content": text()}
                    for call in calls
                ),
            ]
        if pick.random() < 0.7:
            messages.append({"role": "assistant", "content": text()})
    return {
        "messages": normalize_messages([*messages, {"role": "user", "content": text()}], tools),
        "tools": tools,
    }


class OllamaChat(OllamaServer):
    "Asked at `/api/chat`, as the `ollama` client does it, and not in the OpenAI way."

    def prompt_ids(self, request):
        body = {
            "model": self.model,
            "messages": normalize_messages(request["messages"], request["tools"]),
            "tools": request["tools"],
            "stream": False,
            "_debug_render_only": True,
        }
        return ollama_tokens(
            self, ask_json(f"{self.url}/api/chat", body)["_debug_info"]["rendered_template"]
        )


@pytest.mark.skipif(not find_ollama()["binary"] and not CI, reason="no Ollama: make ollama")
def test_ollamas_own_address_makes_the_same_prompts(portable, tokenizer):
    with OllamaChat(portable[1]) as server:
        assert (
            prompt_differences(
                server, CORPUS, [encode_prompt(case, tokenizer) for case in CORPUS], tokenizer
            )
            == []
        )


@pytest.mark.parametrize("Kind", [LlamaServer, OllamaServer, OllamaChat])
def test_conversations_drawn_at_random_are_the_same_at_every_server(portable, tokenizer, Kind):
    "Compared with the template before it was made portable, that of training."
    if Kind is not LlamaServer and not CI and not find_ollama()["binary"]:
        pytest.skip("Ollama is not here. Get it with: make ollama")
    pick, cases, wanted = random.Random(0), [], []
    while len(cases) < 80:
        case = {"name": f"drawn {len(cases)}", "kind": "drawn", **any_conversation(pick)}
        ids = encode_prompt(case, tokenizer)
        if len(ids) > 3800:
            continue  # Ollama drops the oldest turns of what is too long
        cases.append(case)
        wanted.append(ids)
    with Kind(portable[1]) as server:
        assert prompt_differences(server, cases, wanted, tokenizer) == []


@pytest.mark.skipif(
    not CACHE.exists() and not CI,
    reason="no Qwen2.5 tokenizer: make it with python tests/golden/qwen_tokenizer.py",
)
def test_the_real_qwen_tokenizer_in_llama_server_and_ollama(tmp_path):
    "A random model of one layer with Qwen2.5's real vocabulary, served: 100 % of the corpus. (`benchmarks/parity.py --real-tokenizer` asks vLLM, too.)"
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = qwen_tokenizer()
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151936,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    ).half().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_portable(tmp_path / "model", ALL_TOOLS)
    build_llama_cpp()
    convert_gguf(tmp_path / "model", tmp_path / "qwen.gguf", find_llama_cpp())
    portable = load_tokenizer(str(tmp_path / "model"))
    runtimes = {
        "row": TrainingRow(portable),
        "llama-server": LlamaServer(tmp_path / "qwen.gguf"),
        **(
            {"Ollama": OllamaServer(tmp_path / "qwen.gguf")}
            if CI or find_ollama()["binary"]
            else {}
        ),
    }
    report = parity([], runtimes, portable)
    assert breaks(report) == []
    assert all(
        row["prompts"]["hard"] == [len(CORPUS), len(CORPUS)] and row["differences"] == []
        for row in report["runtimes"].values()
    )
    if "Ollama" not in runtimes:
        pytest.skip("llama-server is right; Ollama is not here. Get it with: make ollama")


def test_the_stock_template_has_the_gap_that_the_lesson_shows(gguf, tokenizer):
    with LlamaServer(gguf) as server:
        kinds = {
            difference["kind"]
            for difference in prompt_differences(
                server, CORPUS, [encode_prompt(case, tokenizer) for case in CORPUS], tokenizer
            )
        }
    assert {"typed", "arguments"} <= kinds and "turns" not in kinds


# ---- pairs of files -------------------------------------------------------------------------------------------------

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPEN = "'<|im_start|>assistant\\n'"
FAULTS = {  # name: (options of gguf_new_metadata, or what to do with the template; words of an error; ggufdoctor's check)
    "one newline": (
        lambda text: text.replace(OPEN, "'<|im_start|>assistant\\n\\n'"),
        "only in white space",
        "R001",
    ),
    "no template": (["--remove-metadata", "tokenizer.chat_template"], "no chat template", "S001"),
    "does not compile": (lambda text: "{% for m in messages %}", "does not compile", "S002"),
    "raises": (
        lambda text: "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + text,
        "fails on",
        "S003",
    ),
    "unknown control tokens": (
        lambda text: text.replace("<|im_end|>", "<|eot_id|>"),
        "the vocabulary does not have: <|eot_id|>",
        "S004",
    ),
    "turns without end": (
        lambda text: text.replace("<|im_end|>", ""),
        "does not end the assistant's turns",
        "S005",
    ),
    "a turn opened always": (
        lambda text: text.replace("if add_generation_prompt", "if true"),
        "add_generation_prompt has no effect",
        "S007",
    ),
    "empty": (lambda text: "{{ '' }}", "renders nothing", "S008"),
    "ChatML": (lambda text: CHATML, "does not show the tools", "R001"),
    "wrong stop token": (["--special-token", "eos", "<tool_call>"], "the stop token", "S005"),
    "wrong pre-tokenizer": (["--pre-tokenizer", "llama-bpe"], "the pre-tokenizer", None),
}


@pytest.fixture(scope="module")
def faulty(gguf, tmp_path_factory):
    "A function that makes a GGUF with a fault, once."
    folder, template = (
        tmp_path_factory.mktemp("faulty"),
        read_gguf(gguf, find_llama_cpp())["fields"]["tokenizer.chat_template"],
    )

    def make(name):
        options, target = FAULTS[name][0], folder / f"{name.replace(' ', '-')}.gguf"
        if callable(options):
            assert options(template) != template
            options = ["--chat-template", options(template)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(find_llama_cpp()["convert"].parent / "gguf-py"),
        }
        if not target.exists():
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "gguf.scripts.gguf_new_metadata",
                    "--force",
                    *options,
                    str(gguf),
                    str(target),
                ],
                env=environment,
                check=True,
                capture_output=True,
            )
        return target

    return make


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_a_remedy_named(name, faulty, stock, monkeypatch):
    monkeypatch.setattr(
        "toolcall_ft.parity.pair.find_ollama", lambda: {"url": None, "binary": None}
    )
    findings = check_pair(faulty(name), stock)
    errors = [each for each in findings if each["severity"] == "error"]
    assert any(FAULTS[name][1] in each["what"] for each in errors), [
        each["what"] for each in findings
    ]
    assert all(each["fix"] for each in errors) and findings[0]["severity"] == "error"
    assert [each["what"] for each in findings if each["severity"] == "not evaluated"] == [
        "what Ollama makes of it: it is not installed here (toolcall-ft ollama builds it)"
    ]


def test_a_right_pair_has_no_errors_and_with_the_portable_template_no_warnings(
    gguf, stock, portable
):
    severities = lambda findings: {each["severity"] for each in findings}
    assert "error" not in severities(check_pair(gguf, stock)) and not severities(
        check_pair(portable[1], portable[0])
    ) & {"error", "warning"}


def test_examples_of_ones_own_are_asked_too(gguf, stock):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "price",
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "number", "default": 1234567.125}},
                },
            },
        }
    ]
    own = [
        {
            "messages": [
                {"role": "user", "content": "Price?"},
                {"role": "assistant", "content": "1"},
            ],
            "tools": tools,
        }
    ]
    assert any("'test 1'" in each["what"] for each in check_pair(gguf, stock, examples=own))


def test_without_llama_server_it_says_what_it_did_not_look_at(gguf, stock, monkeypatch):
    real = find_llama_cpp

    def without(need=("convert", "quantize", "server")):
        if "server" in need:
            raise UserError("llama-server is not here")
        return real(need)

    monkeypatch.setattr("toolcall_ft.parity.pair.find_llama_cpp", without)
    monkeypatch.setattr(
        "toolcall_ft.parity.pair.find_ollama", lambda: {"url": None, "binary": None}
    )
    findings = check_pair(gguf, stock)
    assert [each["severity"] for each in findings] == [
        "not evaluated"
    ] * 2 and "llama-server is not here" in pair_table(findings)


def test_the_command_says_no_to_warnings_and_where_nobody_was_asked(
    gguf, stock, portable, tmp_path, monkeypatch, capsys
):
    pair = lambda gguf, folder, *more: (
        main(["parity", "--gguf", str(gguf), "--hf", str(folder), *more]),
        capsys.readouterr(),
    )
    code, said = pair(
        gguf, stock
    )  # Qwen's own template lets strangers write control tokens: a warning
    assert (
        code == 1
        and "warning " in said.out
        and "error " not in said.out
        and "The file does not do what the folder does." in said.out
    )
    code, said = pair(portable[1], portable[0])
    assert code == 0 and said.out.strip().endswith("The file does what the folder does.")
    monkeypatch.setattr(
        "toolcall_ft.parity.pair.find_ollama", lambda: {"url": None, "binary": None}
    )
    assert pair(portable[1], portable[0])[0] == 0  # one server is enough
    monkeypatch.setattr(
        "toolcall_ft.parity.pair.server_findings",
        lambda *arguments: [
            finding("not evaluated", "what llama-server makes of it: it is not here")
        ],
    )
    code, said = pair(portable[1], portable[0])
    assert code == 1 and "No server was asked" in said.out


def test_a_modelfile_names_the_file_that_is_checked(gguf, stock, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("toolcall_ft.parity.pair.server_findings", lambda *arguments: [])
    monkeypatch.setattr("toolcall_ft.parity.pair.ollama_findings", lambda *arguments: [])
    place = tmp_path / "Modelfile"
    place.write_text(f'FROM {gguf}\nSYSTEM """\nFrom now on, be brief.\n"""\n')
    assert modelfile_sources(place) == [gguf] and check_pair(gguf, stock, place) == []
    place.write_text(
        f'\ufeff# FROM nothing, with a """\n  from "{gguf}"\t\r\nSYSTEM "Hello.\nFrom now on\n"\nMESSAGE user """\nFrom here?\n"""\nPARAMETER stop "a"\n',
        encoding="utf-8",
    )
    assert modelfile_sources(place) == [gguf] and check_pair(gguf, stock, place) == []
    assert main(["parity", "--modelfile", str(place), "--hf", str(stock)]) == 0
    shutil.copy(gguf, tmp_path / "other.gguf")
    place.write_text("FROM ./other.gguf\n")
    assert "does not serve this file" in check_pair(gguf, stock, place)[0]["what"]
    place.write_text("FROM llama3:8b\n")
    for words in (["--gguf", str(gguf)], []):
        capsys.readouterr()
        assert (
            main(["parity", *words, "--hf", str(stock), "--modelfile", str(place)]) == 2
            and "Modelfile: FROM" in (said := capsys.readouterr().err)
            and "llama3:8b: there is no such file" in said
        )
    assert main(["parity", "--hf", str(stock), "--modelfile", str(gguf)]) == 2  # no text at all
    capsys.readouterr()
    assert (
        main(
            [
                "parity",
                "--gguf",
                str(gguf),
                "--hf",
                str(stock),
                "--modelfile",
                str(tmp_path / "nowhere"),
            ]
        )
        == 2
        and "no Modelfile" in capsys.readouterr().err
    )
    assert (
        main(["parity", "--hf", str(stock), "--modelfile", str(tmp_path / "nowhere")]) == 2
        and "belong together" in capsys.readouterr().err
    )


def test_a_folder_that_cannot_be_compared_is_refused(gguf, stock, tmp_path):
    tokenizer = load_tokenizer(str(stock))
    tokenizer.chat_template = {
        "default": tokenizer.chat_template,
        "tool_use": tokenizer.chat_template,
    }
    tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="several chat templates .default, tool_use."):
        check_pair(gguf, tmp_path / "two")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="renders none of the conversations"):
        check_pair(gguf, tmp_path / "none")


def test_what_is_no_gguf_is_refused(tmp_path, stock, gguf):
    (tmp_path / "no.gguf").write_text("hello")
    with pytest.raises(UserError, match="not a GGUF"):
        check_pair(tmp_path / "no.gguf", stock)
    with pytest.raises(UserError, match="no such model folder"):
        check_pair(gguf, tmp_path / "nowhere")


@pytest.mark.skipif(not find_ollama()["binary"] and not CI, reason="no Ollama: make ollama")
def test_ollama_refuses_tools_where_the_template_shows_none(faulty, stock, tmp_path):
    "The report that users make most often, from a Modelfile as they write it."
    (tmp_path / "Modelfile").write_text(f"FROM {faulty('ChatML')}\n")
    found = check_pair(faulty("ChatML"), stock, tmp_path / "Modelfile")
    assert any(
        "Ollama: this model does not support tools" in each["what"]
        for each in found
        if each["severity"] == "error"
    ), [each["what"] for each in found]


# ---- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_what_ggufdoctor_finds_we_find(name, faulty, stock, tokenizer, monkeypatch):
    "Its checks, on the same files, with the folder's template as upstream; what it finds has a finding of ours beside it (the test above says which)."
    peer("ggufdoctor==0.3.0")
    from ggufdoctor.cli import CheckContext, load_corpus, run_reference_checks, run_sanity_checks
    from ggufdoctor.engines.registry import select_engines
    from ggufdoctor.reader import read_gguf_file

    corpus = load_corpus(None)
    context = CheckContext(
        model=read_gguf_file(str(faulty(name))),
        engines=select_engines(None).engines,
        fixtures=corpus.fixtures,
        upstream_template=tokenizer.chat_template,
        upstream_meta={"coverage": "ok"},
        corpus_version=corpus.version,
        custom_corpus=False,
    )
    theirs = {
        each.id: each.severity.name
        for each in run_sanity_checks(context) + run_reference_checks(context)
    }
    print(
        f"{name}: ggufdoctor {theirs or 'nothing'}"
    )  # one newline, a refusal and a turn opened always are notes to it; all three are other tokens
    if FAULTS[name][2]:
        assert FAULTS[name][2] in theirs
    else:
        assert set(theirs.values()) <= {"INFO"}  # of tokens it knows nothing


def test_renderers_make_the_tokens_of_training_but_for_typed_control_tokens(tokenizer):
    renderers = peer("renderers==0.1.12")
    from toolcall_ft.template.habits import tidy_message

    renderer, other = renderers.create_renderer(tokenizer), []
    for case in CORPUS:
        theirs = renderer.render_ids(
            [tidy_message(message) for message in case["messages"]],
            tools=case["tools"] or None,
            add_generation_prompt=True,
        )
        if list(theirs) != list(encode_prompt(case, tokenizer)):
            other.append(case)
    assert {case["kind"] for case in other} <= {"typed", "tools"} and all(
        "typed" in case["name"] or "all tools" in case["name"] for case in other
    )


def test_the_template_of_training_is_what_runtimes_are_compared_with(portable, tmp_path):
    "A served folder whose template says something else is found out; were it compared with itself, nobody would notice."
    folder = tmp_path / "model"
    shutil.copytree(portable[0], folder)
    template = folder / "chat_template.jinja"
    template.write_text(
        template.read_text(encoding="utf-8").replace("You are Qwen", "You are Evil"),
        encoding="utf-8",
    )
    report = measure_parity(
        folder, None, [], tmp_path, 0, ["training row", "transformers"], trained="tiny-qwen2"
    )
    assert (
        report["runtimes"]["training row"]["differences"] == []
        and report["runtimes"]["Transformers"]["differences"]
        and "Evil" in parity_table(report)
    )
    assert breaks(report) and not breaks(
        measure_parity(
            portable[0],
            None,
            [],
            tmp_path,
            0,
            ["training row", "transformers"],
            trained="tiny-qwen2",
        )
    )


def test_thinking_as_trained_is_what_runtimes_are_compared_with(stock, tmp_path):
    from pathlib import Path

    import trl

    folder = tmp_path / "model"
    shutil.copytree(stock, folder)
    (folder / "chat_template.jinja").write_text(
        (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    shutil.copytree(folder, tmp_path / "merged")
    measured = lambda place: measure_parity(
        place,
        None,
        [],
        tmp_path / "out",
        0,
        ["training row", "transformers"],
        folder,
        thinking=False,
    )["runtimes"]
    assert measured(folder)["Transformers"]["prompts"]["hard"][0] == 0, (
        "the own template asks with thinking"
    )
    make_portable(tmp_path / "merged", ALL_TOOLS, thinking=False)
    found = measured(tmp_path / "merged")
    assert not found["Transformers"]["differences"] and not found["training row"]["differences"]


def test_nothing_compared_is_no_success(tokenizer):
    assert breaks(parity([], {}, tokenizer)) and breaks(
        parity([], {"training row": TrainingRow(tokenizer)}, tokenizer)
    )
