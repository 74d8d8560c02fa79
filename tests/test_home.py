"""The home task of `make demo-real`: written by hand, train and test by two authors; the real model takes two steps on it."""

import os
from collections import Counter

import pytest
from golden.smollm2 import CACHE, smollm2

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_jsonl
from toolcall_ft.config import read_config
from toolcall_ft.data.prepare import prepare_data
from toolcall_ft.data.split import shared_links
from toolcall_ft.train.lora import train_lora


@pytest.fixture(scope="module")
def home(repository, tmp_path_factory):
    "The examples of the task, and what was said of them."
    config = read_config(repository / "examples" / "home" / "config.yaml")
    config["run"] = str(tmp_path_factory.mktemp("home"))
    counts = prepare_data(config)
    read = lambda name: read_jsonl(f"{config['run']}/data/{name}.jsonl")
    return {name: read(name) for name in ("train", "test")}, counts


def test_the_test_shares_neither_words_nor_values_with_training(home):
    rows, counts = home
    assert counts["rejected"] == 0 and counts["warnings"] == []
    splits = {"validation": [], **rows}
    assert not [link for link in shared_links(splits) if link["test"]]
    assert 200 <= len(rows["train"]) <= 300 and len(rows["test"]) >= 200


def test_the_test_asks_for_everything(home):
    "All seven tools, two calls, none where none is right, and turns that rest on earlier ones."
    rows, _ = home
    calls = [row["messages"][-1].get("tool_calls") or [] for row in rows["test"]]
    names = Counter(call["function"]["name"] for each in calls for call in each)
    assert len(names) == 7 and min(names.values()) >= 20
    assert sum(len(each) == 2 for each in calls) >= 10
    assert sum(not each for each in calls) >= 30
    assert sum(len(row["messages"]) > 2 for row in rows["test"]) >= 25


@pytest.mark.skipif(
    not CACHE.exists() and not os.environ.get("CI"),
    reason="no SmolLM2 here. Fetch it with: toolcall-ft model smollm2",
)
def test_the_real_model_takes_two_steps(home, tmp_path):
    rows = home[0]["train"][:2]
    report = train_lora(rows, [], str(smollm2()), tmp_path, backend="peft", epochs=1, batch_size=1)
    assert report["steps"] == 2 and 0 < report["loss"] < 5


@pytest.mark.parametrize("lines", ['{"user": "x"}\n', None])
def test_test_files_without_a_use_are_refused(repository, tmp_path, lines):
    "One whose records are all rejected, and one that is trained on, too: nothing is taken from the logs instead."
    config = read_config(repository / "examples" / "home" / "config.yaml")
    config["run"] = str(tmp_path / "run")
    own = tmp_path / "own.jsonl"
    own.write_text(lines or "", encoding="utf-8")
    config["data"]["test_logs"] = [str(own)] if lines else config["data"]["logs"]
    with pytest.raises(UserError, match="data.test_logs"):
        prepare_data(config)
