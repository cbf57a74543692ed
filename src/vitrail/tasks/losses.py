"""Losses of the tasks: token labelling (LV-ViT), labelled pixels, triplets, and of learning from a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.datasets.index_masks import IGNORE


def token_label_loss(
    logits: Tensor,
    tokens: Tensor,
    target: Tensor,
    box: Sequence[int],
    class_weight: float = 1.0,
    token_weight: float = 0.5,
    ground_truth: bool = False,
) -> Tensor:
    """Cross-entropy of the image's class, mixed as MixToken mixed the images, plus that of its un-mixed tokens.

    Args:
        logits: (B, K) of images mixed inside `box` with the batch in reversed order.
        tokens: (B, N, K) logits of the tokens, un-mixed.
        target: (B, K) probabilities, which then serve class and tokens; or (B, K, 2 + N): ground truth, the teacher's
            label of the image, and of each token.
        box: (top, left, bottom, right) in tokens.
        class_weight: of the image's term.
        token_weight: of the tokens' term.
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
    """(B, K) label of each image, from the targets of `token_label_loss`.

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
    """(B, K) labels of images of which MixToken took `box` from the batch in reversed order."""
    top, left, bottom, right = box
    share = (bottom - top) * (right - left) / tokens
    return (1 - share) * target + share * target.flip(0)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that have a class, and 0 where none has.

    Args:
        logits: (B, classes, H, W).
        masks: (B, H, W) indices; 255 = no class.
    """
    total = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp(min=1)


def triplet_loss(features: Tensor, identities: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., 2017, Eq. 5) with a hinge.

    For every image the farthest of its own identity must be nearer, by the margin, than the nearest of another one.

    Args:
        features: (B, D) float.
        identities: (B,) int64, two or more different ones.
        margin: in the units of the features' Euclidean distance.

    Returns:
        The mean over the B images.
    """
    # by matrix products, near images would lose their digits
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = identities[:, None] == identities
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, float("inf")).amin(1)
    return F.relu(margin + farthest - nearest).mean()


# ---- learning from a teacher ------------------------------------------------------------------------------------


def soft_label_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's to the student's probabilities (Hinton et al., 2015).

    Args:
        logits: (B, K, ...) of the student.
        teacher: (B, K, ...) logits of the teacher.
        temperature: T.

    Returns:
        (B, ...): `T^2 * sum_k p_k (log p_k - log q_k)`, p and q = softmax of the teacher's and student's logits / T.
    """
    own = (logits.float() / temperature).log_softmax(1)
    taught = (teacher.float() / temperature).log_softmax(1)
    return F.kl_div(own, taught, reduction="none", log_target=True).sum(1) * temperature**2


def hard_label_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's likeliest class (DeiT, Touvron et al., 2021, Eq. 3), of shape (B, ...).

    Args:
        logits: (B, K, ...) of the student.
        teacher: (B, K, ...) logits of the teacher.
    """
    return F.cross_entropy(logits.float(), teacher.argmax(1), reduction="none")


def feature_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between two features, (B,), the mean over the places of a map.

    Args:
        features: (B, D, ...) of the student.
        teacher: (B, D, ...) of the teacher.
    """
    cosine = F.cosine_similarity(features.float(), teacher.float(), dim=1)
    return (1 - cosine).flatten(1).mean(1) if cosine.ndim > 1 else 1 - cosine
