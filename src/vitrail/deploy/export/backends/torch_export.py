"""Files of `torch.export`, run by PyTorch; untrusted files are checked before PyTorch reads them.

PyTorch evaluates the symbolic sizes of an archive as Python, looks its operators up by name anywhere below `torch`,
unpickles objects and loads compiled code. Therefore everything in an archive is compared with allow-lists of what
graphs of networks need, and anything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from ....errors import UserError
from ....utils.files import parse_json, shortened
from ..metadata import Metadata
from ..trace import Shape
from .base import Backend, damaged

#: allowed entries of an archive, below its top folder: no compiled code, no pickled objects
ENTRIES = re.compile(
    r"archive_(format|version)|byteorder|\.data/\w+|\.format_version|\.storage_alignment|models/\w+\.json"
    r"|data/weights/(weight_\d+|\w+_config\.json)|data/constants/(tensor_\d+|\w+_config\.json)"
    r"|data/sample_inputs/\w+\.pt"
)
#: names of values, parameters, files and types
WORD = re.compile(r"[\w.+\-]*")
#: pure functions of numbers
OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.(sym_(int|float|max|min|not|ite)|_sym_sqrt)"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
)
ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
#: text arguments of operators that choose a mode; any other text argument could be a file name
TEXTS = frozenset(("approximate", "mode", "padding_mode", "padding", "rounding_mode", "reduce", "indexing", "equation"))
#: functions of symbolic sizes
FUNCTIONS = re.compile(
    r"Symbol|Pow|Integer|Float|Rational|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|CeilDiv"
    r"|CeilToInt|FloorToInt|TruncToInt|ToFloat|Abs|Identity|Where|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|LessThan"
    r"|StrictLessThan|GreaterThan|StrictGreaterThan|And|Or|Not|ModularIndexing"
)
SYMBOL = re.compile(r"[a-z]{1,3}\d+")
SIGNS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or)
SIGNS += (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SHAPES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, *SIGNS)
#: containers that a graph's inputs and outputs may be
PLAIN = re.compile(r'null|\[("\w+"(, )?)*\]')  # their context: none, or names of a dictionary's entries
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", None)
#: PyTorch's integers have 64 bits
MOST = 2**63
#: most powers in one size, each a square or a reciprocal, so that numbers stay short
POWERS = 16


class TorchExport(Backend):
    """One .pt2 file, which needs PyTorch alone."""

    name = "torch_export"
    suffix = ".pt2"
    runtime = "torch"

    def write_graph(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """See `Backend`."""
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, path)

    def open_file(self, path: Path, threads: int) -> TorchExportFile:
        """See `Backend`."""
        return TorchExportFile(path)

    def check_file(self, path: Path) -> None:
        """See `check_torch_export`."""
        check_torch_export(path)

    def least_side(self, program: ExportedProgram) -> int:
        """The smallest height and width that the graph's constraints allow; 1 where these are fixed.

        Only this format enforces the bounds that the tracer recorded; the others also run below them.
        """
        images = next(node.meta["val"] for node in program.graph.nodes if node.name == "images")
        sizes = [size.node.expr for size in images.shape[2:] if isinstance(size, torch.SymInt)]
        return max([int(program.range_constraints[cast(Any, size)].lower) for size in sizes], default=1)


class TorchExportFile:
    """A file of `torch.export.save`, in this process."""

    def __init__(self, path: Path):
        # the guards assert properties of the traced sizes; the export compares outputs at other sizes instead
        self.module = load(path).module(check_guards=False)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        outputs = self.module(torch.from_numpy(images))
        return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def load(path: Path) -> ExportedProgram:
    """The graph and weights in a file.

    Raises:
        UserError: PyTorch cannot rebuild them.
    """
    try:
        return torch.export.load(path)
    except Exception as error:  # PyTorch's message only refers to warnings
        raise UserError(
            f"{path} is damaged or no torch_export file (PyTorch cannot rebuild its graph and weights); export the "
            "network again."
        ) from error


# ---- untrusted files ----------------------------------------------------------------------------------------------


def check_torch_export(path: Path) -> None:
    """Refuse a file of `torch.export` that holds more than a graph of tensor operators and tensors.

    Raises:
        UserError: it is no such archive, or holds something else; the sentence names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(path, archive, entry)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise damaged(path, "torch_export", str(error)) from error


def _check_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    name = entry.filename.partition("/")[2]
    if entry.compress_type != zipfile.ZIP_STORED:  # torch.export stores; packed entries may unpack to anything
        raise _refused(path, f"a compressed entry {shortened(entry.filename)}")
    if not ENTRIES.fullmatch(name):
        raise _refused(path, f"an entry that no graph of tensors needs, {shortened(entry.filename)}")
    if name.endswith(".json"):
        content = parse_json(archive.read(entry), f"{path}, {shortened(name)}")
        for key, value in _values(content):
            if not _is_harmless(key, value):
                raise _refused(path, f"{key} {shortened(value)}, which is none of the words a graph of tensors needs")
        if name.endswith("_config.json") and _names_pickles(content):
            raise _refused(path, f"pickled objects ({shortened(name)})")
    elif name.endswith(".pt") and not _is_tensors(archive.read(entry)):
        raise _refused(path, f"Python objects ({shortened(name)})")


def _refused(path: Path, what: str) -> UserError:
    return UserError(f"{path} is refused: besides a graph and tensors it holds {what}; loading could run code.")


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of a JSON document with its key, and every key.

    Metadata of operators are left out: PyTorch runs nothing from them.
    """
    todo = [(key, value)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            for name, item in value.items():
                yield "name", name
                if name != "metadata":
                    todo.append((name, item))
        elif isinstance(value, list):
            todo += [(key, item) for item in value]
        else:
            yield key, value


def _is_harmless(key: str, value: Any) -> bool:
    if not isinstance(value, str):
        return not isinstance(value, int) or abs(value) <= MOST
    if key == "expr_str":
        return is_size(value)
    if key in ("target", "as_operator"):
        return OPERATORS.fullmatch(value) is not None or is_tensor_operator(value)
    if key in ("in_spec", "out_spec"):
        return _is_plain_tree(value)
    if key == "guards_code":  # never evaluated here (see `TorchExportFile`), and still read
        return _is_guard(value)
    if key in ("as_string", "as_strings", "as_float"):  # written into the graph's code as a quoted text
        return value.isprintable() and len(value) <= 64
    return WORD.fullmatch(value) is not None and not any(part.startswith("__") for part in value.split("."))


def is_tensor_operator(name: str) -> bool:
    """True if a name is an operator of PyTorch's own library that takes only tensors and numbers.

    Text arguments are allowed only if they choose a mode; `from_file`, for example, takes a path and is refused.
    """
    found = ATEN.fullmatch(name)
    if not found:
        return False
    packet = getattr(torch.ops.aten, found[1], None)
    overload = getattr(packet, found[2], None)
    schema = getattr(overload, "_schema", None)
    if schema is None:
        return False
    kinds = {(argument.name, str(argument.type)) for argument in (*schema.arguments, *schema.returns)}
    return not any(
        ("str" in kind and name not in TEXTS) or "__torch__" in kind or "Storage" in kind or "Stream" in kind
        for name, kind in kinds
    )


def is_size(text: str) -> bool:
    """True if a text is an expression of sizes: symbols, numbers, arithmetic and functions of numbers.

    PyTorch evaluates such texts as Python.
    """
    if len(text) > 20_000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
        powers = [node for node in nodes if isinstance(node, ast.Call) and _called(node) == "Pow"]
        return all(map(_is_part_of_size, nodes)) and len(powers) <= POWERS and all(map(_is_small_power, powers))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_part_of_size(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, str):
            return SYMBOL.fullmatch(value) is not None
        return isinstance(value, (bool, int, float)) and abs(value) <= MOST
    if isinstance(node, ast.Name):
        return (
            bool(FUNCTIONS.fullmatch(node.id)) or node.id in ("true", "false") or SYMBOL.fullmatch(node.id) is not None
        )
    if isinstance(node, ast.Call):
        return bool(FUNCTIONS.fullmatch(_called(node)))
    if isinstance(node, ast.keyword):
        return node.arg in ("positive", "integer", "nonnegative", "real", "evaluate")
    return isinstance(node, SHAPES)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_small_power(node: ast.Call) -> bool:
    return len(node.args) == 2 and ast.unparse(node.args[1]) in ("Integer(2)", "Integer(-1)", "2", "-1")


def _is_guard(text: str) -> bool:
    """True if a text compares sizes of the inputs, such as `L['images'].size()[2] > 1`."""
    text = re.sub(r"L\['\w+'\]\.(size\(\)\[\d+\]|stride\(\)\[\d+\]|storage_offset\(\))", "s0", text)
    return is_size(re.sub(r"torch\.sym_(max|min)", lambda found: found[1].title(), text))


def _is_plain_tree(text: str) -> bool:
    try:
        version, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    todo = [tree]
    while todo:
        node = todo.pop()
        if not isinstance(node, dict) or node.get("type") not in CONTAINERS:
            return False
        context, children = node.get("context"), node.get("children_spec")
        if not isinstance(children, list) or not (context is None or PLAIN.fullmatch(str(context))):
            return False
        todo += children
    return version == 1


def _names_pickles(content: Any) -> bool:
    items = content.get("config", {}) if isinstance(content, dict) else {}
    values = items.values() if isinstance(items, dict) else ()
    return any(not isinstance(item, dict) or item.get("use_pickle") for item in values)


def _is_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True
