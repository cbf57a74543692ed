import os
from pathlib import Path

import pytest
import torch

collect_ignore = ["timm_contract"]

# two test processes share two cores: one thread each, also in the processes they start
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_report_header():
    return f"VITRAIL_TEST_DATA={os.environ.get('VITRAIL_TEST_DATA', '(unset: tests on real data sets skip)')}"


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of small real data sets."""
    folder = os.environ.get("VITRAIL_TEST_DATA")
    if not folder:
        pytest.skip("VITRAIL_TEST_DATA is not set: no real data sets to test on")
    return Path(folder)
