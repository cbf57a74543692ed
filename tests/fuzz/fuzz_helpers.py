"""What every fuzz test does: run a command on generated files, and hold it to what is promised of any files."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: minutes of the whole job; each test takes its share
MINUTES = float(os.environ.get("VITRAIL_FUZZ_MINUTES", "10"))
#: how many tests share the job's time; two run side by side
TESTS = 9
#: characters of the longest sentence
LONGEST = 1500

#: examples between two looks at the clock; to end a test in the midst of drawing is flaky to Hypothesis
ROUND = 10

fuzz_settings = settings(
    max_examples=ROUND,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    report_multiple_bugs=False,
)


@dataclass
class Outcome:
    """What a command said.

    Attributes:
        code: its exit code.
        out: what it printed on standard output.
        err: on standard error.
    """

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its JSON document."""
        return json.loads(self.out)


class Fuzzer:
    """Runs commands in a fresh folder each, and counts them.

    Attributes:
        folder: where the command runs; `inputs` and `out` lie in it.
        counts: commands by exit code.
    """

    def __init__(self, folder: Path):
        self.base, self.folder = folder, folder / "here"
        self.counts: dict[int, int] = {}
        self.ends = time.monotonic() + 60 * 2 * MINUTES / TESTS
        server = Path(__file__).with_name("fuzz_server.py")
        self.server = subprocess.Popen(
            [sys.executable, str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def close(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.wait()

    def repeat(self, test: Callable[..., None], *given: Any) -> None:
        """Draw examples of a test, round after round, until it has had its share of the job's time."""
        while time.monotonic() < self.ends:
            test(self, *given)

    def fresh(self) -> Path:
        """An empty folder for the next command's files."""
        shutil.rmtree(self.base, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.base / "neighbour.txt").write_text("not ours")
        return self.folder

    def run(self, *argv: str) -> Outcome:
        """A command, held to the promises: exit code 0, or 2 with one sentence; nothing else of the user's changed."""
        before = snapshot(self.base)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write((json.dumps({"argv": argv, "folder": str(self.folder)}) + "\n").encode())
        self.server.stdin.flush()
        found = json.loads(self.server.stdout.readline())
        try:
            check(found, before, snapshot(self.base))
        except AssertionError as error:
            error.add_note(f"command: vitrail {' '.join(argv)}\nfiles: {sorted(before)[:60]}")
            raise
        self.counts[found["code"]] = self.counts.get(found["code"], 0) + 1
        return Outcome(found["code"], found["out"], found["err"])


def check(found: dict[str, Any], before: dict[str, str], after: dict[str, str]) -> None:
    """Hold what a command did to what is promised."""
    shown = f"exit code {found['code']} after {found['seconds']:.1f} s\n{found['err'][-3000:]}"
    assert found["code"] in (0, 2), shown
    assert "Traceback (most recent call last)" not in found["err"], shown
    controls = {c for c in found["out"] + found["err"] if ord(c) < 32 and c not in "\n\r\t"}
    assert not controls, f"control characters {controls} are shown: {shown}"
    if found["code"] == 2:
        sentences = [line for line in found["err"].splitlines() if line.startswith("vitrail: ")]
        assert sentences, shown
        assert len(sentences[-1]) <= LONGEST, shown
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    outside = {name for name in changed if not name.startswith("here/out") and name not in ("out", "err")}
    assert not outside, f"changed outside --output: {sorted(outside)[:5]}"


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, by name, with a sign of its content."""
    found = {}
    for here, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(here, name)
            known = os.path.relpath(path, os.fsencode(folder)).decode("utf-8", "backslashreplace")
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode) and known not in ("out", "err"):
                with open(path, "rb") as file:
                    content = file.read()
            found[known] = f"{status.st_mode} {hashlib.sha256(content).hexdigest()}"
    return found


# ---- values of strangers ----------------------------------------------------------------------------------------

#: texts that trip programs: markup, formulas, escape codes, paths, other scripts, nothing
TEXTS = st.sampled_from(
    [
        "",
        "a",
        "[b]",
        "[/b]",
        "$x$",
        "$_$",
        "\x1b[31m",
        "a\nb",
        "../../x",
        "/etc/passwd",
        "é",
        "猫",
        "\u202e",
        "None",
        "0",
        "nan",
    ]
) | st.text(max_size=12)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every entry of a nested document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutated(document: Any, data: st.DataObject, most: int = 3) -> Any:
    """A document of which a few entries are replaced, taken away, repeated or moved."""
    document = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, most))):
        # the deepest entries first: the first are drawn most often, and a document without its lists is refused at once
        paths = sorted(places(document), key=len, reverse=True)
        if not paths:
            break
        path = data.draw(st.sampled_from(paths))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        kind = data.draw(st.sampled_from(["junk", "junk", "drop", "copy", "other"]))
        if kind == "drop":
            del parent[path[-1]]
        elif kind == "copy" and isinstance(parent, list):
            parent.append(parent[path[-1]])
        elif kind == "other":
            other: Any = document
            for key in data.draw(st.sampled_from(paths)):
                other = other[key] if not isinstance(other, dict) or key in other else None
                if other is None:
                    break
            parent[path[-1]] = json.loads(json.dumps(other))
        else:
            parent[path[-1]] = data.draw(JUNK)
    return document


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """A file's bytes, cut, repeated, or with some of them replaced."""
    kind = data.draw(st.sampled_from(["bytes", "cut", "insert", "none"]))
    if kind == "cut":
        return content[: data.draw(st.integers(0, len(content)))]
    if kind == "insert":
        at = data.draw(st.integers(0, len(content)))
        return content[:at] + data.draw(st.binary(max_size=64)) + content[at:]
    changed = bytearray(content)
    if kind == "bytes" and changed:
        for _ in range(data.draw(st.integers(1, 8))):
            # headers are where numbers stand that a reader believes
            end = data.draw(st.sampled_from([min(len(changed), 64), len(changed)]))
            changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)
