"""Looking at rows: what is drawn is what is there, and nothing in a row becomes HTML. The same in a real browser: test_browser.py."""

import base64
import gzip
import hashlib
import json
import re
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcall_ft.base.errors import UserError
from toolcall_ft.template.control import BREAK
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.rows import encode_example
from toolcall_ft.template.viewer import (
    VIEWS,
    describe_row,
    find_text,
    pack_rows,
    render_row,
    row_html,
    row_reasons,
    row_runs,
    row_title,
    run_text,
    select_rows,
    show_rows,
    token_table,
    visible,
    write_page,
)

tokenizer = load_tokenizer("tiny-qwen2")
EVIL = '</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)\' \u2028\u202e\x00\x1b[31m \ud800 \udfff <|im_end|>'
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": EVIL,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def encode(text, tools=()):
    return encode_example(
        {
            "tools": list(tools),
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
        },
        tokenizer,
    )


def shifted(row):
    return {"input_ids": row["input_ids"], "labels": row["labels"][1:] + [-100]}


ROWS = [encode("hello"), encode("广州 龘 ok"), encode(EVIL, [TOOL]), shifted(encode("shifted"))]
TABLE = token_table(ROWS, tokenizer)
ANY_TOKEN = st.integers(0, len(tokenizer) - 1)
ANY_ROW = st.lists(
    st.tuples(ANY_TOKEN, st.one_of(st.just(-100), ANY_TOKEN, st.none())), min_size=1, max_size=60
).map(
    lambda pairs: {
        "input_ids": [token for token, _ in pairs],
        "labels": [token if label is None else label for token, label in pairs],
    }
)


class Elements(HTMLParser):
    "All elements of an HTML text, in order, with their attributes and text."

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data


# ---- the pieces


@given(st.text())
def test_every_character_can_be_seen(text):
    shown = visible(text)
    assert not [
        sign
        for sign in shown
        if sign not in " \n\t"
        and unicodedata.category(sign) in ("Cc", "Cf", "Co", "Zl", "Zp", "Zs")
    ]
    assert shown.count("↵\n") >= text.count("\n")


@given(st.lists(st.binary(max_size=3), max_size=12), st.binary(min_size=1, max_size=3))
def test_a_match_is_found_however_the_tokens_are_cut(pieces, wanted):
    owners = [place for place, piece in enumerate(pieces) for _ in piece]
    whole, expected, at = b"".join(pieces), set(), 0
    while (at := whole.find(wanted, at)) >= 0:
        expected.update(owners[at : at + len(wanted)])
        at += len(wanted)
    assert {place for place in find_text(pieces, wanted) if pieces[place]} == expected


def test_a_search_for_nothing_finds_nothing():
    assert find_text([b"a", b""], b"") == set() and find_text([], b"a") == set()


@given(ANY_ROW, st.sampled_from(VIEWS))
def test_the_boxes_hold_every_token_once_and_in_order(row, view):
    table = token_table([row], tokenizer)
    tokens = describe_row(row, table, tokenizer)
    runs = row_runs(tokens, view)
    assert [token for run in runs for token in run] == tokens
    assert all(len({(token["role"], token["state"]) for token in run}) == 1 for run in runs)
    if view == "tokens":
        assert len(runs) == len(tokens)


@pytest.mark.parametrize("text", ["plain", "广州天气 龘龘 怎么样？", "a🙂b", "tab\tline\n"])
def test_the_text_view_reads_as_the_text(text):
    row = encode(text)
    table = token_table([row], tokenizer)
    read = "".join(
        run_text(run, "text") for run in row_runs(describe_row(row, table, tokenizer), "text")
    )
    assert read == visible(tokenizer.decode(row["input_ids"])) and visible(text) in read


def test_a_part_of_a_character_is_shown_as_bytes():
    shown = [
        run_text(run, "tokens")
        for run in row_runs(describe_row(ROWS[1], TABLE, tokenizer), "tokens")
    ]
    assert any(re.fullmatch("‹[0-9a-f]{2}( [0-9a-f]{2})*›", text) for text in shown)


def test_states():
    states = lambda row: [token["state"] for token in describe_row(row, TABLE, tokenizer)]
    assert set(states(ROWS[0])) == {"read", "trained"} and "other" in states(ROWS[3])
    assert [state != "read" for state in states(ROWS[0])] == [
        label != -100 for label in ROWS[0]["labels"]
    ]


def test_the_label_view_shows_what_is_learnt_not_what_stands_there():
    learnt = [
        run[0]
        for run in row_runs(describe_row(ROWS[3], TABLE, tokenizer), "labels")
        if run[0]["state"] != "read"
    ]
    page = Elements(render_row(ROWS[3], TABLE, tokenizer, "labels")).found
    assert [int(found[1]["data-label"]) for found in page if "data-label" in found[1]] == [
        token["label"] for token in learnt
    ]
    assert [found[2] for found in page if "data-label" in found[1]] == [
        visible(token["learnt"].decode()).replace("\n", "") for token in learnt
    ]


def test_a_forged_control_token_has_no_frame():
    broken = f"<{BREAK}|im_end|>"
    tokens = describe_row(ROWS[2], TABLE, tokenizer, broken)
    spelled = [token for token in tokens if token["found"] and not token["control"]]
    assert (
        b"".join(token["raw"] for token in spelled).count(broken.encode()) == 3
    )  # user, assistant and the tool's description
    assert (
        sum(token["control"] and token["raw"] == b"<|im_end|>" for token in tokens) == 3
    )  # system, user, assistant


# ---- nothing in a row becomes HTML


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_text_stays_text(view):
    shown = Elements(render_row(ROWS[2], TABLE, tokenizer, view, search="<script>")).found
    assert shown[0][:2] == ["pre", {"class": view}] and {tag for tag, _, _ in shown[1:]} == {
        "span",
        "u",
    }
    assert all(
        set(attributes) <= {"class", "title", "data-label"} for _, attributes, _ in shown[1:]
    )
    assert "<img src=x onerror=alert(2)>" in "".join(text for *_, text in shown) or view == "labels"
    assert not re.search("[\u2028\u202e\x00\x1b]", render_row(ROWS[2], TABLE, tokenizer, view))


@given(ANY_ROW, st.sampled_from(VIEWS), st.text(max_size=3))
def test_any_row_becomes_a_flat_list_of_boxes(row, view, search):
    shown = Elements(row_html(row, tokenizer, view, search).split("<pre", 1)[1]).found
    assert {tag for tag, _, _ in shown} <= {"span", "u"}
    assert all(
        set(attributes["class"].split())
        <= {
            "system",
            "user",
            "assistant",
            "tool",
            "padding",
            "stranger",
            "read",
            "trained",
            "other",
            "control",
            "found",
        }
        for _, attributes, _ in shown
        if "title" in attributes
    )


def test_a_forged_turn_of_a_strange_role_stands_out_and_names_no_class():
    ids = tokenizer("<|im_start|>found\nx<|im_end|>\n")["input_ids"]
    row = {"input_ids": ids, "labels": [-100] * len(ids)}
    shown = Elements(render_row(row, token_table([row], tokenizer), tokenizer)).found[1:]
    assert {attributes["class"].split()[0] for _, attributes, _ in shown} == {
        "stranger"
    } and "· found ·" in shown[0][1]["title"]


def test_reasons_are_text_too():
    assert Elements(row_title(0, ROWS[0], row_reasons([(0, EVIL)], 1))).found[0][0] == "p"
    assert "<img" not in row_title(0, ROWS[0], {0: [EVIL]})


# ---- wrong input


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "no rows"),
        ([ROWS[0], {"input_ids": [1], "labels": []}], "row 1: 1 input_ids and 0 labels"),
        ([{"input_ids": [10**6], "labels": [-100]}], "row 0: the tokenizer has no token 1000000"),
        ([{"input_ids": [-100], "labels": [-100]}], "row 0: the tokenizer has no token -100"),
        (
            [ROWS[0], {"input_ids": [-100], "labels": [-100]}],
            "row 1: the tokenizer has no token -100",
        ),
        ([{"input_ids": [1], "labels": [-1]}], "row 0: the tokenizer has no token -1"),
    ],
)
def test_wrong_rows_are_named(rows, said):
    with pytest.raises(UserError, match=re.escape(said)):
        token_table(rows, tokenizer)


@pytest.mark.parametrize("number", [-1, 4])
def test_a_flag_for_no_row_is_an_error(number):
    with pytest.raises(UserError, match=f"flag for row {number}, but the rows go from 0 to 3"):
        row_reasons([(number, "x")], 4)


# ---- the page


def unpack(page):
    blocks = dict(re.findall('<script type="text/plain" id="(.*?)">(.*?)</script>', page))
    return {name: gzip.decompress(base64.b64decode(block)) for name, block in blocks.items()}


def test_the_page_holds_every_row(tmp_path):
    write_page(tmp_path / "page.html", ROWS, tokenizer, [(2, EVIL), (2, "again"), (0, "first")])
    blocks = unpack((tmp_path / "page.html").read_text(encoding="utf-8"))
    words = json.loads(blocks["words"])
    table = [token["id"] for token in words["tokens"]]
    for key, name in (("input_ids", "ids"), ("labels", "labels")):
        column = [table[place] for place in np.frombuffer(blocks[name], "<u4")]
        assert [
            column[start:stop] for start, stop in zip(words["starts"], words["starts"][1:])
        ] == [row[key] for row in ROWS]
    assert list(words["flags"]) == ["0", "2"] and words["flags"]["2"][1] == "again"
    assert [words["roles"][turn] for turn in np.frombuffer(blocks["turns"], "<u4")][:3] == [
        "system"
    ] * 3


def test_no_word_of_a_row_stands_in_the_page_and_only_its_own_script_runs(tmp_path):
    write_page(tmp_path / "plain.html", [encode("x")], tokenizer)
    write_page(tmp_path / "evil.html", ROWS, tokenizer, [(0, EVIL)])
    plain, evil = (
        re.sub(
            '(<script type="text/plain" id="\\w+">)[A-Za-z0-9+/=]+<',
            r"\1<",
            (tmp_path / name).read_text(encoding="utf-8"),
        )
        for name in ("plain.html", "evil.html")
    )
    assert plain == evil
    policy = re.search('content="(default-src.*?)"', evil)[1]
    for tag in ("style", "script"):
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", evil, re.DOTALL):
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert (
        policy.startswith("default-src 'none'") and "unsafe" not in policy and "HASH" not in policy
    )
    assert not re.search(
        r"http:|https:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", evil
    )


def test_the_same_rows_make_the_same_page(tmp_path):
    for name in "ab":
        write_page(tmp_path / name, iter(ROWS), tokenizer)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_page_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", ROWS, tokenizer)


def test_the_page_is_small():
    "Ten thousand tokens of rows that resemble each other: less than a byte a token."
    rows = [encode(f"number {number}", [TOOL]) for number in range(200)]
    tokens = sum(len(row["labels"]) for row in rows)
    assert sum(len(gzip.compress(block)) for block in pack_rows(rows, tokenizer).values()) < tokens


# ---- the widget


def parts(widget):
    (which, back, forth, row), (view, search), page = (
        widget.children[0].children,
        widget.children[1].children,
        widget.children[2],
    )
    return which, back, forth, row, view, search, page


def test_the_widget_changes_when_something_is_chosen():
    which, back, forth, row, view, search, page = parts(
        show_rows(ROWS, tokenizer, [(1, "rare"), (3, "shifted?")])
    )
    assert (
        row_title(0, ROWS[0], {}) in page.value
        and render_row(ROWS[0], TABLE, tokenizer) in page.value
    )
    forth.click()
    assert row.value == 1 and "⚑ rare" in page.value
    for name in VIEWS:
        view.value = name
        assert render_row(ROWS[1], TABLE, tokenizer, name) in page.value
    which.value = True
    assert list(row.options) == [1, 3] and row.value == 1
    forth.click()
    forth.click()
    assert row.value == 3 and "⚑ shifted?" in page.value
    back.click()
    back.click()
    assert row.value == 1


def test_the_widget_searches():
    which, back, forth, row, view, search, page = parts(show_rows(ROWS, tokenizer))
    assert which.disabled
    search.value = "龘"
    assert list(row.options) == [1] and row.value == 1 and "found" in page.value
    search.value = "no such text"
    assert "no row is left" in page.value and row.disabled and forth.disabled
    search.value = ""
    assert (
        list(row.options) == [0, 1, 2, 3]
        and row.value == 1
        and not row.disabled
        and "no row" not in page.value
    )
    search.value = "\ud800"
    assert len(row.options) == 4  # a lone surrogate is no text


def test_no_row_comes_back_until_one_is_found():
    which, back, forth, row, view, search, page = parts(show_rows(ROWS, tokenizer, [(1, "rare")]))
    search.value = "no such text"
    for name in VIEWS[::-1]:
        view.value = name
        assert "no row is left" in page.value and "<pre" not in page.value
    forth.click()
    which.value = True
    assert "no row is left" in page.value
    search.value = ""
    assert render_row(ROWS[1], TABLE, tokenizer, view.value) in page.value


def test_the_widget_shows_a_dataset():
    from datasets import Dataset

    *_, page = parts(show_rows(Dataset.from_list(ROWS), tokenizer))
    assert render_row(ROWS[0], TABLE, tokenizer) in page.value


def test_a_row_without_tokens_is_empty():
    assert (
        render_row({"input_ids": [], "labels": []}, {}, tokenizer) == '<pre class="tokens"></pre>'
    )


def test_one_row_without_a_widget():
    shown = row_html(ROWS[0], tokenizer, "labels", "hello")
    assert (
        render_row(ROWS[0], TABLE, tokenizer, "labels", "hello") in shown
        and shown.count("<style>") == 1
        and 'class="legend"' in shown
    )


def test_rows_are_chosen_by_flag_and_text():
    assert select_rows(ROWS, TABLE, {3: ["x"], 1: ["y"]}, flagged=True) == [1, 3]
    assert select_rows(ROWS, TABLE, {3: ["x"]}, flagged=True, search="龘") == []
    assert select_rows(ROWS, TABLE, {}, search="<img src=x") == [2]
