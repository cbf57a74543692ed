"""EMSNet: tokens spread over their pixels by a grouped 1x1 convolution and a pixel shuffle."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ....layers.rebuild import rebuild
from ....models.emsnet import Propagate


class ShuffledPropagate(Propagate):
    """EMSNet's `Propagate` as a grouped 1x1 convolution to p * p channels an output channel, and a pixel shuffle."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """See `Propagate`."""
        out_dim, patch = self.bias.shape[0], self.weight.shape[2]
        weight = self.weight.reshape(out_dim, self.expand, patch * patch).transpose(1, 2)
        weight = weight.reshape(out_dim * patch * patch, self.expand, 1, 1)
        bias = self.bias[:, None].expand(-1, patch * patch).flatten()
        x = F.pixel_shuffle(F.conv2d(x, weight, bias, groups=out_dim), patch)
        return x[:, :, :height, :width]


def shuffled_propagate(layer: Propagate) -> ShuffledPropagate:
    """The same layer, whose batched products OpenVINO would compute one small product at a time."""
    return rebuild(layer, ShuffledPropagate)
