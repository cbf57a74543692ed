"""What a command writes into a folder never replaces a file of the user's."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.benchmark.benchmark import check_output
from vitrail.cli import main
from vitrail.engine.predict import collect, predict, stems_of
from vitrail.errors import UserError
from vitrail.utils.output_folder import LIST, OutputFolder


def images(folder: Path, *names: str) -> list[Path]:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
    return [folder / name for name in names]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*argv: object) -> int:
    return main(["predict", "random:emsnet_xxtiny", *map(str, argv)])


def refused(capsys, *argv: object) -> str:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    sentence = [line for line in captured.err.splitlines() if "--save" in line]
    assert len(sentence) == 1
    return sentence[0]


def add(folder: OutputFolder, **files: str) -> None:
    with folder.adding() as fresh:
        for name, text in files.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(text)


def test_own_files_are_replaced_and_no_others(tmp_path):
    folder = OutputFolder(tmp_path / "out" / "deep", "--save")
    assert not (tmp_path / "out").exists()
    add(folder, a="1", b="2")
    add(folder, a="3")
    again = OutputFolder(tmp_path / "out" / "deep", "--save")
    again.check(["a", "b", "c"])
    add(again, a="4", **{"sub/x": "5"})
    assert {k: v for k, v in contents(again.path).items() if k != LIST} == {"a": b"4", "b": b"2", "sub/x": b"5"}
    (again.path / "b").write_text("the user's now")
    for folder in (again, OutputFolder(again.path, "--save")):
        with pytest.raises(UserError, match=r"b was there before, or was changed"):
            folder.check(["a", "b"])
        with pytest.raises(UserError, match=r"b was there before"):
            add(folder, a="6", b="7")
    assert (again.path / "a").read_text() == "4"
    assert (again.path / "b").read_text() == "the user's now"
    assert not [name for name in os.listdir(again.path) if name.startswith(".vitrail-new")]


def test_links_are_never_written_through(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    out = tmp_path / "out"
    add(OutputFolder(out, "--save"), a="1")
    (out / "a").unlink()
    (out / "a").symlink_to(tmp_path / "mine.txt")
    (out / "nowhere").symlink_to(tmp_path / "later")
    (tmp_path / "elsewhere").mkdir()
    (out / "masks").symlink_to(tmp_path / "elsewhere")
    folder = OutputFolder(out, "--save")
    for name in ("a", "nowhere", "masks/x.png"):
        with pytest.raises(UserError, match=r"--save|link"):
            folder.check([name])
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (out / LIST).unlink()
    (out / LIST).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="is a link"):
        OutputFolder(out, "--save")


def test_a_damaged_list_gives_nothing_away(tmp_path):
    out = tmp_path / "out"
    add(OutputFolder(out, "--save"), a="1", b="2")
    lines = (out / LIST).read_text().splitlines()
    broken = ["[1]", "{", '{"name": 7, "sha256": "x"}', "null", '{"name": "b"}', lines[0]]
    (out / LIST).write_text("\n".join(broken) + "\n")
    folder = OutputFolder(out, "--save")
    folder.check(["a"])
    with pytest.raises(UserError, match="b was there before"):
        folder.check(["b"])


def test_an_interrupted_write_does_not_block_the_next(tmp_path, monkeypatch):
    out = tmp_path / "out"
    add(OutputFolder(out, "--save"), a="1", b="2")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"No space left on the disk of .*out: free some space"):
            add(OutputFolder(out, "--save"), a="3", b="4")
    add(OutputFolder(out, "--save"), a="5", b="6")
    assert (out / "a").read_text() == "5"


@pytest.mark.parametrize("save", ["photos", "photos/", "./photos", "photos/../photos", "link", "photos/sub/.."])
def test_originals_are_never_replaced_however_the_folder_is_spelt(tmp_path, monkeypatch, capsys, save):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "photos", "a.png", "sub/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    before = contents(tmp_path)
    assert "never written over" in refused(capsys, "photos", "--save", save)
    assert contents(tmp_path) == before


def test_files_of_others_are_never_replaced(tmp_path, capsys):
    images(tmp_path / "photos", "a.png", "z.png")
    images(tmp_path / "drawn", "z.png")  # of that name, from elsewhere
    before = contents(tmp_path)
    assert "z.png was there before" in refused(capsys, tmp_path / "photos", "--save", tmp_path / "drawn")
    assert contents(tmp_path) == before  # refused before the first one


def test_an_image_behind_a_link_or_of_two_names_is_not_replaced(tmp_path, capsys):
    (original,) = images(tmp_path / "archive", "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(original)
    before = contents(tmp_path)
    assert "never written over" in refused(capsys, tmp_path / "photos", "--save", tmp_path / "archive")
    (tmp_path / "drawn").mkdir()
    os.link(original, tmp_path / "drawn" / "a.png")
    assert "read by this command" in refused(capsys, original, "--save", tmp_path / "drawn")
    assert contents(tmp_path / "archive") == {"a.png": before["archive/a.png"]}


def test_a_file_is_no_folder_to_save_to(tmp_path, capsys):
    (path,) = images(tmp_path, "a.png")
    before = contents(tmp_path)
    assert "not a folder" in refused(capsys, path, "--save", path)
    assert "--save is empty" in refused(capsys, path, "--save", "")
    assert "--save" not in (run(path, "--save", path / "below"), capsys.readouterr().out)
    assert contents(tmp_path) == before


def test_the_same_command_again_replaces_its_own_copies(tmp_path, capsys):
    images(tmp_path / "photos", "a.png", "b.png")
    argv = (tmp_path / "photos", "--save", tmp_path / "photos" / "drawn", "--json")
    assert run(*argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert run(*argv) == 0
    captured = capsys.readouterr()
    # the copies are no images to predict
    assert [(r["path"], r["saved"]) for r in json.loads(captured.out)] == [(r["path"], r["saved"]) for r in first]
    assert "2 files in" in captured.err
    assert "left out: 2 written by an earlier call" in captured.err
    copy = tmp_path / "photos" / "drawn" / "a.png"
    assert run(copy, "--save", tmp_path / "photos" / "drawn") == 2  # named outright, it is an input
    assert "read by this command" in capsys.readouterr().err


def test_images_of_one_stem_get_names_of_their_own(tmp_path, capsys):
    names = ["x/a.png", "x/a.jpg", "y/a.png", "x/a_1.png", "x/A.png", "x/caf\u00e9.png", "y/cafe\u0301.png"]
    images(tmp_path / "photos", *names)
    assert run(tmp_path / "photos", "--save", tmp_path / "drawn", "--json") == 0
    saved = [record["saved"] for record in json.loads(capsys.readouterr().out)]
    assert len({name.lower() for name in saved}) == len(names)
    assert all(Path(name).is_file() for name in saved)
    assert Path(saved[0]).parent == tmp_path / "drawn"


@pytest.mark.parametrize("seed", range(5))
def test_no_two_files_of_any_images_collide(seed):
    random = np.random.RandomState(seed)
    alphabet = [
        "a",
        "A",
        "a_1",
        "a.panoptic",
        "A_1",
        "\u00df",
        "ss",
        "b" * 300,
        "c:d",
        "c\\d",
        "\udce9",
        "i\u0307",
        "\u0130",
    ]
    paths = [Path(f"{random.randint(9)}") / f"{random.choice(alphabet)}.png" for _ in range(60)]
    patterns = ("{}.png", "{}.panoptic.png", "{}.json", "masks/{}.png")
    stems = stems_of(paths, patterns)
    files = [pattern.format(stem) for stem in stems for pattern in patterns]
    assert len(set(files)) == len({name.casefold() for name in files}) == len(files)
    assert all(len(os.fsencode(Path(name).name)) < 256 for name in files)
    assert not any("\\" in name or ":" in name for name in files)


def test_a_name_that_is_not_utf8_survives(tmp_path, capsys):
    os.rename(images(tmp_path, "x.png")[0], os.fsencode(tmp_path) + b"/caf\xe9.png")
    assert run(tmp_path, "--save", tmp_path / "drawn", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert os.fsencode(record["path"]).endswith(b"/caf\xe9.png")
    assert os.path.isfile(os.fsencode(tmp_path / "drawn") + b"/caf\xe9.png")
    assert run(tmp_path, "--save", tmp_path / "drawn") == 0
    assert "caf\\xe9.png" in capsys.readouterr().out


def test_what_is_left_out_is_said(tmp_path, capsys):
    images(tmp_path, "a.png")
    for name in ("b.HEIC", "c.heic", "d", "Thumbs.db"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "e.png")
    assert run(tmp_path) == 0
    assert "4 files in" in (err := capsys.readouterr().err)
    assert "2 .heic, 1 no regular file, 1 without ending" in err


@pytest.mark.parametrize("option", ["--top_k", "--batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_below_one_are_refused(tmp_path, capsys, option, value):
    images(tmp_path, "a.png")
    assert run(tmp_path, option, value) == 2
    assert f"{option} {value} must be at least 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 1"):  # at once, not with the first image
        predict("random:emsnet_xxtiny", [str(tmp_path)], **{option[2:]: value})


def test_own_copies_alone_are_no_images(tmp_path):
    images(tmp_path / "photos", "a.png")
    assert run(tmp_path / "photos", "--save", tmp_path / "drawn") == 0
    with pytest.raises(UserError, match=r"written to .* by vitrail itself"):
        collect([str(tmp_path / "drawn")], save=tmp_path / "drawn")
    assert collect([str(tmp_path / "drawn")]) == [tmp_path / "drawn" / "a.png"]


@pytest.mark.parametrize("content", ["mine", "[1]", '{"rows": []}', "{"])
def test_a_benchmark_replaces_no_other_file(tmp_path, capsys, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    assert main(["benchmark", "emsnet_xxtiny", "--output", str(path)]) == 2
    assert "is not a result of vitrail benchmark" in capsys.readouterr().err
    assert path.read_text() == content
    path.write_text('{"machine": {}, "rows": []}')
    check_output(path)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(UserError, match="choose another name"):
        check_output(tmp_path / "link.json")


@pytest.mark.parametrize("value", [0, -3])
def test_evaluate_takes_no_batches_of_nothing(capsys, value):
    assert main(["evaluate", "random:emsnet_xxtiny", "--data", "digits", "--batch_size", str(value)]) == 2
    assert f"--batch_size {value} must be at least 1" in capsys.readouterr().err
