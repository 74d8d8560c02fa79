"""The real pretrained model of the tests: SmolLM2-135M-Instruct, as `toolcall-ft model smollm2` fetches it.

python tests/golden/smollm2.py        # fetches it and says where it is: a minute, and 93 MB to download
"""

from pathlib import Path

from toolcall_ft.template.fetch import fetch_model
from toolcall_ft.template.known import known_folder

CACHE = known_folder("smollm2")


def smollm2() -> Path:
    "The folder of the model, fetched on first use."
    return fetch_model("smollm2")


if __name__ == "__main__":
    print(smollm2())
