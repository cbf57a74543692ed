"""Classifier with a hidden layer and its own pooling; `reset` changes the classifier and keeps the hidden layer."""

from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn


class HiddenHead(nn.Module):
    """1x1 convolution with bias, BatchNorm, GELU; then pooling, dropout, linear classifier (MAT).

    Args:
        in_features: channels of the map.
        hidden_size: channels that are pooled and classified.
        num_classes: 0 leaves the classifier out.
        global_pool: "avg", "max", "avgmax", or "" for none.
        drop_rate: dropout before the classifier.

    Shapes: (B, in_features, H, W) -> (B, num_classes); without classifier (B, hidden_size); without pooling (only
    together with no classifier) (B, hidden_size, H, W).
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        num_classes: int,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_features = in_features
        self.hidden_size = hidden_size
        self.conv = nn.Conv2d(in_features, hidden_size, 1, **dd)
        self.bn = nn.BatchNorm2d(hidden_size, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with `pre_logits` the input of the classifier."""
        x = self.act(self.bn(self.conv(x)))
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def reset(self, num_classes: int, global_pool: str | None = None, device: Any = None, dtype: Any = None) -> None:
        """A new classifier of `num_classes` (0 = none); `global_pool` None keeps the present pooling."""
        if global_pool is not None:
            pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
            self.global_pool = pool.train(self.training)
        fc = nn.Linear(self.hidden_size, num_classes, device=device, dtype=dtype) if num_classes > 0 else nn.Identity()
        self.fc = fc.train(self.training)

    def drop_hidden(self) -> None:
        """Remove the hidden layer: the map itself is pooled and classified."""
        self.conv, self.bn, self.act = nn.Identity(), nn.Identity(), nn.Identity()
        self.hidden_size = self.in_features
