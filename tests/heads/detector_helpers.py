"""Small detectors on a body of four convolutions, and two images to learn from."""

import torch
from torch import nn

from vitrail.heads.mask_rcnn import MaskRCNN
from vitrail.heads.panoptic_fpn import PanopticFPN
from vitrail.heads.retinanet import RetinaNet
from vitrail.heads.sparse_rcnn import SparseRCNN
from vitrail.heads.ssdlite import SSDLite

SMALL = {
    RetinaNet: {"channels": 16, "min_size": 64, "max_size": 128},
    MaskRCNN: {"channels": 16, "fc_channels": 16, "min_size": 64, "max_size": 128},
    PanopticFPN: {"channels": 16, "fc_channels": 16, "semantic_channels": 12, "min_size": 64, "max_size": 128},
    SparseRCNN: {
        "num_proposals": 7,
        "num_stages": 2,
        "channels": 16,
        "dynamic_channels": 4,
        "mlp_channels": 8,
        "min_size": 64,
        "max_size": 128,
    },
    SSDLite: {"extra_channels": (12, 8, 8, 8), "image_size": (128, 96)},
}


class Body(nn.Module):
    """Four maps at strides 4 to 32 from one convolution each."""

    def __init__(self, widths):
        super().__init__()
        pairs = zip([3, *widths[:-1]], widths, (4, 2, 2, 2), strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in pairs)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def small(kind, **options) -> nn.Module:
    torch.manual_seed(0)
    widths = [4, 6, 8, 10]
    classes = {"num_things": 3, "num_stuff": 2} if kind is PanopticFPN else {"num_classes": 3}
    return kind(Body(widths), widths, **{**classes, **SMALL[kind], **options})


def targets() -> tuple[list, list]:
    """Two images of different sizes, one of them without anything in it."""
    images = [torch.rand(3, 61, 90), torch.rand(3, 75, 50)]
    boxes = torch.tensor([[4.0, 5.0, 40.0, 50.0], [20.0, 2.0, 80.0, 58.0]])
    masks = torch.zeros(2, 61, 90, dtype=torch.uint8)
    masks[0, 5:50, 4:40] = masks[1, 2:58, 20:80] = 1
    semantic = torch.full((61, 90), 255)
    semantic[:30], semantic[30:40], semantic[50:] = 0, 1, 2
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "semantic": semantic}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    none |= {"masks": torch.zeros(0, 75, 50, dtype=torch.uint8), "semantic": torch.full((75, 50), 255)}
    return images, [found, none]
