import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitrail.models.mixers import MIXERS

collect_ignore = ["timm_contract"]

# two test processes share two cores: one thread each, also in the processes they start
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_report_header():
    return f"VITRAIL_TEST_DATA={os.environ.get('VITRAIL_TEST_DATA', '(unset: tests on real data sets skip)')}"


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_mixers_are_forgotten():
    """What a test registers in `MIXERS`, by a class or by `module:Class`, no other test meets."""
    known = dict(MIXERS)
    yield
    MIXERS.clear()
    MIXERS.update(known)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of small real data sets."""
    folder = os.environ.get("VITRAIL_TEST_DATA")
    if not folder:
        pytest.skip("VITRAIL_TEST_DATA is not set: no real data sets to test on")
    return Path(folder)


@pytest.fixture
def mistake(capsys) -> Callable[..., str]:
    """A command that must end with exit code 2 and one sentence; it returns the sentence."""

    def run(*argv: str) -> str:
        from vitrail.cli import main

        capsys.readouterr()
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        sentences = [line for line in captured.err.splitlines() if line.startswith("vitrail: ")]
        assert len(sentences) == 1, captured.err
        assert "Traceback" not in captured.err
        return sentences[0].removeprefix("vitrail: ")

    return run
