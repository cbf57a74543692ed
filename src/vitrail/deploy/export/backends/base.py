"""The interface of an export format, and what its implementations share."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.export import ExportedProgram

from ....errors import UserError
from ....utils import extras
from ..forms import TRACED
from ..metadata import Metadata, metadata_path
from ..trace import CannotExport, Graph, Shape, first_line, trace

#: methods by which modules of timm's networks merge their branches
MERGED_BY = ("fuse", "reparameterize", "switch_to_deploy")
#: function from a module to its replacement in files of one format
Form = Callable[[Any], nn.Module]


class Runtime(Protocol):
    """A loaded file: a function from images to outputs."""

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one float32 input (B, C, H, W)."""
        ...


class Backend(ABC):
    """One file format: how a graph is written, how a file is checked, opened and quantised.

    A new format is a subclass in a file of its own and one line in `backends/__init__.py`. It implements `write_graph`
    and `open_file`, and where the format needs it `check_file`, `quantize_file`, `weights` and `embedded_metadata`.

    Attributes:
        name: as in `--format`.
        suffix: ending of its files.
        runtime: what runs them, as in `--runtime`.
        extra: the optional dependencies that write and run it; "" = none besides torch.
        modules: what must be importable to write it.
        quantizer_modules: what must be importable besides to write int8 files.
        free_axes: which of "batch" and "size" (height and width) a file may leave open.
        quantizes: whether int8 files can be written.
        end_to_end: whether its graphs may hold the decoding and suppression of a detector.
        nchw: whether its graphs keep all maps in NCHW memory.
        explicit_attention: whether its graphs have attention as products and a softmax (see `trace.OrderedMemory`).
        compiles_shapes: whether a file with free axes is compiled for the shapes it meets (see `open_as_written`).
        forms: modules that its runtime computes faster, by the class they replace; subclasses do not inherit them. A
            form contains no module of the class that it replaces.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    runtime: ClassVar[str]
    extra: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    quantizer_modules: ClassVar[tuple[str, ...]] = ()
    free_axes: ClassVar[tuple[str, ...]] = ("batch", "size")
    quantizes: ClassVar[bool] = False
    end_to_end: ClassVar[bool] = False
    nchw: ClassVar[bool] = False
    explicit_attention: ClassVar[bool] = False
    compiles_shapes: ClassVar[bool] = False
    forms: ClassVar[Mapping[type[nn.Module], Form]] = TRACED

    # ---- what a format implements -------------------------------------------------------------------------------

    @abstractmethod
    def write_graph(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """Write a graph as a file (and its `weights`), without its JSON; errors may be of any type."""

    @abstractmethod
    def open_file(self, path: Path, threads: int) -> Runtime:
        """Load a file in its runtime; errors may be of any type."""

    def open_as_written(self, path: Path, threads: int) -> Runtime:
        """Load a file whose free axes stay free at all shapes; errors may be of any type."""
        return self.open_file(path, threads)

    def check_file(self, path: Path) -> None:  # noqa: B027 - most formats need no check
        """Refuse a file that could run code or read other files when it is loaded.

        Raises:
            UserError: the message names what the file contains.
        """

    def quantize_file(self, before: Path, path: Path, metadata: Metadata, calibration: list[Tensor]) -> str:
        """Write the int8 form of the file `before` to `path`; errors may be of any type.

        Args:
            before: the float file.
            path: the int8 file.
            metadata: of the int8 file.
            calibration: inputs to measure the ranges of activations on.

        Returns:
            What had to be left out for this graph or this processor, and why; "" = nothing.
        """
        raise NotImplementedError(f"{self.name} has no int8 form")

    def weights(self, path: Path) -> list[Path]:
        """Further files that hold a file's weights."""
        return []

    def embedded_metadata(self, path: Path) -> str | None:
        """The metadata inside a file, as JSON; None where there is none."""
        return None

    def least_side(self, program: ExportedProgram) -> int:
        """Smallest height and width at which files with a free size are compared."""
        return 33

    # ---- what the library calls ---------------------------------------------------------------------------------

    def trace(self, graph: Graph, shape: Shape) -> ExportedProgram:
        """The graph of a network `in_form` as this format expects it.

        Raises:
            CannotExport: the network has none.
        """
        return trace(graph, shape, plain=self.nchw, explicit=self.explicit_attention)

    def write(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """Write a graph as a file, without its JSON.

        Raises:
            CannotExport: the format has no form of this graph.
            OSError: the file cannot be written.
        """
        try:
            with quiet():
                self.write_graph(program, path, metadata, shape)
        except OSError:
            raise
        except Exception as error:  # each library raises errors of its own types
            raise CannotExport(f"{self.name} has no form of this graph: {first_line(error)}") from error

    def open(self, path: Path, threads: int = 1, as_written: bool = False) -> Runtime:
        """Check a file and load it in its runtime.

        Args:
            path: the file.
            threads: of the runtime.
            as_written: see `open_as_written`.

        Raises:
            UserError: the file is missing, damaged or refused, or its runtime is not installed.
        """
        for file in (path, *self.weights(path)):
            if not file.is_file():
                raise UserError(f"There is no file {file}.")
        try:
            with quiet():
                self.check_file(path)
                return (self.open_as_written if as_written else self.open_file)(path, threads)
        except UserError:
            raise
        except Exception as error:  # each runtime raises errors of its own types
            raise damaged(path, self.name, first_line(error)) from error

    def files(self, path: Path) -> list[Path]:
        """All files of an export to `path`, its metadata last."""
        return [path, *self.weights(path), metadata_path(path)]

    def in_form(self, network: nn.Module) -> nn.Module:
        """A copy of a network that shares its weights, with modules replaced by this format's `forms`.

        A module of a third party may offer its own form by a method `export_form(format)`. Branches of timm's networks
        that timm merges into one layer (RepVGG's and RepViT's, for instance) are merged.
        """
        if _timm_merges(network):
            return self._formed(reparameterize_model(network))
        tensors = [*network.parameters(), *network.buffers()]
        return self._formed(copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}))

    def _formed(self, module: nn.Module) -> nn.Module:
        """The form of a module, in which all modules have their forms."""
        form = self._form_of(module)
        for name, child in form.named_children():
            setattr(form, name, self._formed(child))
        return form

    def _form_of(self, module: nn.Module) -> nn.Module:
        form = self.forms.get(type(module))
        if form is not None:
            return form(module)
        own = getattr(module, "export_form", None)
        return module if own is None else own(self.name)


def _timm_merges(network: nn.Module) -> bool:
    """True if modules have methods of `MERGED_BY` and all of these are timm's: it would call those of others, too."""
    found = [module for module in network.modules() if any(hasattr(module, name) for name in MERGED_BY)]
    return bool(found) and all(type(module).__module__.startswith("timm.") for module in found)


def last_layers(ends: Iterable[Any], before: Callable[[Any], list[Any]], is_layer: Callable[[Any], bool]) -> list[Any]:
    """The layers whose values reach a graph's outputs without passing another layer.

    Args:
        ends: the operators that give the outputs.
        before: the operators that give an operator's values, without constants; [] where the search ends.
        is_layer: whether an operator is a layer with weights.
    """
    todo, found = list(ends), []
    while todo:
        op = todo.pop()
        if is_layer(op):
            found.append(op)
        else:
            todo += before(op)
    return found


def passed(kind: str, computed: list[Any], first: list[Any]) -> list[Any]:
    """`before` of `last_layers` for an operator of a kind: through concatenations and biases, not residual sums.

    Args:
        kind: name of the operator.
        computed: the operators that give its inputs, without constants.
        first: the one that gives its first input, if it is no constant; further inputs of most operators are sizes.
    """
    if kind == "Concat":
        return computed
    if kind in ("Add", "Mul", "Multiply", "Sub", "Subtract", "Div", "Divide"):
        return computed if len(computed) == 1 else []
    return first


def damaged(path: Path, format: str, reason: str) -> UserError:
    """The error for a file that its runtime cannot read."""
    return UserError(f"{path} is damaged or no {format} file ({reason}); export the network again.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporters' messages and telemetry."""
    old = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), unreported():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(old)


def require(module: str, extra: str) -> ModuleType:
    """`extras.require` without telemetry of the imported package."""
    with unreported():
        return extras.require(module, extra)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Switch off the telemetry of OpenVINO's converter and NNCF, which they send unless they run in CI."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
