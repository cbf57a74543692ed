"""Small PartialFormers and maps, with weights and scores that leave nothing to rounding."""

import torch

from vitrail.models.partialformer import PartialAttention, PartialFormer

TINY = {"embed_dims": (8, 16, 16, 32), "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "num_classes": 5}
TINY |= {"head_hidden_size": 24}


def tiny(**options):
    return PartialFormer(**{**TINY, **options})


def randomised(module, seed=0):
    """Every parameter moved off its initial value, so that no bias is zero and no map an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module.eval()


def partial_attention(dim=8, num_heads=2, seed=0, **options):
    return randomised(PartialAttention(dim, num_heads, **{"foreground_ratio": (1, 4), **options}), seed)


def maps(batch, dim, height, width, seed=0):
    """(normalised, raw) maps with clear score gaps: the choice of tokens must not hang on rounding."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(batch, dim, height, width, generator=generator)
    ranks = torch.stack([torch.randperm(height * width, generator=generator) for _ in range(batch)])
    raw = raw - raw.mean(1, keepdim=True) + 0.1 * ranks.view(batch, 1, height, width)
    return torch.randn(batch, dim, height, width, generator=generator), raw
