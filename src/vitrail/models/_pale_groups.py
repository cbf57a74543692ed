"""Index bookkeeping of Pale attention: grouping the rows of a map, or its pales, and the way back.

Views and one copy each; every size is read from the tensor.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
