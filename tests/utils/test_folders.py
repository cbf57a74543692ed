import json
import os

import pytest

from vitrail.errors import UserError
from vitrail.utils.owned_folder import MARKER, OwnedFolder


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def add(folder, files):
    with folder.adding() as (stage, kept):
        for name, text in files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(text)
    return kept


def test_only_what_was_written_is_deleted(tmp_path):
    mine = {"examples/notes.txt": "mine", "last/thesis.tex": "mine", "a/b/c/own.txt": "mine", "config.yaml": "mine"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = OwnedFolder(tmp_path)
    assert add(folder, {"examples/1.jpg": "x", "a/b/c/d/e.txt": "x", "only/ours.txt": "x"}) == []
    assert OwnedFolder(tmp_path).written == {"examples/1.jpg", "a/b/c/d/e.txt", "only/ours.txt"}
    OwnedFolder(tmp_path).clear()  # as another process would
    assert contents(tmp_path) == mine
    assert not (tmp_path / "only").exists()
    assert not (tmp_path / "a/b/c/d").exists()


def test_a_file_of_the_users_is_never_replaced(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "1.jpg").write_text("mine")
    folder = OwnedFolder(tmp_path)
    assert add(folder, {"examples/1.jpg": "x", "examples/2.jpg": "x"}) == ["examples/1.jpg"]
    assert contents(tmp_path / "examples") == {"1.jpg": "mine", "2.jpg": "x"}
    with pytest.raises(UserError, match=r"1\.jpg was not written by vitrail and is not replaced"):
        folder.claim(["examples/1.jpg"])
    assert add(folder, {"examples/2.jpg": "y"}) == []  # one's own is replaced
    assert contents(tmp_path / "examples") == {"1.jpg": "mine", "2.jpg": "y"}


def test_nothing_outside_is_touched_by_links_or_lists(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "photo.png").write_text("mine")
    (inside / "examples").symlink_to(outside)
    folder = OwnedFolder(inside)
    with pytest.raises(UserError, match="by a link"):
        folder.claim(["examples/1.jpg"])
    folder.adopt(["examples/photo.png"])
    folder.clear()
    assert contents(outside) == {"photo.png": "mine"}


@pytest.mark.parametrize(
    "marker",
    [
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 1, "written": "config.yaml"}',
        '{"format": 1, "written": ["../outside"]}',
        '{"format": 1, "written": ["/etc/passwd"]}',
        '{"format": 1, "written": [1]}',
    ],
)
def test_a_damaged_list_deletes_nothing(tmp_path, marker):
    (tmp_path / MARKER).write_text(marker)
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"\.vitrail-run, the list of the files .* nothing there is replaced"):
        OwnedFolder(tmp_path).clear()
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_files_are_listed_before_they_are_there(tmp_path, monkeypatch):
    """A process that ends in between leaves nothing of ours unlisted."""

    replace = os.replace

    def dying(source, target):
        if not str(target).endswith(MARKER):
            raise KeyboardInterrupt
        replace(source, target)

    folder = OwnedFolder(tmp_path)
    add(folder, {"a.txt": "x"})
    monkeypatch.setattr("os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        add(folder, {"b.txt": "x"})
    assert json.loads((tmp_path / MARKER).read_text())["written"] == ["a.txt", "b.txt"]
    assert set(contents(tmp_path)) == {MARKER, "a.txt"}
