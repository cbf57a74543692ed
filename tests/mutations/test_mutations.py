"""The list of deliberate mistakes fits the sources; that tests catch them all is seen by run.py (here: -m slow)."""

import ast
import dataclasses
import subprocess
import sys

import pytest
from mutation_list import FAMILIES, HERE, ROOT, Misfit, Mutation, read
from run import judge, main, run_tests

SOURCES = ROOT / "src" / "vitrail"
TAPS = ("tests/layers/test_unfold.py",)


def test_every_file_is_a_family_with_enough_mistakes():
    assert sorted(path.stem for path in HERE.glob("*.toml")) == sorted(FAMILIES)
    for family in FAMILIES:
        names = [mutation.id for mutation in read(family)]
        assert len(set(names)) == len(names) >= 6, family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mistake_can_be_made_and_is_a_program(family):
    for mutation in read(family):
        source = (SOURCES / mutation.file).read_text(encoding="utf-8")
        ast.parse(mutation.applied(source), mutation.id)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_test_that_is_named_exists(family):
    for test in {test for mutation in read(family) for test in mutation.tests}:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), test
        if name:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


@pytest.mark.parametrize(("old", "found"), [("gone", 0), ("a", 2)])
def test_a_text_that_does_not_stand_there_once_is_a_misfit(old, found):
    with pytest.raises(Misfit, match=f"{found} times in taps.py"):
        Mutation("layers", "x", "x", "taps.py", old, "b", TAPS).applied("a a b")


def test_what_changes_nothing_is_a_misfit():
    with pytest.raises(Misfit, match="the same"):
        Mutation("layers", "x", "x", "taps.py", "a", "a", TAPS).applied("a b")


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [
        (0, "4 passed", ("SURVIVED", "", "")),
        (1, "FAILED a.py::test_b[{'x': 1}] - assert 3 == 4", ("caught", "a.py::test_b[{'x': 1}]", "assert 3 == 4")),
        (1, "FAILED a.py::test_b - RuntimeError: size", ("caught", "a.py::test_b", "RuntimeError: size")),
        (1, "FAILED a.py::test_b", ("caught", "a.py::test_b", "")),
        (1, "FAILED a.py::test_b - NameError: x", ("INVALID", "no program: NameError: x", "")),
        (1, "ERROR a.py::test_b - OSError", ("INVALID", "the tests do not start", "ERROR a.py::test_b - OSError")),
        (2, "ERROR a.py - SyntaxError: x", ("INVALID", "the tests do not start", "ERROR a.py - SyntaxError: x")),
        (4, "ERROR: not found: a.py::b", ("INVALID", "the tests do not start", "ERROR: not found: a.py::b")),
    ],
)
def test_only_a_test_that_fails_catches_a_mistake(status, said, outcome):
    assert judge(status, said) == outcome


def test_mistakes_are_made_in_a_copy():
    mistake = next(m for m in read("layers") if m.id == "fold-loses-overlap")
    before = (SOURCES / mistake.file).read_bytes()
    caught = run_tests(mistake, TAPS, with_data=False)
    assert (caught.state, caught.by.partition("::test_fold")[0]) == ("caught", TAPS[0])
    harmless = dataclasses.replace(mistake, new=f"{mistake.old}[:]")
    assert run_tests(harmless, TAPS, with_data=False).state == "SURVIVED"
    assert run_tests(dataclasses.replace(mistake, old="gone"), TAPS, with_data=False).state == "INVALID"
    assert (SOURCES / mistake.file).read_bytes() == before


def test_the_command_lists_without_running(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "volo", "--list"])
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == [f"volo/{m.id}: {m.mistake}" for m in read("volo")]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mistake_is_caught(family):
    done = subprocess.run([sys.executable, str(HERE / "run.py"), family], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
