"""docs/gallery.md: its drawings exist and are small, its commands can be given, and no method is missing."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from vitrail.analysis.explain import METHODS
from vitrail.cli import explain as explain_command
from vitrail.cli import train as train_command
from vitrail.cli.parsing import read
from vitrail.models import FAMILIES

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "gallery.md").read_text(encoding="utf-8")
#: alternative text and path of every drawing on the page
SHOWN = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", TEXT)
COMMANDS = re.findall(r"^ {4}(vitrail .*)$", TEXT, re.M)
#: bytes of all drawings and photographs
ALL_OF_THEM = 6_000_000


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_captions_make(gallery):
    assert gallery.page() == TEXT, "run `python docs/gallery.py page`"


def test_pictures_exist_and_are_small(gallery):
    for _, path in SHOWN:
        file = DOCS / path
        assert file.stat().st_size <= gallery.LARGEST, path
        with Image.open(file) as drawing:
            assert drawing.width <= gallery.WIDEST, path
    files = [path for path in (DOCS / "gallery").rglob("*") if path.suffix in (".webp", ".jpg", ".png")]
    assert {path for path in files if path.suffix == ".webp"} == {DOCS / path for _, path in SHOWN}
    assert sum(path.stat().st_size for path in files) <= ALL_OF_THEM


def test_every_picture_is_described_and_no_two_alike(gallery):
    texts = [text for text, _ in SHOWN]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts)
    for drawing in gallery.listed()["drawings"]:
        assert len(drawing["seen"]) > 60, f"{drawing['family']}/{drawing['name']}: say what is seen"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_given(command, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    words = shlex.split(command)
    parser = {"explain": explain_command, "train": train_command}[words[1]].parser()
    call = read(parser, words[2:])
    if words[1] == "explain":
        assert call.values["method"] in METHODS
        photographs = [word for word in words if word.startswith("docs/")]
        assert all(Path(path).is_file() for path in photographs)


def test_every_family_shows_every_method_or_the_page_says_why_not(gallery):
    told = gallery.listed()
    shown = {(drawing["family"], drawing["method"]) for drawing in told["drawings"]}
    missing = {(family, method) for family in told["runs"] for method in METHODS} - shown
    assert {method for _, method in missing} <= set(told["left_out"])
    for method in told["left_out"]:
        assert f"- `{method}`: " in TEXT
    assert set(told["runs"]) <= set(FAMILIES)
