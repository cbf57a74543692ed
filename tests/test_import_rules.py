"""Who may import whom: the rooms of the library, top to bottom."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitrail
from room_helpers import ALLOWED, OPEN_TO_ALL

ROOT = Path(vitrail.__file__).parent

#: the library's face: they import what they show
FACE = {"__init__", "__main__", "cli"}


def imports(path: Path) -> Iterator[str]:
    """The modules of vitrail that a file imports, at the top or inside functions, dotted."""
    package = ("vitrail", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("vitrail."))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            if module == "vitrail" or module.startswith("vitrail."):
                for alias in node.names:
                    inner = ROOT.joinpath(*module.split(".")[1:], alias.name)
                    is_module = inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
                    yield f"{module}.{alias.name}" if is_module else module


def room(module: str) -> str:
    """The room that a module stands in; "" of the package itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["deploy"] else 1])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("vitrail", *(parts[:-1] if parts[-1] == "__init__" else parts)))


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0].removesuffix(".py") not in FACE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    own = room(module_of(path))
    found = {room(module) for module in imports(path)} - {own}
    if own == "deploy":  # the package itself, which shows its rooms
        assert found <= {"deploy.fuse", "deploy.export"}
        return
    assert found <= ALLOWED[own] | (OPEN_TO_ALL if own not in OPEN_TO_ALL else {"errors", "version"})


def test_rooms_go_in_no_circle():
    graph = {}
    for path in FILES:
        own = room(module_of(path))
        graph.setdefault(own, set()).update({room(module) for module in imports(path)} - {own, ""})
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_files_go_in_no_circle():
    graph = {module_of(path): set(imports(path)) - {module_of(path)} for path in FILES}
    # a package is imported with each of its modules: what counts is what these import
    packages = {module_of(path) for path in FILES if path.name == "__init__.py"}
    inner = {
        module: {found for found in known if not (found in packages and module.startswith(f"{found}."))}
        for module, known in graph.items()
    }
    assert list(TopologicalSorter(inner).static_order())


def test_the_root_holds_the_public_face_and_rooms():
    files = {path.name for path in ROOT.glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "errors.py", "factory.py", "structures.py", "version.py"}


def test_nobody_knows_the_command_line():
    assert not [path for path in FILES if "cli" in map(room, imports(path))]


def test_no_test_is_imported():
    """What several test files need stands in a file of helpers."""
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("test_"), f"{path.name} imports {node.module}"


def test_the_commands_do_not_import_the_front_door():
    files = [*(ROOT / "cli").glob("*.py"), ROOT.parent / "vitrail_commands.py"]
    assert not [path for path in files if re.search(r"(import|from) vitrail_cli", path.read_text(encoding="utf-8"))]


def test_import_is_light():
    code = "import sys, vitrail; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    heavy = [
        "accelerate",
        "segmentation_models_pytorch",
        "faster_coco_eval",
        "matplotlib",
        "tensorboard",
        "sklearn",
        "rich",
        "jsonargparse",
        "onnx",
        "onnxruntime",
        "openvino",
        "nncf",
        "executorch",
    ]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_does_not_import_torch():
    code = (
        "import sys, vitrail_cli; vitrail_cli.main(['--help']); "
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict" in done.stdout
