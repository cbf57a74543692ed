from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from data_samples import sample_image
from PIL import Image
from timm.data import create_transform

from vitrail.data import AugmentConfig, Preprocess, eval_transform, isolated_rng, train_transform
from vitrail.errors import UserError

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def normalised(image, mean=MEAN, std=STD):
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("size", [(24, 24), (24, 40), (41, 17)])
def test_right_size_is_identity(size):
    image = sample_image(size=(size[1], size[0]))
    x = eval_transform(Preprocess(size, MEAN, STD, crop_pct=1.0))(image)
    assert x.shape == (3, *size)
    assert x.dtype == torch.float32
    assert torch.allclose(x, normalised(image), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32)])
@pytest.mark.parametrize("source", [(100, 60), (60, 100), (20, 20), (3, 50)])
def test_eval_agrees_with_timm(size, source):
    image = sample_image(size=source)
    ours = eval_transform(Preprocess(size, MEAN, STD, crop_pct=0.875))(image)
    theirs = create_transform(size, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=0.875)(image)
    assert torch.equal(ours, theirs)


def test_centre_crop_by_hand():
    image = sample_image(size=(80, 40))
    x = eval_transform(Preprocess((16, 16), MEAN, STD, "bilinear", crop_pct=0.8))(image)
    resized = image.resize((40, 20), Image.Resampling.BILINEAR)
    assert torch.allclose(x, normalised(resized.crop((12, 2, 28, 18))), atol=1e-6)


def test_slender_images_do_not_explode():
    strip = Image.new("RGB", (100_000, 1), (255, 0, 0))
    x = eval_transform(Preprocess((224, 224), **HALF))(strip)
    assert torch.allclose(x.amax((1, 2)), torch.tensor([1.0, -1.0, -1.0]))
    assert train_transform(AugmentConfig(), Preprocess((32, 32), **HALF))(strip).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(interpolation="random", vflip=0.5, color_jitter=0.4, random_erasing=1.0, erasing_count=3),
        AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, scale=(0.3, 1.0)),
        AugmentConfig(auto_augment="original", random_erasing=1.0, erasing_mode="rand"),
        AugmentConfig(auto_augment="augmix-m5-w4-d2", hflip=0.0, erasing_mode="const", random_erasing=1.0),
        AugmentConfig(auto_augment="3a", color_jitter=0.3, interpolation="bilinear"),
    ],
)
def test_training_agrees_with_timm(augment):
    theirs = create_transform(
        (24, 32),
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        interpolation=augment.interpolation,
        mean=MEAN,
        std=STD,
        re_prob=augment.random_erasing,
        re_mode=augment.erasing_mode,
        re_count=augment.erasing_count,
    )
    ours = train_transform(augment, Preprocess((24, 32), MEAN, STD))
    for seed in range(6):
        results = []
        for transform in (ours, theirs):
            with isolated_rng(seed):
                results.append(transform(sample_image(seed, (50, 40))))
        assert results[0].shape == (3, 24, 32)
        assert torch.equal(*results)


def test_every_posterization_works():
    # timm asks Pillow for 0 bits at the strongest setting; Pillow from 13 on refuses.
    transform = train_transform(AugmentConfig(auto_augment="rand-m10-n8-p1-inc1"), Preprocess((8, 8), **HALF))
    with isolated_rng(0):
        for _ in range(20):
            transform(sample_image())
    ops = next(step.ops for step in transform.transforms if hasattr(step, "ops"))
    posterize = next(op for op in ops if op.name == "PosterizeIncreasing")
    assert not np.asarray(posterize.aug_fn(sample_image(), 0)).any()
    assert np.array_equal(posterize.aug_fn(sample_image(), 3), np.asarray(sample_image()) & 0b11100000)
    assert np.array_equal(posterize.aug_fn(sample_image(), 8), sample_image())


def test_padded_crops_are_windows_of_the_padded_image():
    image = sample_image(size=(8, 6))
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 6, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    transform = train_transform(
        AugmentConfig(crop_padding=2, hflip=0.0), Preprocess((6, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    seen = set()
    with isolated_rng(0):
        for _ in range(200):
            x = (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()
            seen.add(windows[x.tobytes()])
    assert len(seen) == 25
    assert transform(sample_image(size=(20, 20))).shape == (3, 6, 8)


def test_flip_probabilities():
    image = sample_image(size=(8, 8))
    settings = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=1.0)
    x = train_transform(settings, Preprocess((8, 8), MEAN, STD))(image)
    assert torch.allclose(x.flip(2), normalised(image), atol=1e-6)


@pytest.mark.parametrize("values", [((0.2,), (0.4,)), ((0.1, 0.2, 0.3), (0.3, 0.4, 0.5))])
def test_grey(values):
    preprocess = Preprocess((6, 8), *values, crop_pct=1.0, in_chans=1)
    image = sample_image(size=(8, 6))
    expected = (np.asarray(image.convert("L"), dtype=np.float32) / 255 - 0.2) / 0.4
    assert np.allclose(eval_transform(preprocess)(image)[0], expected, atol=1e-6)
    for auto_augment in (None, "rand-m9", "original"):
        augment = AugmentConfig(auto_augment=auto_augment, random_erasing=1.0)
        assert train_transform(augment, preprocess)(image).shape == (1, 6, 8)


def test_one_value_serves_all_channels():
    x = eval_transform(Preprocess((8, 10), (0.5,), (0.5,), crop_pct=1.0))(sample_image())
    assert torch.allclose(x, normalised(sample_image(), HALF["mean"], HALF["std"]), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3), (3, 3)])
def test_tiny_images(size):
    transform = train_transform(AugmentConfig(scale=(0.01, 1.0)), Preprocess((8, 8), **HALF))
    for _ in range(30):
        assert transform(Image.new("RGB", size)).shape == (3, 8, 8)
    assert eval_transform(Preprocess((8, 8), **HALF))(Image.new("RGB", size)).shape == (3, 8, 8)


def test_erasing_is_drawn_on_the_normalised_tensor():
    augment = AugmentConfig(random_erasing=1.0, erasing_mode="const", scale=(1.0, 1.0))
    random.seed(0)
    x = train_transform(augment, Preprocess((16, 16), **HALF))(Image.new("RGB", (16, 16), "white"))
    assert set(x.unique().tolist()) == {0.0, 1.0}


def test_transforms_travel_to_workers():
    augment = AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    for transform in (train_transform(augment, Preprocess((8, 8))), eval_transform(Preprocess((8, 8)))):
        again = pickle.loads(pickle.dumps(transform))
        with isolated_rng(1):
            x = transform(sample_image())
        with isolated_rng(1):
            assert torch.equal(again(sample_image()), x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.1)},
        {"scale": (0.5, 1.5)},
        {"scale": (float("nan"), 1.0)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (1.0,)},
        {"hflip": 1.1},
        {"vflip": -0.1},
        {"random_erasing": 2.0},
        {"mixup": -1.0},
        {"cutmix": float("nan")},
        {"mixup_prob": 3.0},
        {"color_jitter": -0.4},
        {"crop_padding": -1},
        {"crop_padding": 1.5},
        {"erasing_count": 0},
        {"repeats": 0},
        {"interpolation": "cubic"},
        {"interpolation": "lanczos"},
        {"erasing_mode": "noise"},
        *(
            {"auto_augment": text}
            for text in ("rand-9", "rand-foo1", "rand-m9-inc", "random", "v1", "original-m9", "m9")
        ),
    ],
)
def test_wrong_augmentation_is_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}=.*is not allowed") as caught:
        train_transform(AugmentConfig(**wrong), Preprocess())
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": (0, 8)},
        {"image_size": (8,)},
        {"image_size": (8.0, 8.0)},
        {"mean": (0.5, 0.5)},
        {"mean": (float("nan"),) * 3},
        {"std": (0.0,) * 3},
        {"interpolation": "random"},
        {"crop_pct": 0.0},
        {"crop_pct": 1.1},
        {"in_chans": 4},
    ],
)
def test_wrong_preprocessing_is_named(wrong):
    ((name, _),) = wrong.items()
    for make in (eval_transform, lambda p: train_transform(AugmentConfig(), p)):
        with pytest.raises(ValueError, match=f"{name}=.*is not allowed"):
            make(Preprocess(**wrong))


@pytest.mark.parametrize(
    "text",
    [
        "rand",
        "rand-m9-mstd0.5-inc1",
        "rand-m15-n2-p0.5-mmax20",
        "rand-m6-t3aw",
        "v0r-mstd0.5",
        "augmix-m3-w3-d1-b1-a1.0",
    ],
)
def test_timms_strings_are_understood(text):
    assert train_transform(AugmentConfig(auto_augment=text), Preprocess((8, 8)))(sample_image()).shape == (3, 8, 8)
