"""Make the logs of the course: four tools, a few requests in English among the Chinese, twenty sites.

    python make_course.py [--seed 0] [--output FILE]

The same words and the same dealing as `make_logs.py`, whose docstring says why a record names its site; and sums of vectors.
"""

import argparse
import json
import random
from pathlib import Path

import make_logs as demo

from toolcall_ft.course import functions as course

COURSE = Path(__file__).resolve().parents[1] / "toolcall_ft" / "course"
ANSWERED = 0.15  # the share of records with a result and a final text
PAIRS = ["a = {} and b = {}", "the vectors {} and {}", "{} and {}", "{} plus {}"]
SUM_EN = demo.compose(["find the sum of ", "add ", "compute the sum of "], PAIRS)
SUM_ZH = demo.compose(["求", "计算", "算一下"], ["向量{}和{}的和", "{}加{}", "a={}和b={}的和"])
SUMS = demo.compose(demo.PLEASE, SUM_EN, demo.LATER) + demo.compose(demo.BEFORE, SUM_ZH)
WATER_EN = {
    "水壶取水": ["fill the kettle", "put water into the kettle"],
    "停止加热": ["stop heating", "turn the heating off"],
    "开始保温": ["keep the water warm", "start keeping warm"],
    "打开语音": ["turn the voice on", "switch the voice on"],
    "关闭语音": ["turn the voice off", "switch the voice off"],
}


def vector(rng, length):
    """A vector of small whole numbers."""
    return [rng.randint(-9, 9) for _ in range(length)]


def sum_record(rng, phrasing):
    """Somebody adds two vectors."""
    length = rng.choice([2, 3, 3, 3, 4])
    a, b = vector(rng, length), vector(rng, length)
    text = phrasing.format(a, b)
    if text.isascii() and rng.random() < 0.5:
        text = f"{text[0].upper()}{text[1:]}."
    return demo.record(text, "get_vector_sum", a=a, b=b)


def say(result):
    """A result of a tool as a sentence."""
    if isinstance(result, list):
        return f"{result}"
    if "weather" in result:
        return f"{result['weather']}，{result['temperature']}度。"
    if "notices" in result:
        return "；".join(result["notices"]) + "。"
    return f"{result['message']}。"


def with_answer(made):
    """The same record with what the tool said and a final text that rests on it."""
    course.NOTICES[:] = [{"type": "通告", "content": "周一早上健身房开放报名"}]
    result = getattr(course, made["tool_name"])(**made["arguments"])
    return {**made, "result": result, "answer": say(result)}


def site_records(rng, site):
    """What one site asks of the four tools, and what no tool fits."""
    travel = [
        r
        for r in demo.travel_records(rng, site)
        if r.get("tool_name", "get_weather") == "get_weather"
    ]
    home = [
        r
        for r in demo.community_records(rng, site)
        if r.get("tool_name", "HandleTongzhiTonggao") in ("HandleTongzhiTonggao", "WaterMachineApi")
    ]
    yield from travel
    yield from home
    for phrasing, operation in site["water_en"]:
        yield demo.record(phrasing, "WaterMachineApi", operation=operation)
    for phrasing in site["sums"]:
        yield sum_record(rng, phrasing)


def make_records(seed=0):
    """All records, in random order: the same for the same seed."""
    rng = random.Random(seed)
    phrasings, values = demo.deal_phrasings(rng), demo.deal_values(rng)
    water = {name: demo.compose(demo.PLEASE, words, demo.LATER) for name, words in WATER_EN.items()}
    water_en, sums = demo.deal_labelled(rng, water, 1), demo.deal(rng, SUMS, 12)
    records = []
    for i, site in enumerate({**p, **v} for p, v in zip(phrasings, values)):
        made = list(site_records(rng, {**site, "water_en": water_en[i], "sums": sums[i]}))
        unique = {(r["user"], str(r.get("history"))): r for r in made}
        for record in unique.values():
            if "tool_name" in record and "history" not in record and rng.random() < ANSWERED:
                record = with_answer(record)
            records.append({**record, "group": f"site-{i + 1:02d}"})
    rng.shuffle(records)
    return records


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(COURSE / "logs.jsonl"))
    options = parser.parse_args()
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in make_records(options.seed)]
    Path(options.output).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} records in {options.output}")
