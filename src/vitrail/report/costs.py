"""Parameters, multiply-adds and latency of networks, timed in turns in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..benchmark.machine import pinned_threads
from ..benchmark.roofline import synchronise
from ..benchmark.runtimes import fused as fused_form
from ..benchmark.speed import REWRITTEN, TimedForm, Timing, measure
from ..checkpoint.format import meta_of
from ..errors import UserError
from ..factory import HEADS
from ..flops.counting import rule_of
from ..flops.heads import count_with_head, total
from ..flops.profile import profile
from ..tasks.with_head import backbone_of
from ..utils.progress import bar

#: counting rule of the multiply-adds
RULE = "executed"


@dataclass
class Costs:
    """What a network costs for one image.

    Attributes:
        params: parameters.
        macs: multiply-adds.
        image_size: (height, width) of the image.
        timed: what is timed: the network, or of a detector its backbone.
        eager: times of the network as it is; None = not timed.
        fused: times of its inference form; None = not timed.
    """

    params: int
    macs: int
    image_size: tuple[int, int]
    timed: str
    eager: Timing | None = None
    fused: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; times in milliseconds."""
        found: dict[str, Any] = {
            "params": self.params,
            "macs": self.macs,
            "image_size": list(self.image_size),
            "timed": self.timed,
        }
        for name, timing in (("eager", self.eager), ("fused", self.fused)):
            if timing is not None:
                found[name] = _times(timing)
        return found


def _times(timing: Timing) -> dict[str, Any]:
    if timing.refused is not None:
        return {"refused": timing.refused}
    low, middle, high = (1e3 * timing.quantile(share) for share in (0.25, 0.5, 0.75))
    return {"median_ms": middle, "quartiles_ms": [low, high], "rounds": len(timing.seconds)}


def costs_of(networks: Sequence[nn.Module], rounds: int, device: torch.device) -> list[Costs]:
    """The costs of networks, each for an image of its own size, timed in interleaved rounds.

    Args:
        networks: with their descriptions.
        rounds: timed calls of each form; 0 = nothing is timed.
        device: where they are timed; on the CPU with one thread.
    """
    found = [_counted(network) for network in networks]
    if not rounds:
        return found
    with pinned_threads(1), torch.inference_mode():
        forms = [form for network in networks for form in _forms(network, device)]
        with bar("Measuring", rounds) as advance:
            timings = measure(forms, rounds, advance=advance)
    for one, eager, fused in zip(found, timings[::2], timings[1::2], strict=True):
        one.eager, one.fused = eager, fused
    return found


def _counted(network: nn.Module) -> Costs:
    meta = meta_of(network)
    height, width = meta.preprocess.image_size
    params = sum(p.numel() for p in network.parameters())
    if meta.head is None:
        macs = profile(network, (meta.preprocess.in_chans, height, width), RULE).macs
        return Costs(params, macs, (height, width), timed="network")
    twin = copy.deepcopy(network).to("meta")
    backbone, head = count_with_head(twin, meta.head, (height, width))
    timed = "backbone" if HEADS[meta.head].detector else "network"
    return Costs(params, total(backbone, head, rule_of(RULE)), (height, width), timed=timed)


def _forms(network: nn.Module, device: torch.device) -> list[TimedForm]:
    """The network as it is and in its inference form, for one image of random pixels."""
    meta = meta_of(network)
    detector = meta.head is not None and HEADS[meta.head].detector
    eager = copy.deepcopy(backbone_of(network) if detector else network).to(device).eval()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, meta.preprocess.in_chans, *meta.preprocess.image_size, generator=generator).to(device)
    expected = _first(eager(image))

    def call(module: nn.Module) -> Callable[[], Any]:
        def run() -> Any:
            found = _first(module(image))
            synchronise(device)
            return found

        return run

    try:
        fused, refused = fused_form(eager, image), None
    except (UserError, ValueError, RuntimeError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fused, refused = eager, f"cannot be fused: {lines[0]}"
    return [
        TimedForm("eager", call(eager)),
        TimedForm("fused", call(fused), reference=expected, tolerance=REWRITTEN, refused=refused),
    ]


def _first(output: Any) -> Any:
    """One tensor of an output: of several maps the last."""
    if isinstance(output, dict):
        output = list(output.values())
    return output[-1] if isinstance(output, (list, tuple)) else output
