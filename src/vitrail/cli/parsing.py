"""Reading a verb's options: one parser class, and the short spellings of the interface."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_origin

from jsonargparse import ArgumentParser, Namespace

from vitrail_cli import VERBS

from ..errors import UserError, nearest

#: what messages call Python's types
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
WEIGHTS = "a .safetensors, a run directory, an authors' file, timm:MODEL, or random:MODEL"


@dataclass
class Call:
    """What a command line asks of its verb.

    Attributes:
        values: the options by name, dataclasses made of theirs.
        as_json: print one JSON document instead of tables.
        data_named: whether any --data option was given.
    """

    values: dict[str, Any]
    as_json: bool
    data_named: bool


class Parser(ArgumentParser):
    """A verb's parser, whose errors are one sentence and end the command with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found wrong as the user's mistake, with the nearest option's name."""
        raise UserError(_one_sentence(message, [o for a in self._actions for o in a.option_strings])) from ex


def parser_of(verb: str) -> Parser:
    """An empty parser for a verb's options."""
    return Parser(prog=f"vitrail {verb}", description=VERBS[verb])


def read(parser: Parser, argv: Sequence[str]) -> Call:
    """The call that a verb's part of a command line stands for.

    Raises:
        UserError: an option or its value is wrong.
    """
    rest = [token for token in argv if token != "--json"]
    hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    switches = [name for name, hint in hints.items() if hint is bool]
    lists = [name for name, hint in hints.items() if get_origin(hint) is list]
    parsed = parser.instantiate(cast(Namespace, parser.parse_args(normalise(rest, switches, lists))))
    values = {key: value for key, value in vars(parsed).items() if key != "config"}
    return Call(values, "--json" in argv, any(token.startswith("--data") for token in rest))


def _one_sentence(message: str, options: Sequence[str]) -> str:
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip()]
    text = lines[0] if lines else "The options could not be read"
    if "unrecognized arguments" in text.lower():
        wrong = text.split(":", 1)[1].split()[0]
        if not wrong.startswith("-"):
            return f"Nothing takes {wrong!r}: it follows no option that has a value (switches have true or false)."
        close = nearest(wrong.split("=")[0], options, 2)
        return f"Unknown option {wrong}" + (f": did you mean {' or '.join(close)}?" if close else ".")
    # a value of the wrong type: jsonargparse's first line names the option, the last the reason
    text = " ".join(dict.fromkeys([text, lines[-1]])) if len(lines) > 1 else text
    text = re.sub(r'Parser key "([^"]+)":', r"--\1:", text)
    return re.sub(r"an? <class '(\w+)'>", lambda found: KINDS.get(found[1], found[0]), text)


def normalise(argv: Sequence[str], switches: Sequence[str], lists: Sequence[str] = ()) -> list[str]:
    """The short spellings of the interface in the form the parser reads.

    `--data NAME` becomes `--data.name NAME`, `--image_size H W` becomes `--image_size [H,W]`, a list such as
    `--batch_size 1,16` gets its brackets, and a switch without a value, such as `--resume`, becomes `--resume true`.
    """
    out: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, given, value = token.removeprefix("--").partition("=") if token.startswith("--") else ("", "", "")
        if name == "data":
            out.append(token.replace("--data", "--data.name", 1))
        elif token == "--image_size" and len(rest) > 1 and rest[0].isdigit() and rest[1].isdigit():
            out += [token, f"[{rest.pop(0)},{rest.pop(0)}]"]
        elif token[2:] in switches and (not rest or rest[0].lower() not in ("true", "false")):
            out += [token, "true"]
        elif name in lists and (given or rest):
            value = value if given else rest.pop(0)
            out += [f"--{name}", value if value.startswith("[") else f"[{value}]"]
        else:
            out.append(token)
    return out
