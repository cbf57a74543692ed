import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from vitrail.lab import claims as module
from vitrail.lab.claims import STALE, Claims, Owner
from vitrail.utils.locks import this_process


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path / "claims")


def write(claims, name, **changes):
    """A claim as another process has left it."""
    claims.folder.mkdir(exist_ok=True)
    file = claims.folder / name
    file.touch()
    owner = {**asdict(Owner(**asdict(this_process()))), "inode": file.stat().st_ino, **changes}
    file.write_text(json.dumps(owner))
    return file


def test_a_claim_is_held_once_and_given_back(claims):
    with claims.take("a") as claim:
        assert claims.take("a") is None
        assert claims.holder("a").pid == os.getpid()
        assert claims.take("b") is not None
        assert not claim.elsewhere
    assert claims.holder("a") is None
    with claims.take("a") as again:
        assert again.file.name == "a.1"
    claims.drop("a")
    assert sorted(os.listdir(claims.folder)) == ["b.0"]


def test_of_many_that_ask_at_once_one_gets_it(claims):
    for round_number in range(20):
        barrier = threading.Barrier(8)

        def ask(name=f"run{round_number}", barrier=barrier):
            barrier.wait()
            return claims.take(name)

        with ThreadPoolExecutor(8) as pool:
            found = [one.result() for one in [pool.submit(ask) for _ in range(8)]]
        assert sum(one is not None for one in found) == 1


def test_a_killed_process_leaves_a_claim_that_is_taken_over_at_once(claims):
    script = (
        "import sys, time; from pathlib import Path; from vitrail.lab.claims import Claims\n"
        "claim = Claims(Path(sys.argv[1])).take('a'); print('taken', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(claims.folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"taken\n"
        assert claims.take("a") is None
        assert claims.holder("a").pid == other.pid
        other.kill()
        other.wait()
    claim = claims.take("a")
    assert claim.file.name == "a.1"
    assert not claim.elsewhere


def test_another_machines_claim_ends_by_its_age(claims):
    file = write(claims, "a.3", host="elsewhere")
    assert claims.take("a") is None
    os.utime(file, (time.time() - STALE + 60,) * 2)
    assert claims.take("a") is None
    os.utime(file, (time.time() - STALE - 60,) * 2)
    claim = claims.take("a")
    assert (claim.file.name, claim.elsewhere) == ("a.4", True)


def test_a_copy_of_a_folder_holds_no_claims(claims):
    write(claims, "a.0", inode=12345)
    assert claims.take("a") is not None


def test_a_claim_not_written_to_its_end_ends_by_its_age(claims):
    claims.folder.mkdir()
    file = claims.folder / "a.0"
    file.write_text("")
    assert claims.take("a") is None
    os.utime(file, (time.time() - 2 * STALE,) * 2)
    assert claims.take("a") is not None


def test_a_process_that_gives_no_sign_of_life_learns_that_it_was_replaced(claims, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with claims.take("a") as claim:
        old = time.time() - 1000
        os.utime(claim.file, (old, old))
        deadline = time.time() + 5
        while claim.file.stat().st_mtime < old + 1 and time.time() < deadline:
            time.sleep(0.01)
        assert claim.file.stat().st_mtime > old + 1  # renewed
        assert not claim.lost
        write(claims, "a.1", host="elsewhere")
        while not claim.lost and time.time() < deadline:
            time.sleep(0.01)
        assert claim.lost
    assert json.loads(claim.file.read_text())["released"] is False


def test_no_link_is_written_through(claims, tmp_path):
    claims.folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (claims.folder / "a.0").symlink_to(victim)
    os.utime(victim, (time.time() - 2 * STALE,) * 2)
    with claims.take("a") as claim:
        assert claim.file.name == "a.1"
    assert victim.read_text() == "mine"
