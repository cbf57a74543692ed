"""Functions of several reference forms: layers on tokens, heads, explicit attention, windows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.layers import Mlp


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), in memory of its own."""
    return x.flatten(2).transpose(1, 2).contiguous()


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Back: (B, H * W, C) -> (B, C, H, W)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, height, width).contiguous()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer whose weight may be kept as a 1x1 convolution, on tokens (..., C)."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def heads_of(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, N, parts * C) -> (parts, B, heads, N, d)."""
    batch, count, width = x.shape
    return x.reshape(batch, count, parts, heads, width // (parts * heads)).permute(2, 0, 3, 1, 4)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention with its scores written out: (B, heads, N, d) -> (B, N, C)."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    out = scores.softmax(dim=-1) @ v
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


def pad_to(x: Tensor, size: int) -> Tensor:
    """Zero-pad a (B, H, W, C) map at the bottom and right to a multiple of `size`."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))


def windows_of(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B * nW, size * size, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, channels)


def windows_back(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `windows_of`."""
    batch = windows.shape[0] // (height // size * (width // size))
    x = windows.view(batch, height // size, width // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, width, -1)


def apart(labels: Tensor) -> Tensor:
    """0 where two tokens of a window have the same label, -inf elsewhere: (nW, T) -> (nW, 1, T, T)."""
    other = labels[:, None, :] != labels[:, :, None]
    return torch.zeros_like(other, dtype=torch.float32).masked_fill(other, float("-inf")).unsqueeze(1)


class ReferenceMlp(Mlp):
    """Two linear layers on tokens."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = linear(self.fc1, to_tokens(x))
        if not isinstance(self.dwconv, nn.Identity):
            y = to_tokens(self.dwconv(to_map(y, height, width)))
        return to_map(self.drop2(linear(self.fc2, self.drop1(self.act(y)))), height, width)
