"""timm's augmentation and evaluation transforms, with our settings checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as T

from ...config.data import AugmentConfig, Preprocess
from ...errors import BadOption

Transform = Callable[[Image.Image], torch.Tensor]

CROP_MODES = ("bicubic", "bilinear", "nearest", "random")
ERASING_MODES = ("pixel", "rand", "const")
#: images more slender than this, relative to the input, lose their ends before the centre crop
SLENDERNESS = 4
_NUMBER = r"\d+(\.\d+)?"
_AUTO_AUGMENT = re.compile(
    rf"rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|1(\.0+)?|0)|mstd{_NUMBER}|mmax[1-9]\d*|inc[01]|t(weights|3aw|3a)))*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
    rf"|augmix(-(m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}))*"
)


def train_transform(augment: AugmentConfig, preprocess: Preprocess) -> Transform:
    """Random crop, flips, AutoAugment / RandAugment or colour jitter, normalisation, random erasing, as in timm.

    Args:
        augment: the recipe's augmentation.
        preprocess: size, normalisation and channels of the result.

    Returns:
        A function from an RGB image to a float tensor (in_chans, H, W). Its randomness is drawn from the global
        generators of `random`, numpy and torch.

    Raises:
        BadOption: a setting outside what is allowed.
    """
    place, colour, finish = train_steps(augment, preprocess)
    size = _size(preprocess)
    if augment.crop_padding:
        resize = T.Resize(size, interpolation=T.InterpolationMode(preprocess.interpolation))
        place[:1] = [resize, T.RandomCrop(size, padding=augment.crop_padding)]
    else:
        place[0] = CropAndResize(size, augment.scale, augment.ratio, augment.interpolation)
    return T.Compose([*place, *colour, *finish])


def train_steps(augment: AugmentConfig, preprocess: Preprocess) -> tuple[list[Any], list[Any], list[Any]]:
    """timm's training steps in three groups: crop and flips, augmentation of the image, tensor to erasing.

    Raises:
        BadOption: a setting outside what is allowed.
    """
    check_augment(augment)
    preprocess.check()
    groups: Any = create_transform(
        _size(preprocess),
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,  # pyright: ignore[reportArgumentType]  (None is timm's "off")
        auto_augment=augment.auto_augment or None,
        interpolation=augment.interpolation,
        mean=_rgb(preprocess.mean),
        std=_rgb(preprocess.std),
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
        re_count=augment.erasing_count,
        separate=True,
    )
    place, colour, finish = (list(group.transforms) for group in groups)
    for op in augment_ops(colour):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return place, colour, _with_channels(finish, preprocess)


def eval_transform(preprocess: Preprocess) -> Transform:
    """Resize of the short side, centre crop, normalisation, as in timm; draws no random numbers.

    With `crop_pct` 1.0 an image that already has the right size keeps its pixels.

    Args:
        preprocess: size, normalisation and channels of the result.

    Returns:
        A function from an RGB image to a float tensor (in_chans, H, W).

    Raises:
        BadOption: a setting outside what is allowed.
    """
    steps = _eval_steps(preprocess, preprocess.crop_pct, "center")
    height, width = _size(preprocess)
    return T.Compose([CutSlender(SLENDERNESS * max(height / width, width / height)), *steps])


def squash_transform(preprocess: Preprocess) -> Transform:
    """The whole image squashed to the input's size, and normalised; `crop_pct` is not used.

    Arguments, result and errors as for `eval_transform`.
    """
    return T.Compose(_eval_steps(preprocess, 1.0, "squash"))


def _eval_steps(preprocess: Preprocess, crop_pct: float, crop_mode: str) -> list[Any]:
    preprocess.check()
    steps: list[Any] = create_transform(
        _size(preprocess),
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=_rgb(preprocess.mean),
        std=_rgb(preprocess.std),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    ).transforms  # pyright: ignore[reportAttributeAccessIssue]
    return _with_channels(steps, preprocess)


def check_augment(augment: AugmentConfig) -> None:
    """Raise `BadOption` (a `ValueError`) naming the first setting outside what is allowed."""
    for name, low, high in (("scale", 0.0, 1.0), ("ratio", 0.0, float("inf"))):
        value = getattr(augment, name)
        if not (len(value) == 2 and low < value[0] <= value[1] <= high):
            raise BadOption(f"{name}={value!r} is not allowed; give (smallest, largest), above {low:g} to {high:g}.")
    for name in ("hflip", "vflip", "random_erasing", "mixup_prob", "mixup_switch_prob"):
        _check_number(name, getattr(augment, name), 0, 1)
    for name in ("mixup", "cutmix"):
        _check_number(name, getattr(augment, name), 0, float("inf"))
    if augment.color_jitter is not None:
        _check_number("color_jitter", augment.color_jitter, 0, float("inf"))
    for name, least in (("crop_padding", 0), ("erasing_count", 1), ("repeats", 1)):
        value = getattr(augment, name)
        if not isinstance(value, int) or value < least:
            raise BadOption(f"{name}={value!r} is not allowed; give a whole number from {least}.")
    _check_choice("interpolation", augment.interpolation, CROP_MODES)
    _check_choice("erasing_mode", augment.erasing_mode, ERASING_MODES)
    if augment.auto_augment and not _AUTO_AUGMENT.fullmatch(augment.auto_augment):
        raise BadOption(
            f"auto_augment={augment.auto_augment!r} is not allowed; write it as timm does: 'rand-m9-mstd0.5-inc1', "
            "'original', 'originalr', 'v0', 'v0r' or '3a' (perhaps with '-mstd0.5'), or 'augmix-m5-w4-d2'."
        )


class CropAndResize(RandomResizedCropAndInterpolation):
    """timm's random resized crop, that also works on images of one or two pixels: a crop has at least one pixel."""

    @staticmethod
    def get_params(img: Image.Image, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(img, scale, ratio)
        return min(top, img.height - 1), min(left, img.width - 1), max(1, height), max(1, width)


class CutSlender:
    """Cuts the ends off very slender images, which the centre crop would not see.

    Without it, a strip of 1 x 100,000 pixels would first be enlarged to 256 x 25,600,000.
    """

    def __init__(self, slenderness: float) -> None:
        self.slenderness = slenderness

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, or its middle."""
        width, height = image.size
        most = max(16, round(self.slenderness * min(width, height)))
        if max(width, height) <= most:
            return image
        keep_w, keep_h = min(width, most), min(height, most)
        left, top = (width - keep_w) // 2, (height - keep_h) // 2
        return image.crop((left, top, left + keep_w, top + keep_h))


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keeps the highest bits of each sample, as timm's does; none, at the strongest setting, is black.

    Pillow up to 12 made that image, later ones raise `ValueError`.
    """
    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep >= 1 else Image.new(image.mode, image.size)


def augment_ops(steps: list[Any]) -> Iterator[AugmentOp]:
    """timm's single operations in its augmentation steps."""
    for step in steps:
        policy = getattr(step, "policy", None) or [getattr(step, "ops", None) or []]
        yield from (op for group in policy for op in group if isinstance(op, AugmentOp))


def _with_channels(steps: list[Any], preprocess: Preprocess) -> list[Any]:
    """Turns an RGB pipeline into one of `in_chans` channels: grey just before it becomes a tensor."""
    if preprocess.in_chans == 3:
        return steps
    at = next(i for i, step in enumerate(steps) if isinstance(step, T.ToTensor))
    normalise = T.Normalize(_grey(preprocess.mean), _grey(preprocess.std))
    return [*steps[:at], T.Grayscale(1), steps[at], normalise, *steps[at + 2 :]]


def _rgb(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _grey(values: Sequence[float]) -> list[float]:
    return [sum(values) / len(values)]


def _size(preprocess: Preprocess) -> tuple[int, int]:
    height, width = preprocess.image_size
    return height, width


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        wanted = f"a number from {low:g} to {high:g}" if high != float("inf") else f"a number from {low:g}"
        raise BadOption(f"{name}={value!r} is not allowed; give {wanted}.")


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BadOption(f"{name}={value!r} is not allowed; choose one of {', '.join(map(repr, allowed))}.")
