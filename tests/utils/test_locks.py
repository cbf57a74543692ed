import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from vitrail.errors import UserError
from vitrail.utils.locks import LOCK, Lock, is_gone, started_at, this_process

HOLD = """
import sys, time
from pathlib import Path
from vitrail.utils.locks import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def held(tmp_path):
    """A process that has the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named_by_process_and_host(held, tmp_path):
    for act in (Lock(tmp_path).check, Lock(tmp_path).take):
        with pytest.raises(UserError, match=rf"worked on by process {held.pid} on {os.uname().nodename} since 20"):
            act()
    assert (tmp_path / LOCK).is_file()


def test_a_killed_holder_is_recognised(held, tmp_path):
    held.kill()
    held.wait()
    lock = Lock(tmp_path)
    lock.check()
    lock.take()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def edited(folder, **changes):
    """The folder's lock with other entries: the process that has it is another one then."""
    file = folder / LOCK
    with open(file, "r+") as handle:  # the same file, not a copy of it
        values = json.load(handle) | changes
        handle.seek(0)
        handle.truncate()
        json.dump(values, handle)


@pytest.mark.parametrize("changes", [{"started": "1"}, {"boot": "an earlier start"}, {"pid": 1 << 40}, {"pid": -1}])
def test_numbers_that_were_given_anew_are_told_apart(held, tmp_path, changes):
    edited(tmp_path, **changes)
    Lock(tmp_path).take()


@pytest.mark.parametrize("changes", [{"host": "other\x1b[31m"}, {"space": "pid:[1]"}])
def test_of_another_host_it_says_how_to_remove_it(held, tmp_path, changes):
    held.kill()
    held.wait()
    edited(tmp_path, **changes)
    with pytest.raises(UserError, match=r"cannot be seen from here: if it has ended, delete .*\.vitrail-lock") as said:
        Lock(tmp_path).take()
    assert "\x1b" not in str(said.value)
    (tmp_path / LOCK).unlink()
    Lock(tmp_path).take()


def test_a_copy_of_a_folder_holds_no_lock(held, tmp_path):
    shutil.copytree(tmp_path, tmp_path / "copy")
    Lock(tmp_path / "copy").take()


@pytest.mark.parametrize("content", ["{", "[]", '{"pid": "x", "host": "a"}', '{"pid": 1}'])
def test_a_damaged_lock_is_said(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(UserError, match="is damaged: if no process does, delete it"):
        Lock(tmp_path).take()


def test_a_lock_that_was_never_written_holds_nothing(tmp_path):
    (tmp_path / LOCK).write_text("")
    Lock(tmp_path).check()
    Lock(tmp_path).take()


def test_only_the_holder_releases(tmp_path):
    lock = Lock(tmp_path)
    lock.take()
    lock.take()  # it has it already
    if (child := os.fork()) == 0:  # as a worker that inherits everything
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).is_file()
    (tmp_path / LOCK).unlink()  # somebody took it away, and another has it now
    other = Lock(tmp_path)
    other.take()
    other._mine.started = "another process"
    edited(tmp_path, started="another process")
    lock.release()
    assert (tmp_path / LOCK).is_file()


RACE = """
import sys, time
from pathlib import Path
from vitrail.errors import UserError
from vitrail.utils.locks import Lock
while time.time() < float(sys.argv[2]):
    pass
lock, taken = Lock(Path(sys.argv[1])), Path(sys.argv[1], "inside")
for _ in range(60):
    try:
        lock.take()
    except UserError:
        continue
    taken.mkdir()  # fails if another one is here
    taken.rmdir()
    lock.release()
"""


def test_never_two_at_once(tmp_path):
    """Four processes take and release for as long as they like; a folder in the locked part would be made twice."""
    start = str(time.time() + 1.0)
    command = [sys.executable, "-c", RACE, str(tmp_path), start]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.wait(120) == 0, racer.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_this_process_runs():
    me = this_process()
    assert started_at(me.pid) == me.started
    assert not is_gone(me)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_regular_file_is_neither_waited_for_nor_written_through(tmp_path, kind):
    folder, mine = tmp_path / "run", tmp_path / "mine.txt"
    folder.mkdir()
    mine.write_text("")  # empty, as a lock is whose process ended before it wrote
    path = folder / LOCK
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(mine if kind == "link" else tmp_path / "nothing.txt")
    for act in (Lock(folder).check, Lock(folder).take):
        with pytest.raises(UserError, match=rf"{LOCK} is no regular file: delete it"):
            act()
    assert mine.read_text() == ""
    assert not (tmp_path / "nothing.txt").exists()
