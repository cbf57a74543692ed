"""Texts of strangers on the terminal: as they are, never as markup, escapes or errors of encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from vitrail.cli import main
from vitrail.cli.printing import LONGEST_MESSAGE, JsonList, new_table, print_json, say, show, write_line
from vitrail.errors import UserError
from vitrail.utils.progress import Progress

ODD = [
    "[/b]",
    "dog[bold].png",
    "[red]",
    "[link=https://x]y",
    ":smile:",
    "$x_1$",
    "a\\[b",
    "猫",
    "12:30 True 3.5",
    "[/]",
]
HOSTILE = {
    "\x1b[2Ja": "\\x1b[2Ja",
    "b\rforged": "b\\x0dforged",
    "two\nlines": "two\\x0alines",
    "caf\udce9.png": "caf\\xe9.png",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\x9b31m": "\\x9b31m",
}


@pytest.mark.parametrize("text", [*ODD, *HOSTILE])
def test_tables_show_texts_as_they_are(capsys, text):
    table = new_table(f"head {text}", f">{text}", title=f"title {text}")
    table.add_row(text, f"{text} and more")
    show(table)
    out = capsys.readouterr().out
    shown = HOSTILE.get(text, text)
    assert out.count(shown) == 5
    assert not any(ord(c) < 32 and c != "\n" for c in out)


def test_nothing_is_folded_where_a_program_reads(capsys):
    table = new_table("image", "found")
    table.add_row("deep/" * 100 + "a.png", "nothing")
    show(table)
    assert "deep/" * 100 + "a.png" in capsys.readouterr().out


@pytest.mark.parametrize("text", [*ODD, *HOSTILE])
def test_lines_and_messages_show_texts_as_they_are(capsys, text):
    write_line(text)
    say(text)
    with Progress(1, 0) as progress:
        progress.say(text)
    captured = capsys.readouterr()
    assert captured.out == HOSTILE.get(text, text) + "\n"
    assert captured.err.splitlines() == [f"vitrail: {HOSTILE.get(text, text)}", HOSTILE.get(text, text)]


def test_a_message_has_a_bounded_length(capsys):
    say("start " + "x" * 10**6 + " end")
    err = capsys.readouterr().err
    assert len(err) < LONGEST_MESSAGE + 20
    assert err.startswith("vitrail: start")
    assert err.endswith("end\n")


def test_json_is_ascii_and_gives_every_name_back(capsys):
    names = [*ODD, *HOSTILE, "\x7f"]
    print_json(names)
    out = capsys.readouterr().out
    assert json.loads(out) == names
    assert out.isascii()
    assert all(c == "\n" or 32 <= ord(c) < 127 for c in out)


def test_our_warnings_are_sentences_and_those_of_others_printable(capsys, monkeypatch):
    def warn(argv):
        for path in (f"{os.sep}x{os.sep}vitrail{os.sep}data.py", "/x/torch/y.py"):
            print(warnings.formatwarning(UserWarning("of \x1b[2J it"), UserWarning, path, 7), end="")
        return 0

    before = warnings.formatwarning
    monkeypatch.setattr("vitrail.cli._run", warn)
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "vitrail: of \\x1b[2J it",
        "/x/torch/y.py:7: UserWarning: of \\x1b[2J it",
    ]
    assert warnings.formatwarning is before


def test_a_mistake_is_one_printable_sentence(capsys, monkeypatch):
    def fail(argv):
        raise UserError("no \x1b]0;owned\x07 file\r\n")

    monkeypatch.setattr("vitrail.cli._run", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "vitrail: no \\x1b]0;owned\\x07 file\\x0d\\x0a\n"


def command(code: str, **options):
    return subprocess.run([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, timeout=120, **options)


FRONT = "import sys, vitrail_cli; vitrail_cli._main = lambda argv: {}; sys.exit(vitrail_cli.main())"


@pytest.mark.parametrize(
    "body", ["print('x\\n' * 10**6) or 0", "[print('x') for _ in range(10**5)] and 0", "print('x') or 0"]
)
def test_a_reader_that_goes_is_no_error(body):
    read, write = os.pipe()
    os.close(read)
    done = command(FRONT.format(body), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_of_tables_that_goes_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = command("import sys, vitrail_cli; sys.exit(vitrail_cli.main(['models']))", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_within_is_not_hidden():
    done = command(FRONT.format("(_ for _ in ()).throw(BrokenPipeError(32, 'inner'))"), stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert "inner" in done.stderr


def test_closed_streams_are_silent():
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m vitrail --version >&- 2>&-'], capture_output=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_behind_standard_output_is_one_sentence():
    code = "import sys, vitrail.cli as c; c._run = lambda argv: print('x' * 10**6) or 0; sys.exit(c.main(['models']))"
    with open("/dev/full", "w") as full:
        done = command(code, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("vitrail: No space left on the disk")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "utf-8:strict"])
def test_what_cannot_be_encoded_is_escaped(encoding):
    code = FRONT.format(r"print('caf\udce9 \u732b') or print('\u732b', file=sys.stderr) or 0")
    done = command(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding="utf-8")
    assert done.returncode == 0
    assert done.stdout.startswith("caf\\udce9 ")
    assert "猫" in done.stderr or "\\u732b" in done.stderr


@pytest.mark.parametrize("records", [[], [{}], [{"a": [1, None], "b": "two\nlines\x7f\udce9"}, 3, []]])
@pytest.mark.parametrize("in_memory", [1, 1 << 20])
def test_records_that_come_one_by_one_are_the_document_of_their_list(records, in_memory, monkeypatch, capsys):
    monkeypatch.setattr("vitrail.cli.printing.IN_MEMORY", in_memory)
    growing = JsonList()
    for record in records:
        growing.add(record)
    assert capsys.readouterr().out == ""
    assert growing.print() == print_json(records) == 0
    text = capsys.readouterr().out
    half = len(text) // 2
    assert text[:half] == text[half:]
