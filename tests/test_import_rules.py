"""Who may know whom: the rooms of the library and their doors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent

#: room -> rooms it may import; errors, extras, version and the plain-value settings are open to all
ALLOWED = {
    "allocator": set(),
    "config": {"data"},
    "layers": set(),
    "models": {"layers"},
    "heads": {"layers"},
    "metrics": {"data"},
    "scoring": {"data", "metrics"},
    "data": set(),
    "description": {"data"},
    "header": {"description"},
    "weights": {"data", "description", "header", "models"},
    "assembly": {"heads", "weights"},
    "drawing": {"lettering"},
    "lettering": set(),
    "plots": {"lettering"},
    "tasks": {"assembly", "data", "drawing", "heads", "layers", "metrics", "models", "plots", "weights"},
    "networks": {"assembly", "data", "header", "models", "weights"},
    "optim": set(),
    "folders": set(),
    "locks": set(),
    "processes": set(),
    "option_rules": {"data"},
    "runs": {"data", "folders", "locks", "weights"},
    "session": {"data", "processes", "tasks", "weights", "runs", "optim", "plots", "progress"},
    "train": {"option_rules", "processes", "session", "tasks", "weights", "runs", "plots"},
    "evaluate": {"data", "deploy", "networks", "progress", "runs", "tasks", "weights"},
    "predict": {"data", "drawing", "tasks", "weights", "networks"},
    "token_labels": {"data", "networks", "progress", "runs", "weights"},
    "analysis": {"models", "layers", "tasks", "networks"},
    "deploy": {
        "assembly",
        "description",
        "models",
        "layers",
        "data",
        "weights",
        "networks",
        "tasks",
        "runs",
        "progress",
    },
    "bench": {"assembly", "models", "layers", "tasks", "networks", "deploy", "runs", "allocator", "weights"},
}
OPEN_TO_ALL = {"errors", "extras", "files", "output_folder", "plain", "version", "config"}


def imported_rooms(path: Path) -> set[str]:
    """The rooms of vitrail a file imports, at the top or inside functions."""
    package = ("vitrail", *path.relative_to(ROOT).parent.parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "vitrail" else [module]
        rooms |= {name.split(".")[1] for name in names if name.startswith("vitrail.")}
    return rooms


ABOVE = (ROOT / "__init__.py", ROOT / "__main__.py")
FILES = sorted(p for p in ROOT.rglob("*.py") if p not in ABOVE and ROOT / "cli" not in p.parents)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    known = ALLOWED.get(room, set()) | OPEN_TO_ALL | {room}
    assert imported_rooms(path) <= known


def test_config_is_plain_values():
    assert imported_rooms(ROOT / "config.py") <= {"data", "errors", "plain"}


def test_nobody_knows_the_command_line():
    assert not [p for p in FILES if "cli" in imported_rooms(p)]


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
