"""Every family of models all the way: its real template, a small random model of its architecture that knows six answers by heart, and each server.

    python benchmarks/families.py --work runs/families               # an hour on two cores; what is measured already is kept
    python benchmarks/families.py --work runs/families --families "Qwen3" --runtimes llama-server --again
    python benchmarks/families.py --table                            # print the table of the last run

A family is asked for the prompts of the hard corpus and of the six requests, which must be the tokens of training, and for the six answers: with `tools`,
streamed, and by token ids. Writes benchmarks/results/families.json.
"""

import argparse
import json
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from golden.families import BY_NAME, TOOLS, family_model, learnt, memorise_family, tool_format

from toolcall_ft.base.errors import UserError
from toolcall_ft.base.files import read_json, write_text
from toolcall_ft.base.http import ask_lines
from toolcall_ft.base.jsontext import dump_json
from toolcall_ft.base.table import markdown_table
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.parity.cases import encode_cases
from toolcall_ft.parity.compare import prompt_differences
from toolcall_ft.parity.corpus import hard_corpus
from toolcall_ft.serve.client import ids_client, openai_client
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable
from toolcall_ft.template.rows import encode_example
from toolcall_ft.train.backend import machine_name
