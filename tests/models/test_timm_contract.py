"""timm's own model tests pass for the smallest network of each family, and the laboratory's (all of them: -m slow)."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.models import FAMILIES, names

#: tests of timm's file for each network
EACH = 11
FOLDER = Path(__file__).parents[1] / "timm_contract"
SHA256 = "ffb62c6df02601a96c2fda403723a7f96a806897ee061d1009c1f3135fb64eb7"


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(FOLDER / "run.py"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_file_is_timms_own_unchanged():
    assert hashlib.sha256((FOLDER / "vendor" / "test_models.py").read_bytes()).hexdigest() == SHA256


@pytest.mark.timeout(1500)
def test_smallest_of_each_family():
    count = len(FAMILIES) + 1  # lab_plain
    assert _run("--per-family") == f"{count} networks, {EACH * count} tests, 0 failed, 0 skipped"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_network():
    count = len(names())
    assert _run() == f"{count} networks, {EACH * count} tests, 0 failed, 0 skipped"
