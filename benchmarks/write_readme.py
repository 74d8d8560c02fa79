"""Make README.md from nbs/index.ipynb, and put the same figures into README.zh-CN.md; with --check only compare.

The stored outputs are used, nothing is executed. Cells that begin with `#| echo: false` lose their code.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat
from bfcl import bfcl_table
from demo_stages import machine_table
from families import families_table
from home import home_table
from nbconvert import MarkdownExporter
from penalty import penalty_table

from toolcall_ft.cli.pipeline import result_table
from toolcall_ft.parity.report import parity_table

ROOT = Path(__file__).resolve().parents[1]
ZH = {
    "| trained in | on | training | exact match after LoRA | 95 % interval | n |": "| 训练用的数值格式 | 机器 | 训练 | LoRA 之后完全匹配 | 95 % 置信区间 | 样本数 |",
    " cores |": " 核 |",
    "| | exact match | 95 % interval | right tool | arguments | n |": "| | 完全匹配 | 95 % 置信区间 | 选对工具 | 参数 | 样本数 |",
    "exact match of each tool": "各工具的完全匹配",
    "never tested": "未测试",
    "before training": "训练前",
    "after LoRA, with grammar": "LoRA 之后，加语法约束",
    "after LoRA": "LoRA 之后",
    "in llama-server": "（llama-server）",
    " to ": " ~ ",
    "| runtime | prompts: test | prompts: hard corpus | outputs the same | calls the same | right calls | seconds, median |": "| 运行时 | 提示词：测试集 | 提示词：难例集 | 输出相同 | 调用相同 | 调用正确率 | 每次用时（秒，中位数） |",
    " training rows;": " 行训练数据；",
    "training row": "训练行",
    " of ": " / ",
    "| before, three examples in the prompt |": "| 训练前，提示里放三个例子 |",
    "| before |": "| 训练前 |",
    "| exact match | penalty": "| 完全匹配 | 惩罚",
    " | penalty ": " | 惩罚 ",
    "| simple_python | multiple | all |": "| simple_python | multiple | 合计 |",
    "| after, with grammar |": "| 训练后，加语法约束 |",
    "| after |": "| 训练后 |",
    "Made by": "来自",
    "| family | its calls | rows |": "| 系列 | 调用格式 | 训练行 |",
    "failed": "失败",
    "exact match": "完全匹配",
    "right tool": "选对工具",
    "arguments": "参数",
    "recall": "召回率",
    "false calls": "误调用",
    "missed calls": "漏调用",
    "seconds (median, p95)": "秒（中位数，p95）",
}


def english() -> str:
    "README.md as it should be: the index notebook with its stored outputs, links seen from the root."
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("#| echo: false"):
            cell.source = ""
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"^```\w*\n\s*```\n", "", text, flags=re.MULTILINE).replace("](../", "](")
    text = re.sub(r"\]\(([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def translated(path: Path, table) -> str:
    "The table of a file of figures in Chinese; `table` makes the English one of them."
    if not path.exists():
        return "（还没有数据：先运行 `make demo`，再运行 `make figures`。）"
    text = table(json.loads(path.read_text(encoding="utf-8")))
    for word, chinese in ZH.items():
        text = text.replace(word, chinese)
    return text


def chinese() -> str:
    "README.zh-CN.md as it should be: the tables between its marks are those of the last figures."
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    tables = {
        "figures": translated(
            ROOT / "benchmarks" / "demo_summary.json",
            lambda summary: f"{result_table(summary)}\n\n{machine_table()}",
        ),
        "parity": translated(
            ROOT / "benchmarks" / "results" / "parity.json",
            lambda report: parity_table(report).partition("\n\n")[0],
        ),
        "home": translated(
            ROOT / "benchmarks" / "results" / "home.json",
            lambda facts: home_table(facts).partition("\n\n")[0],
        ),
        "penalty": translated(ROOT / "benchmarks" / "results" / "penalty.json", penalty_table),
        "bfcl": translated(ROOT / "benchmarks" / "results" / "bfcl.json", bfcl_table),
        "families": translated(ROOT / "benchmarks" / "results" / "families.json", families_table),
    }
    for mark, table in tables.items():
        text = re.sub(
            f"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)",
            lambda match: match[1] + table + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is out of step"
    )
    check, stale = parser.parse_args().check, []
    for name, text in {"README.md": english(), "README.zh-CN.md": chinese()}.items():
        path = ROOT / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    print(
        f"{', '.join(stale)}: {'out of step with nbs/index.ipynb; run `make readme`' if check else 'written'}"
        if stale
        else "the READMEs are in step"
    )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
