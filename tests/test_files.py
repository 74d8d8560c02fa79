"""Reading files: every container, every encoding, damage of every kind; and that nothing of it is lost without a word."""

import csv
import gzip
import io
import json
import random
import re
import subprocess
import sys
import uuid
from collections import Counter
from datetime import date, datetime, time, timedelta
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.data.examples import iter_examples, read_examples
from toolcall_ft.data.logs import read_tags
from toolcall_ft.data.readers import FORMATS
from toolcall_ft.data.records import read_records, text_encoding, text_form
from toolcall_ft.data.store import push_examples, to_dataset, write_examples
from toolcall_ft.data.turns import call_message
from toolcall_ft.tools.clean import clean_tools

TOOLS, _ = clean_tools(
    [
        {
            "name": "get_weather",
            "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]},
        }
    ]
)


def call_text(city):
    return dump_json({"name": "get_weather", "arguments": {"city": city}})


def records_of(format, count=5):
    "Records of one format, each with a mark of its own; Chinese, quotes and line breaks in them."
    rows = [
        (f'查一下mark-{i:02d}的天气, "now",\nplease', f"北京{i}") for i in range(10, 10 + count)
    ]
    made = {
        "logs": lambda ask, city: {
            "user": ask,
            "tool_name": "get_weather",
            "arguments": {"city": city},
        },
        "triples": lambda ask, city: [ask, "get_weather", {"city": city}],
        "openai": lambda ask, city: {
            "messages": [
                {"role": "user", "content": ask},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {
                                "name": "get_weather",
                                "arguments": dump_json({"city": city}),
                            },
                        }
                    ],
                },
            ]
        },
        "sharegpt": lambda ask, city: {
            "conversations": [
                {"from": "human", "value": ask},
                {"from": "function_call", "value": call_text(city)},
            ],
            "tools": dump_json(TOOLS),
        },
        "chatml": lambda ask, city: {
            "text": f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{call_text(city)}\n</tool_call><|im_end|>\n"
        },
        "xlam": lambda ask, city: {
            "query": ask,
            "answers": f"[{call_text(city)}]",
            "tools": dump_json([tool["function"] for tool in TOOLS]),
        },
        "bfcl": lambda ask, city: {
            "question": [[{"role": "user", "content": ask}]],
            "function": [tool["function"] for tool in TOOLS],
            "ground_truth": [{"get_weather": {"city": [city]}}],
        },
    }
    return [made[format](*row) for row in rows]


def csv_text(records):
    "Records as CSV; what is no text stands in its cell as JSON."
    if isinstance(records[0], list):
        records = [dict(zip(("query", "tool", "arguments"), record)) for record in records]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(records[0])
    writer.writerows(
        [cell if isinstance(cell, str) else dump_json(cell) for cell in record.values()]
        for record in records
    )
    return text.getvalue()


TEXTS = {
    "lines.jsonl": lambda records: "".join(dump_json(record) + "\n" for record in records),
    "list.json": dump_json,
    "indented.json": lambda records: json.dumps(records, ensure_ascii=False, indent=2),
    "rows.json": lambda records: "[\n" + ",\n".join(map(dump_json, records)) + "\n]\n",
    "several.json": lambda records: "\n".join(
        json.dumps(record, ensure_ascii=False, indent=1) for record in records
    ),
    "table.csv": csv_text,
}
ENCODINGS = ("utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le")


def parquet_bytes(records, **options):
    if isinstance(records[0], list):
        records = [dict(zip(("query", "tool", "arguments"), record)) for record in records]
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), stream, **options)
    return stream.getvalue()


def read_whole(path):
    "The examples of a file, and that nothing was set aside."
    examples, errors = read_examples(path, TOOLS)
    assert not errors, errors[:1]
    return examples


# --- Containers and encodings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_in_every_container_and_encoding(tmp_path, format):
    records = records_of(format)
    (tmp_path / "x.jsonl").write_text(TEXTS["lines.jsonl"](records), encoding="utf-8")
    expected = read_whole(tmp_path / "x.jsonl")
    assert len(expected) == len(records) and all(
        f"mark-{10 + i}" in e["messages"][0]["content"] for i, e in enumerate(expected)
    )
    for name, write in TEXTS.items():
        for encoding in ENCODINGS:
            data = write(records).encode(encoding)
            for packed, suffix in ((data, ""), (gzip.compress(data, 1), ".gz")):
                (tmp_path / (name + suffix)).write_bytes(packed)
                assert read_whole(tmp_path / (name + suffix)) == expected, (name, encoding, suffix)
    for packed, suffix in (
        (parquet_bytes(records), ""),
        (gzip.compress(parquet_bytes(records)), ".gz"),
    ):
        (tmp_path / f"x.parquet{suffix}").write_bytes(packed)
        assert read_whole(tmp_path / f"x.parquet{suffix}") == expected


@pytest.mark.parametrize("name", [*TEXTS, "x.parquet"])
def test_a_wrong_name_does_no_harm(tmp_path, name):
    records = records_of("openai")
    data = parquet_bytes(records) if name == "x.parquet" else TEXTS[name](records).encode()
    for wrong in ("x", "x.txt", "x.log", "x.json", "x.jsonl", "x.gz"):
        (tmp_path / wrong).write_bytes(data)
        assert len(read_whole(tmp_path / wrong)) == len(records), wrong
    if name != "table.csv":
        (tmp_path / "x.csv").write_bytes(data)
        assert len(read_whole(tmp_path / "x.csv")) == len(records)


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("ab", "utf-8-sig"),
        ("é" * 9, "utf-8-sig"),
        ("查天气" * 9, "gb18030"),
        ("a查", "gb18030"),
        ("镕喆囍", "gb18030"),
        ("請問東京今天的天氣如何", "gb18030"),
        ("Tell me about 上海 and 北京 please", "gb18030"),
    ],
)
def test_an_encoding_is_recognised(text, encoding):
    assert text_encoding(text.encode(encoding)) == encoding


WESTERN = [
    "Wie wird das Wetter in Zürich?",
    "Où est le café près de l'hôtel?",
    "Está lloviendo en España, mañana y pasado",
    "På Østlandet blåser det å så mye",
    "Ça va très bien à Besançon",
    "Ärzte in Köln öffnen über Nacht",
]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("ask", WESTERN)
def test_western_european_bytes_are_not_taken_for_chinese(tmp_path, ask, encoding):
    records = [
        {"user": ask, "tool_name": "get_weather", "arguments": {"city": "Oslo"}},
        {"user": "Rain?", "tool_name": "get_weather", "arguments": {"city": "Oslo"}},
    ]
    for name in ("lines.jsonl", "list.json", "indented.json", "table.csv"):
        data = TEXTS[name](records).encode(encoding)
        assert text_encoding(data) == "utf-8-sig"
        (tmp_path / name).write_bytes(data)
        examples, errors = read_examples(tmp_path / name, TOOLS)
        assert (
            [e["messages"][0]["content"] for e in examples] == ["Rain?"]
            and len(errors) == 1
            and "Windows-1252" in errors[0]["reason"]
        ), name


@pytest.mark.parametrize(
    "data",
    [
        "查一下".encode()[:-1],
        "查天".encode()[:4] + b"\xff" + "气好".encode(),
        "caf\xe9 au lait".encode("latin-1"),
    ],
)
def test_damaged_utf8_is_not_taken_for_chinese(data):
    assert text_encoding(data) == "utf-8-sig"


def test_a_line_of_utf8_in_a_gb18030_file_is_read(tmp_path):
    records = records_of("logs", 9)
    lines = [
        dump_json(record).encode("utf-8" if i == 4 else "gb18030")
        for i, record in enumerate(records)
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    assert [e["messages"][0]["content"] for e in read_whole(tmp_path / "x.jsonl")] == [
        record["user"] for record in records
    ]


def test_every_character_boundary_of_the_pieces_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("toolcall_ft.data.records.HEAD", 64)
    for name in ("list.json", "indented.json", "rows.json"):
        for length in range(40):
            records = [{**record, "group": "京" * length} for record in records_of("logs")]
            (tmp_path / name).write_text(TEXTS[name](records), encoding="utf-8")
            found = [value for _, value, reason in read_records(tmp_path / name) if not reason]
            if name == "list.json" or length < 30:
                assert found == records, (name, length)


# --- Damage ----------------------------------------------------------------------------------------------------------------


def test_a_packed_file_that_was_cut_off_keeps_what_stands_before(tmp_path):
    text = "".join(
        dump_json(["a" + str(i**9), "get_weather", {"city": "北京"}]) + "\n" for i in range(3000)
    ).encode()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text)[:-500])
    examples, errors = read_examples(tmp_path / "x.jsonl.gz", TOOLS)
    assert (
        2500 < len(examples) < 3000 and 1 <= len(errors) <= 2 and "damaged" in errors[-1]["reason"]
    )
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text)[:-8] + bytes(8))
    examples, errors = read_examples(tmp_path / "x.jsonl.gz", TOOLS)
    assert len(examples) == 3000 and "CRC" in errors[0]["reason"]


def test_a_damaged_part_of_a_parquet_file_costs_that_part(tmp_path):
    data = bytearray(
        parquet_bytes(
            records_of("logs", 60),
            row_group_size=20,
            compression="none",
            use_dictionary=False,
            write_page_checksum=False,
        )
    )
    second = data.index("mark-35".encode())
    data[second - 30 : second + 30] = b"\xff" * 60
    (tmp_path / "x.parquet").write_bytes(data)
    examples, errors = read_examples(tmp_path / "x.parquet", TOOLS)
    assert len(examples) >= 40 and errors and "rows 21 to 40" in errors[0]["reason"]
    (tmp_path / "x.parquet").write_bytes(bytes(data)[:-40])
    with pytest.raises(UserError, match="Parquet"):
        read_examples(tmp_path / "x.parquet", TOOLS)


@pytest.mark.parametrize(
    "name", ["rows.json", "indented.json", "list.json", "several.json", "lines.jsonl"]
)
def test_a_broken_record_costs_itself_alone(tmp_path, name):
    records = records_of("openai", 9)
    text = TEXTS[name](records)
    for broken in (
        text.replace('mark-14的天气, \\"', 'mark-14的天气, "'),
        text.replace("mark-14", "\\x"),
        text.replace("mark-14", "mark-14\x01"),
    ):
        (tmp_path / name).write_text(broken, encoding="utf-8")
        examples, errors = read_examples(tmp_path / name, TOOLS)
        assert (len(examples), len(errors)) == (8, 1), (name, errors)


@pytest.mark.parametrize(
    "text, good, bad",
    [
        ('[{"user": "u", "answer": "a"}][{"user": "u", "answer": "a"}]', 1, 1),
        ('[{"user": "u", "answer": "a"}]\n{"user": "v", "answer": "a"}\nnonsense', 2, 1),
        ('[{"user": "u", "answer": "a"},\n', 1, 1),
        ('[{"user": "u", "answer": "a"}', 1, 1),
        ("[]", 0, 0),
        ("[", 0, 1),
        ("[1, 2, 33", 0, 4),
        ("[1, 2, 33]", 0, 3),
        ("{", 0, 1),
        ("}\n]\n,", 0, 3),
    ],
)
def test_what_stands_after_a_list_or_in_no_list(tmp_path, text, good, bad):
    (tmp_path / "x.json").write_text(text)
    examples, errors = read_examples(tmp_path / "x.json", TOOLS)
    assert (len(examples), len(errors)) == (good, bad), errors


def test_stray_quotes_in_a_table_cost_their_own_row(tmp_path):
    rows = [
        "user,tool_name,arguments",
        'one,get_weather,"{""city"": ""x""}"',
        'two "x,get_weather,"{""city"": ""x""}"',
        '"three,get_weather,"{""city"": ""x""}"',
        '"fo\nur",get_weather,"{""city"": ""x""}"',
        "five,get_weather",
        'six,get_weather,"{""city"": ""x""}"',
    ]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    examples, errors = read_examples(tmp_path / "x.csv", TOOLS)
    assert [e["messages"][0]["content"] for e in examples] == [
        "one",
        'two "x',
        "fo\nur",
        "six",
    ] and [e["line"] for e in errors] == [4, 7]


@pytest.mark.parametrize(
    "text, good",
    [
        ('q1\tget_weather\t{"city": "x"}\nq2\tget_weather\t{"city": "y"}\n', 2),
        ('query;tool;arguments\nq1;get_weather;"{""city"": ""x""}"\n', 1),
        ("user,user,tool_name,arguments\na,b,get_weather,{}\n", 0),
        ("user,answer,tool_name\nhi,hello,\n", 1),
    ],
)
def test_tables_with_other_signs_and_headers(tmp_path, text, good):
    (tmp_path / "x.tsv").write_text(text)
    examples, errors = read_examples(tmp_path / "x.tsv", TOOLS)
    assert len(examples) == good and len(errors) == (0 if good else 1)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"PK\x03\x04", "zip or Excel"),
        (b"BZh9", "bzip2"),
        (b" \n \n", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
        (b"PAR1", "Parquet"),
        (b"\xff\xfe", "empty"),
        (gzip.compress(b"text", mtime=0)[:9], "damaged"),
    ],
)
def test_files_that_are_none_of_these(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_examples(tmp_path / "x")


def test_folders_and_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no dataset"):
        read_examples(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "x")
    with pytest.raises(UserError, match="not a file"):
        read_examples("/dev/null")


def test_nulls_that_arrow_added_are_not_read(tmp_path):
    tools, _ = clean_tools(
        [
            {"name": "a", "parameters": {"x": {"type": "integer"}}},
            {"name": "b", "parameters": {"y": {"type": "object"}}},
        ]
    )
    records = [
        {"user": "u", "tool_name": "a", "arguments": {"x": 1}},
        {"user": "u", "tool_name": "b", "arguments": {"y": {"deep": [{"k": 1}, {"l": 2}]}}},
    ]
    (tmp_path / "x.parquet").write_bytes(parquet_bytes(records))
    examples, errors = read_examples(tmp_path / "x.parquet", tools)
    assert not errors and [
        e["messages"][1]["tool_calls"][0]["function"]["arguments"] for e in examples
    ] == [{"x": 1}, {"y": {"deep": [{"k": 1}, {"l": 2}]}}]


def test_nulls_of_foreign_tables_are_spoken_of_and_ours_are_kept(tmp_path):
    import datasets

    from toolcall_ft.data.examples import iter_examples
    from toolcall_ft.data.records import read_records
    from toolcall_ft.data.store import to_dataset, write_examples

    call = {
        "type": "function",
        "function": {"name": "t", "arguments": {"a": None, "b": [{"c": None}]}},
    }
    kept = [
        {
            "messages": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ],
            "tools": clean_tools([{"name": "t", "parameters": {"a": {}, "b": {}}}])[0],
        }
    ]
    to_dataset(kept).to_parquet(str(tmp_path / "ours.parquet"))
    for format, name in (
        ("openai", "x.jsonl"),
        ("sharegpt", "x.json"),
        ("chatml", "y.jsonl"),
        ("dataset", "x"),
    ):
        write_examples(tmp_path / name, kept, format)
    for name in ("ours.parquet", "x.jsonl", "x.json", "y.jsonl", "x"):
        notes = []
        assert (
            list(iter_examples(tmp_path / name, notes=notes)) == [("example", kept[0])]
            and notes == []
        ), name
    (tmp_path / "foreign.parquet").write_bytes(
        parquet_bytes([{"user": "u", "tool_name": "t", "arguments": {"a": None, "b": 1}}])
    )
    datasets.Dataset.from_list(
        [{"user": "u", "tool_name": "t", "arguments": {"a": None, "b": 1}}] * 3
    ).save_to_disk(str(tmp_path / "foreign"))
    for name, rows in (("foreign.parquet", 1), ("foreign", 3)):
        found = list(read_records(tmp_path / name, notes := []))
        assert (
            [record["arguments"] for _, record, _ in found] == [{"b": 1}] * rows
            and len(notes) == 1
            and "arguments" in notes[0]
            and "read as absent" in notes[0]
        )


def test_cells_that_are_no_json_are_errors(tmp_path):
    table = pyarrow.table({"user": ["u", "v"], "answer": ["a", "b"], "calls": [b"\xff", None]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    examples, errors = read_examples(tmp_path / "x.parquet")
    assert len(examples) == 1 and len(errors) == 1 and "not JSON" in errors[0]["reason"]


# --- The fuzz: 20,000 damaged files ------------------------------------------------------------------------------------------


def damage(data, chance):
    "The bytes with one to three things done to them that happen to files."
    for _ in range(chance.choice((1, 1, 2, 3))):
        a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        lines = data.split(b"\n")
        kind = chance.randrange(9)
        if kind == 0:
            data = data[:b]
        elif kind == 1:
            data = data[:a] + data[min(b, a + 40) :]
        elif kind == 2:
            data = (
                data[:a]
                + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
                + data[a:]
            )
        elif kind == 3:
            data = (
                data[:a]
                + chance.choice(
                    [
                        b'"',
                        b"{",
                        b"}",
                        b"[",
                        b"]",
                        b",",
                        b"\n",
                        b"\\",
                        b"\0",
                        b"null",
                        b"NaN",
                        b"\r",
                        b"\xef\xbb\xbf",
                        "京".encode(),
                    ]
                )
                + data[a:]
            )
        elif kind == 4:
            data = b"\n".join(chance.sample(lines, len(lines)))
        elif kind == 5:
            data = data[:b] + data[a:b] + data[b:]
        elif kind == 6 and data:
            data = (
                data[:a]
                + bytes([data[min(a, len(data) - 1)] ^ 1 << chance.randrange(8)])
                + data[a + 1 :]
            )
        elif kind == 7:
            data = b"\n".join(
                line.decode("utf-8", "ignore").encode("gb18030") if chance.random() < 0.3 else line
                for line in lines
            )
        else:
            data = data.replace(b'", "', b'",\n"', chance.randrange(3))
    return data


def marks_in(text):
    return Counter(re.findall("mark-[0-9]{2}", text))


def read_all(path, text):
    "Read a damaged file both ways; every mark that is left in its text must come out, and each record as an example or an error."
    try:
        records = list(read_records(path))
    except UserError as error:
        assert str(path) in str(error)
        return "refused"
    results = list(iter_examples(path, TOOLS))
    assert len(results) == len(records), "records in = examples out + errors"
    assert all(value["reason"] and value["field"] for kind, value in results if kind == "error")
    if text is not None and len(text) < 1900:
        lost = marks_in(text) - marks_in(dump_json([value for _, value, _ in records]))
        assert not lost, lost
    return "read"


def fuzz(tmp_path, containers, cases, seed):
    "Damage files made by `containers` (name -> bytes) and read them; the counts of what came of it."
    chance, names, outcomes = random.Random(seed), list(containers), Counter()
    for case in range(cases):
        name = chance.choice(names)
        data = damage(containers[name], chance)
        encoding = name.split("|")[1]
        path = (
            tmp_path
            / f"x{chance.choice(['', '.gz'] if chance.random() < 0.1 else [name.split('|')[2]])}"
        )
        path.write_bytes(data)
        text = (
            None
            if encoding == "binary" or data[:2] == b"\x1f\x8b"
            else data.decode(text_encoding(data), "mark_bytes")
        )
        if text and ".csv" in name:
            text = "".join(text.lstrip().splitlines(keepends=True)[1:])  # the header is no record
        try:
            outcomes[read_all(path, text)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {case}, {name}: {data!r}") from error
    return outcomes


@pytest.mark.parametrize("seed", range(8))
def test_damaged_texts(tmp_path, seed):
    containers = {
        f"{format}|{encoding}|.{name.split('.')[1]}": write(records_of(format, 3)).encode(encoding)
        for format in FORMATS
        for name, write in TEXTS.items()
        for encoding in ENCODINGS
    }
    outcomes = fuzz(tmp_path, containers, 2000, seed)
    assert outcomes["read"] > 1800


@pytest.mark.parametrize("seed", range(2))
def test_damaged_parquet_and_packed_files(tmp_path, seed):
    containers = {
        f"{format}|binary|.parquet": parquet_bytes(records_of(format, 3)) for format in FORMATS
    }
    outcomes = fuzz(tmp_path, containers, 1000, seed)
    assert outcomes["read"] and outcomes["refused"]
    containers = {
        f"{format}|binary|.gz": gzip.compress(write(records_of(format, 3)).encode(), 1)
        for format in FORMATS
        for write in TEXTS.values()
    }
    outcomes = fuzz(tmp_path, containers, 1000, seed)
    assert outcomes["read"] > 400


# --- Large files -------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(tmp_path):
    "Each kind of file is read at 1 MB and at 10 MB; the peak of the process may not follow."
    one = records_of("openai", 1)[0]
    for count, size in ((4_000, "small"), (40_000, "large")):
        texts = {
            "lines.jsonl": (dump_json(one) + "\n") * count,
            "list.json": "[" + ", ".join([dump_json(one)] * count) + "]",
            "table.csv": (csv_text([one]).split("\n", 1)[0] + "\n")
            + csv_text([one]).split("\n", 1)[1] * count,
        }
        for name, text in texts.items():
            (tmp_path / f"{size}_{name}").write_text(text, encoding="utf-8", newline="")
        (tmp_path / f"{size}_packed.json.gz").write_bytes(
            gzip.compress(texts["list.json"].encode(), 1)
        )
        table = pyarrow.Table.from_pylist([one] * 2000)
        with pyarrow.parquet.ParquetWriter(
            tmp_path / f"{size}_x.parquet", table.schema, use_dictionary=False, compression="none"
        ) as writer:
            for _ in range(count // 2000):
                writer.write_table(table, row_group_size=2000)
    code = (
        "import pathlib, resource, sys\nfrom toolcall_ft.data.examples import iter_examples; from toolcall_ft.data.records import read_records\nfrom toolcall_ft.tools.clean import clean_tools\n"
        "tools, _ = clean_tools([{'name': 'get_weather', 'parameters': {'properties': {'city': {'type': 'string'}}}}])\n"
        "for size in ('small', 'large'):\n for path in sorted(pathlib.Path(sys.argv[1]).glob(size + '_*')):\n  results = iter_examples(path, tools) if 'lines' in path.name else (('error' if reason else 'example', value) for _, value, reason in read_records(path))\n"
        "  kinds = [kind for kind, _ in results]\n"
        "  print(size, kinds.count('example'), kinds.count('error'), path.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 10 and all(
        int(row[1]) == {"small": 4_000, "large": 40_000}[row[0]] and row[2] == "0" for row in rows
    )
    assert max(int(row[3]) for row in rows) > 9_000_000
    peaks = {
        size: max(int(row[4]) for row in rows if row[0] == size) for size in ("small", "large")
    }
    assert peaks["large"] - peaks["small"] < 6_000, f"kB: {rows}"


# --- Writing -----------------------------------------------------------------------------------------------------------------

EXAMPLES = [
    {
        "messages": [
            {"role": "user", "content": f'查 "{i}"\n<|im_end|>\u2028'},
            call_message([{"name": name, "arguments": arguments}]),
        ],
        "tools": [],
        **group,
    }
    for i, (name, arguments, group) in enumerate(
        [
            ("a", {"x": None}, {}),
            ("b", {"y": 1e30, "x": 1.5}, {"group": "one"}),
            ("c", {}, {}),
            ("a", {"deep": [{"k": []}, {"l": {}}]}, {}),
        ]
    )
]
for example in EXAMPLES:
    example["tools"], _ = clean_tools(
        [
            {
                "name": call["function"]["name"],
                "parameters": {key: {} for key in call["function"]["arguments"]},
            }
            for call in example["messages"][1]["tool_calls"]
        ]
    )


@pytest.mark.parametrize(
    "format, name",
    [("openai", "x.jsonl"), ("sharegpt", "x.json"), ("chatml", "x.jsonl"), ("dataset", "x")],
)
def test_a_round_trip_loses_nothing(tmp_path, format, name):
    for examples in (EXAMPLES, []):
        write_examples(tmp_path / name, iter(examples), format)
        if not examples and name == "x.jsonl":
            continue  # an empty file
        back, errors = read_examples(tmp_path / name)
        assert not errors and json.dumps(back) == json.dumps(examples)


def test_datasets_of_several_splits_are_read(tmp_path):
    import datasets

    datasets.DatasetDict(
        train=to_dataset(EXAMPLES[:2]), test=to_dataset(EXAMPLES[2:])
    ).save_to_disk(str(tmp_path / "x"))
    assert read_examples(tmp_path / "x") == (EXAMPLES, [])


def test_dataset_info_keeps_other_entries_and_is_read(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
    write_examples(tmp_path / "mine.json", EXAMPLES, "sharegpt")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert set(info) == {"other", "mine"} and info["mine"]["file_name"] == "mine.json"
    tags = read_tags(tmp_path / "dataset_info.json", tmp_path / "mine.json")
    assert tags == info["mine"] and read_examples(tmp_path / "mine.json", tags=tags) == (
        EXAMPLES,
        [],
    )
    assert read_tags(None, "x") is None and read_tags(tmp_path / "dataset_info.json", "x") is None
    (tmp_path / "dataset_info.json").write_text("[]")
    with pytest.raises(UserError, match="dataset_info.json"):
        write_examples(tmp_path / "mine.json", EXAMPLES, "sharegpt")


def test_names_of_columns_and_roles_from_dataset_info(tmp_path):
    tags = {
        "columns": {"messages": "talk"},
        "tags": {
            "role_tag": "who",
            "content_tag": "said",
            "user_tag": "me",
            "assistant_tag": "it",
            "function_tag": "does",
        },
    }
    (tmp_path / "x.json").write_text(
        json.dumps(
            [{"talk": [{"who": "me", "said": "Rome?"}, {"who": "does", "said": call_text("Rome")}]}]
        )
    )
    examples, errors = read_examples(tmp_path / "x.json", TOOLS, tags=tags)
    assert not errors and examples[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
        "city": "Rome"
    }
    assert read_examples(tmp_path / "x.json", TOOLS)[1]


def test_an_example_that_a_format_cannot_hold_is_named(tmp_path):
    odd = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
        ],
        "tools": [],
    }
    with pytest.raises(UserError, match="example 2"):
        write_examples(tmp_path / "x.json", [EXAMPLES[0], odd], "sharegpt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="chatml"):
        write_examples(tmp_path / "x.json", EXAMPLES, "chatlm")


def test_a_push_to_the_hub(monkeypatch):
    import datasets

    with pytest.raises(
        UserError, match="you/calls: the examples could not be pushed.*hf auth login"
    ):
        push_examples("you/calls", EXAMPLES)
    pushed = []
    monkeypatch.setattr(
        datasets.Dataset,
        "push_to_hub",
        lambda self, name, private: pushed.append((name, private, self.num_rows)),
    )
    push_examples("you/calls", EXAMPLES)
    assert pushed == [("you/calls", True, len(EXAMPLES))]


# --- Formats -----------------------------------------------------------------------------------------------------------------


def test_the_format_is_recorded(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"user": "u", "tool_name": "nope", "arguments": {}}\n{"messages": []}\n{"x": 1}\nnonsense\n{"conversations": 3}\n'
    )
    _, errors = read_examples(tmp_path / "x.jsonl", TOOLS)
    assert [error["format"] for error in errors] == ["logs", "openai", None, None, "sharegpt"]
    _, errors = read_examples(tmp_path / "x.jsonl", TOOLS, format="xlam")
    assert [error["format"] for error in errors] == ["xlam", "xlam", "xlam", None, "xlam"]


@pytest.mark.parametrize(
    "head, name, form",
    [
        ('{"a": 1}\n{"a": 2}', "x", "lines"),
        ('{\n"a": 1}', "x", "values"),
        ('[\n"q", "t", {}]', "x", "values"),
        ('["q", "t", {}]', "x.json", "lines"),
        ('[{"a": 1}]', "x.jsonl", "list"),
        ('["bad"]\n{"a": 1}', "x.jsonl", "lines"),
        ('{\n "user": "a",\n "tools": [\n  {"na', "x", "values"),
        ('{\n "user": "a",\n "too', "x.jsonl", "values"),
        ('{"a": 1,\n{"a": 2}\n{"a": 3}\n{"a": 4}', "x", "lines"),
        ('{"user": "a long line that is cut o', "x", "lines"),
        ('[bad\n{"a": 1}', "x.jsonl", "lines"),
        ('[{"a": 1},', "x.jsonl", "list"),
        ("user,answer\n", "x", "csv"),
        ("a,b\n", "x.csv", "csv"),
        ("a,b\n", "x.csv.gz", "csv"),
        ('{"a": 1}', "x.csv", "lines"),
        ("a,b\n", "x", "lines"),
    ],
)
def test_what_a_text_is_shows_in_its_beginning(head, name, form):
    assert text_form(head, name) == form


ROW = {"user": "Rain in Oslo?", "tool_name": "get_weather", "arguments": '{"city": "Oslo"}'}
STRANGE = {
    "when": datetime(2026, 11, 21, 10, 30),
    "day": date(2026, 11, 21),
    "hour": time(10, 30),
    "price": Decimal("12.50"),
    "number": Decimal("10000000000000001"),
    "share": float("nan"),
    "lasted": timedelta(1),
    "raw": b"\xff",
    "sensor": float("inf"),
    "nested": [{"at": datetime(2026, 11, 21), "raw": b"\xff"}],
}


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_columns_that_no_format_reads_cost_no_row(tmp_path, kind):
    import datasets

    table = pyarrow.Table.from_pylist([{**ROW, **STRANGE}] * 3)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "x")
    else:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "x"))
    found = list(read_records(tmp_path / "x", notes := []))
    assert [reason for *_, reason in found] == [None] * 3
    record = found[0][1]
    assert {key: record[key] for key in record if key not in ROW} == {
        "when": "2026-11-21T10:30:00",
        "day": "2026-11-21",
        "hour": "10:30:00",
        "price": 12.5,
        "number": 10**16 + 1,
    }
    assert [
        sorted(name for name in STRANGE if f" {name}: " in note)
        for note in notes
        if "left out" in note
    ] == [["lasted"], ["raw"], ["sensor"], ["nested"]], "once for each column"
    examples, errors = read_examples(tmp_path / "x", TOOLS)
    assert len(examples) == 3 and not errors


@pytest.mark.parametrize(
    "column, cell, good",
    [
        ("result", b"\xff", False),
        ("history", [{"role": "user", "content": b"\xff"}], False),
        ("group", timedelta(1), False),
        ("group", float("nan"), True),
        ("group", Decimal("17"), True),
        ("result", datetime(2026, 11, 21), True),
        ("group", uuid.UUID(int=7), True),
    ],
)
def test_a_column_that_the_formats_read_is_never_left_out(column, cell, good):
    from toolcall_ft.data.tables import row_records

    notes = []
    [(line, value, reason)] = row_records(
        {**ROW, "answer": "Rain.", "result": "rain", column: cell}, 3, "x.parquet", notes
    )
    assert (line, notes) == (3, []) and (
        reason is None if good else f"the column {column} has a cell that is not JSON" in reason
    )


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.txt"])
def test_one_long_object_over_many_lines_is_one_record(tmp_path, name):
    tools = [
        {
            "name": f"tool_{i}",
            "description": "d" * 40,
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
        }
        for i in range(6000)
    ]
    record = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "tools": tools,
    }
    (tmp_path / name).write_text(json.dumps(record, indent=2))
    assert (tmp_path / name).stat().st_size > 1 << 20
    [(line, value, reason)] = read_records(tmp_path / name)
    assert line == 1 and reason is None and value == record
