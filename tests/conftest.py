"""What all tests share: nothing is fetched, nothing is reported, and every test has a folder of its own."""
import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture(scope="session")
def repository() -> Path:
    "The root of the working tree."
    return Path(__file__).resolve().parents[1]
