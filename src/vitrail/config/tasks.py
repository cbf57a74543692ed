"""Plain-value settings of the tasks beyond classification, as they stand in recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..errors import UserError
from ..utils.plain import from_dict, limited, limits_of, to_dict
from .data import MAX_SIDE

_DETECTOR = ("score_thresh", "nms_thresh", "max_detections")
#: options of `InferenceConfig` that a task knows, and a head that knows others than its task; others know none
INFERENCE_OPTIONS: dict[str, tuple[str, ...]] = {
    "detection": _DETECTOR,
    "instance_segmentation": _DETECTOR,
    "panoptic_segmentation": (*_DETECTOR, "stuff_area"),
    "semantic_segmentation": ("flip", "scales", "window"),
    "keypoints": ("flip", "boxes"),
    "reid": ("flip",),
    # its boxes are few and of any score, none stands for another
    "sparse_rcnn": ("max_detections",),
}


@dataclass
class DetectionConfig:
    """Training images with boxes, masks and panoptic segments.

    Attributes:
        short_sides: list of short sides in pixels, one of which is drawn for each training image; `image_size`, the
            size of validation, is one of them. Empty = `image_size` alone.
        short_side_range: least and most short side in pixels, between which any whole number is drawn for each training
            image, instead of a list; `image_size` lies between them. None = `short_sides`.
        max_side: longest side in pixels; images that would exceed it are made smaller.
        hflip: probability of mirroring.
        photometric: change brightness, contrast, saturation and hue, as SSD does.
        zoom_out: probability of a canvas of up to four times the height and width of the image, as SSD does.
        iou_crop: crop the image so that objects may be cut, as SSD does.
        crop_first: least and most pixels of the height and width of a crop that half of the images are cut to first, as
            Sparse R-CNN does; None = no crop.
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
    """Training images with a class for every pixel. The crop is `image_size`.

    Attributes:
        short_side: short side of the images in pixels, in training times `scale`; None = `image_size`.
        max_side: longest side in pixels, before `scale`.
        scale: range of the random factor of the size.
        max_class_share: crops of which one class would fill a greater share are drawn again, ten times at most.
        hflip: probability of mirroring.
        photometric: change brightness, contrast, saturation and hue.
        auxiliary_weight: weight of the loss of a head's auxiliary classifier.
        mask_values: pixel values of the classes, in their order, in masks that `predict` saves; None = those in the
            masks of the data.
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
    """Training crops of persons with keypoints.

    Attributes:
        scale: crops are up to this share larger or smaller.
        rotation: crops are turned by up to so many degrees.
        rotation_prob: probability of turning.
        hflip: probability of mirroring, where left and right change places.
        flip_pairs: keypoints that change places in a mirror, pairs of their names or numbers (from 0); None = as the
            words for left and right in their names say, and no mirroring where these do not tell.
        sigma: standard deviation of the peaks of the heat maps, in pixels of the map.
        padding: factor from the size of a box to the size of its crop.
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
    """Training images of persons seen by several cameras.

    Attributes:
        images_per_identity: images of one person in a batch, which the triplet loss compares.
        margin: distance by which another person must be farther away, in the triplet loss.
        triplet_weight: weight of the triplet loss, which is added to the loss of the classes.
        padding: pixels around an image before it is cropped at random.
        hflip: probability of mirroring.
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
    """How a trained network is used, in measuring and predicting; nothing of it changes weights.

    Attributes:
        flip: run the network on the mirrored image too and average (semantic_segmentation, keypoints, reid).
        scales: image sizes to run the network on, as factors of the default one, averaged (semantic_segmentation).
        window: side in pixels of overlapping windows that the network runs on one by one; None = the image at once
            (semantic_segmentation).
        score_thresh: least score of what a detector finds; None = its own.
        nms_thresh: of two boxes of a class that overlap more, the better stays; None = the detector's own.
        max_detections: largest number of detections in an image; None = the detector's own (100).
        stuff_area: pixels below which a class of stuff is left out of an image; None = COCO's 4096, and 1/75 of
            images of less than a quarter of 640x480 (panoptic_segmentation).
        boxes: COCO results with the boxes of persons; None = the true ones (keypoints).

    Which task or head knows which option stands in `INFERENCE_OPTIONS`.
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
