"""Scores that can be worked out by hand, and reports made of hostile text."""

import json
import random

import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.evaluate.report import (
    TOOL_ROWS,
    report_chart,
    report_html,
    report_table,
    tool_table,
)
from toolcall_ft.evaluate.results import evaluate, to_requests, wilson_interval
from toolcall_ft.evaluate.score import score_answer
from toolcall_ft.evaluate.match import same_value
from toolcall_ft.generate.reading import CUT_OFF

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": {"x": {}, "y": {}}},
        },
    }
    for name in ("f", "g")
]


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def answer(*calls, errors=(), text=""):
    return {
        "content": text,
        "calls": list(calls),
        "errors": list(errors),
        "text": text,
        "seconds": 1.0,
    }


def example(*calls, question="?"):
    last = {"role": "assistant", "content": "" if calls else "ok"}
    if calls:
        last["tool_calls"] = [{"type": "function", "function": one} for one in calls]
    return {"messages": [{"role": "user", "content": question}, last], "tools": TOOLS}


def kinds(given, *reference):
    return score_answer(given, list(reference), TOOLS)["kinds"]


def test_values():
    assert (
        same_value({"a": [1, {"b": 2.0}]}, {"a": [1.0, {"b": 2}]})
        and same_value([], [])
        and same_value(None, None)
    )
    for one, other in [
        ([1], (1,)),
        ("", None),
        (0, False),
        (1, True),
        ([True], [1]),
        ({}, []),
        ("a", "a "),
        ([1, 2], [1]),
    ]:
        assert not same_value(one, other) and not same_value(other, one)


def test_every_kind_of_failure():
    assert kinds(answer(call("f", x=1), call("g")), call("g"), call("f", x=1.0)) == []
    assert kinds(answer()) == [] and kinds(answer(text="hello")) == []
    assert kinds(answer(text="hello"), call("f")) == ["no call"]
    assert kinds(answer(call("g")), call("f")) == ["wrong tool"]
    assert kinds(answer(call("f", x=[2])), call("f", x=[1])) == ["wrong arguments"]
    assert kinds(answer(call("f", x=1, y=2)), call("f", x=1)) == ["wrong arguments"]
    assert kinds(answer(call("f")), call("f"), call("f")) == ["missing call"]
    assert kinds(answer(call("f"), call("f")), call("f")) == ["extra call"]
    assert kinds(answer(call("f"))) == ["called without need"]
    assert kinds(answer(errors=["tool call not readable"]), call("f")) == ["invalid JSON"]
    assert kinds(answer(errors=["tool call not readable"])) == ["invalid JSON"]
    assert kinds(answer(errors=[f"{CUT_OFF} after 9 tokens"])) == ["cut off"]
    assert kinds(answer(call("h")), call("f")) == ["does not fit schema", "wrong tool"]
    assert kinds(answer(call("f", z=1)), call("f")) == ["does not fit schema", "wrong arguments"]


def test_parallel_calls_are_paired_the_best_way_in_any_order():
    reference = [call("f", x=i, y=[i]) for i in range(4)]
    rng = random.Random(0)
    for _ in range(20):
        shuffled = rng.sample(reference, 4)
        assert score_answer(answer(*shuffled), reference, TOOLS)["exact"]
        assert score_answer(answer(*shuffled[:3]), reference, TOOLS)["args"] == (6, 8)


def test_request_is_cut_before_the_last_assistant_turn():
    conversation = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            example(call("f", x="secret"))["messages"][-1],
        ],
        "tools": TOOLS,
    }
    ((request, reference),) = to_requests([conversation])
    assert [message["content"] for message in request["messages"]] == [
        "s",
        "a",
        "b",
        "c",
    ] and reference == [call("f", x="secret")]
    assert "secret" not in dump_json(request) and set(request) == {"messages", "tools"}
    for bad in ({"messages": [], "tools": []}, {"messages": [{"role": "tool", "content": "1"}]}):
        with pytest.raises(UserError, match="example 2"):
            to_requests([conversation, bad])


def test_the_predictor_gets_all_requests_at_once_and_no_reference():
    seen = []

    def predictor(requests):
        seen.append(requests)
        return [answer() for _ in requests]

    report = evaluate(
        [example(call("f", x="secret"), question=str(i)) for i in range(5)], predictor, limit=3
    )
    assert (
        len(seen) == 1
        and len(seen[0]) == 3
        and "secret" not in dump_json(seen)
        and report["n"] == 3
    )
    with pytest.raises(ValueError, match="2 answers to 3"):
        evaluate([example()] * 3, lambda requests: [answer()] * 2)


def test_figures_by_hand():
    examples = [
        example(call("f", x=1, y=2)),
        example(call("f", x=1), call("g")),
        example(),
        example(),
    ]
    given = [answer(call("f", x=1, y=3)), answer(call("g")), answer(call("g")), answer(text="hi")]
    report = evaluate(examples, lambda requests: given)
    assert [
        report[key] for key in ("exact", "tool", "args", "recall", "false_calls", "missed_calls")
    ] == [1 / 4, 1 / 2, 1 / 3, 2 / 3, 1 / 2, 0]
    assert [
        report[f"{key}_n"]
        for key in ("exact", "tool", "args", "recall", "false_calls", "missed_calls")
    ] == [4, 2, 3, 3, 2, 2]
    assert [failure["index"] for failure in report["failures"]] == [0, 1, 2] and report[
        "latency_seconds"
    ] == {"median": 1.0, "p95": 1.0, "n": 4}
    assert json.loads(json.dumps(report)) == report


def test_wilson_interval():
    assert wilson_interval(0, 0) is None
    assert [round(bound, 4) for bound in wilson_interval(81, 263)] == [
        0.2553,
        0.3662,
    ]  # Newcombe 1998, table I
    assert [round(bound, 4) for bound in wilson_interval(1, 29)] == [0.0061, 0.1718]
    for n in (1, 7, 300):
        for right in range(n + 1):
            low, high = wilson_interval(right, n)
            assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


def test_no_examples_and_one_sided_examples():
    empty = evaluate([], lambda requests: [])
    assert empty["n"] == 0 and empty["exact"] is None and empty["latency_seconds"]["median"] is None
    plain = evaluate([example()], lambda requests: [answer()])
    assert plain["tool"] is None and plain["exact"] == 1 and plain["false_calls"] == 0
    assert report_table({"a|b": empty, "plain": plain}).partition("\n\n")[0].count("\n") == 3
    assert (
        report_chart({"empty": empty, "plain": plain}).axes
        and report_chart({}).axes
        and "0 requests" in report_html(empty)
    )


def test_each_tool_has_its_own_n():
    "`right tool 100 %` said nothing of a tool that no request asked for."
    offer = [
        {
            "type": "function",
            "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
        }
        for name in ("f", "g", "h|h")
    ]
    asked = [
        {**row, "tools": offer}
        for row in (
            example(call("f")),
            example(call("f")),
            example(call("f"), call("g")),
            example(),
        )
    ]
    report = evaluate(
        asked,
        lambda requests: [answer(call("f")), answer(), answer(call("f"), call("g")), answer()],
    )
    assert (
        report["tools"]
        == {
            "f": {"right": 2, "n": 3},
            "(none)": {"right": 1, "n": 1},
            "g": {"right": 1, "n": 1},
            "h|h": {"right": 0, "n": 0},
        }
        and report["tool"] == 2 / 3
    )
    lines = tool_table(
        {"one": report, "old": {key: report[key] for key in report if key != "tools"}}
    ).split("\n")
    assert lines == [
        "| exact match of each tool | n | one |",
        "|---|---:|---:|",
        "| f | 3 | 66.7 % |",
        "| (none) | 1 | 100.0 % |",
        "| g | 1 | 100.0 % |",
        r"| h\|h | 0 | never tested |",
    ]
    assert "\n".join(lines) in report_table({"one": report}) and tool_table({"old": {"n": 3}}) == ""
    assert "<tr><th>h|h</th><td>never tested</td></tr>" in report_html(
        report
    ) and "<tr><th>f</th><td>66.7 % [" in report_html(report)
    many = {"tools": {f"tool {i}": {"right": i, "n": i + 1} for i in range(TOOL_ROWS + 7)}}
    assert tool_table({"many": many}).endswith("| and 7 more | | |")


def test_hostile_text_stays_text_in_the_page():
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    shown = example(call("f", x=evil), question=evil)
    report = evaluate(
        [shown, example(question=evil)],
        lambda requests: [answer(text=evil, errors=[evil]), answer(call(evil, **{evil: evil}))],
    )
    page = report_html(report, evil)
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") >= 6
    assert all(kind in page for kind in report["kinds"])


def test_a_server_that_is_gone_is_no_wrong_answer():
    "A request that is refused counts as a failure of its own kind; where the server is gone, nothing is measured at all."
    refused = answer(errors=["it is too long"]) | {"unanswered": "refused"}
    report = evaluate(
        [example(call("f", x=1)), example(call("f", x=1))],
        lambda requests: [answer(call("f", x=1)), refused],
    )
    assert report["exact"] == 0.5 and report["kinds"] == {"no answer": 1}
    gone = answer(errors=["no answer from there. Is the server still running?"]) | {
        "unanswered": "lost"
    }
    with pytest.raises(
        UserError,
        match="1 of 2 requests have no answer, so nothing was measured. The first: no answer from there",
    ):
        evaluate(
            [example(call("f", x=1)), example(call("f", x=1))],
            lambda requests: [answer(call("f", x=1)), gone],
        )
