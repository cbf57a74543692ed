"""Settings of a benchmark, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checkpoint.load import pick_device
from ..config.train import sides
from ..errors import UserError, unknown
from . import runtimes
from .forms import FORMS, LAYOUTS, PRECISIONS, Candidate, sources
from .machine import cores
from .speed import default_rounds

#: larger values exceed the memory or time of any machine
MOST = {"batch_size": 65_536, "image_size": 16_384, "rounds": 1_000_000}

#: one network a family
DEFAULT: tuple[str, ...] = ("pslt", "lvt", "pale_tiny", "emsnet_tiny", "mat_2", "partialformer_b1")


@dataclass
class Settings:
    """Settings of `vitrail benchmark`.

    Attributes:
        models: names or patterns of ours, random:NAME, timm:NAME, or weights of ours; by default one a family.
        against: networks of timm.
        batch_size: images in a call; several sizes as 1,16.
        image_size: side, or (height, width), in pixels.
        forms: "eager", "fused", or both as eager,fused.
        compile: also the form that torch.compile makes, on a GPU with CUDA graphs.
        runtime: "torch", "onnxruntime", "openvino", or several with commas.
        precision: "fp32" or "bf16".
        memory_format: "channels_last" or "contiguous".
        threads: of each call, kept on as many cores.
        rounds: calls of each; None = 15, and 7 from a batch of 16 on.
        training: forward and backward instead of a prediction.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        roofline: also measure the machine's peak rates.
        sizes: of single networks, by source, instead of `image_size`.
    """

    models: list[str] = field(default_factory=lambda: list(DEFAULT))
    against: list[str] = field(default_factory=list)
    batch_size: list[int] = field(default_factory=lambda: [1])
    image_size: int | tuple[int, int] = 224
    forms: list[str] = field(default_factory=lambda: ["eager"])
    compile: bool = False
    runtime: list[str] = field(default_factory=lambda: ["torch"])
    precision: str = "fp32"
    memory_format: str = "channels_last"
    threads: int = 1
    rounds: int | None = None
    training: bool = False
    device: str = "auto"
    roofline: bool = True
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.image_size = sides(self.image_size)

    def size_of(self, source: str) -> tuple[int, int]:
        """(height, width) of a network's images."""
        return sides(self.sizes.get(source, self.image_size))

    def check(self) -> None:
        """Raise `UserError` for settings that cannot be measured."""
        for option, values, allowed in (
            ("form", self.forms, FORMS[:2]),
            ("runtime", self.runtime, ("torch", *runtimes.EXTRAS)),
            ("precision", [self.precision], PRECISIONS),
            ("memory_format", [self.memory_format], LAYOUTS),
        ):
            if not values:
                raise UserError(f"--{option} names nothing: choose of {', '.join(allowed)}.")
            for value in values:
                if value not in allowed:
                    raise UserError(unknown(option, value, allowed))
        if not self.batch_size or min(self.batch_size) < 1:
            raise UserError(f"--batch_size {','.join(map(str, self.batch_size))} must hold numbers of 1 or more.")
        height, width = self.size_of("")
        if min(height, width) < 1:
            raise UserError(f"--image_size {height} {width} must be 1 or more.")
        if self.rounds is not None and self.rounds < 1:
            raise UserError(f"--rounds {self.rounds} must be at least 1.")
        for option, most_given in (
            ("batch_size", max(self.batch_size)),
            ("image_size", max(height, width)),
            ("rounds", self.rounds or 1),
        ):
            if most_given > MOST[option]:
                raise UserError(f"--{option} {most_given} must be at most {MOST[option]:,}.")
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
        common = {
            "source": source,
            "batch": batch,
            "image_size": self.size_of(source),
            "precision": self.precision,
            "memory_format": self.memory_format,
            "device": str(pick_device(self.device)),
            "training": self.training,
            "threads": self.threads,
        }
        forms = [*self.forms, *(["compiled"] if self.compile else [])]
        own = [Candidate(form=form, **common) for form in forms] if "torch" in self.runtime else []
        others = [name for name in self.runtime if name != "torch"]
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
