"""The classifier of LVT and VOLO: class attention behind the pyramid, a head for the class and one for every token."""

from collections.abc import Callable, Sequence
from typing import Any, List, Tuple, Union  # noqa: UP035 - TorchScript reads these spellings

import torch
from timm.layers import get_device_dtype
from torch import Tensor, nn

from ..layers import channels_last, check_choice
from ..layers.mix_token import Box, draw_box, mix_tokens
from ..layers.tracing import unscripted
from .pyramid import Pyramid


class ClassTokenPyramid(Pyramid):
    """A `Pyramid` that classifies from a class token and, for token labelling, from every token of the last map.

    The logits are the class head's plus `aux_logit_weight` times the auxiliary head's largest over the tokens. A
    subclass ends its constructor with `finish(..., post=...)`; without `post`, the class head reads the pooled map.

    Args:
        embed_dims, num_classes, in_chans, global_pool, drop_rate, reductions: see `Pyramid`.
        token_labeling: the auxiliary head exists.
        mix_token: in training, mix samples by MixToken and return `forward_token_labeling`'s tuple.
        aux_logit_weight: of the auxiliary head in the logits.
    """

    no_decay = ("cls_token",)

    def __init__(
        self,
        embed_dims: Sequence[int],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        token_labeling: bool,
        mix_token: bool,
        aux_logit_weight: float,
        reductions: Sequence[int] = (4, 8, 16, 32),
    ):
        if mix_token and not token_labeling:
            raise ValueError("mix_token=True is not allowed with token_labeling=False; choose token_labeling=True")
        super().__init__(embed_dims, num_classes, in_chans, global_pool, drop_rate, reductions)
        self.token_labeling = token_labeling
        self.mix_token = mix_token
        self.aux_logit_weight = aux_logit_weight
        self.post: nn.Module | None = None
        self.aux_head: nn.Module | None = None

    def finish(
        self,
        norm: nn.Module | None,
        global_pool: str,
        out_norm: Callable[[int], nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
        post: nn.Module | None = None,
    ) -> None:
        """As `Pyramid.finish`, with the class-attention stage `post` (None = pool the map instead)."""
        self.post = post
        self._check_pool(global_pool)
        self.aux_head = self._make_aux_head(self.num_classes, device, dtype)
        super().finish(norm, global_pool, out_norm, device, dtype)

    def _check_pool(self, global_pool: str) -> None:
        if self.post is not None:  # the class token takes the place of pooling
            check_choice("global_pool (with class_attention)", global_pool, ("avg", ""))

    def _make_aux_head(self, num_classes: int, device: Any = None, dtype: Any = None) -> nn.Module | None:
        return self.make_head(num_classes, device, dtype) if self.token_labeling and num_classes > 0 else None

    # ---- forward ------------------------------------------------------------------------------------------------

    def read_out(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """What the two heads read from the map of `forward_features`: (B, C) and the tokens (B, H * W, C)."""
        if self.post is not None and self.global_pool.pool_type != "":
            return self.post(x)
        return self.global_pool(x), x.flatten(2).transpose(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the map of `forward_features`; with `pre_logits` stop before the heads."""
        pooled, tokens = self.read_out(x)
        pooled = self.head_drop(pooled)
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.aux_head is not None and (self.training or self.aux_logit_weight != 0.0):
            logits = logits + self.aux_logit_weight * self.aux_head(tokens).amax(dim=1)
        return logits

    @unscripted
    def forward_token_labeling(self, x: torch.Tensor, box: Box | None = None) -> tuple[Tensor, Tensor, Box]:
        """Forward for the loss of token labelling: samples mixed by MixToken behind the stem, both heads apart.

        Args:
            x: images (B, in_chans, H, W).
            box: (top, left, bottom, right) on the last map's grid, where a sample is mixed with that of the batch in
                reversed order; None draws one, (0, 0, 0, 0) mixes nothing.

        Returns:
            Class logits (B, K), whose labels are to be mixed: 1 - area / tokens of the sample's own, the rest of its
            partner's; token logits (B, tokens, K), un-mixed; the box.

        Raises:
            ValueError: without the auxiliary head.
        """
        if self.aux_head is None:
            raise ValueError("forward_token_labeling needs the auxiliary head: token_labeling=True and num_classes > 0")
        x = self.stem(channels_last(x))
        scale = self.feature_info[-1]["reduction"] // self.feature_info[0]["reduction"]
        rows, cols = ((side + scale - 1) // scale for side in x.shape[2:])
        if box is None:
            box = draw_box(rows, cols, lam=float(torch.rand(())))  # Beta(1, 1)
        x = self.norm(self.stages(mix_tokens(x, box, scale)))
        pooled, tokens = self.read_out(x)
        token_logits = self.aux_head(tokens).transpose(1, 2).unflatten(2, (rows, cols))  # (B, K, rows, cols)
        token_logits = mix_tokens(token_logits, box).flatten(2).transpose(1, 2)
        return self.head(self.head_drop(pooled)), token_logits, box

    def forward(self, x: Tensor) -> Tensor:
        """Logits; in training with `mix_token` the tuple of `forward_token_labeling`."""
        if self.mix_token and self.training and self.aux_head is not None and not torch.jit.is_scripting():
            return self.forward_token_labeling(x)  # pyright: ignore[reportReturnType]
        return self.forward_head(self.forward_features(x))

    # ---- what timm asks for -------------------------------------------------------------------------------------

    @unscripted
    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,  # noqa: UP006, UP007
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages behind the last one wanted; class attention goes with the head or with the last stage."""
        stages = len(self.stages)
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < stages:
            self.post = None
        return take

    @unscripted
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The layer that gives the logits, with the auxiliary one beside it where there is one."""
        return self.head if self.aux_head is None else (self.head, self.aux_head)

    @unscripted
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads of `num_classes` (0 = none); `global_pool` None keeps the present pooling."""
        if global_pool is not None:
            self._check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._make_aux_head(num_classes, **get_device_dtype(self))
        if self.aux_head is not None:
            self.aux_head.train(self.training)
            self.init_module(self.aux_head, "aux_head")
