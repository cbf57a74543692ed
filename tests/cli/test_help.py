"""Help pages: the front page, and a command's options by task."""

from __future__ import annotations

import pytest

import vitrail_cli
from vitrail.cli import main
from vitrail.version import __version__


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"], ["--json", "help"], ["--debug", "--help"]])
def test_front_page(capsys, argv):
    assert vitrail_cli.main(argv) == 0
    page = capsys.readouterr().out
    assert page == vitrail_cli.usage()
    assert all(f"\n  {command} " in page for command in ("train", "predict", "help", "version"))


@pytest.mark.parametrize("argv", [["version"], ["--version"], ["--json", "version"]])
def test_version(capsys, argv):
    assert vitrail_cli.main(argv) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", vitrail_cli.COMMANDS)
def test_help_of_a_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        vitrail_cli.main(["help", command])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vitrail {command}")


def test_help_of_an_unknown_command(mistake):
    assert "Unknown command 'trian': did you mean train" in mistake("trian", "--help")
    assert vitrail_cli.main(["help", "trian"]) == 2
    assert main(["--halp"]) == 2
