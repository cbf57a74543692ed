"""Training on small maps: 1x1 convolutions against matrix products, and dilations wider than the map.

    python benchmarks/small_maps.py [--threads N]

Forward and backward, channels_last, fp32; the two forms interleaved, the least of several times, in milliseconds.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

POINTWISE = [(50, 1, 512, 512), (50, 2, 256, 256), (50, 2, 256, 1024), (50, 3, 256, 256), (256, 3, 256, 1024)]
POINTWISE += [(50, 4, 128, 512), (256, 4, 128, 512), (50, 6, 128, 512), (50, 8, 64, 256), (50, 16, 64, 256)]
DILATED = [(50, 1, 256, 3), (50, 2, 160, 3), (50, 2, 160, 5), (50, 4, 64, 5)]


def both(first: Callable[[], Tensor], second: Callable[[], Tensor], rounds: int = 15) -> tuple[float, float]:
    """Least time of forward and backward of each form, in milliseconds."""
    best = [float("inf"), float("inf")]
    grad = torch.ones_like(first())
    for _ in range(rounds):
        for i, form in enumerate((first, second)):
            started = time.perf_counter()
            form().backward(grad)
            best[i] = min(best[i], time.perf_counter() - started)
    return best[0] * 1e3, best[1] * 1e3


def map_of(batch: int, side: int, channels: int) -> Tensor:
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print("| pointwise: batch, side, in, out | convolution | matrix product | ratio |\n|---|---:|---:|---:|")
    for batch, side, inputs, outputs in POINTWISE:
        x, w, b = (
            map_of(batch, side, inputs),
            torch.randn(outputs, inputs, 1, 1, requires_grad=True),
            torch.randn(outputs),
        )
        conv, product = both(
            lambda x=x, w=w, b=b: F.conv2d(x, w, b),
            lambda x=x, w=w, b=b: F.linear(x.permute(0, 2, 3, 1), w.flatten(1), b).permute(0, 3, 1, 2),
        )
        print(f"| {batch}, {side}, {inputs}, {outputs} | {conv:.2f} | {product:.2f} | {conv / product:.2f} |")
    print("\n| depthwise 3x3: batch, side, channels, rate | convolution | centre only | ratio |\n|---|---:|---:|---:|")
    for batch, side, channels, rate in DILATED:
        x, w = map_of(batch, side, channels), torch.randn(channels, 1, 3, 3, requires_grad=True)
        conv, centre = both(
            lambda x=x, w=w, r=rate: F.conv2d(x, w, padding=r, dilation=r, groups=x.shape[1]),
            lambda x=x, w=w: x * w[:, 0, 1, 1, None, None],
        )
        print(f"| {batch}, {side}, {channels}, {rate} | {conv:.2f} | {centre:.2f} | {conv / centre:.1f} |")


if __name__ == "__main__":
    main()
