"""Groups of Pale attention: the rows of a map or its pales gathered, attention inside them, and the way back.

Gathering is views and one copy; every size is read from the tensor.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import attention


def split_interlaced(x: Tensor, size: int, even: bool = False) -> list[Tensor]:
    """Group the rows of a map: row y goes to group y mod N, N = ceil(H / size), so a group spans the whole map.

    No row is padded: the first H mod N groups hold one row more than the rest and come as a tensor of their own.
    `even` promises that `size` divides H.

    Shapes: (B, H, W, C) -> one or two of (B, groups, tokens of a group, C), tokens row by row.
    """
    batch, height, width, channels = x.shape
    if even:
        return [x.reshape(batch, size, height // size, width, channels).transpose(1, 2).flatten(2, 3)]
    groups = (height + size - 1) // size
    rows, longer = height // groups, height % groups
    # row y = k * N + i: the axes are (rows of a group, groups), the other order would be stripes of adjacent rows
    body = x[:, : rows * groups].reshape(batch, rows, groups, width, channels).transpose(1, 2)
    if longer == 0:
        return [body.reshape(batch, groups, rows * width, channels)]
    tail = x[:, rows * groups :].unsqueeze(2)
    return [torch.cat([body[:, :longer], tail], dim=2).flatten(2, 3), body[:, longer:].flatten(2, 3)]


def padded_pairs(length: int, across: int, size: int, interlaced: bool = True) -> int:
    """Pairs of query and key that groups as long as the longest would add: `length` rows of `across` tokens.

    The groups are `split_interlaced`'s, or `split_stripes`'.
    """
    groups = -(-length // size)
    if interlaced:
        shortest, longer = divmod(length, groups)
        rows = [shortest + 1] * longer + [shortest] * (groups - longer)
    else:
        rows = [min(size, length - start) for start in range(0, length, size)]
    return sum(max(rows) ** 2 - own**2 for own in rows) * across**2


def merge_interlaced(parts: list[Tensor], width: int) -> Tensor:
    """Inverse of `split_interlaced`: -> (B, H, width, C)."""
    rows = [p.reshape(p.shape[0], p.shape[1], p.shape[2] // width, width, p.shape[3]).transpose(1, 2) for p in parts]
    if len(rows) == 1:
        return rows[0].flatten(1, 2)
    shared = rows[1].shape[1]  # rows that every group has
    body = torch.cat([rows[0][:, :shared], rows[1]], dim=2).flatten(1, 2)
    return torch.cat([body, rows[0][:, shared]], dim=1)


def split_stripes(x: Tensor, size: int) -> list[Tensor]:
    """Group the rows of a map into stripes of `size` adjacent rows; a shorter last one is a tensor of its own.

    Shapes: (B, H, W, C) -> one or two of (B, groups, tokens of a group, C), tokens row by row.
    """
    batch, height, width, channels = x.shape
    full = height // size
    if full * size == height:
        return [x.reshape(batch, full, size * width, channels)]
    rest = x[:, full * size :].reshape(batch, 1, (height - full * size) * width, channels)
    if full == 0:
        return [rest]
    return [x[:, : full * size].reshape(batch, full, size * width, channels), rest]


def merge_stripes(parts: list[Tensor], width: int) -> Tensor:
    """Inverse of `split_stripes`: -> (B, H, width, C)."""
    rows = [p.reshape(p.shape[0], p.shape[1] * p.shape[2] // width, width, p.shape[3]) for p in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def split_pales(x: Tensor, groups: int) -> Tensor:
    """The pales themselves: pale i has the rows y = i and the columns x = i (mod N), each of its tokens once.

    Shapes: (B, H, W, C), N dividing H and W -> (B, N, H/N * W + W/N * (H - H/N), C): the rows' tokens first.
    """
    batch, height, width, channels = x.shape
    n, rows, cols = groups, height // groups, width // groups
    across = x.reshape(batch, rows, n, width, channels).transpose(1, 2).flatten(2, 3)
    down = x.reshape(batch, rows, n, cols, n, channels).permute(0, 4, 2, 3, 1, 5)  # (B, N of column, N of row, ...)
    # drop the tokens whose row is in the pale already, the diagonal of the two N axes: of an N x N matrix without its
    # first entry, read N + 1 at a time, the last column is the diagonal
    down = down.reshape(batch, n * n, cols * rows * channels)[:, 1:]
    down = down.reshape(batch, n - 1, n + 1, cols * rows * channels)[:, :, :n]
    return torch.cat([across, down.reshape(batch, n, (n - 1) * cols * rows, channels)], dim=2)


def merge_pales(tokens: Tensor, height: int, width: int) -> Tensor:
    """Back from `split_pales`: -> (B, height, width, C); a token that lay in two pales gets the mean of its two values.

    The mean is not in the paper, which does not say how the two outputs meet.
    """
    batch, n, channels = tokens.shape[0], tokens.shape[1], tokens.shape[3]
    rows, cols = height // n, width // n
    across = tokens[:, :, : rows * width].reshape(batch, n, rows, width, channels).transpose(1, 2)
    across = across.reshape(batch, height, width, channels)
    down = tokens[:, :, rows * width :].reshape(batch, n - 1, n, cols * rows * channels)
    down = F.pad(down, (0, 0, 0, 1)).reshape(batch, (n - 1) * (n + 1), cols * rows * channels)
    down = F.pad(down, (0, 0, 1, 0)).reshape(batch, n, n, cols, rows, channels)
    down = down.permute(0, 4, 2, 3, 1, 5).reshape(batch, height, width, channels)
    row_group = torch.arange(height, device=tokens.device) % n
    column_group = torch.arange(width, device=tokens.device) % n
    two = (row_group[:, None] != column_group[None, :])[..., None]
    return torch.where(two, (across + down) / 2, across)


def attend_groups(q: Tensor, k: Tensor, v: Tensor, num_heads: int, real: Tensor | None) -> Tensor:
    """Multi-head attention inside each group.

    Shapes: q, k, v (B, N, tokens, C), real (1, N, tokens, 1) boolean, False on padding -> (B, N, tokens, C).
    """
    batch, groups, tokens, channels = q.shape
    shape = (batch * groups, tokens, num_heads, channels // num_heads)
    mask: Tensor | None = None
    if real is not None:
        mask = real.reshape(1, groups, 1, 1, tokens).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    q, k, v = q.reshape(shape).transpose(1, 2), k.reshape(shape).transpose(1, 2), v.reshape(shape).transpose(1, 2)
    return attention(q, k, v, mask).transpose(1, 2).reshape(batch, groups, tokens, channels)


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, size: int, interlaced: bool, real: Tensor | None
) -> Tensor:
    """Attention inside groups of `size` whole rows, interlaced (Pale) or adjacent (CSWin).

    Shapes: q, k, v (B, H, W, C), real (1, H, W, 1) boolean -> (B, H, W, C).
    """
    width = q.shape[2]
    even = real is not None or q.shape[1] % size == 0  # padded maps are multiples of `size`: one part, no remainder
    if interlaced:
        qs, ks, vs = (split_interlaced(q, size, even), split_interlaced(k, size, even), split_interlaced(v, size, even))
    else:
        qs, ks, vs = split_stripes(q, size), split_stripes(k, size), split_stripes(v, size)
    parts: list[Tensor] = []
    for i in range(len(qs)):
        keys: Tensor | None = None
        if real is not None:
            keys = split_interlaced(real, size, even)[i] if interlaced else split_stripes(real, size)[i]
        parts.append(attend_groups(qs[i], ks[i], vs[i], num_heads, keys))
    return merge_interlaced(parts, width) if interlaced else merge_stripes(parts, width)
