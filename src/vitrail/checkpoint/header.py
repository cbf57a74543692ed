"""Header of a .safetensors file, read and bounded before its tensors, or a network for them, take memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ..errors import UserError
from ..utils.files import shortened
from .description import KEY, WeightsMeta, numbers_of, parse_meta

#: bytes of a header; that of 100,000 tensors has 10 million
MAX_HEADER = 1 << 24
#: number formats of weights that are read, as .safetensors names them
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
#: no option counts more than this, unless the file's tensors do
MAX_NUMBER = 8192
#: values that a network may have beyond three times those of its file, for modules that building drops again and for
#: tables it computes; and the longest time that building may take
EXTRA_VALUES, SECONDS = 1 << 25, 120


@dataclass(frozen=True)
class Header:
    """The tensors of a file by their names.

    Attributes:
        path: the file.
        shapes: of each tensor.
        text: the description of the network; None where there is none.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    text: str | None

    @property
    def values(self) -> int:
        """Count of the numbers that the tensors hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def meta(self) -> WeightsMeta | None:
        """The description of the network, checked; None where there is none.

        Raises:
            UserError: a value that cannot be.
        """
        return None if self.text is None else parse_meta(self.text, str(self.path))


def read_header(path: Path) -> Header:
    """Names, shapes and description of a .safetensors, without its tensors.

    Raises:
        UserError: it is damaged, or holds tensors of a kind that no network here has.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise UserError(
                f"{path} is damaged or no .safetensors file (its header has {size:,} bytes, more than {MAX_HEADER:,}); "
                "fetch or train it again."
            )
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            kinds = {name: one.get_dtype() for name, one in slices.items()}
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise damaged(path, error) from error
    for name, kind in kinds.items():
        if kind not in DTYPES:
            raise UserError(f"{path} holds {shortened(name)} as {kind}, which no network here has; convert it to F32.")
    return Header(path, shapes, text)


def damaged(path: Path, error: Exception) -> UserError:
    """The sentence for a file that cannot be read."""
    reason = shortened(str(error), 200).strip("'\"")
    return UserError(f"{path} is damaged or no .safetensors file ({reason}); fetch or train it again.")


def check_numbers(meta: WeightsMeta, header: Header) -> None:
    """Refuse options of a file's network that are larger than any size of the file's tensors.

    Raises:
        UserError: naming the option.
    """
    largest = max((max(shape, default=1) for shape in header.shapes.values()), default=1)
    most = max(MAX_NUMBER, largest, len(header.shapes))
    for group in ("model_options", "head_options"):
        for name, value in numbers_of(getattr(meta, group)):
            if not math.isfinite(value) or (isinstance(value, int) and abs(value) > most):
                raise UserError(
                    f"{header.path} says {group}.{shortened(name)}={shortened(value)}, which does not fit its tensors: "
                    f"their largest side is {largest}."
                )


@contextmanager
def bounded(header: Header) -> Iterator[None]:
    """Limit networks built inside to the modules and values that the file's tensors can fill.

    Raises:
        UserError: a network grows beyond that, or takes minutes.
    """
    most_values, most_entries = 3 * header.values + EXTRA_VALUES, 30 * len(header.shapes) + 3000
    end = time.monotonic() + SECONDS
    values = entries = 0

    def count_registered(module: nn.Module, name: str, entry: Any) -> None:
        nonlocal values, entries
        entries += 1
        values += entry.numel() if isinstance(entry, Tensor) and not nn.parameter.is_lazy(entry) else 0
        if values > most_values or entries > most_entries or time.monotonic() > end:
            raise UserError(
                f"{header.path} describes a network far larger than its {len(header.shapes)} tensors with "
                f"{header.values:,} values: it is refused."
            )

    handles = [
        registration.register_module_parameter_registration_hook(count_registered),
        registration.register_module_buffer_registration_hook(count_registered),
        registration.register_module_module_registration_hook(count_registered),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
