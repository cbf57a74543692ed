"""Reading a command's options: one parser class, recipes, and the short spellings of the interface."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from vitrail_commands import COMMANDS

from ..config.addresses import allow, is_address
from ..errors import UserError, nearest, printable
from ..utils.files import read_yaml, shortened
from ..utils.plain import KINDS, alternatives, from_dict, kind_of, typed
from .help_page import ALLOW, SWITCHES, Page, arrange, sections_of

#: the one option whose empty text means something: timm's folder reader
MAY_BE_EMPTY = ("data.source",)
#: options of several whole numbers that may be written apart: --image_size 224 320 for [224,320]
NUMBERS = {"image_size": 2, "at": 2, "budget": 4}
#: examples of values that are often written otherwise
EXAMPLES = {"image_size": "--image_size 224, or --image_size 224 320 for height and width"}
#: what other tools call an option, and its name here
OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "learning-rate", "lr0", "base_lr"), "lr"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "cpu"), "device"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half", "mixed_precision"), "precision"),
    **dict.fromkeys(("img_size", "img-size", "imgsz", "img", "input_size", "size", "resolution"), "image_size"),
    **dict.fromkeys(("weights", "checkpoint", "ckpt", "finetune", "load"), "init"),
    **dict.fromkeys(("project", "out", "output_dir", "out_dir", "save_dir", "work_dir", "name"), "output"),
    **dict.fromkeys(("num_workers", "num-workers", "j"), "data.workers"),
    **dict.fromkeys(("data_path", "data_dir", "data-path", "data-dir", "dataset", "path"), "data.root"),
    **dict.fromkeys(("arch", "backbone", "net", "network"), "model"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("quantization", "int8"), "quantize"),
    **dict.fromkeys(("bs", "b"), "batch_size"),
    "continue": "resume",
    "force": "overwrite",
    "num_epochs": "epochs",
    "wd": "optim.weight_decay",
    "opt": "optim.optimizer",
}
#: those of `NUMBERS` that cannot be given otherwise: with an example
EXACT = {"at": "--at 40 30", "budget": "--budget 4 8 16 7"}
#: of them those that may be given several times, which then make a list
REPEATED = ("at",)


@dataclass
class Call:
    """What a command line asks of its command.

    Attributes:
        values: the options by name, dataclasses made of theirs.
        as_json: print one JSON document instead of tables.
        typed: names of the options on the command line, dotted.
        recipe: what recipes say, by dotted name.
    """

    values: dict[str, Any]
    as_json: bool
    typed: frozenset[str] = frozenset()
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def data_named(self) -> bool:
        """Whether any --data option was given."""
        return any(name.startswith("data.") for name in self.typed)


class Parser(ArgumentParser):
    """A command's parser, whose errors are one sentence and end the command with exit code 2.

    Attributes:
        recipe: data class of what the files of `--config` hold; None = the command takes none.
        left_out: options and groups of it that the command does not take; `Call.recipe` still has them.
        page: the help page beside the options given so far, by dotted name.
        given: those options.
    """

    recipe: type | None = None
    left_out: Sequence[str] = ()
    page: Callable[[Parser, Mapping[str, Any]], Page]
    given: Mapping[str, Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found wrong as the user's mistake, with what is allowed or the nearest option."""
        text = self._missing(message) or self._wrong_type(message) or self._unread(message) or _one_sentence(message)
        raise UserError(text) from ex

    def _missing(self, message: str) -> str | None:
        """The sentence on arguments that must be given."""
        names = message.partition("arguments are required: ")[2]
        if not names:
            return None
        known = {action.dest: action for action in self._actions}
        needed = [f"--{n}" if known[n].option_strings else n.upper() for n in names.strip().split(", ")]
        return f"{self.prog} needs {' and '.join(needed)}; vitrail help {self.prog.split()[-1]} shows the options."

    def _wrong_type(self, message: str) -> str | None:
        """The sentence on a value of another type than its option's."""
        found = re.match(r'Parser key "([^"]+)"', message.strip())
        if found is None or found[1] not in self.given:
            return None
        name, value = found[1], self.given[found[1]]
        hint = next((getattr(action, "_typehint", None) for action in self._actions if action.dest == name), None)
        if hint is None:
            return None
        kind = 'options by name, such as {"a": 1}' if get_origin(hint) is dict else kind_of(hint)
        example = f": write {EXAMPLES[name]}." if name in EXAMPLES else "."
        return f"--{name} must be {kind}, not {shortened(value)}{example}"

    def _unread(self, message: str) -> str | None:
        """The sentence on a token that is neither an option nor the value of one."""
        found = re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
        if found is None:
            return None
        token = found[1]
        if token == "help":
            return f"Nothing takes 'help': vitrail help {self.prog.split()[-1]} shows the options."
        options = {option for action in self._actions for option in action.option_strings}
        if re.match(r"-[a-zA-Z]", token):
            begun = [option for option in sorted(options, key=len) if option.startswith(f"-{token[:2]}")]
            return f"Options begin with two dashes, not with one as {token!r}{_did_you_mean(begun[:2])}"
        if "--data.root" in options and os.path.exists(token):
            return f"Nothing takes {shortened(token)}: name the folder of the images by --data.root {printable(token)}."
        return f"Nothing takes {shortened(token)}: it follows no option that has a value (switches have true or false)."

    def format_help(self, *args: Any) -> str:
        """The help page."""
        arrange(self, self.page(self, self.given))
        return super().format_help(*args)


def parser_of(command: str, page: Callable[[Parser, Mapping[str, Any]], Page] | None = None) -> Parser:
    """An empty parser for a command's options.

    Args:
        command: its name.
        page: its help page; None = all options as they are declared.
    """
    made = Parser(prog=f"vitrail {command}")
    made.given = {}
    made.page = page or (lambda parser, given: Page(COMMANDS[command], sections_of(parser)))
    return made


def help_of(documented: Callable[..., Any], name: str) -> str:
    """What the docstring of a library function or class says of one of its parameters."""
    scratch = ArgumentParser()
    others: set[str | int] = {other for other in inspect.signature(documented).parameters if other != name}
    if isinstance(documented, type):
        scratch.add_class_arguments(documented, skip=others)
    else:
        scratch.add_function_arguments(documented, skip=others)
    return next(str(action.help) for action in scratch._actions if action.dest == name).removesuffix(".")


def read(parser: Parser, argv: Sequence[str]) -> Call:
    """The call that a command's part of a command line stands for.

    Args:
        parser: the command's.
        argv: what follows the command's name.

    Raises:
        UserError: an option or its value is wrong.
    """
    line = Line(parser, argv)
    values = read_recipes(parser.recipe, line.configs) if parser.recipe else {}
    # what recipes say stands before the command line, which wins
    parser.given = values | line.typed
    taken = {name: value for name, value in values.items() if name.partition(".")[0] not in parser.left_out}
    told = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in taken.items()]
    parsed = parser.instantiate(cast(Namespace, parser.parse_args([*told, *line.arguments])))
    if line.switches.get(ALLOW):
        _allow(line.typed)
    kept = {key: value for key, value in vars(parsed).items() if key != "config"}
    return Call(kept, line.switches.get("json", False), frozenset(line.typed), values)


def switches(argv: Sequence[str]) -> dict[str, bool]:
    """The switches of every command, wherever they stand among the tokens of a command line."""
    found: dict[str, bool] = {}
    rest = list(argv)
    while rest and (token := rest.pop(0)) != "--":
        name, given, value = token.removeprefix("--").partition("=")
        if token.startswith("--") and name in SWITCHES:
            found[name] = _truth(name, value if given else _next_truth(rest))
    return found


class Line:
    """A command line, token by token: what is an option, what is its value.

    A token that begins with "--" is an option unless it stands behind "="; a value is the next token, whatever it looks
    like. `--image-size` is `--image_size`, `--data NAME` is `--data.name NAME`, `--image_size H W` is
    `--image_size [H,W]` (`--at X Y` likewise), a list such as `--batch_size 1,16` gets its brackets, and a switch
    without a value is true.

    Args:
        parser: it says which options there are.
        argv: the tokens.

    Attributes:
        arguments: the tokens as the parser reads them, an option and its value in one.
        typed: the options' values as texts, by dotted name.
        configs: the recipes, in their order.
        switches: of every command, see `SWITCHES`.

    Raises:
        UserError: an unknown option, a value missing or empty.
    """

    def __init__(self, parser: Parser, argv: Sequence[str]):
        self.actions = {option: action for action in parser._actions for option in action.option_strings}
        self.takes_arguments = any(not action.option_strings for action in parser._actions)
        self.arguments: list[str] = []
        self.typed: dict[str, str] = {}
        self.configs: list[str] = []
        self.switches: dict[str, bool] = {}
        self.rest = list(argv)
        while self.rest:
            token = self.rest.pop(0)
            if token == "--":
                self.arguments += [token, *self.rest]
                break
            if not token.strip():
                raise UserError(f"An argument is empty{_unset()}.")
            if token.startswith("--"):
                self._option(token)
            else:
                self.arguments.append(token)

    def _option(self, token: str) -> None:
        name, given, value = token.removeprefix("--").partition("=")
        if f"--{name}" not in self.actions and f"--{name.replace('-', '_')}" in self.actions:
            name = name.replace("-", "_")  # --image-size for --image_size
        name = "data.name" if name == "data" and "--data.name" in self.actions else name
        own = name in SWITCHES or (name == ALLOW and "--data.name" in self.actions)
        if own:
            self.switches[name] = _truth(name, value if given else _next_truth(self.rest))
            return
        action = self._action(name)
        hint = getattr(action, "_typehint", None)
        if action.nargs == 0 or action.dest in ("help", "print_config"):
            self.arguments.append(token)
        elif action.nargs in ("+", "*"):
            values = [value] if given else []
            while self.rest and not self.rest[0].startswith("--"):
                values.append(self.rest.pop(0))
            self.arguments += [f"--{name}", *(self._filled(name, one) for one in values)]
            self.typed[name] = " ".join(values)
        elif hint is bool:
            self._set(name, str(_truth(name, value if given else _next_truth(self.rest))).lower())
            self._refuse_folder_of(name)
        else:
            text = value if given else self._value(name)
            if text is not None:
                self._set(name, self._spelled(name, self._filled(name, text), hint, bool(given)))

    def _action(self, name: str) -> Any:
        """What an option is; of `model_options.depths` the options by name that it is an entry of."""
        if any(option.startswith(f"--{name}.") for option in self.actions):
            raise UserError(f"--{name} is a group of options: give them one by one, such as {self._first_of(name)}.")
        if f"--{name}" in self.actions:
            return self.actions[f"--{name}"]
        for length in range(name.count("."), 0, -1):
            action = self.actions.get("--" + ".".join(name.split(".")[:length]))
            if action is not None and get_origin(getattr(action, "_typehint", None)) is dict:
                return action
        groups = {option.rpartition(".")[0] for option in self.actions}
        known = [option for option in self.actions if option not in groups] + [f"--{own}" for own in SWITCHES]
        # a name without its group, such as --hflip, or in a wrong one means those that end with it
        last = name.rpartition(".")[2]
        close = [option for option in known if option.endswith(f".{last}") or option == f"--{last}"][:3]
        close = close or [option for option in known if option == f"--{OTHER_NAMES.get(last)}"]
        close = close or nearest(f"--{name}", known, 2)
        raise UserError(f"Unknown option {shortened(f'--{name}')[1:-1]}{_did_you_mean(close)}")

    def _refuse_folder_of(self, name: str) -> None:
        """Refuse `--resume runs/a`: the switch takes no value, and no argument of this command could be meant."""
        if name != "resume" or self.takes_arguments or not self.rest or self.rest[0].startswith("-"):
            return
        if "/" in self.rest[0] or os.path.isdir(self.rest[0]):
            run = printable(self.rest[0])
            raise UserError(
                f"--resume is a switch without a value: --output {run} --resume, behind the options that the run was "
                f"started with, goes on with it (--config {run}/config.yaml has them all)."
            )

    def _first_of(self, group: str) -> str:
        return next(option for option in self.actions if option.startswith(f"--{group}."))

    def _value(self, name: str) -> str | None:
        """The next token; None where it asks for help instead."""
        if self.rest and self.rest[0] in ("-h", "--help"):
            return None  # the loop meets it next
        if not self.rest:
            raise UserError(f"--{name} needs a value.")
        if self.rest[0].startswith("--"):
            raise UserError(
                f"--{name} needs a value before {shortened(self.rest[0])[1:-1]}; if that is the value, write "
                f"--{name}={shortened(self.rest[0])[1:-1]}."
            )
        return self.rest.pop(0)

    def _filled(self, name: str, value: str) -> str:
        if not value.strip() and name not in MAY_BE_EMPTY:
            raise UserError(f"--{name} is empty{_unset()}: give a value or leave the option out.")
        if "\0" in value:
            raise UserError(f"--{name} holds a null character.")
        return value

    def _spelled(self, name: str, value: str, hint: Any, given: bool) -> str:
        numbers = [value, *self.rest[: NUMBERS.get(name, 1) - 1]]
        if not given and len(numbers) == NUMBERS.get(name) and all(number.isdecimal() for number in numbers):
            del self.rest[: len(numbers) - 1]
            return f"[{','.join(numbers)}]"
        if name in EXACT and not value.startswith("["):
            raise UserError(f"--{name} needs {NUMBERS[name]} whole numbers, such as {EXACT[name]}.")
        kinds = alternatives(hint)
        if name == "data.name" and value not in get_args(hint) and os.path.exists(value):
            raise UserError(
                f"--data names a layout, and {shortened(value)} is a path: write --data folder --data.root "
                f"{printable(value)} for a folder per class (vitrail help train lists the others)."
            )
        if value != "null" and any(get_origin(kind) is typing.Literal for kind in kinds):
            typed(hint, value, f"--{name}")  # names the nearest
        if get_origin(hint) is not list:
            return value
        value = value if value.startswith("[") else f"[{value}]"
        items = [item.strip(" '\"") for item in value[1:].removesuffix("]").split(",")]
        if get_origin(get_args(hint)[0]) is typing.Literal and items != [""]:
            typed(hint, items, f"--{name}")  # names the nearest
        return value

    def _set(self, name: str, value: str) -> None:
        if name == "config":
            self.configs.append(value)
            return
        if name in REPEATED and not value.startswith("[["):
            before = self.typed.get(name)
            if before is not None:
                self.arguments.remove(f"--{name}={before}")
            value = f"[{value}]" if before is None else f"{before[:-1]},{value}]"
        self.arguments.append(f"--{name}={value}")
        self.typed[name] = value


def read_recipes(recipe: type, files: Sequence[str]) -> dict[str, Any]:
    """What recipes say, by dotted name; of several the last one counts.

    Args:
        recipe: data class of their content, with groups that are data classes.
        files: YAML.

    Raises:
        UserError: a file that cannot be read, an unknown option, a value of the wrong type or outside what is allowed.
    """
    found: dict[str, Any] = {}
    for file in files:
        values = read_yaml(file)
        if not isinstance(values, dict) or not values:
            held = "nothing" if values is None or values == {} else shortened(values)
            raise UserError(f"{file} must hold options by name, such as 'epochs: 10', but holds {held}.")
        found |= _flat(values, from_dict(recipe, values, f"{file}: "), "")
    return found


def _flat(values: dict[str, Any], made: Any, prefix: str) -> dict[str, Any]:
    """The entries of `values`, as typed in the data class made of them, by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        typed = getattr(made, name)
        if dataclasses.is_dataclass(typed):
            flat |= _flat(value, typed, f"{prefix}{name}.")
        else:
            flat[prefix + name] = typed
    return flat


def _allow(typed: dict[str, str]) -> None:
    """Let what was typed of the data name commands and addresses."""
    for name, text in typed.items():
        if name.startswith("data."):
            own = text.partition("/")[2] if name == "data.source" else text
            if is_address(own):
                allow(own)


def _next_truth(rest: list[str]) -> str:
    """The value of a switch: the next token if it is one, else true."""
    return rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"--{name} must be true or false, not {shortened(value)}.")
    return value.lower() == "true"


def _unset() -> str:
    return " (a variable that is not set?)"


def _one_sentence(message: str) -> str:
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip()]
    text = lines[0] if lines else "The options could not be read"
    # a value of the wrong type: jsonargparse's first line names the option, the last the reason
    text = " ".join(dict.fromkeys([text, lines[-1]])) if len(lines) > 1 else text
    text = re.sub(r'Parser key "([^"]+)":', r"--\1:", text)
    return re.sub(r"an? <class '(\w+)'>", lambda found: _kind_named(found[1]), text)


def _kind_named(name: str) -> str:
    """What messages call a type of Python's, by its name."""
    return next((words for kind, words in KINDS.items() if kind.__name__ == name), "options by name")


def _did_you_mean(close: Sequence[str]) -> str:
    """The end of a sentence about a name that does not exist."""
    return f": did you mean {' or '.join(close)}?" if close else "."
