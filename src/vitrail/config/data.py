"""Options of data, preprocessing and augmentation, as in recipes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..errors import BadOption
from ..utils.files import shortened
from ..utils.plain import from_dict, limited, to_dict
from .addresses import check_local

DataName = Literal[
    "digits",
    "folder",
    "cifar10",
    "cifar100",
    "imagenet",
    "imagenet_v2",
    "timm",
    "coco",
    "ade20k",
    "market1501",
]
#: ways to resize an image
RESIZE_MODES = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
#: most pixels of a network's input, and of one side
MAX_PIXELS, MAX_SIDE = 1 << 23, 8192

#: value of --data.val_split for all images of data without splits
ALL_IMAGES = "all"
#: title of metrics that are all of training images
TRAINING_IMAGES = "training images"
#: default name of a split by its other name
_SYNONYMS = {"training": "train", "val": "validation"}
#: option -> the data sets that have it, for options that not all have
OWNERS = {
    **dict.fromkeys(("source", "input_key", "target_key"), ("timm",)),
    **dict.fromkeys(("images", "annotations", "limit"), ("coco", "ade20k")),
    **dict.fromkeys(("train_split", "val_split"), ("timm", "folder", "coco", "ade20k")),
    **dict.fromkeys(("val_fraction", "split_seed"), ("digits", "folder", "timm", "coco", "ade20k")),
    "white": ("folder", "imagenet", "imagenet_v2", "timm", "coco", "ade20k", "market1501"),
    "classes": ("ade20k",),
    "unlabelled": ("digits", "folder", "cifar10", "cifar100", "imagenet", "timm"),
    "max_pixels": ("folder", "imagenet", "imagenet_v2", "timm", "coco", "ade20k", "market1501"),
}


@dataclass
class DataConfig:
    """A data set.

    Attributes:
        name: data set or layout; digits need no files, imagenet_v2 is for evaluation only, and timm opens any data set
            that timm knows.
        root: folder of the data (or .npz file for cifar); not for digits.
        images: folder of images, if it is not in the root (coco, ade20k).
        annotations: COCO annotation file or folder of masks, if it is not in the root (coco, ade20k).
        classes: list of the classes of masks, as JSON or CSV; default: the list in the root, else ADE20K's classes.
        source: with name="timm", timm's name of the data set, such as "wds/shards" or "hfds/name".
        input_key: with name="timm", field of the image, if it is not the reader's default.
        target_key: with name="timm", field of the class, if it is not the reader's default.
        train_split: training split, for data with named splits (timm, folder, coco, ade20k).
        val_split: validation split, for data with named splits (timm, folder, coco, ade20k). The name of the training
            split evaluates training images; for data without splits, "all" evaluates all images and "holdout" the
            validation split.
        unlabelled: folder of further training images without labels, which a teacher labels (`vitrail train --teacher`,
            classification).
        limit: number of images of each split, the first ones by name (coco, ade20k); None = all.
        val_fraction: share of the images used for validation if the data have no validation split: per class (digits,
            folder, timm), or of all images (coco, ade20k).
        split_seed: seed of the random split into training and validation images.
        workers: processes that read and augment images; 0 = in the main process.
        max_pixels: images with more pixels are refused (decompression bombs).
        white: white level of images with more than 8 bits a sample, such as 4095 for a camera with 12 bits; None =
            chosen by the largest sample of the training images (see `data.levels`).
    """

    name: DataName = "digits"
    root: str | None = None
    images: str | None = None
    annotations: str | None = None
    classes: str | None = None
    source: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    unlabelled: str | None = None
    limit: int | None = limited(None, least=1, most=1 << 32)
    val_fraction: float = limited(0.2, above=0, below=1)
    split_seed: int = limited(0, least=0, below=1 << 32)
    workers: int = limited(0, least=0, most=256)
    max_pixels: int = limited(178_956_970, least=1, most=1 << 40)
    white: float | None = limited(None, above=0)

    def check(self) -> None:
        """Raise `BadOption` for an option that these data do not have, or a value outside what is allowed."""
        for option in fields(self):
            if option.name != "source" and isinstance(text := getattr(self, option.name), str) and not text.strip():
                raise BadOption(f"--data.{option.name} is empty: give a value or leave the option out.")
            value, owners = getattr(self, option.name), OWNERS.get(option.name, (self.name,))
            if self.name not in owners and value != option.default:
                raise BadOption(
                    f"data.{option.name}={value!r} is not allowed for {self.name}; it is for {', '.join(owners)}."
                )
        if self.unlabelled is not None:  # who learns from them opens them apart
            raise BadOption(
                f"--data.unlabelled {shortened(self.unlabelled)} is for vitrail train --teacher and vitrail teach: "
                "nothing else can be done with images without labels; leave it out."
            )
        if self.name == "timm":  # its readers open more than files
            for option in fields(self):
                if isinstance(value := getattr(self, option.name), str):
                    check_local(f"option --data.{option.name}", value)
        from_dict(DataConfig, to_dict(self), "--data.")

    @property
    def measures_training(self) -> bool:
        """True if the evaluated split contains the training images."""
        learned, measured = (_SYNONYMS.get(split, split) for split in (self.train_split, self.val_split))
        return measured in (learned, ALL_IMAGES)

    @property
    def validates_on_training_split(self) -> bool:
        """True if the training split itself is evaluated, and not all images."""
        return self.measures_training and self.val_split != ALL_IMAGES

    @property
    def title(self) -> str:
        """Name of the data set with its source or folder."""
        source = self.source or (Path(self.root).name if self.root else "")
        return f"{self.name}: {source}" if source else self.name


@dataclass
class AugmentConfig:
    """Augmentation of training images, as in timm; the defaults are the common ImageNet recipe without mixing.

    Attributes:
        scale: range of the area of a random resized crop, as a share of the image.
        ratio: range of the aspect ratio of a random resized crop.
        crop_padding: if positive, pad by this number of pixels and crop at random (CIFAR) instead of resized crops.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        auto_augment: timm's string, such as "rand-m9-mstd0.5-inc1" (RandAugment) or "original" (AutoAugment).
        color_jitter: strength of colour jitter, used when auto_augment is off (as in timm).
        random_erasing: probability of erasing a rectangle.
        erasing_mode: content of the rectangle: noise per pixel, one random colour, or zeros.
        erasing_count: largest number of rectangles.
        mixup: alpha of Mixup, 0 = off.
        cutmix: alpha of CutMix, 0 = off.
        mixup_prob: probability of mixing a batch.
        mixup_switch_prob: probability of CutMix when both are on.
        repeats: number of views of each image in an epoch (repeated augmentation), 1 = off.
        interpolation: interpolation of the resize; random is bilinear or bicubic.
    """

    scale: tuple[float, float] = limited((0.08, 1.0), above=0, most=1, rising=True)
    ratio: tuple[float, float] = limited((0.75, 1.3333333333333333), above=0, most=1000, rising=True)
    crop_padding: int = limited(0, least=0, most=MAX_SIDE)
    hflip: float = limited(0.5, least=0, most=1)
    vflip: float = limited(0.0, least=0, most=1)
    auto_augment: str | None = None
    color_jitter: float | None = limited(None, least=0, most=100)
    random_erasing: float = limited(0.0, least=0, most=1)
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    erasing_count: int = limited(1, least=1, most=1000)
    mixup: float = limited(0.0, least=0, most=1000)
    cutmix: float = limited(0.0, least=0, most=1000)
    mixup_prob: float = limited(1.0, least=0, most=1)
    mixup_switch_prob: float = limited(0.5, least=0, most=1)
    repeats: int = limited(1, least=1, most=1000)
    interpolation: Literal["bicubic", "bilinear", "nearest", "random"] = "bicubic"


@dataclass
class Preprocess:
    """Preprocessing of a network's input; stored with the weights so that prediction repeats it.

    Attributes:
        image_size: (height, width) in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        interpolation: of the resize.
        crop_pct: the centre crop's share of the resized short side; 1.0 with an image of the right size is identity.
        in_chans: 3 (RGB) or 1 (grey).
        levels: black and white level of training images with more than 8 bits a sample; None = there were none.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.9
    in_chans: int = 3
    levels: tuple[float, float] | None = None

    def check(self) -> None:
        """Raise `BadOption` naming the first setting outside what is allowed."""
        size = self.image_size
        if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
            raise BadOption(f"image_size={size!r} is not allowed; give (height, width) in pixels.")
        check_sides(size, "image_size")
        if self.in_chans not in (1, 3):
            raise BadOption(f"in_chans={self.in_chans!r} is not allowed; choose 3 (RGB) or 1 (grey).")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) not in (1, 3) or not all(-10 < v < 10 and (name == "mean" or v > 1e-4) for v in value):
                raise BadOption(f"{name}={value!r} is not allowed; give one value per channel, of pixels in [0, 1].")
        if self.interpolation not in RESIZE_MODES:
            modes = ", ".join(map(repr, RESIZE_MODES))
            raise BadOption(f"interpolation={shortened(self.interpolation)} is not allowed; choose one of {modes}.")
        if not 0.1 <= self.crop_pct <= 1:  # an image is enlarged to the input's size divided by it
            raise BadOption(f"crop_pct={self.crop_pct!r} is not allowed; give a share from 0.1 to 1.")
        if self.levels is not None and not -1e9 < self.levels[0] < self.levels[1] < 1e10:
            raise BadOption(f"levels={self.levels!r} is not allowed; give (black, white), the one below the other.")


def check_sides(size: tuple[int, ...], name: str) -> None:
    """Raise `BadOption` for an image size beyond what fits the memory of a machine."""
    height, width = size
    if min(size) < 1 or max(size) > MAX_SIDE or height * width > MAX_PIXELS:
        raise BadOption(
            f"{name}={shortened((height, width))} is not allowed; sides are 1 to {MAX_SIDE} pixels, with "
            f"{MAX_PIXELS:,} pixels in all at most."
        )
