"""Settings of a benchmark, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..checkpoint.load import pick_device
from ..checkpoint.sources import head_of
from ..config.export import Dynamic
from ..config.train import Head, Task, height_width
from ..engine.predict import collect
from ..errors import UserError
from ..utils.plain import from_dict, limited, limits_of, to_dict
from . import paper_tables, runtimes
from .dense import check_head, keeps_shape
from .forms import Candidate, Form, MemoryFormat
from .machine import cores
from .networks import DEFAULT_SIZE, Build, Entry, holds_weights, named, sources
from .speed import default_rounds

#: one network a family
DEFAULT: tuple[str, ...] = ("pslt", "lvt", "pale_tiny", "emsnet_tiny", "mat_2", "partialformer_b1")


@dataclass
class Settings:
    """Settings of `vitrail benchmark`.

    Attributes:
        models: names or patterns of ours, names of timm's (also as timm:NAME), random:NAME, or weights of ours; by
            default one a family.
        against: networks of timm.
        model_options: constructor options of the networks named, such as {"branch_fusion": false}.
        variants: several sets of constructor options, each with a label, such as {"all": {}, "no fusion":
            {"branch_fusion": false}}; every network named is timed with each.
        task: with a head, its task; with options_of, the task of the rows.
        head: head on the features of every network, as in training; times the network, and the network with the
            decoding of its output as predict does it. None = the default of the task, or the networks' own classifiers.
        head_options: constructor options of the head, the number of classes among them.
        options_of: table of a paper, such as emsnet:3.9, whose networks are timed, with the ratio to the full network
            beside the printed one; "list" lists the tables.
        images: image files, a folder or a glob: time what predict does with each of them - reading, preprocessing,
            network, decoding - instead of random images.
        batch_size: images in a call; several batch sizes as 1,16.
        image_size: height and width in pixels, one number or two; None = 224, the size of the task or the table's row,
            or that in the weights.
        forms: eager (unchanged), fused (for inference), or both as eager,fused.
        compile: also time the network under torch.compile, on a GPU with CUDA graphs.
        runtime: runtime of the networks; several as torch,openvino.
        precision: precision of the computation; several as fp32,bf16. int8 is for exported networks, bf16 for torch and
            openvino; each runtime is timed in those it has.
        dynamic: free axes of exported networks, as in `vitrail export`; None = as many as it frees by default.
        memory_format: memory format of images and weights.
        threads: number of threads, pinned to as many cores.
        rounds: number of timed calls; None = 15, and 7 from a batch of 16 on; of the images in a folder, 1.
        training: time forward and backward instead of a prediction.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        roofline: also measure the machine's peak rates.
        sizes: image sizes of single networks, by source, instead of `image_size`.
    """

    models: list[str] = field(default_factory=lambda: list(DEFAULT))
    against: list[str] = field(default_factory=list)
    model_options: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: Task | None = None
    head: Head | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    options_of: str | None = None
    images: str | None = None
    # larger values exceed the memory or time of any machine
    batch_size: list[int] = field(default_factory=lambda: [1], metadata=limits_of(least=1, most=65_536, filled=True))
    image_size: int | tuple[int, int] | None = limited(None, least=1, most=16_384)
    forms: list[Literal["eager", "fused"]] = field(default_factory=lambda: ["eager"], metadata=limits_of(filled=True))
    compile: bool = False
    runtime: list[runtimes.TimedRuntime] = field(default_factory=lambda: ["torch"], metadata=limits_of(filled=True))
    precision: list[runtimes.Precision] = field(default_factory=lambda: ["fp32"], metadata=limits_of(filled=True))
    dynamic: Dynamic | None = None
    memory_format: MemoryFormat = "channels_last"
    threads: int = 1
    rounds: int | None = limited(None, least=1, most=1_000_000)
    training: bool = False
    device: str = "auto"
    roofline: bool = True
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_size is not None:
            self.image_size = height_width(self.image_size)

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
        if others and pick_device(self.device).type != "cpu":
            raise UserError(f"--runtime {','.join(others)} is measured on the CPU; leave it out for others.")
        if self.dynamic is not None and not others:
            raise UserError(
                f"--dynamic {self.dynamic} has no effect: it needs onnxruntime or openvino among --runtime."
            )
        self._check_precisions()
        if self.training and (others or self.forms != ["eager"]):
            raise UserError("--training is for the eager form in torch, and --compile: other forms only predict.")
        self._check_networks()
        if self.images is not None:
            self._check_images()

    def _check_precisions(self) -> None:
        """Refuse precisions that no runtime named has, and runtimes that have none of those named."""
        for precision in self.precision:
            have = [name for name, own in runtimes.PRECISIONS.items() if precision in own]
            if not set(have) & set(self.runtime):
                raise UserError(
                    f"--precision {precision} is for --runtime {' and '.join(have)}: name one, or leave it out."
                )
        for runtime in self.runtime:
            if not self._precisions(runtime):
                has = " and ".join(runtimes.PRECISIONS[runtime])
                raise UserError(f"--runtime {runtime} has {has}, not --precision {','.join(self.precision)}.")

    def _precisions(self, runtime: runtimes.TimedRuntime) -> list[runtimes.Precision]:
        """Those of `precision` that a runtime has."""
        return [precision for precision in self.precision if precision in runtimes.PRECISIONS[runtime]]

    def _check_networks(self) -> None:
        """Refuse options that would name or build the networks twice, or none of them."""
        own = {
            "model_options": self.model_options,
            "variants": self.variants,
            "head": self.head,
            "head_options": self.head_options,
        }
        given = [name for name, value in own.items() if value]
        if self.options_of is not None:
            paper_tables.table_of(self.options_of)
            taken = [*self.models, *(f"--{name}" for name in given)]
            if taken:
                raise UserError(
                    f"--options_of {self.options_of} says which networks are timed and how they are built: leave "
                    f"{taken[0]} out."
                )
            return
        if self.head_options and self.head is None and self.task is None:
            raise UserError("--head_options is for a head: name it with --head.")
        if (self.model_options or self.variants) and not self.models:
            raise UserError(f"--{given[0]} has no effect without a network named before --against.")
        if self.task is not None:
            given.append("task")
        weights = [source for source in sources(self.models, self.against) if holds_weights(source)]
        if given and weights:
            raise UserError(f"--{given[0]} is for networks by name: {weights[0]} says itself how its network is built.")

    def _check_images(self) -> None:
        """Refuse what `predict` would not do with images."""
        default = Settings()
        fixed = ("batch_size", "forms", "compile", "runtime", "precision", "dynamic", "memory_format", "training")
        for name in fixed:
            if getattr(self, name) != getattr(default, name):
                raise UserError(
                    f"--{name} is not for --images, which times what predict does: one image after another, eager, in "
                    "fp32; leave it out."
                )
        if self.image_size is not None:
            weights = [source for source in sources(self.models, self.against) if holds_weights(source)]
            if weights:
                raise UserError(f"--image_size is not for {weights[0]}, whose weights say the size: leave it out.")
            height, width = height_width(self.image_size)
            shaped = [e.build.head for e in self.entries() if e.build.head and keeps_shape(e.build.head)]
            if shaped and height != width:
                raise UserError(
                    f"--image_size {height} {width}: head {shaped[0]} keeps the shape of images; give one side."
                )

    def entries(self) -> list[Entry]:
        """The networks to time.

        Raises:
            UserError: an option names something that does not exist.
        """
        head: dict[str, Any] = {}
        if self.options_of is None and (self.head or self.task):
            task, name = check_head(self.task, self.head)
            head = {"task": task, "head": name, "head_options": self.head_options}
        if self.options_of is not None:
            found = [row.entry for row in paper_tables.rows_of(self.options_of, self.task)]
        else:
            found = [entry for source in sources(self.models, []) for entry in self._named(source, head)]
        found += [Entry(source, _under(source, head), Build(**head)) for source in sources([], self.against)]
        return [self._sized(entry) for entry in found]

    def _named(self, source: str, head: dict[str, Any]) -> list[Entry]:
        """A network with the options given: one, or one a variant."""
        if not self.variants:
            build = Build(self.model_options, **head)
            return [Entry(source, _under(named(source, self.model_options), head), build)]
        return [
            Entry(source, _under(f"{source} {label}", head), Build({**self.model_options, **options}, **head))
            for label, options in self.variants.items()
        ]

    def _sized(self, entry: Entry) -> Entry:
        size = self.sizes.get(entry.source, self.image_size)
        return entry if size is None else replace(entry, image_size=height_width(size))

    def candidates(self, entry: Entry, batch: int, dense: bool | None = None) -> list[Candidate]:
        """The forms of one network to time, eager first.

        Args:
            entry: the network.
            batch: images in a call.
            dense: whether it has a head, whose output is decoded; None = as the entry or its weights say.
        """
        common: dict[str, Any] = {
            "source": entry.source,
            "batch": batch,
            "image_size": entry.image_size or DEFAULT_SIZE,
            "memory_format": self.memory_format,
            "device": str(pick_device(self.device)),
            "training": self.training,
            "threads": self.threads,
            "name": entry.name,
            "build": entry.build,
        }
        forms: list[Form] = [*self.forms, *(["compiled"] if self.compile else [])]
        found = [
            Candidate(form=form, runtime=runtime, precision=precision, dynamic=self._dynamic(runtime), **common)
            for runtime in sorted(self.runtime, key=lambda name: name != "torch")
            for precision in self._precisions(runtime)
            for form in (forms if runtime == "torch" else self.forms)
        ]
        dense = has_head(entry) if dense is None else dense
        if self.training or not dense:
            return found
        return [replace(one, decoding=decoding) for one in found for decoding in (False, True)]

    def _dynamic(self, runtime: runtimes.TimedRuntime) -> Dynamic | None:
        return None if runtime == "torch" else self.dynamic

    def work(self) -> int:
        """Number of progress steps of `benchmark`."""
        if self.images is not None:
            return len(collect([self.images])) * (self.rounds or 1)
        one = sum(len(self.candidates(entry, 1)) for entry in self.entries())
        return sum(2 * one + (self.rounds or default_rounds(batch)) for batch in self.batch_size)


def has_head(entry: Entry) -> bool:
    """True of a network of a dense task."""
    return entry.build.head is not None or (holds_weights(entry.source) and head_of(entry.source) is not None)


def _under(name: str, head: dict[str, Any]) -> str:
    return f"{name} + {head['head']}" if head else name


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them, such as "1,16".

    Raises:
        UserError: the text is something else.
    """
    parts = str(text).strip("[]").split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise UserError(f"--{option} {text} must be a whole number, or several with commas between them, such as 1,16.")
    return [int(part) for part in parts]
