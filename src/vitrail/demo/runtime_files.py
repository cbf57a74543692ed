"""The files of onnxruntime-web, which run the network in the browser: where they lie, and which the page needs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from ..errors import UserError

#: what npm calls the package
PACKAGE = "onnxruntime-web"
#: script for the processor
WASM = "ort.wasm.min.mjs"
#: script that has the GPU, too
WEBGPU = "ort.webgpu.min.mjs"
#: scripts of compiled modules that a script names; the module itself has the same name with .wasm
MODULE = re.compile(r"ort-wasm-simd-threaded(?:\.\w+)?\.mjs")
#: places besides the present folder and those above it
GLOBAL = ("/usr/local/lib/node_modules", "/usr/lib/node_modules")


@dataclass(frozen=True)
class RuntimeFiles:
    """Files of one version of onnxruntime-web.

    Attributes:
        folder: that holds them.
        wasm: names of those for the processor, the script first.
        webgpu: names of those for the GPU, the script first; none where this version has not all of them.
        version: of the package; "" = unknown.
    """

    folder: Path
    wasm: tuple[str, ...]
    webgpu: tuple[str, ...]
    version: str

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [self.folder / name for name in dict.fromkeys((*self.wasm, *self.webgpu))]


def find_runtime(named: str | Path | None) -> RuntimeFiles:
    """The files of onnxruntime-web.

    Args:
        named: the folder that holds them: the package's `dist`, the package, or one with a node_modules; None = looked
            for in node_modules of the present folder and those above it, of this environment and of the system, and in
            installed Python packages.

    Raises:
        UserError: they are not there; the sentence says how to get them.
    """
    if named is not None:
        for folder in _inside(Path(named).expanduser()):
            if (found := _complete(folder)) is not None:
                return found
        raise UserError(
            f"--onnxruntime_web {named} holds no {WASM} with its module: name the folder in which `npm install "
            f"{PACKAGE}` was run, or the package's dist folder."
        )
    for folder in _places():
        if (found := _complete(folder)) is not None:
            return found
    raise UserError(
        f"The page needs the files of {PACKAGE}, which were not found: get them with `npm install {PACKAGE}` in this "
        "folder, or name a folder that has them with --onnxruntime_web."
    )


def _inside(folder: Path) -> Iterator[Path]:
    package = Path(PACKAGE)
    for below in (Path(), Path("dist"), package / "dist", Path("node_modules") / package / "dist"):
        yield folder / below


def _places() -> Iterator[Path]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        yield folder / "node_modules" / PACKAGE / "dist"
    for modules in (Path(sys.prefix) / "lib" / "node_modules", *map(Path, GLOBAL)):
        yield modules / PACKAGE / "dist"
    for distribution in distributions():
        for file in distribution.files or ():
            if file.name == WASM:
                yield Path(str(distribution.locate_file(file))).parent


def _complete(folder: Path) -> RuntimeFiles | None:
    """The files in a folder; None unless those for the processor are all there."""
    wasm = _with_modules(folder, WASM)
    if not wasm:
        return None
    return RuntimeFiles(folder, wasm, _with_modules(folder, WEBGPU), _version(folder / WASM))


def _with_modules(folder: Path, script: str) -> tuple[str, ...]:
    """A script and the modules it loads; none unless all are there."""
    if not (folder / script).is_file():
        return ()
    text = (folder / script).read_text(encoding="utf-8", errors="replace")
    modules = sorted(set(MODULE.findall(text)))
    names = (script, *(name for one in modules for name in (one, one.removesuffix("mjs") + "wasm")))
    return names if modules and all((folder / name).is_file() for name in names) else ()


def _version(script: Path) -> str:
    with open(script, encoding="utf-8", errors="replace") as file:
        found = re.search(r"ONNX Runtime Web v(\d[\w.-]*)", file.read(400))
    return found[1] if found else ""
