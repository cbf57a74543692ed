"""MixToken (LV-ViT): a box of every sample's tokens is replaced by the same box of another sample's.

One box serves the whole batch; sample b is mixed with sample B - 1 - b. Mixing with the same box twice gives back the
input, so `mix_tokens` also undoes itself on the token logits.

A box is (top, left, bottom, right) in tokens, the last two exclusive; (0, 0, 0, 0) mixes nothing.
"""

import torch
from torch import Tensor

Box = tuple[int, int, int, int]


def draw_box(height: int, width: int, lam: float, generator: torch.Generator | None = None) -> Box:
    """A random box that covers about 1 - `lam` of a (height, width) grid of tokens.

    Its height and width are `sqrt(1 - lam)` of the grid's, rounded down; the centre is uniform over the grid. The box
    is clipped to the grid, so it may be smaller: recompute lambda from it, `1 - area / (height * width)`.

    Args:
        lam: share of tokens that are not replaced, in [0, 1]; MixToken draws it from Beta(1, 1), which is uniform.
        generator: source of the randomness (None = torch's global one).

    Raises:
        ValueError: if `lam` lies outside [0, 1].
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam={lam!r} is not allowed; give a number in [0, 1]")
    share = (1.0 - lam) ** 0.5
    spans = []
    for size in (height, width):
        half = int(size * share) // 2
        centre = int(torch.randint(size, (), generator=generator))
        spans.append((max(centre - half, 0), min(centre + half, size)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right


def mix_tokens(x: Tensor, box: Box, scale: int = 1) -> Tensor:
    """Replace a box of each sample's map by the same box of the batch in reversed order.

    Args:
        x: (B, C, H, W).
        box: (top, left, bottom, right), in cells of `scale` x `scale` positions of the map.
        scale: stride between the box's grid and the map's.
    """
    top, left, bottom, right = (scale * edge for edge in box)
    rows = torch.arange(x.shape[2], device=x.device)
    cols = torch.arange(x.shape[3], device=x.device)
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((cols >= left) & (cols < right))[None, :]
    return torch.where(inside, x.flip(0), x)
