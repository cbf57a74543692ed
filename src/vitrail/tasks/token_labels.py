"""The loss of token labelling (LV-ViT; LVT and the starred Pale networks): a label for the picture, one a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def token_label_loss(
    logits: Tensor,
    tokens: Tensor,
    target: Tensor,
    box: Sequence[int],
    class_weight: float = 1.0,
    token_weight: float = 0.5,
    ground_truth: bool = False,
) -> Tensor:
    """Cross-entropy of the picture's class, mixed as MixToken mixed the pictures, plus that of its un-mixed tokens.

    Args:
        logits: (B, K) of pictures mixed inside `box` with the batch in reversed order.
        tokens: (B, N, K) logits of the tokens, un-mixed.
        target: (B, K) probabilities, which then serve class and tokens; or (B, K, 2 + N): ground truth, the teacher's
            label of the picture, and of each token.
        box: (top, left, bottom, right) in tokens.
        class_weight: of the picture's part.
        token_weight: of the tokens' part.
        ground_truth: see `class_target`.

    Returns:
        Scalar: `class_weight * CE(logits, mixed) + token_weight * mean CE(tokens, labels)`.

    Raises:
        ValueError: a target of another shape.
    """
    count = tokens.shape[1]
    if target.shape != logits.shape and target.shape != (*logits.shape, 2 + count):
        raise ValueError(
            f"target of shape {tuple(target.shape)} is not allowed; give {tuple(logits.shape)} or "
            f"{(*logits.shape, 2 + count)}"
        )
    mixed = mixed_target(class_target(target, ground_truth), box, count)
    labels = target[:, :, None].expand(-1, -1, count) if target.ndim == 2 else target[:, :, 2:]
    of_tokens = F.cross_entropy(tokens.float().transpose(1, 2), labels)
    return class_weight * F.cross_entropy(logits.float(), mixed) + token_weight * of_tokens


def class_target(target: Tensor, ground_truth: bool = False) -> Tensor:
    """(B, K) label of each picture, from the targets of `token_label_loss`.

    Args:
        target: (B, K) or (B, K, 2 + N).
        ground_truth: mix the true class into the teacher's label: it has the weight 0.5 where both name the same
            class first, else 0.1.
    """
    if target.ndim == 2:
        return target
    truth, teacher = target[:, :, 0], target[:, :, 1]
    if not ground_truth:
        return teacher
    agree = truth.argmax(1, keepdim=True) == teacher.argmax(1, keepdim=True)
    return torch.where(agree, 0.5, 0.9) * teacher + torch.where(agree, 0.5, 0.1) * truth


def mixed_target(target: Tensor, box: Sequence[int], tokens: int) -> Tensor:
    """(B, K) labels of pictures of which MixToken took `box` from the batch in reversed order."""
    top, left, bottom, right = box
    share = (bottom - top) * (right - left) / tokens
    return (1 - share) * target + share * target.flip(0)
