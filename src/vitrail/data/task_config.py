"""Plain-value settings of the tasks beyond classification, as they stand in recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..errors import UserError


@dataclass
class DetectionConfig:
    """Boxes, masks and panoptic segments: how pictures change together with what is in them.

    Attributes:
        short_sides: list of short sides in pixels, one of which is drawn for each training image; `image_size`, that of
            measuring, is one of them. Empty = `image_size` alone.
        short_side_range: least and most short side in pixels, between which any whole number is drawn for each training
            image, instead of a list; `image_size` lies between them. None = `short_sides`.
        max_side: longest side in pixels; pictures that would exceed it are made smaller.
        hflip: probability of mirroring.
        photometric: change brightness, contrast, saturation and hue, as SSD does.
        zoom_out: probability of a canvas of up to four times the sides around the picture, as SSD does.
        iou_crop: crop the picture so that objects may be cut, as SSD does.
        crop_first: of half of the pictures, first a part with sides of so many pixels, least and most, as Sparse R-CNN
            does; None = of none.
    """

    short_sides: list[int] = field(default_factory=list)
    short_side_range: tuple[int, int] | None = None
    max_side: int = 1333
    hflip: float = 0.5
    photometric: bool = False
    zoom_out: float = 0.0
    iou_crop: bool = False
    crop_first: tuple[int, int] | None = None


@dataclass
class SegmentationConfig:
    """A class for every pixel: how pictures change together with their masks. The crop is `image_size`.

    Attributes:
        short_side: of pictures in pixels, in measuring as it is, in training times `scale`; None = `image_size`.
        max_side: longest side in pixels, before `scale`.
        scale: range of the factor.
        max_class_share: crops of which one class would fill a greater share are drawn again, ten times at most.
        hflip: probability of mirroring.
        photometric: change brightness, contrast, saturation and hue.
        auxiliary_weight: of the loss of a head's auxiliary classifier.
        mask_values: of the classes, in their order, in masks that `predict` saves; None = those in the data's masks.
    """

    short_side: int | None = None
    max_side: int = 2048
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    hflip: float = 0.5
    photometric: bool = True
    auxiliary_weight: float = 0.4
    mask_values: list[int] | None = None


@dataclass
class KeypointsConfig:
    """Joints of people in boxes: how crops change together with their joints.

    Attributes:
        scale: crops are up to this share larger or smaller.
        rotation: crops are turned by up to so many degrees.
        rotation_prob: probability of turning.
        hflip: probability of mirroring, where left and right change places.
        flip_pairs: keypoints that change places in a mirror, pairs of their names or numbers (from 0); None = as the
            words for left and right in their names say, and no mirroring where these do not tell.
        sigma: of the heat maps' peaks, in pixels of the map.
        padding: a crop's sides beyond those of its box, as a factor.
    """

    scale: float = 0.5
    rotation: float = 40.0
    rotation_prob: float = 0.6
    hflip: float = 0.5
    flip_pairs: list[tuple[int | str, int | str]] | None = None
    sigma: float = 2.0
    padding: float = 1.25


@dataclass
class ReidConfig:
    """The same person in several cameras.

    Attributes:
        images_per_identity: pictures of one person in a batch, which the triplet loss compares.
        margin: by which another person must be farther away.
        triplet_weight: of the triplet loss, beside the classes of identities.
        padding: pixels around a picture before it is cropped at random.
        hflip: probability of mirroring.
        random_erasing: probability of erasing a rectangle.
    """

    images_per_identity: int = 4
    margin: float = 0.3
    triplet_weight: float = 1.0
    padding: int = 10
    hflip: float = 0.5
    random_erasing: float = 0.5


@dataclass
class InferenceConfig:
    """How a trained network is used, in measuring and predicting; nothing of it changes weights.

    Attributes:
        flip: look at the mirrored picture too and average (semantic_segmentation, keypoints, reid).
        scales: sizes to look at, as factors of the usual one, averaged (semantic_segmentation).
        window: side in pixels of overlapping windows that are looked at one by one; None = the whole picture at once
            (semantic_segmentation).
        score_thresh: least score of what a detector finds; None = its own.
        nms_thresh: of two boxes of a class that overlap more, the better stays; None = the detector's own.
        max_detections: in a picture, at most; None = the detector's own (100).
        boxes: COCO results with the boxes of people to look into; None = the true ones (keypoints).

    Which task or head knows which option it says itself, by `check`.
    """

    flip: bool = False
    scales: list[float] = field(default_factory=lambda: [1.0])
    window: int | None = None
    score_thresh: float | None = None
    nms_thresh: float | None = None
    max_detections: int | None = None
    boxes: str | None = None

    def check(self, owner: str, *known: str) -> None:
        """Raise `UserError` for an option that the owner, a task or head, does not know, or an impossible value."""
        usual = InferenceConfig()
        for name in (option.name for option in fields(self)):
            value = getattr(self, name)
            if name not in known and value != getattr(usual, name):
                raise UserError(
                    f"--inference.{name} {value} is not for {owner}, which knows of these options "
                    f"{', '.join(known) or 'none'}."
                )
        for name in ("score_thresh", "nms_thresh"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise UserError(f"--inference.{name} {value} must be in [0, 1].")
        for name in ("window", "max_detections"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--inference.{name} {value} must be 1 or more.")
