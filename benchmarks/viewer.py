"""The HTML page with 10,000 rows in a headless Chromium: size of the file, time to the first row, to another row, and to search.

Rows of the demo, again and again (compression looks back over less than two hundred rows, so it gains nothing from the repeats), and rows of random tokens, the worst case.
"""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from toolcall_ft.data.examples import read_examples
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.rows import encode_example
from toolcall_ft.template.viewer import write_page
from toolcall_ft.tools.load import read_tools

COUNT, EXAMPLES = 10_000, Path(__file__).resolve().parents[1] / "examples"
TIMES = """() => { const times = []; for (let turn = 0; turn < 200; turn++) { const start = performance.now(); show(turn * 37 % book.count); document.body.offsetHeight;
  times.push(performance.now() - start); } times.sort((one, two) => one - two); return [times[100], times[190]]; }"""
SEARCH = "text => { const start = performance.now(); document.getElementById('search').value = text; selectRows(); document.body.offsetHeight; return performance.now() - start; }"


def measure(browser, name, rows, tokenizer, folder):
    path, start = folder / "page.html", time.perf_counter()
    write_page(path, rows, tokenizer, [(number, "flag") for number in range(0, len(rows), 100)])
    written = time.perf_counter() - start
    page, start = browser.new_page(), time.perf_counter()
    page.goto(path.as_uri())
    page.locator("pre > *").first.wait_for()
    drawn = time.perf_counter() - start
    median, slow = page.evaluate(TIMES)
    first, second = page.evaluate(SEARCH, "三号楼"), page.evaluate(SEARCH, "通告")
    print(
        f"{name}: {len(rows):,} rows, {sum(len(row['labels']) for row in rows):,} tokens; written in {written:.1f} s, {path.stat().st_size / 1e6:.1f} MB; "
        f"first row after {drawn:.2f} s; another row {median:.0f} ms (95 %: {slow:.0f} ms); first search {first:.0f} ms, next {second:.0f} ms"
    )
    page.close()


tokenizer, dice = load_tokenizer("tiny-qwen2"), random.Random(0)
examples, _ = read_examples(EXAMPLES / "logs.jsonl", read_tools(EXAMPLES / "tools.json"))
demo = [encode_example(example, tokenizer) for example in examples]
demo = [demo[number % len(demo)] for number in range(COUNT)]
noise = [
    {"input_ids": [dice.randrange(len(tokenizer)) for _ in row["labels"]], "labels": row["labels"]}
    for row in demo
]
noise = [
    {
        "input_ids": row["input_ids"],
        "labels": [
            -100 if label == -100 else token
            for token, label in zip(row["input_ids"], row["labels"])
        ],
    }
    for row in noise
]
with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
    chromium = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    browser = playwright.chromium.launch(
        executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
    )
    measure(browser, "demo", demo, tokenizer, Path(folder))
    measure(browser, "random tokens", noise, tokenizer, Path(folder))
    browser.close()
