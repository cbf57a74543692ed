"""What the documentation names exists: paths, links, commands and their options."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from room_helpers import ALLOWED, OPEN_TO_ALL
from vitrail_commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "configs/**/*.yaml")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it names what was, too
)
#: a path of the repository, perhaps with places to fill in (<family>) or patterns (*.toml)
PATH = re.compile(r"(?<![\w/.-])((?:src|tests|docs|benchmarks|configs)/[\w./*<>-]*[\w*>/])")
#: a file as the pages for contributors name it, from the repository's or the library's root
FILE = re.compile(r"`([\w/<>*-]+/(?:[\w<>*-]+\.(?:py|csv|toml))?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s`|/])(?:vitrail|-m vitrail) +([a-z_]+)((?: [^`|#\n]*)?)")
#: programs of others, with options of theirs
OTHERS = ("python", "trtexec", "accelerate", "torchrun", "pip", "pytest", "mkdocs")
#: switches that every command takes
SWITCHES = {"json", "debug", "keep_memory", "allow_pipe", "help", "print_config", "version"}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def found(named: str, root: Path) -> bool:
    """Whether a path exists below `root`, where <...> stands for any name."""
    return any(root.glob(re.sub(r"<\w+>", "*", named).rstrip("/")))


@cache
def options(command: str) -> frozenset[str]:
    """Names of a command's options, without the dashes."""
    parser = importlib.import_module(f"vitrail.cli.{command}").parser()
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    return frozenset(known | SWITCHES)


def commands(page: Path) -> list[tuple[str, str]]:
    """Every call of `vitrail` that a page quotes: the command and what follows it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    if page.suffix == ".yaml":  # the recipe's head, where a command may go on in the next line
        text = re.sub(r"\n# {3,}", " ", text)
    quoted = re.findall(r"```[^\n`]*\n(.*?)```", text, re.S) + re.findall(r"^ {4}(\S.*)$", text, re.M)
    quoted += [re.sub(r"\s+", " ", inline) for inline in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    quoted += [line.lstrip("# ") for line in text.splitlines() if page.suffix == ".yaml" and line.startswith("#")]
    return [(name, rest) for part in quoted for line in part.splitlines() for name, rest in COMMAND.findall(line)]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_paths_exist(page):
    for named in PATH.findall(page.read_text(encoding="utf-8")):
        assert found(named, ROOT), f"{named} does not exist"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/code.md", "benchmarks/NOTES.md"])
def test_named_files_exist(page):
    for named in FILE.findall((ROOT / page).read_text(encoding="utf-8")):
        assert found(named, ROOT) or found(named, ROOT / "src" / "vitrail"), f"{named} does not exist"


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=ids)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=ids)
def test_quoted_commands_have_these_options(page):
    for command, rest in commands(page):
        assert command in COMMANDS, f"there is no `vitrail {command}`"
        for token in rest.split(" "):
            if token.startswith("--") and (name := re.match(r"--([\w.]+)", token)):
                known = name.group(1) in options(command)
                group = name.group(1).rpartition(".")[0]
                free = group.endswith("_options")  # what a network's or a head's constructor takes
                assert known or free, f"`vitrail {command}` has no option --{name.group(1)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name in (ROOT.name, "docs", "deploy")], ids=ids)
def test_options_named_alone_are_options_of_a_command(page):
    known = {option for command in COMMANDS for option in options(command)}
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.read_text(encoding="utf-8")):
        if code.split()[0] in OTHERS:
            continue
        for name in re.findall(r"(?:^|\s)--([\w.]+)", code):
            group = name.rpartition(".")[0]
            assert name in known or group.endswith("_options"), f"no command has an option --{name}"


def test_contributing_has_the_rooms_and_what_they_may_import():
    rows = re.findall(
        r"^\| `([\w./]+)` \|.*\| ([^|]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    table = {name.removesuffix("/").removesuffix(".py").replace("/", "."): may for name, may in rows}
    assert table.pop("cli") == "everything; no room imports it"
    allowed = {room: ", ".join(sorted(may)) or "-" for room, may in ALLOWED.items() if room not in OPEN_TO_ALL}
    assert {room: ", ".join(sorted(may.split(", "))) for room, may in table.items()} == allowed


def test_the_way_through_the_code_names_functions_that_exist():
    rows = re.findall(
        r"^\| `([\w/]+\.py)` \| (`.*?`) \|", (ROOT / "docs" / "code.md").read_text(encoding="utf-8"), re.M
    )
    assert len(rows) > 10
    for file, names in rows:
        path = next(path for path in (ROOT / file, ROOT / "src" / "vitrail" / file) if path.is_file())
        for name in re.findall(r"`(\w+)`", names):
            defined = re.search(rf"^ *(?:def|class) {name}\b", path.read_text(encoding="utf-8"), re.M)
            assert defined, f"{file} has no {name}"
