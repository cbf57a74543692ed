"""The wheel and the sdist, as another machine gets them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: without the sources of this tree on the path
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
SOURCES = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
DATA = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.csv")}


def call(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The files under version control, and nothing that an earlier build left."""
    folder = tmp_path_factory.mktemp("tree")
    listed = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        wanted = name.startswith(("src/", "configs/")) or ("/" not in name and not name.endswith(".whl"))
        if wanted and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, copy]
    call(sys.executable, "-m", "pip", *build, cwd=place)
    return next(place.glob("vitrail-*.whl"))


@pytest.mark.slow
def test_the_wheel_has_every_module_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert SOURCES | DATA | {"vitrail/report/page.css", "vitrail/report/page.js", "vitrail/py.typed"} <= names
    meta = next(name for name in names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(meta).decode()
    for line in ("Name: vitrail", "License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Provides-Extra: train"):
        assert f"{line}\n" in text


@pytest.mark.slow
def test_the_sdist_has_what_its_readme_names(copy, tmp_path):
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    call(sys.executable, "-c", program, cwd=copy)
    with tarfile.open(next(tmp_path.glob("vitrail-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert recipes | {"README.md", "LICENSE", "constraints.txt", "pyproject.toml"} <= names
    assert {f"src/{name}" for name in SOURCES | DATA} <= names


@pytest.mark.slow
def test_the_readmes_first_command_runs_from_the_wheel(wheel, tmp_path):
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # the packages it needs are those of this environment; a plain path in a .pth runs none of its editable installs
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    (site / "needed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    assert str(tmp_path) in call(python, "-c", "import vitrail; print(vitrail.__file__)", cwd=tmp_path)
    vitrail = tmp_path / "venv" / "bin" / "vitrail"
    said = call(vitrail, "train", "--output", "runs/digits", "--max_steps", "3", cwd=tmp_path)  # of the README
    assert "top1" in said
    assert (tmp_path / "runs" / "digits" / "best.safetensors").is_file()
    assert "mat_1" in call(vitrail, "models", cwd=tmp_path)
