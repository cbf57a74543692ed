"""The forms a network is timed in: as it is, fused, compiled, exported; each a callable without arguments."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checkpoint.sources import TIMM
from ..config.export import Dynamic
from . import dense, runtimes
from .networks import Build, images_of
from .roofline import synchronise
from .speed import EAGER, REWRITTEN, TimedForm

Form = Literal["eager", "fused", "compiled"]
MemoryFormat = Literal["channels_last", "contiguous"]
DTYPES: dict[runtimes.Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}


@dataclass(frozen=True)
class Candidate:
    """A network in one form, as plain values, from which any process can build it.

    Attributes:
        source: a name of ours, "random:NAME", "timm:NAME", or weights of ours.
        form: as it is, fused, or compiled.
        runtime: what runs it.
        batch: images in a call.
        image_size: (height, width) in pixels.
        precision: number format of the computation.
        memory_format: order of the axes in memory.
        device: "cpu", "cuda", "cuda:1", ...
        training: time forward and backward in training mode instead of a prediction.
        dynamic: free axes of the exported network, as in `vitrail export`.
        file: the exported network, for runtimes other than torch.
        threads: of a runtime that has its own.
        name: what the results call the network; "" = its source.
        build: how a network by name is built.
        decoding: time what `predict` does from the prepared images to the predictions, with the network in it.
    """

    source: str
    form: Form = "eager"
    runtime: runtimes.TimedRuntime = "torch"
    batch: int = 1
    image_size: tuple[int, int] = (224, 224)
    precision: runtimes.Precision = "fp32"
    memory_format: MemoryFormat = "channels_last"
    device: str = "cpu"
    training: bool = False
    threads: int = 1
    dynamic: Dynamic | None = None
    file: str | None = None
    name: str = ""
    build: Build = field(default_factory=Build)
    decoding: bool = False

    @property
    def label(self) -> str:
        """The form, where it is another the runtime and the precision, and what is timed beside the network."""
        form = self.form if self.runtime == "torch" else f"{self.form} in {self.runtime}"
        form = form if self.precision == "fp32" else f"{form}, {self.precision}"
        return f"{form} + decoding" if self.decoding else form

    @property
    def timed(self) -> str:
        """What is timed, in words."""
        if self.training:
            return "forward and backward"
        return "network and decoding" if self.decoding else "network"


def form_of(candidate: Candidate, network: nn.Module) -> nn.Module:
    """The module that is compiled, exported or run: the network itself or its fused form."""
    return (
        runtimes.fused(network, images_of(network, 1, candidate.image_size)) if candidate.form == "fused" else network
    )


def with_file(candidate: Candidate, network: nn.Module, folder: Path) -> Candidate:
    """The candidate with its file inside `folder`, where it runs in another runtime than torch.

    A file that an earlier call wrote is used again: exporting takes minutes.
    """
    if candidate.runtime == "torch":
        return candidate
    height, width = candidate.image_size
    name = re.sub(r"[^\w.-]", "_", candidate.source.removeprefix(TIMM))
    own_precision = "int8" if candidate.precision == "int8" else "fp32"  # bf16 is how OpenVINO runs it
    if candidate.build != Build():  # other options make another file
        name += "-" + hashlib.sha256(json.dumps(asdict(candidate.build)).encode()).hexdigest()[:12]
    batch = candidate.batch if candidate.dynamic == "none" else candidate.dynamic or "free"
    own = folder / f"{name}-{candidate.form}-{own_precision}-{batch}x{height}x{width}"
    file = runtimes.file_in(own, candidate.runtime)
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            images = images_of(network, candidate.batch, candidate.image_size)
            runtimes.export(
                form_of(candidate, network),
                network.meta,
                runtime=candidate.runtime,
                folder=Path(unfinished),
                images=images,
                precision=own_precision,
                dynamic=candidate.dynamic,
            )
            own.mkdir(exist_ok=True)
            for part in sorted(Path(unfinished).iterdir()):  # weights first: the graph marks a complete export
                part.replace(own / part.name)
    return replace(candidate, file=str(file))


def timed_form_of(
    candidate: Candidate, network: nn.Module, expected: Tensor | None, folder: Path
) -> tuple[Candidate, TimedForm]:
    """The candidate ready to be timed.

    Args:
        network: `network_of` its source; left as it is.
        expected: the network's logits in fp32, which forms in fp32 claim to give.
        folder: for exported files.

    Returns:
        The candidate, with its file if it has one, and its timed form; refused if the form is not available.
    """
    name = f"{candidate.name or candidate.source} {candidate.label}"
    try:
        candidate = with_file(candidate, network, folder)
        call = call_of(candidate, network)
        if candidate.form != "eager" or candidate.runtime != "torch" or candidate.decoding:
            call()  # compilers and runtimes complain only now
    except Exception as error:  # fusing, exporting and each runtime raise errors of their own types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return candidate, TimedForm(name, _never, candidate.batch, refused=f"is not available: {reason}")
    if candidate.decoding:  # the network itself is compared
        expected = None
    equal = EAGER if candidate.form == "eager" and candidate.runtime == "torch" else REWRITTEN
    tolerance = equal if candidate.precision == "fp32" else None
    return candidate, TimedForm(
        name, call, batch=candidate.batch, reference=expected, tolerance=tolerance, settle=candidate.form == "compiled"
    )


def _never() -> None:
    raise AssertionError("a refused timed form was called")


def call_of(candidate: Candidate, network: nn.Module) -> Callable[[], Any]:
    """The work to be timed.

    Args:
        network: `network_of` the candidate's source; left as it is.
    """
    device, layout = torch.device(candidate.device), MEMORY_FORMATS[candidate.memory_format]
    if candidate.runtime != "torch":
        pixels = images_of(network, candidate.batch, candidate.image_size).numpy()
        run = runtimes.opened(
            candidate.file,
            candidate.runtime,
            precision=candidate.precision,
            threads=candidate.threads,
            shape=pixels.shape,
        )
        if candidate.decoding:
            return _decoded(runtimes.AsModule(run, candidate.image_size), network, candidate)
        return lambda: run(pixels)
    dtype = DTYPES[candidate.precision]
    module = copy.deepcopy(form_of(candidate, network)).to(device, dtype).to(memory_format=layout)
    runner = compiled(module, device, candidate.training) if candidate.form == "compiled" else module
    if candidate.decoding:
        return _decoded(runner if dtype == torch.float32 else dense.InDtype(runner, dtype), network, candidate)
    if dense.is_detector(network):
        return _inference(runner, dense.prepared(network, candidate.batch, candidate.image_size, device)[1], device)
    x = images_of(network, candidate.batch, candidate.image_size)
    x = x.to(device, dtype).contiguous(memory_format=layout)
    return _training(module.train(), runner, x) if candidate.training else _inference(runner, x, device)


def compiled(module: nn.Module, device: torch.device, training: bool = False) -> nn.Module:
    """The form that `torch.compile` makes, on the processor with frozen weights unless they are trained.

    On a GPU its operators are in one CUDA graph, launched at once.
    """
    if device.type == "cpu" and not training:
        return runtimes.frozen(module)
    mode = "reduce-overhead" if device.type == "cuda" else None
    return cast(nn.Module, torch.compile(module, mode=mode))


def _inference(module: Callable[[Any], Any], x: Any, device: torch.device) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            out = module(x)
        synchronise(device)
        return out

    return call


def _decoded(runner: nn.Module, network: nn.Module, candidate: Candidate) -> Callable[[], Any]:
    """From prepared images to predictions, by the inference of the network's task."""
    device = torch.device(candidate.device)
    inference, inputs = dense.prepared(network, candidate.batch, candidate.image_size, device)
    return _inference(lambda x: inference.infer(runner, x), inputs, device)


def _training(module: nn.Module, runner: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    """Forward and backward; the gradients are dropped so that every call begins without any."""

    def call() -> Any:
        outputs = [leaf for leaf in tree_leaves(runner(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([out.float().mean() for out in outputs]).sum().backward()
        module.zero_grad(set_to_none=True)
        synchronise(x.device)

    return call
