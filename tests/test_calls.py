"""Calls name their arguments: at most four stand without a name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent
MOST = 4
#: functions of any number of alike arguments, such as axes or columns
VARIADIC = {
    *("reshape", "permute", "expand", "Sequential", "partial"),
    *("new_table", "add_row", "check_torchvision_options", "git"),
}
#: operators of PyTorch without a Python signature, and the hook that `warnings` calls by position
NAMELESS = {"run", "product", "before"}


def unnamed(path: Path) -> Iterator[str]:
    """The calls of a file with more arguments than these without a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and len(node.args) > MOST:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name not in VARIADIC | NAMELESS:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_calls_name_their_arguments(path):
    assert list(unnamed(path)) == []
