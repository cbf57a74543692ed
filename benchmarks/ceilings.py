"""What chains of equal layers reach in each runtime: the rate at which a network's multiply-adds could run at best.

    python benchmarks/ceilings.py [--threads 1] [--rounds 25]

Eight 1x1 convolutions, or eight linear layers on tokens, that widen and narrow as the networks' MLPs do, exported for a
fixed shape. Of each shape the faster of the two counts; a runtime's ceiling is the median of the shapes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.benchmark.machine import pinned_threads
from vitrail.benchmark.networks import network_of
from vitrail.benchmark.runtimes import PRECISIONS, Precision, TimedRuntime, file_in, has_bf16, opened
from vitrail.benchmark.speed import TimedForm, measure
from vitrail.checkpoint.format import meta_of
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.metadata import Metadata
from vitrail.deploy.export.trace import Graph, Shape

LAYERS = 8
#: (side of the map, narrow and wide channels), as in the stages of the networks
SHAPES = ((56, 32, 128), (56, 64, 256), (28, 64, 256), (14, 128, 512), (14, 256, 1024), (7, 256, 1024), (7, 512, 2048))
Form = tuple[TimedRuntime, Precision]


def forms() -> list[Form]:
    """Exported networks in floating point, bf16 where this processor has it."""
    precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
    return [(run, p) for run, own in PRECISIONS.items() for p in own if run != "torch" and p in precisions]


class Chain(nn.Module):
    """Layers that widen and narrow in turns, as 1x1 convolutions of a map or as linear layers of its tokens."""

    def __init__(self, narrow: int, wide: int, tokens: bool):
        super().__init__()
        self.tokens = tokens
        widths = [(narrow, wide), (wide, narrow)] * (LAYERS // 2)
        self.layers = nn.Sequential(*(nn.Linear(*w) if tokens else nn.Conv2d(*w, 1) for w in widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, narrow, H, W) -> the same shape."""
        if not self.tokens:
            return self.layers(x)
        return self.layers(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def ceilings(threads: int, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[Form, list[float]]:
    """Rate of every shape in GMAC/s, by runtime and precision."""
    found: dict[Form, list[float]] = {form: [] for form in forms()}
    with tempfile.TemporaryDirectory() as folder:
        for number, shape in enumerate(SHAPES):
            for form, rate in _rates(shape, Path(folder) / str(number), threads, rounds=rounds, clock=clock):
                found[form].append(rate)
    return found


def ceiling(rates: list[float]) -> float:
    """The ceiling of a runtime in GMAC/s from the rates of the shapes."""
    return statistics.median(rates)


def _rates(
    shape: tuple[int, int, int], folder: Path, threads: int, *, rounds: int, clock: Callable[[], float]
) -> Iterator[tuple[Form, float]]:
    side, narrow, wide = shape
    images = torch.randn(1, narrow, side, side, generator=torch.Generator().manual_seed(0))
    pixels = images.numpy()
    timed = []
    for tokens in (False, True):
        chain = Chain(narrow, wide, tokens).eval()
        for runtime, precision in forms():
            file = _written(chain, images, runtime, folder / f"{runtime}-{tokens}")
            run = opened(str(file), runtime, precision=precision, threads=threads, shape=tuple(images.shape))
            timed.append(((runtime, precision), TimedForm(runtime, partial(run, pixels))))
    timings = measure([form for _, form in timed], rounds, clock)
    amount = LAYERS * side * side * narrow * wide / 1e9
    for wanted in forms():
        medians = [timing.median for (form, _), timing in zip(timed, timings, strict=True) if form == wanted]
        yield wanted, amount / min(medians)


def _written(chain: nn.Module, images: Tensor, runtime: TimedRuntime, folder: Path) -> Path:
    """The chain as a file for images of one shape."""
    backend = next(backend for backend in BACKENDS.values() if backend.runtime == runtime)
    file, shape = file_in(folder, runtime), Shape(1, tuple(images.shape[2:]), channels=images.shape[1])
    if not file.is_file():
        folder.mkdir(parents=True)
        meta = meta_of(network_of("mat_1", (32, 32)))  # a file says a network's
        backend.write(backend.trace(Graph(chain), shape), file, Metadata(meta, backend.name, shape.axes, ["y"]), shape)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    with pinned_threads(args.threads):
        found = ceilings(args.threads, args.rounds)
    print("| GMAC/s of side, narrow, wide |", *(f"{', '.join(map(str, shape))} |" for shape in SHAPES), "ceiling |")
    print("|---|" + "---:|" * (len(SHAPES) + 1))
    for (runtime, precision), rates in found.items():
        print(f"| {runtime} {precision} |", *(f"{rate:.0f} |" for rate in rates), f"{ceiling(rates):.0f} |")


if __name__ == "__main__":
    main()
