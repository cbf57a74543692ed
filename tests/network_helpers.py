"""The smallest network of every family, and weights that let every parameter matter."""

import math

import timm
import torch
from torch import nn

from vitrail.models import FAMILIES, family_of, names

#: the first network that a family registers is its smallest
SMALLEST = {family: next(name for name in names() if family_of(name) == family) for family in FAMILIES}

#: options that make the smallest network of a family narrow
NARROW = {
    "pslt": {"embed_dims": (12, 12, 24, 24), "num_heads": (0, 0, 2, 2), "depths": (1, 1, 1, 1), "window_size": 3},
    "lvt": {"embed_dims": (8, 8, 16, 16), "num_heads": 2},
    "volo": {"embed_dims": (8, 16, 16, 16), "num_heads": 2},
    "pale": {"embed_dims": (8, 8, 16, 16), "num_heads": 2, "pale_size": 3},
    "emsnet": {"embed_dims": (16, 16, 32, 32), "head_dim": 8},
    "mat": {"embed_dims": (8, 8, 16, 16), "num_heads": 2, "window_size": 3, "head_hidden_size": 24},
    "partialformer": {"embed_dims": (8, 8, 16, 16), "num_heads": 2, "head_hidden_size": 24},
}


def small(family: str, **options):
    """The family's smallest network, one block a stage where depths are an option."""
    return timm.create_model(SMALLEST[family], **{"depths": (1, 1, 2, 2), "num_classes": 10, **options})


def randomised(model):
    """Every parameter random enough to matter: zero-initialised ones would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that let every parameter matter, in float64."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim >= 2:
                value.copy_(noise / math.sqrt(max(value[0].numel(), 1)))
            else:
                value.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
    return net.eval()
