"""Texts, JSON, YAML and names from strangers: values, or one sentence."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.errors import UserError, printable
from vitrail.utils.files import inside, parse_json, parse_yaml, read_json, read_text, shortened


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "b..c/x", "..x/y", "a/./b", "é/猫.png", "a b/[c].png", "c:d"[2:]])
def test_names_below_the_root(tmp_path, name):
    assert inside(tmp_path, name, "here") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "..",
        "a\\..\\..\\b",
        "\\\\server\\share",
        "C:\\x",
        "c:x",
        "a\0b",
        "",
        None,
        5,
        ["a"],
        "é" * 128,
        "a/" * 2000 + "b",
    ],
)
def test_names_that_leave_the_root(tmp_path, name):
    with pytest.raises(UserError, match=r"^here: "):
        inside(tmp_path, name, "here")


def test_writing_does_not_follow_links_out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "other").mkdir()
    os.symlink(tmp_path / "other", out / "link")
    assert inside(out, "link/a.png", "here") == out / "link" / "a.png"
    with pytest.raises(UserError, match="by a link"):
        inside(out, "link/a.png", "here", writing=True)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b", "\\", "/", "c:"]), max_size=6))
def test_whatever_is_accepted_stays_below(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        path = inside(root, "/".join(parts), "here")
    except UserError:
        return
    assert os.path.normpath(path) == str(root) or os.path.normpath(path).startswith(f"{root}{os.sep}")


def test_printable():
    assert printable("plain ü 猫 [b] $x$") == "plain ü 猫 [b] $x$"
    assert printable("\x1b[2Ja\nb\x07\x7f\x9b") == "\\x1b[2Ja\\x0ab\\x07\\x7f\\x9b"
    assert printable("caf\udce9") == "caf\\xe9"
    assert printable("a\u202eb\u2028") == "a\\u202eb\\u2028"


@given(st.text())
def test_printable_is_printed(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert printable(shown) == shown
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


def test_shortened():
    assert shortened("a" * 1000).startswith("'aaa")
    assert len(shortened("a" * 1000)) == 80
    assert shortened(10**6000).startswith("a value of type int")
    assert "\x1b" not in shortened("\x1b[31m")


def test_byte_order_marks(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"9" * 5000, "is no JSON"),
    ],
)
def test_bad_json(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_json(tmp_path / "a.json")


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match="no regular file"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # reading one would wait for ever
    with pytest.raises(UserError, match="no regular file"):
        read_text(tmp_path / "pipe")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(['*' + m] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "aliases"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object/apply:os.system ['true']", "no YAML of plain values"),
        ("a: [", "no YAML of plain values"),
        ("a: 2026-13-45", "no YAML of plain values"),
        ("x" * (1 << 21), "characters"),
    ],
)
def test_bad_yaml(text, says):
    with pytest.raises(UserError, match=says):
        parse_yaml(text, "recipe")


def test_good_yaml_and_json():
    assert parse_yaml("a: 1\nb: [x, {c: null}]", "recipe") == {"a": 1, "b": ["x", {"c": None}]}
    value = {"a": [1, 2.5, None, "é"]}
    assert parse_json(json.dumps(value), "x") == value
