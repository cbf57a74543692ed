"""What a class activation map speaks for: a number for each image, out of what a network of each task gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..tasks import task_of

#: tasks whose networks take lists of images and give boxes
OF_BOXES = ("detection", "instance_segmentation", "panoptic_segmentation")


class NotFound(UserError):
    """An image in which a network finds nothing that a map could speak for; other images may have something.

    Args:
        image: its number in the batch.
        what: is not found.
    """

    def __init__(self, image: int, what: str):
        self.reason = f"the network finds {what} there, so that gradcam has nothing to speak for"
        super().__init__(f"gradcam: the network finds {what} in image {image} (counted from 0); name another class.")


@dataclass
class Score:
    """A number for each image, whose gradient is taken.

    Attributes:
        values: (B,) with their graph.
        classes: (B,) numbers of the classes that they speak for.
        shares: (B,) from 0 to 1: how sure the network is, as `share` says.
        meaning: of the values.
        share: what `shares` are, such as "probability".
    """

    values: Tensor
    classes: Tensor
    shares: Tensor
    meaning: str
    share: str


#: what a network gives, classes asked for (None = the likeliest of each image), number of images
Scoring = Callable[[Any, "int | Sequence[int] | None", int], Score]


def scoring_of(network: nn.Module) -> Scoring:
    """The scores of a network of its task, by the description of its weights; without one a classifier's.

    Raises:
        UserError: a task without classes.
    """
    meta = getattr(network, "meta", None)
    if getattr(meta, "head", None) is None or meta is None:
        return class_score
    if meta.task == "semantic_segmentation":
        return pixel_score
    if meta.task == "keypoints":
        return peak_score
    if meta.task in OF_BOXES:
        offset = getattr(task_of(meta).inference, "label_offset", 1)  # of panoptic networks things count from 1
        things = getattr(task_of(meta).inference, "num_things", len(meta.classes))
        names = meta.classes
        return lambda output, target, count: box_score(output, target, count, labels=(offset, things), names=names)
    raise UserError(f"gradcam needs a network with classes: a network for {meta.task} has none to speak for.")


def class_score(output: Any, target: int | Sequence[int] | None, count: int) -> Score:
    """The logit of a class, out of (B, classes)."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise UserError("gradcam needs a classifier: this network gives no logits (images, classes).")
    classes = chosen_classes(output.argmax(1), target, count, output.shape[1])
    at = classes[:, None]
    chances = output.softmax(1).gather(1, at)[:, 0]
    return Score(output.gather(1, at)[:, 0], classes, chances, meaning="logit", share="probability")


def pixel_score(output: Any, target: int | Sequence[int] | None, count: int) -> Score:
    """The sum of the logits of a class over the pixels that it is the likeliest of, out of (B, classes, h, w).

    Of a class that no pixel is taken for, the sum over all pixels. By default the class with most pixels.
    """
    found = output.argmax(1)  # (B, h, w)
    pixels = nn.functional.one_hot(found, output.shape[1]).sum((1, 2))  # (B, classes)
    classes = chosen_classes(pixels.argmax(1), target, count, output.shape[1])
    own = output[torch.arange(count, device=output.device), classes]
    inside = found == classes[:, None, None]
    shares = inside.float().mean((1, 2))
    inside = inside | (shares == 0)[:, None, None]
    values = (own * inside).sum((1, 2))
    return Score(values, classes, shares, meaning="sum of the logits over the class's pixels", share="of the pixels")


def peak_score(output: Any, target: int | Sequence[int] | None, count: int) -> Score:
    """The highest value of a keypoint's heat map, out of (B, keypoints, h, w); by default of the surest keypoint."""
    peaks = output.flatten(2).amax(2)
    classes = chosen_classes(peaks.argmax(1), target, count, output.shape[1])
    values = peaks.gather(1, classes[:, None])[:, 0]
    return Score(values, classes, values.clamp(0, 1), meaning="highest value of the heat map", share="of the full heat")


def box_score(
    output: Any,
    target: int | Sequence[int] | None,
    count: int,
    *,
    labels: tuple[int, int] = (0, 1 << 30),
    names: Sequence[str] = (),
) -> Score:
    """The log odds of the score of the surest box, of a class or of any.

    Args:
        output: a dictionary with "labels" and "scores" for each image.
        target: numbers of classes, or None.
        count: of images.
        labels: the first label, and the number of classes that have boxes.
        names: of the classes, for the message.

    Raises:
        NotFound: an image without a box of the class.
    """
    first, number = labels
    wanted = [None] * count if target is None else chosen_classes(torch.zeros(count), target, count, number).tolist()
    values, classes, shares = [], [], []
    for image, (found, one) in enumerate(zip(output, wanted, strict=True)):
        own = found["labels"] - first
        scores = found["scores"] if one is None else found["scores"][own == one]
        if not len(scores):
            raise NotFound(image, "no box" if one is None else f"no box of class {names[one] if names else one}")
        best = scores.argmax()
        shares.append(scores[best])
        values.append(torch.logit(scores[best], eps=1e-6))
        classes.append(own[best] if one is None else own.new_tensor(one))
    return Score(
        torch.stack(values),
        torch.stack(classes),
        torch.stack(shares),
        meaning="log odds of the surest box's score",
        share="score",
    )


def chosen_classes(likeliest: Tensor, target: int | Sequence[int] | None, count: int, classes: int) -> Tensor:
    """Numbers of the classes asked for, (count,).

    Raises:
        UserError: a number that no class has, or as many as there are no images.
    """
    if target is None:
        return likeliest
    wanted = [target] * count if isinstance(target, int) else list(target)
    if len(wanted) != count:
        raise UserError(f"target has {len(wanted)} classes for {count} images: give one, or one for each.")
    for one in wanted:
        if not 0 <= one < classes:
            raise UserError(f"target={one} is not allowed; give the number of a class, 0 to {classes - 1}.")
    return torch.tensor(wanted, device=likeliest.device)
