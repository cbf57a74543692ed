"""Options of the tasks beyond classification, as in recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..errors import UserError
from ..utils.plain import from_dict, limited, limits_of, to_dict
from .data import MAX_SIDE

_DETECTOR = ("score_thresh", "nms_thresh", "max_detections")
#: task -> its options of `InferenceConfig`; a head's entry replaces that of its task; other tasks have none
INFERENCE_OPTIONS: dict[str, tuple[str, ...]] = {
    "detection": _DETECTOR,
    "instance_segmentation": _DETECTOR,
    "panoptic_segmentation": (*_DETECTOR, "stuff_area"),
    "semantic_segmentation": ("flip", "scales", "window"),
    "keypoints": ("flip", "boxes"),
    "reid": ("flip",),
    # a fixed number of boxes without suppression
    "sparse_rcnn": ("max_detections",),
}


@dataclass
class DetectionConfig:
    """Augmentation of images with boxes, masks or panoptic segments.

    Attributes:
        short_sides: list of short sides in pixels, one of which is drawn for each training image; it contains
            `image_size`, the size of validation. Empty = `image_size` alone.
        short_side_range: smallest and largest short side in pixels, from which one is drawn for each training image,
            instead of a list; it contains `image_size`. None = `short_sides`.
        max_side: longest side in pixels; larger images are made smaller.
        hflip: probability of a horizontal flip.
        photometric: random brightness, contrast, saturation and hue, as in SSD.
        zoom_out: probability of placing the image on a canvas of up to four times its height and width, as in SSD.
        iou_crop: random crops that may cut objects, as in SSD.
        crop_first: smallest and largest height and width in pixels of a crop that half of the images undergo first, as
            in Sparse R-CNN; None = no crop.
    """

    short_sides: list[int] = field(default_factory=list, metadata=limits_of(least=1, most=MAX_SIDE))
    short_side_range: tuple[int, int] | None = limited(None, least=1, most=MAX_SIDE, rising=True)
    max_side: int = limited(1333, least=1, most=MAX_SIDE)
    hflip: float = limited(0.5, least=0, most=1)
    photometric: bool = False
    zoom_out: float = limited(0.0, least=0, most=1)
    iou_crop: bool = False
    crop_first: tuple[int, int] | None = limited(None, least=1, most=MAX_SIDE, rising=True)


@dataclass
class SegmentationConfig:
    """Augmentation of images with class masks. The crop is `image_size`.

    Attributes:
        short_side: short side of the images in pixels, multiplied by `scale` in training; None = `image_size`.
        max_side: longest side in pixels, before `scale`.
        scale: range of the random scale factor.
        max_class_share: crops in which one class has a larger share are drawn again, at most ten times.
        hflip: probability of a horizontal flip.
        photometric: random brightness, contrast, saturation and hue.
        auxiliary_weight: weight of the loss of a head's auxiliary classifier.
        mask_values: pixel values of the classes in masks that `predict` saves; None = those in the data's masks.
    """

    short_side: int | None = limited(None, least=1, most=MAX_SIDE)
    max_side: int = limited(2048, least=1, most=MAX_SIDE)
    scale: tuple[float, float] = limited((0.5, 2.0), above=0, most=16, rising=True)
    max_class_share: float = limited(0.75, above=0, most=1)
    hflip: float = limited(0.5, least=0, most=1)
    photometric: bool = True
    auxiliary_weight: float = limited(0.4, least=0, most=1000)
    mask_values: list[int] | None = field(default=None, metadata=limits_of(least=0, most=65535, filled=True))


@dataclass
class KeypointsConfig:
    """Augmentation of crops of persons with keypoints.

    Attributes:
        scale: largest relative change of the size of a crop.
        rotation: largest rotation in degrees.
        rotation_prob: probability of a rotation.
        hflip: probability of a horizontal flip, which swaps left and right keypoints.
        flip_pairs: pairs of keypoints to swap in a flip, by names or indices (from 0); None = found by the words for
            left and right in their names; images are not flipped if these are missing.
        sigma: standard deviation of the peaks of the heat maps, in pixels of the map.
        padding: size of a crop relative to the size of its box.
    """

    scale: float = limited(0.5, least=0, below=1)
    rotation: float = limited(40.0, least=0, most=360)
    rotation_prob: float = limited(0.6, least=0, most=1)
    hflip: float = limited(0.5, least=0, most=1)
    flip_pairs: list[tuple[int | str, int | str]] | None = None
    sigma: float = limited(2.0, above=0, most=1000)
    padding: float = limited(1.25, above=0, most=100)


@dataclass
class ReidConfig:
    """Sampling, loss and augmentation of re-identification.

    Attributes:
        images_per_identity: number of images of each person in a batch, for the triplet loss.
        margin: margin of the triplet loss.
        triplet_weight: weight of the triplet loss, which is added to the classification loss.
        padding: pixels added around an image before the random crop.
        hflip: probability of a horizontal flip.
        random_erasing: probability of erasing a rectangle.
    """

    images_per_identity: int = limited(4, least=2, most=1024)
    margin: float = limited(0.3, least=0, most=1000)
    triplet_weight: float = limited(1.0, least=0, most=1000)
    padding: int = limited(10, least=0, most=1024)
    hflip: float = limited(0.5, least=0, most=1)
    random_erasing: float = limited(0.5, least=0, most=1)


#: groups of options that tasks with a head have for themselves, by their names in recipes; weights files keep them
TASK_GROUPS = {
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
    "keypoints": KeypointsConfig,
    "reid": ReidConfig,
}


@dataclass
class InferenceConfig:
    """Inference with a trained network, in evaluation and prediction; does not affect weights.

    Attributes:
        flip: average with the result of the mirrored image (semantic_segmentation, keypoints, reid).
        scales: scale factors of the image whose results are averaged (semantic_segmentation).
        window: height and width in pixels of overlapping windows; None = the whole image at once
            (semantic_segmentation).
        score_thresh: smallest score of a detection; None = the detector's default.
        nms_thresh: IoU above which the worse of two boxes of a class is suppressed; None = the detector's default.
        max_detections: largest number of detections in an image; None = the detector's default (100).
        stuff_area: smallest area of a stuff class in pixels; None = COCO's 4096, and 1/75 of the pixels of images of
            less than a quarter of 640x480 (panoptic_segmentation).
        boxes: COCO results with the boxes of persons; None = those of the annotations (keypoints).

    `INFERENCE_OPTIONS` lists the options of each task and head.
    """

    flip: bool = False
    scales: list[float] = field(default_factory=lambda: [1.0], metadata=limits_of(above=0, most=16, filled=True))
    window: int | None = limited(None, least=1, most=MAX_SIDE)
    score_thresh: float | None = limited(None, least=0, most=1)
    nms_thresh: float | None = limited(None, least=0, most=1)
    max_detections: int | None = limited(None, least=1, most=100_000)
    stuff_area: int | None = limited(None, least=0, most=MAX_SIDE**2)
    boxes: str | None = None

    def check(self, owner: str) -> None:
        """Raise `UserError` for an option that the owner, a task or head, does not know, or an impossible value."""
        default, known = InferenceConfig(), INFERENCE_OPTIONS.get(owner, ())
        for name in (option.name for option in fields(self)):
            value = getattr(self, name)
            if name not in known and value != getattr(default, name):
                raise UserError(
                    f"--inference.{name} {value} is not for {owner}, which knows of these options "
                    f"{', '.join(known) or 'none'}."
                )
        from_dict(InferenceConfig, to_dict(self), "--inference.")
