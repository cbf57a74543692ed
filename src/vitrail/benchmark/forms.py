"""The forms a network is timed in: as it is, fused, compiled, exported; each a callable without arguments."""

from __future__ import annotations

import copy
import fnmatch
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checkpoint.load import RANDOM, TIMM, described, open_network
from ..errors import UserError, unknown
from ..factory import WithHead, check_name
from ..models import names
from . import runtimes
from .roofline import synchronise
from .speed import EAGER, REWRITTEN, TimedForm

Form = Literal["eager", "fused", "compiled"]
Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
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
        file: the exported network, for runtimes other than torch.
        threads: of a runtime that has its own.
    """

    source: str
    form: Form = "eager"
    runtime: runtimes.TimedRuntime = "torch"
    batch: int = 1
    image_size: tuple[int, int] = (224, 224)
    precision: Precision = "fp32"
    memory_format: MemoryFormat = "channels_last"
    device: str = "cpu"
    training: bool = False
    threads: int = 1
    file: str | None = None

    @property
    def label(self) -> str:
        """The form, and where it does not run in torch, the runtime."""
        return self.form if self.runtime == "torch" else f"{self.form} in {self.runtime}"


def sources(models: list[str], against: list[str]) -> list[str]:
    """The sources of all networks: our patterns expanded, "timm:" before the names of `against`.

    Raises:
        UserError: a name or pattern that matches nothing.
    """
    found = []
    for model in models:
        pattern = model.removeprefix(RANDOM)
        if model.startswith(TIMM):
            found.append(_timm_source(model))
        elif matches := fnmatch.filter(names(), pattern):
            found += matches
        elif Path(model).exists():
            found.append(model)
        else:
            raise UserError(unknown("model", pattern, names()))
    found += [_timm_source(name) for name in against]
    return list(dict.fromkeys(found))


def _timm_source(name: str) -> str:
    name = name.removeprefix(TIMM)
    check_name(name)
    return TIMM + name


def network_of(source: str, image_size: tuple[int, int]) -> nn.Module:
    """The network in evaluation mode, in fp32 on the processor.

    A name stands for random weights, the same in every process, with random statistics and biases: with freshly
    initialised ones, a wrongly folded normalisation would change nothing. Times do not depend on weights, so timm's are
    not downloaded.
    """
    if not source.startswith(TIMM) and source not in names():
        network = open_network(source)
        meta: Any = network.meta
        if meta.head is not None and not isinstance(network, WithHead):
            raise UserError(
                f"{source} holds a detector, whose time depends on what it finds: benchmark its backbone, {meta.model}."
            )
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = source.removeprefix(TIMM)
        network = described(_from_timm(name, image_size), name)
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.ndim == 1 and value.is_floating_point():
                    value.add_(0.1 * torch.rand_like(value) if name.endswith("var") else 0.1 * torch.randn_like(value))
    return network.eval()


def _from_timm(name: str, image_size: tuple[int, int]) -> nn.Module:
    """A network of timm's registry, which holds ours, too; one with a fixed size is built for `image_size`."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size[1:]) != image_size:
        return timm.create_model(name, img_size=image_size)
    return timm.create_model(name)


def images_of(network: nn.Module, batch: int, image_size: tuple[int, int]) -> Tensor:
    """A batch of random images, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    described_by: Any = network.meta
    return torch.randn(batch, described_by.preprocess.in_chans, *image_size, generator=generator)


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
    own = folder / f"{name}-{candidate.form}-{candidate.batch}x{height}x{width}"
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
    name = f"{candidate.source} {candidate.label}"
    try:
        candidate = with_file(candidate, network, folder)
        call = call_of(candidate, network)
        if candidate.form != "eager" or candidate.runtime != "torch":
            call()  # compilers and runtimes complain only now
    except Exception as error:  # fusing, exporting and each runtime raise errors of their own types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return candidate, TimedForm(name, _never, candidate.batch, refused=f"is not available: {reason}")
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
    x = images_of(network, candidate.batch, candidate.image_size)
    if candidate.runtime != "torch":
        run, pixels = runtimes.opened(Path(str(candidate.file)), candidate.runtime, candidate.threads), x.numpy()
        return lambda: run(pixels)
    device, layout = torch.device(candidate.device), MEMORY_FORMATS[candidate.memory_format]
    dtype = DTYPES[candidate.precision]
    x = x.to(device, dtype).contiguous(memory_format=layout)
    module = copy.deepcopy(form_of(candidate, network)).to(device, dtype).to(memory_format=layout)
    runner = compiled(module, device) if candidate.form == "compiled" else module
    return _training(module.train(), runner, x) if candidate.training else _inference(runner, x)


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The form that `torch.compile` makes; on a GPU with its operators in one CUDA graph, launched at once."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    return cast(nn.Module, torch.compile(module, mode=mode))


def _inference(module: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            out = module(x)
        synchronise(x.device)
        return out

    return call


def _training(module: nn.Module, runner: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    """Forward and backward; the gradients are dropped so that every call begins without any."""

    def call() -> Any:
        outputs = [leaf for leaf in tree_leaves(runner(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([out.float().mean() for out in outputs]).sum().backward()
        module.zero_grad(set_to_none=True)
        synchronise(x.device)

    return call
