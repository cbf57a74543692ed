"""Settings of a benchmark, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..checkpoint.load import pick_device
from ..config.train import height_width
from ..errors import UserError
from ..utils.plain import from_dict, limited, limits_of, to_dict
from . import runtimes
from .forms import Candidate, Form, MemoryFormat, Precision, sources
from .machine import cores
from .speed import default_rounds

#: one network a family
DEFAULT: tuple[str, ...] = ("pslt", "lvt", "pale_tiny", "emsnet_tiny", "mat_2", "partialformer_b1")


@dataclass
class Settings:
    """Settings of `vitrail benchmark`.

    Attributes:
        models: names or patterns of ours, random:NAME, timm:NAME, or weights of ours; by default one a family.
        against: networks of timm.
        batch_size: images in a call; several batch sizes as 1,16.
        image_size: height and width in pixels, one number or two.
        forms: eager (unchanged), fused (for inference), or both as eager,fused.
        compile: also time the network under torch.compile, on a GPU with CUDA graphs.
        runtime: runtime of the networks; several as torch,openvino.
        precision: precision of the computation.
        memory_format: memory format of images and weights.
        threads: number of threads, pinned to as many cores.
        rounds: number of timed calls; None = 15, and 7 from a batch of 16 on.
        training: time forward and backward instead of a prediction.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        roofline: also measure the machine's peak rates.
        sizes: image sizes of single networks, by source, instead of `image_size`.
    """

    models: list[str] = field(default_factory=lambda: list(DEFAULT))
    against: list[str] = field(default_factory=list)
    # larger values exceed the memory or time of any machine
    batch_size: list[int] = field(default_factory=lambda: [1], metadata=limits_of(least=1, most=65_536, filled=True))
    image_size: int | tuple[int, int] = limited(224, least=1, most=16_384)
    forms: list[Literal["eager", "fused"]] = field(default_factory=lambda: ["eager"], metadata=limits_of(filled=True))
    compile: bool = False
    runtime: list[runtimes.TimedRuntime] = field(default_factory=lambda: ["torch"], metadata=limits_of(filled=True))
    precision: Precision = "fp32"
    memory_format: MemoryFormat = "channels_last"
    threads: int = 1
    rounds: int | None = limited(None, least=1, most=1_000_000)
    training: bool = False
    device: str = "auto"
    roofline: bool = True
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.image_size = height_width(self.image_size)

    def size_of(self, source: str) -> tuple[int, int]:
        """(height, width) of a network's images."""
        return height_width(self.sizes.get(source, self.image_size))

    def check(self) -> None:
        """Raise `UserError` for settings that cannot be measured."""
        from_dict(Settings, to_dict(self), "--")
        if not 1 <= self.threads <= len(cores()):
            raise UserError(f"--threads {self.threads} must lie between 1 and {len(cores())}, this machine's cores.")
        for option in ("compile", "memory_format"):
            if "torch" not in self.runtime and getattr(self, option) != getattr(Settings, option):
                raise UserError(f"--{option} has no effect: it needs torch among --runtime {','.join(self.runtime)}.")
        others = [name for name in self.runtime if name != "torch"]
        for name in others:
            runtimes.check_installed(name)
        if others and (self.precision != "fp32" or pick_device(self.device).type != "cpu"):
            raise UserError(f"--runtime {','.join(others)} is measured in fp32 on the CPU; leave it out for others.")
        if self.training and (others or self.forms != ["eager"]):
            raise UserError("--training is for the eager form in torch, and --compile: other forms only predict.")

    def candidates(self, source: str, batch: int) -> list[Candidate]:
        """The forms of one network to time, eager first."""
        common: dict[str, Any] = {
            "source": source,
            "batch": batch,
            "image_size": self.size_of(source),
            "precision": self.precision,
            "memory_format": self.memory_format,
            "device": str(pick_device(self.device)),
            "training": self.training,
            "threads": self.threads,
        }
        forms: list[Form] = [*self.forms, *(["compiled"] if self.compile else [])]
        own = [Candidate(form=form, **common) for form in forms] if "torch" in self.runtime else []
        others: list[runtimes.TimedRuntime] = [name for name in self.runtime if name != "torch"]
        return own + [Candidate(form=form, runtime=name, **common) for name in others for form in self.forms]

    def work(self) -> int:
        """Number of progress steps of `benchmark`."""
        one = len(sources(self.models, self.against)) * len(self.candidates("", 1))
        return sum(2 * one + (self.rounds or default_rounds(batch)) for batch in self.batch_size)


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them, such as "1,16".

    Raises:
        UserError: the text is something else.
    """
    parts = str(text).strip("[]").split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise UserError(f"--{option} {text} must be a whole number, or several with commas between them, such as 1,16.")
    return [int(part) for part in parts]
