"""BNNeck: one feature for the triplet loss, its normalised form for retrieval (Luo et al., CVPRW 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .common import check_counts, check_widths


class BNNeck(nn.Module):
    """Mean over the last map, batch normalisation without a learned shift, a classifier without bias.

    Args:
        in_chs: widths of the four maps; the last, already normalised by the backbone, is read.
        num_ids: identities to train on.
    """

    def __init__(self, in_chs: Sequence[int], num_ids: int = 751):
        super().__init__()
        check_widths(in_chs)
        check_counts(num_ids=num_ids)
        self.bn = nn.BatchNorm1d(in_chs[-1])
        self.bn.bias.requires_grad_(False)
        self.classifier = nn.Linear(in_chs[-1], num_ids, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, maps: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Four maps -> the embedding (B, C); in training (feature before, logits of identities)."""
        feature = maps[-1].float().mean((2, 3))  # distances are those of these numbers, also under autocast
        normalised = self.bn(feature)
        return (feature, self.classifier(normalised)) if self.training else normalised
