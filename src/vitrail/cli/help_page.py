"""Help pages of the commands: sections of options, each with its meaning, its values and its default."""

from __future__ import annotations

import argparse
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import DefaultHelpFormatter

from ..utils.plain import kind_of

#: switches of every command, and what they do
SWITCHES = {
    "json": "print one JSON document",
    "debug": "print the traceback of an error",
    "keep_memory": "keep freed memory for the next tensors",
}
#: switch of the commands that open data: let --data options name commands and addresses, if they are typed
ALLOW = "allow_pipe"
ALLOWS = (
    "let --data options that are typed name commands (pipe:) and addresses (https:), which WebDataset starts programs "
    "to open"
)
#: default of --data where a run directory names data of its own
OWN_DATA = "those of the run"
NOTES = "An option given twice counts as given last. A value that begins with -- is written --option=VALUE."


@dataclass
class Page:
    """What a help page shows of a parser's options.

    Attributes:
        about: what the command does, line by line.
        sections: options by dotted name, under a title; options in no section are not shown.
        choices: of single options, where the page's task has fewer than there are.
        defaults: of single options, in words, where the parser's is not what holds; None = they must be given.
    """

    about: str
    sections: dict[str, list[str]] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, str | None] = field(default_factory=dict)


class Formatter(DefaultHelpFormatter):
    """Lines of a help page: texts keep their line breaks, and types are named in words."""

    def __init__(self, *args: Any, page: Page, **kwargs: Any):
        super().__init__(*args, **{"width": 110, "max_help_position": 30, **kwargs})
        self.page = page

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (
            textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent + " " * _margin(line))
            for line in text.splitlines()
        )
        return "\n".join(lines)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.dest == "data.name":
            return "--data NAME"
        # jsonargparse's second spelling of lists, with a + at the end, is not one of ours
        return re.sub(r", --[\w.]+\+.*", "", super()._format_action_invocation(action))

    def _get_help_string(self, action: argparse.Action) -> str:
        hint = getattr(action, "_typehint", None)
        if hint is None and action.nargs == "*":  # argparse calls it required
            return action.help or ""
        if hint is None:
            return super()._get_help_string(action)
        chosen = self.page.choices.get(action.dest)
        kind = f"one of {', '.join(chosen)}" if chosen else kind_of(hint)
        default = str(action.default).lower() if hint is bool else "%(default)s"
        default = None if action.required else self.page.defaults.get(action.dest, default)
        text = (action.help or "").strip()
        text = text if text.endswith("...") else text.removesuffix(".")
        return f"{text} ({kind}; {'required' if default is None else f'default: {default}'})"


def _margin(line: str) -> int:
    """Where the second column of a line begins."""
    words = line.lstrip().split("  ", 1)
    return len(line) - len(words[1].lstrip()) if len(words) == 2 else len(line) - len(line.lstrip())


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a command, without the groups of options that jsonargparse adds."""
    spelled = [option for action in parser._actions for option in action.option_strings]
    for action in parser._actions:
        if not any(other.startswith(f"{option}.") for option in action.option_strings for other in spelled):
            yield action


def sections_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The sections of a page that shows all of a parser's options as they are declared."""
    shown = {action.dest for action in options(parser)}
    found: dict[str, list[str]] = {}
    for group in parser._action_groups:
        names = [action.dest for action in group._group_actions if action.dest in shown]
        title = (group.title or "options").replace("positional ", "").rstrip(":")
        found.setdefault(title, []).extend(names)
    return found


def epilog(with_data: bool) -> str:
    """What stands below the options of every command."""
    switches = SWITCHES | ({ALLOW: ALLOWS} if with_data else {})
    width = max(map(len, switches)) + 2
    rows = "\n".join(f"  {'--' + name:<{width}}  {does}" for name, does in switches.items())
    return f"switches:\n{rows}\n\n{NOTES}"


def arrange(parser: argparse.ArgumentParser, page: Page) -> None:
    """Give a parser the groups, texts and formatter of a page."""
    known = {action.dest: action for action in options(parser)}
    for action in known.values():
        if typing.get_origin(getattr(action, "_typehint", None)) is not None and action.option_strings:
            action.metavar = action.dest.rpartition(".")[2].upper()  # not all choices: they stand in the help
    parser._action_groups = []
    for title, names in page.sections.items():
        group = parser.add_argument_group(title)
        group._group_actions += [known[name] for name in names]
    parser.description = page.about
    parser.epilog = epilog("data.name" in known)
    positional = "".join(f" {_spelled(action)}" for action in known.values() if not action.option_strings)
    parser.usage = f"{parser.prog}{positional} [options]"

    def formatter(prog: str) -> Formatter:
        return Formatter(prog, page=page)

    parser.formatter_class = typing.cast(Any, formatter)


def _spelled(action: argparse.Action) -> str:
    name = action.dest.upper()
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)
