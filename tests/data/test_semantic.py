"""Images with masks of classes: pairing, mistakes, and images and masks that change together."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.tasks import SegmentationConfig
from vitrail.data.datasets.index_masks import IGNORE, Labels
from vitrail.data.datasets.segmentation import SemanticSet, open_semantic
from vitrail.data.loader import TrainLoader
from vitrail.data.transforms.segmentation import (
    REDRAWS,
    BalancedCrop,
    PhotometricDistort,
    SegmentationAugmentation,
    SegmentationViews,
    fitted_size,
)
from vitrail.errors import BadOption, UserError

LABELS = Labels.of([0, 1, 2], ["wall", "sky", "tree"])


def save_mask(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, dtype=np.uint8)).save(path)


def save_image(path: Path, size: tuple[int, int] = (3, 2)) -> None:
    """An image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(path)


def small(root: Path, names=("b.jpg", "a.png", "c.webp")) -> tuple[Path, Path]:
    for i, name in enumerate(names):
        save_image(root / "images" / name)
        save_mask((root / "annotations" / name).with_suffix(".png"), [[i % 3, 1, 2], [0, 255, 1]])
    return root / "images", root / "annotations"


# ---- what is found ----------------------------------------------------------------------------------------------


def test_images_and_masks_are_paired_in_the_order_of_their_names(tmp_path):
    images, masks = small(tmp_path)
    (images / "notes.txt").write_text("")
    (images / "._a.jpg").write_bytes(b"")
    data = SemanticSet(images, masks, LABELS)
    assert [Path(data.path(i)).name for i in range(len(data))] == ["a.png", "b.jpg", "c.webp"]
    assert data.classes == ["wall", "sky", "tree"]
    image, target = data[0]
    assert image.size == (3, 2)
    assert target["name"] == "a"
    assert isinstance(target["mask"], tv_tensors.Mask)
    assert target["mask"].dtype == torch.uint8
    assert target["mask"].tolist() == [[1, 1, 2], [0, IGNORE, 1]]
    assert len(SemanticSet(images, masks, LABELS, limit=2)) == 2
    assert data.name(1) == str(images / "b.jpg")


def test_layouts(tmp_path):
    for part in ("training", "validation"):
        save_image(tmp_path / "images" / part / f"{part}.jpg")
        save_mask(tmp_path / "annotations" / part / f"{part}.png", [[0, 1, 150], [7, 7, 7]])
    train, held = (open_semantic(DataConfig("ade20k", root=str(tmp_path)), train) for train in (True, False))
    assert [Path(data.path(0)).stem for data in (train, held)] == ["training", "validation"]
    assert len(train.classes) == 150
    assert train[0][1]["mask"].tolist() == [[IGNORE, 0, 149], [6, 6, 6]]
    folders = [str(tmp_path / name / "training") for name in ("images", "annotations")]
    named = open_semantic(DataConfig("ade20k", images=folders[0], annotations=folders[1], val_split="all"), False)
    assert Path(named.path(0)).stem == "training"


@pytest.mark.parametrize(("folder", "counts", "classes"), [("ade_mini", (3, 1), 150), ("camvid_mini", (60, 16), 11)])
def test_real_sets(test_data, folder, counts, classes):
    parts = [open_semantic(DataConfig("ade20k", root=str(test_data / folder)), train) for train in (True, False)]
    assert tuple(map(len, parts)) == counts
    for part in parts:
        assert len(part.classes) == classes
        image, target = part[len(part) - 1]
        assert target["mask"].shape == (image.height, image.width)
        assert 0 <= int(target["mask"].min()) <= int(target["mask"][target["mask"] != IGNORE].max()) < classes


# ---- mistakes ---------------------------------------------------------------------------------------------------


def without_mask(root: Path) -> None:
    (root / "annotations" / "b.png").unlink()


def without_image(root: Path) -> None:
    (root / "images" / "b.jpg").unlink()


def twice(root: Path) -> None:
    save_image(root / "images" / "b.bmp")


def no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def no_masks(root: Path) -> None:
    for path in (root / "annotations").iterdir():
        path.rename(path.with_suffix(".txt"))


def no_folder(root: Path) -> None:
    (root / "images").rename(root / "photos")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_mask, r"images/b\.jpg has no mask: .*annotations has no b\.png"),
        (without_image, r"annotations/b\.png has no image: .*images has no image named b"),
        (twice, r"images has two images of one name: b\.bmp and b\.jpg"),
        (no_images, r"images holds no images \(\.apng"),
        (no_masks, r"annotations holds no masks \(\.png\)"),
        (no_folder, r"images of .*annotations was not found: name it with --data\.images"),
    ],
)
def test_a_set_that_cannot_be_opened(tmp_path, spoil, says):
    small(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=says):
        open_semantic(DataConfig("ade20k", root=str(tmp_path)), True)


def test_folders_that_are_not_there(tmp_path):
    images, masks = small(tmp_path)
    data = DataConfig("ade20k", images=str(images), annotations=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"There is no folder .*none of masks"):
        open_semantic(data, True)
    with pytest.raises(UserError, match=r"There is no folder .*none of images"):
        open_semantic(DataConfig("ade20k", images=str(tmp_path / "none"), annotations=str(masks)), True)


def other_size(mask: Path) -> None:
    save_mask(mask, [[0, 1], [1, 0]])


def no_class(mask: Path) -> None:
    save_mask(mask, [[0, 1, 9], [0, 0, 0]])


def cut_off(mask: Path) -> None:
    mask.write_bytes(mask.read_bytes()[:45])


def coloured(mask: Path) -> None:
    save_image(mask)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_size, r"b\.png is 2x2 pixels, its image .*b\.jpg 3x2"),
        (no_class, r"b\.png has the value 9, which names none of the 3 classes"),
        (cut_off, r"b\.png \(a mask\) is truncated or corrupt"),
        (coloured, r"b\.png is no mask: it must have one channel"),
    ],
)
def test_a_mask_that_cannot_be_used(tmp_path, spoil, says):
    images, masks = small(tmp_path)
    spoil(masks / "b.png")
    data = SemanticSet(images, masks, LABELS)
    data[0]
    with pytest.raises(UserError, match=says):
        data[1]


# ---- sizes ------------------------------------------------------------------------------------------------------

SIDE = st.integers(1, 5000)


@given(SIDE, SIDE, st.integers(1, 600), st.integers(0, 3000), st.floats(0.3, 3))
def test_images_keep_their_shape(width, height, short, more, factor):
    found = fitted_size((width, height), short, short + more, factor)
    exact = factor * min(short / min(width, height), (short + more) / max(width, height))
    for side, old in zip(found, (height, width), strict=True):
        assert abs(side - max(1, old * exact)) <= 0.5 + 1e-6
    assert max(found) <= max(1, factor * (short + more) + 0.5)
    assert min(found) <= max(1, factor * short + 0.5)


def test_sizes_of_the_recipes():
    # ADE20K's first validation image, 683x512 pixels, a panorama, and SegFormer's multiple
    assert fitted_size((683, 512), 512, 2048) == (512, 683)
    assert fitted_size((1366, 1024), 512, 2048, 1.5) == (768, 1025)  # 1024.5 is rounded up
    assert fitted_size((8000, 1000), 512, 2048) == (256, 2048)
    assert fitted_size((683, 500), 512, 2048, 1.0, 32) == (512, 704)
    assert fitted_size((4000, 1), 512, 2048) == (1, 2048)


# ---- training ---------------------------------------------------------------------------------------------------

MEAN, STD = (0.45, 0.4, 0.5), (0.2, 0.25, 0.3)


def decoded(image: torch.Tensor) -> torch.Tensor:
    """Pixels of 0 to 255 from the network's input."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image * std + mean) * 255


def joined(classes: np.ndarray) -> tuple[Image.Image, dict]:
    """An image whose colours are the classes of its mask: red, half green and 200 minus blue."""
    tens = 10 * classes.astype(np.int64) + 10
    image = Image.fromarray(np.stack([tens, tens // 2, 200 - tens], -1).astype(np.uint8))
    return image, {"name": "x", "mask": tv_tensors.Mask(torch.from_numpy(classes.astype(np.int64)))}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_image_and_mask_change_together(seed, size, crop, short, hflip):
    rng = np.random.default_rng(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    config = SegmentationConfig(short_side=short, max_side=120, hflip=hflip, photometric=False)
    preprocess = Preprocess(image_size=crop, mean=MEAN, std=STD, interpolation="nearest")
    image, mask = SegmentationAugmentation(config, preprocess)(*joined(rng.integers(0, 15, size)))
    assert (image.shape, mask.shape) == ((3, *crop), crop)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
    assert type(image) is type(mask) is torch.Tensor
    beyond = mask == IGNORE
    # what is beyond the image lies at the right and below
    assert (~beyond == (~beyond).any(1)[:, None] & (~beyond).any(0)).all()
    assert not beyond[0, 0]
    assert (image[:, beyond] == 0).all()
    tens = 10 * mask[~beyond] + 10
    expected = torch.stack([tens, tens // 2, 200 - tens])
    assert (decoded(image)[:, ~beyond] - expected).abs().max() < 1e-3


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 200), st.integers(1, 220), st.booleans())
def test_resampled_masks_stay_under_their_images(width, wider, mirrored):
    """Columns of an image that grows lighter have the number of the column that the mask says."""
    columns = np.tile(np.arange(width, dtype=np.uint8), (width, 1))
    image = Image.fromarray(np.stack([columns] * 3, -1))
    target = {"mask": tv_tensors.Mask(torch.from_numpy(columns.astype(np.int64)))}
    config = SegmentationConfig(short_side=wider, scale=(1.0, 1.0), hflip=float(mirrored), photometric=False)
    preprocess = Preprocess(image_size=(wider, wider), mean=MEAN, std=STD, interpolation="bilinear")
    x, mask = SegmentationAugmentation(config, preprocess)(image, target)
    away = (decoded(x)[0] - mask)[:, 1:-1]  # the outermost pixels are means of fewer
    if away.numel():
        # the value under the centre is rounded, to the mask's and to the image's whole numbers
        assert away.abs().max() <= 1.01


def test_masks_are_not_moved_when_made_smaller():
    mask = torch.arange(15).repeat(15, 1)
    config = SegmentationConfig(short_side=3, scale=(1.0, 1.0), hflip=0.0, photometric=False)
    image = Image.new("RGB", (15, 15))
    found = SegmentationAugmentation(config, Preprocess((3, 3)))(image, {"mask": tv_tensors.Mask(mask)})[1]
    assert found.tolist() == [[2, 7, 12]] * 3  # the middles of five columns each


def test_colours_change_and_masks_do_not():
    classes = np.random.default_rng(0).integers(0, 15, (20, 20))
    base = {"short_side": 20, "scale": (1.0, 1.0), "hflip": 0.0}
    random.seed(0)
    torch.manual_seed(0)
    plain, changed = (
        SegmentationAugmentation(
            SegmentationConfig(photometric=p, **base), Preprocess((20, 20), interpolation="nearest")
        )
        for p in (False, True)
    )
    first = plain(*joined(classes))
    found = [changed(*joined(classes)) for _ in range(8)]
    assert all(torch.equal(mask, first[1]) for _, mask in found)
    assert sum(not torch.equal(image, first[0]) for image, _ in found) >= 6  # one in 16 has no change at all


def test_recolouring_keeps_the_channels_places():
    steps = [PhotometricDistort().make_params([tv_tensors.Image(torch.zeros(3, 2, 2))]) for _ in range(40)]
    assert {step["channel_permutation"] for step in steps} == {None}
    hues = [step["hue_factor"] for step in steps if step["hue_factor"] is not None]
    assert 5 < len(hues) < 35
    assert 0.05 < max(map(abs, hues)) <= 0.1


# ---- crops ------------------------------------------------------------------------------------------------------


def drawn(mask: torch.Tensor, most: float, monkeypatch) -> int:
    """How often a crop of 4x4 is drawn."""
    crop, count = BalancedCrop((4, 4), most), itertools.count()
    draw = crop.draw
    monkeypatch.setattr(crop, "draw", lambda m: (next(count), draw(m))[1])
    image, cut = crop(torch.zeros(3, *mask.shape), mask)
    assert (image.shape, cut.shape) == ((3, 4, 4), (4, 4))
    return next(count)


@pytest.mark.parametrize(
    ("classes", "most", "draws"),
    [
        ([0], 0.75, 1 + REDRAWS),  # one class everywhere
        ([0], 1.0, 1),
        ([0, 1], 0.5, 1),  # half and half
        ([0, 1], 0.49, 1 + REDRAWS),
        ([0, IGNORE], 0.75, 1 + REDRAWS),  # all of the pixels that have a class
        ([IGNORE], 0.75, 1 + REDRAWS),  # nothing to learn
        ([IGNORE], 1.0, 1),
    ],
)
def test_crops_with_too_much_of_a_class_are_drawn_again(monkeypatch, classes, most, draws):
    mask = torch.tensor(classes).repeat(8, 8 // len(classes))
    assert drawn(mask, most, monkeypatch) == draws


def test_crops_find_the_rare_class():
    random.seed(0)
    mask = torch.zeros(6, 6, dtype=torch.int64)
    mask[:, :3] = 1
    crop = BalancedCrop((2, 2), 0.75)
    found = [crop.balanced(crop(torch.zeros(3, 6, 6), mask)[1]) for _ in range(500)]
    # one of five columns to begin at shows both classes: of eleven draws one does with probability 0.914
    assert 0.87 < np.mean(found) < 0.96


def test_crops_lie_anywhere():
    random.seed(0)
    mask = torch.arange(30).reshape(5, 6)
    crop = BalancedCrop((4, 4), 1.0)
    assert {int(crop(mask[None], mask)[1][0, 0]) for _ in range(200)} == {0, 1, 2, 6, 7, 8}


# ---- views ------------------------------------------------------------------------------------------------------


def test_views_have_their_sizes_and_the_mask_keeps_its_own():
    image = Image.new("RGB", (41, 30), (51, 102, 153))
    mask = tv_tensors.Mask(torch.zeros(30, 41, dtype=torch.int64))
    transform = SegmentationViews(Preprocess((20, 24), mean=MEAN, std=STD), None, 100, [0.5, 1.0, 2.0])
    (views, size), target = transform(image, {"name": "x", "mask": mask})
    assert [tuple(view.shape) for view in views] == [(3, 10, 14), (3, 20, 27), (3, 40, 55)]
    assert size == (30, 41)
    assert (type(target["mask"]), target["mask"].shape, target["name"]) == (torch.Tensor, (30, 41), "x")
    for view in views:
        assert (decoded(view) - torch.tensor([51.0, 102, 153]).view(3, 1, 1)).abs().max() < 1e-3
    (views, _), _ = SegmentationViews(Preprocess((20, 24)), 20, 24, multiple=32)(image, {})
    assert views[0].shape == (3, 32, 32)


def test_batches_depend_on_the_seed_alone(tmp_path):
    data = SemanticSet(*small(tmp_path), LABELS)
    transform = SegmentationAugmentation(SegmentationConfig(), Preprocess((8, 12)))
    first, again, other = (next(iter(TrainLoader(data, transform, 3, seed))) for seed in (1, 1, 2))
    assert (first[0].shape, first[1].shape, first[1].dtype) == ((3, 3, 8, 12), (3, 8, 12), torch.int64)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"short_side": 0}, "short_side=0"),
        ({"max_side": 0}, "max_side=0"),
        ({"short_side": 600, "max_side": 500}, "short_side=600, max_side=500"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, r"scale=\(2.0, 1.0\)"),
        ({"scale": (1.0,)}, r"scale=\(1.0,\)"),
        ({"max_class_share": 0.0}, "max_class_share=0.0"),
        ({"max_class_share": 1.5}, "max_class_share=1.5"),
        ({"hflip": 2}, "hflip=2"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight=-0.1"),
    ],
)
def test_settings_outside_what_is_allowed(changes, says):
    with pytest.raises(BadOption, match=rf"segmentation\.(short_side=None, )?{says}"):
        SegmentationAugmentation(SegmentationConfig(**changes), Preprocess())


def test_only_colour_and_grey_images():
    with pytest.raises(BadOption, match="in_chans=2"):
        SegmentationViews(Preprocess(in_chans=2), None, 2048)
    with pytest.raises(BadOption, match=r"inference\.scales=\[\]"):
        SegmentationViews(Preprocess(), None, 2048, [])
    with pytest.raises(BadOption, match=r"inference\.scales=\[1, 0\]"):
        SegmentationViews(Preprocess(), None, 2048, [1, 0])
