"""What all tests share: nothing is fetched, nothing is reported, and every test has a folder of its own."""
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)  # the same cases each time: a red run is the fault of the change
if os.environ.get("CI"): settings.load_profile("ci")

os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture(scope="session")
def repository() -> Path:
    "The root of the working tree."
    return Path(__file__).resolve().parents[1]
