"""Folders of masks: which images are learned and measured, lists of classes, turns, and what cannot be learned."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.data import DataConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.index_masks import IGNORE, Labels, labels_of, locate, read_mask
from vitrail.data.datasets.segmentation import SemanticSet, open_semantic, survey_masks
from vitrail.data.datasets.splits import for_measuring
from vitrail.errors import UserError
from vitrail.metrics.stored_predictions import score
from vitrail.structures import SegmentationMap
from vitrail.tasks import build_task

NAMES = ("wall", "sky", "tree")


def write(root: Path, part: str = "", count: int = 6, values=(0, 1), size=(8, 6), mode: str = "L") -> None:
    """Images, and masks whose left half has the one value and whose right half the other."""
    for name in ("images", "annotations"):
        (root / name / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = np.full(size[::-1], values[0], np.uint8)
        mask[:, size[0] // 2 :] = values[1]
        Image.new("RGB", size, (30 * i, 80, 9)).save(root / "images" / part / f"p{i:02d}.jpg")
        Image.fromarray(mask).convert(mode).save(root / "annotations" / part / f"p{i:02d}.png")
    (root / "classes.json").write_text(json.dumps({"classes": NAMES}))


def of(root: Path, **options) -> DataConfig:
    return DataConfig("ade20k", root=str(root), **options)


def stems(data: SemanticSet) -> list[str]:
    return [Path(data.path(i)).stem for i in range(len(data))]


def task(root: Path, **options):
    return build_task(TrainConfig(task="semantic_segmentation", image_size=32, device="cpu", data=of(root, **options)))


# ---- parts ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 30), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_a_share_of_one_folder_is_for_validation(tmp_path_factory, count, fraction, seed):
    root = tmp_path_factory.mktemp("flat")
    write(root, count=count, size=(2, 1))
    data = of(root, val_fraction=fraction, split_seed=seed)
    learned, held = (stems(open_semantic(data, train)) for train in (True, False))
    assert sorted(learned + held) == [f"p{i:02d}" for i in range(count)]
    assert len(held) == min(max(1, round(fraction * count)), count - 1)
    assert held == stems(open_semantic(data, False))
    named = of(root, images=str(root / "images"), annotations=str(root / "annotations"))
    named.val_fraction, named.split_seed = fraction, seed
    assert stems(open_semantic(named, False)) == held


def test_the_share_is_the_same_for_ever(tmp_path):
    write(tmp_path, count=12)
    held = open_semantic(of(tmp_path), False)
    assert stems(held) == ["p04", "p07"]
    assert "2 of 12 images are held out for validation" in open_semantic(of(tmp_path), True).remarks[0]


def test_all_or_the_training_part_where_it_is_named(tmp_path):
    write(tmp_path, count=5)
    for split, count in (("all", 5), ("train", 5), ("holdout", 1), ("validation", 1), ("val", 1)):
        assert len(open_semantic(of(tmp_path, val_split=split), False)) == count
    assert len(open_semantic(of(tmp_path, val_split="train"), True)) == 5
    assert open_semantic(of(tmp_path, val_split="train"), False).remarks == [
        "these are training images, as --data.val_split train says"
    ]
    with pytest.raises(UserError, match="no folder for the split 'test'"):
        open_semantic(of(tmp_path, val_split="test"), False)


@pytest.mark.parametrize(("train", "val"), [("Training", "Test"), ("TRAIN", "VAL"), ("train_images", "val_set")])
def test_parts_in_any_capitals(tmp_path, train, val):
    write(tmp_path, train, 3)
    write(tmp_path, val, 2)
    assert [len(open_semantic(of(tmp_path), part)) for part in (True, False)] == [3, 2]
    assert len(open_semantic(of(tmp_path, val_split=train), False)) == 3


def test_a_training_part_alone_is_divided(tmp_path):
    write(tmp_path, "training", 10)
    assert [len(open_semantic(of(tmp_path), part)) for part in (True, False)] == [8, 2]
    assert len(open_semantic(for_measuring(of(tmp_path), None), False)) == 10


def test_new_data_are_measured_whole_and_the_runs_own_are_not(tmp_path):
    write(tmp_path / "own", count=10)
    own = of(tmp_path / "own", val_fraction=0.3, split_seed=4)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    held = stems(open_semantic(own, False))
    for root in (tmp_path / "own", tmp_path / "link"):
        assert stems(open_semantic(for_measuring(of(root), own), False)) == held
    write(tmp_path / "new", count=4)
    assert len(open_semantic(for_measuring(of(tmp_path / "new"), own), False)) == 4
    assert for_measuring(of(tmp_path / "new", val_split="train"), own).val_split == "train"


def test_parts_of_images_and_masks_differ(tmp_path):
    write(tmp_path, "train")
    write(tmp_path, "val")
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "other")
    with pytest.raises(UserError, match=r"has no folder val, but .*annotations has one"):
        open_semantic(of(tmp_path), False)


def test_one_folder_for_both_parts_is_refused(tmp_path):
    write(tmp_path, "train", 4)
    for name in ("images", "annotations"):
        (tmp_path / name / "val").symlink_to(tmp_path / name / "train")
    with pytest.raises(UserError, match="4 of the 4 images to measure on are images to learn from"):
        task(tmp_path)
    task(tmp_path, val_split="train")


# ---- lists of classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_that_a_spreadsheet_saved(tmp_path, separator, mark, end):
    rows = [
        ["ID", " Name ", "colour"],
        ["2", "grün", "x"],
        ["1", "a, b" if separator != "," else "ab", ""],
        ["", "", ""],
    ]
    (tmp_path / "classes.csv").write_text(
        mark + end.join(separator.join(row) for row in rows) + end, "utf-8", newline=""
    )
    labels = labels_of(DataConfig("ade20k", classes=str(tmp_path / "classes.csv")))
    assert labels.names[0] == "grün"
    assert labels.values == (2, 1)
    assert labels.table[:4].tolist() == [IGNORE, 1, 0, -1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,name\n1,caf\xe9\n2,b\n", "is not text in UTF-8"),
        (b"id,name\n1,a\n1.5,b\n", "'1.5'"),
        (b"id,name\n1,a\n2\n", "name"),
        (b"id,name\n1,a\n2,a\n", "two classes the name 'a'"),
        (b"id,name\n1,a\n", "one class only, 'a'"),
        (b"id,name\n1,a\n255,b\n", "between 0 and 254"),
        (b"id,name\n1,a\n2,b,c\n", "row 2 has 3 cells"),
        (b"number,name\n1,a\n", "needs the columns id"),
        (b"", "is empty"),
    ],
)
def test_lists_that_are_none(tmp_path, content, says):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=says):
        labels_of(DataConfig("ade20k", classes=str(tmp_path / "list.csv")))


# ---- masks ------------------------------------------------------------------------------------------------------


def turned(image: Image.Image, orientation: int, path: Path) -> None:
    """Save pixels with what the camera says of them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=100)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_stored", [True, False])
def test_masks_of_photographs_that_the_camera_turned(tmp_path, orientation, as_stored):
    """Bright where the mask is 1, in the image as it is seen."""
    write(tmp_path, count=1)
    mask = np.zeros((48, 64), np.uint8)
    mask[:16, :40] = 1
    path = tmp_path / "images" / "p00.jpg"
    turned(Image.fromarray(mask * 255).convert("RGB"), orientation, path)
    back = {1: mask, 2: mask[:, ::-1], 3: mask[::-1, ::-1], 4: mask[::-1], 5: mask.T, 6: np.rot90(mask, -1)}
    back |= {7: mask[::-1, ::-1].T, 8: np.rot90(mask)}
    upright = back[orientation]
    Image.fromarray(np.ascontiguousarray(mask if as_stored else upright)).save(tmp_path / "annotations" / "p00.png")
    data = SemanticSet(tmp_path / "images", tmp_path / "annotations", Labels.of([0, 1], ["a", "b"]))
    image, target = data[0]
    assert image.size == upright.shape[::-1]
    found = target["mask"].numpy()
    assert np.array_equal(found, data.class_map(0))
    told = orientation in (1, 5, 6, 7, 8) or not as_stored
    assert (np.mean((np.asarray(image)[..., 0] > 127) == (found == 1)) > 0.98) == told
    survey_masks(data, learned=True)
    said = "\n".join(data.remarks)
    assert ("are turned with their images" in said) == (as_stored and orientation > 4)
    assert ("do not tell" in said) == (orientation in (2, 3, 4))


@pytest.mark.parametrize(
    ("values", "mode", "says"),
    [
        (np.eye(3, dtype=np.uint8)[np.zeros((6, 8), int)], None, "3 channels that differ"),
        (np.full((6, 8, 4), 9, np.uint8), None, "4 channels that differ"),  # equal, but not opaque
        (np.full((6, 8), 300, np.uint16), None, "has the value 300"),
        (np.full((6, 8), 7, np.uint8), None, "has the value 7, which names none of the 3 classes"),
        (np.arange(48, dtype=np.uint8).reshape(6, 8), None, r"has the value 3 \(and 44 other such values\)"),
        (np.zeros((8, 6), np.uint8), None, "is 6x8 pixels, its image .* 8x6"),
    ],
)
def test_a_mask_of_other_values_is_named_before_training(tmp_path, values, mode, says):
    write(tmp_path, "train", 3)
    write(tmp_path, "val", 3)
    Image.fromarray(values, mode).save(tmp_path / "annotations" / "val" / "p01.png")
    with pytest.raises(UserError, match=rf"p01\.png.* {says}"):
        task(tmp_path)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_kinds_of_masks(tmp_path, mode):
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values) if mode in ("L", "I;16") else Image.fromarray(values * (255 if mode == "1" else 1))
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0])
    (image.convert("1") if mode == "1" else image).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_masks_stored_as_colours(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_masks_are_not_partly_transparent(tmp_path, mode):
    image = Image.fromarray(np.ones((6, 8), np.uint8)).convert(mode)
    image.putpixel((3, 2), (1,) * (len(mode) - 1) + (254,))
    image.save(tmp_path / "m.png")
    with pytest.raises(UserError, match="channels that differ"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("place", [(0, 0, 0), (5, 7, 2)])
def test_one_pixel_of_colour_is_no_mask(tmp_path, place):
    values = np.full((6, 8, 3), 2, np.uint8)
    values[place] = 3
    Image.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="3 channels that differ"):
        read_mask(tmp_path / "m.png")


def png(rows: np.ndarray, bits: int, channels: int) -> bytes:
    """A PNG of grey samples of fewer than 8 bits, or of several channels of 16, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = rows.shape[:2]
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        places = np.arange(8 // bits)[::-1] * bits
        packed = [(row.reshape(-1, 8 // bits) << places).sum(1).astype(np.uint8).tobytes() for row in rows]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_the_stored_values(tmp_path, bits):
    """Pillow spreads grey samples of 2 and 4 bits to 0 to 255."""
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 8))
    (tmp_path / "m.png").write_bytes(png(values, bits, 1))
    assert read_mask(tmp_path / "m.png").tolist() == values.tolist()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_several_channels_of_16_bits_are_refused(tmp_path, channels):
    """Pillow keeps their high bytes alone: the class 1 would be read as 0."""
    (tmp_path / "m.png").write_bytes(png(np.ones((6, 8, channels), int), 16, channels))
    with pytest.raises(UserError, match="several channels of 16 bits"):
        read_mask(tmp_path / "m.png")


def test_a_mask_that_claims_too_many_pixels(tmp_path):
    write(tmp_path)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "annotations" / "p03.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"p03\.png .*pixels"):
        task(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match="more than the 47 that are allowed"):
        read_mask(tmp_path / "annotations" / "p03.png", 47)


# ---- what cannot be learned -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learned", "measured", "says"),
    [
        ((1, 1), (0, 1), "are 'sky'"),
        ((0, 255), (0, 1), "are 'wall'"),
        ((255, 255), (0, 1), "has a class .* nothing to learn from"),
        ((0, 1), (255, 255), "has a class .* nothing to measure on"),
    ],
)
def test_masks_that_leave_nothing_to_tell_apart(tmp_path, learned, measured, says):
    write(tmp_path, "train", 3, learned)
    write(tmp_path, "val", 3, measured)
    with pytest.raises(UserError, match=says):
        task(tmp_path)


def test_what_is_missing_is_said_once(tmp_path):
    write(tmp_path, "train", 3, (0, 1))
    write(tmp_path, "val", 3, (1, 1))
    (tmp_path / "images" / "train" / "x.heic").write_bytes(b"x")
    (tmp_path / "annotations" / "val" / "x.tif").write_bytes(b"x")
    notes = "\n".join(task(tmp_path).notes())
    for said in (
        "1 .heic",
        "1 .tif",
        "training: 1 of 3 classes have no pixel: tree",
        "2 of 3 classes have no pixel: wall",
    ):
        assert said in notes
    for missing in ("images", "annotations"):
        write(tmp_path / missing)
        next((tmp_path / missing / missing).iterdir()).unlink()
        with pytest.raises(UserError, match=r"has no (mask|image)"):
            task(tmp_path / missing)


# ---- saved masks ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 254), min_size=2, max_size=12, unique=True), st.integers(0, 2**31))
def test_saved_masks_measure_as_the_map_itself(tmp_path_factory, values, seed):
    """Values in any order: what is saved, read by the same list, is the map again."""
    root = tmp_path_factory.mktemp("saved")
    names = [f"class {value}" for value in values]
    rows = "".join(f"{value},{name}\n" for value, name in zip(values, names, strict=True))
    (root / "classes.csv").write_text("id,name\n" + rows)
    rng = np.random.RandomState(seed)
    found, true = (rng.randint(0, len(values), (9, 7)).astype(np.uint8) for _ in range(2))
    true[rng.rand(9, 7) < 0.2] = IGNORE
    labels = labels_of(of(root))
    (root / "annotations").mkdir()
    table = np.append(np.array(labels.values, np.uint8), np.zeros(256 - len(values), np.uint8))
    table[IGNORE] = IGNORE
    Image.fromarray(table[true]).save(root / "annotations" / "p.PNG")
    SegmentationMap(names, found, labels.values).save(root, "p")
    assert np.array_equal(labels.indices(read_mask(root / "masks" / "p.png"), "p"), found)
    metrics = score("semantic_segmentation", root / "masks", of(root))
    counted = true != IGNORE
    assert metrics["aAcc"] == pytest.approx(np.mean(found[counted] == true[counted]))
    assert locate(of(root, val_split="all"), False).masks == root / "annotations"


def test_values_are_kept_with_the_weights(tmp_path):
    write(tmp_path, values=(0, 1))
    (tmp_path / "classes.json").unlink()
    (tmp_path / "classes.csv").write_text("id,name\n7,seven\n0,zero\n1,one\n")
    made = task(tmp_path)
    assert made.settings["segmentation"]["mask_values"] == [7, 0, 1]
    assert made.inference.values == [7, 0, 1]
    for wrong in ([1, 2], [1, 1, 2], [1, 2, 255]):
        config = TrainConfig(task="semantic_segmentation", image_size=32, device="cpu", data=of(tmp_path))
        config.segmentation.mask_values = wrong
        with pytest.raises(UserError, match=r"segmentation\.mask_values"):
            build_task(config)


@pytest.mark.parametrize(
    ("ids", "values", "said"),
    [
        ((0, 1, 2), (0, 1, 2, 2), None),
        ((1, 2), (0, 1, 2, 2), None),
        ((1, 2), (0, 0, 1, 2), None),  # half of them is not more than half
        ((1, 2), (0, 0, 0, 0, 1, 2), "67 % of the pixels have no class (values 0, 255) and do not count"),
        ((0, 1, 2), (255, 255, 255, 0), "75 % of the pixels have no class (values 255) and do not count"),
    ],
)
def test_many_pixels_without_a_class_are_said(tmp_path, ids, values, said):
    """A list of classes that leaves the background out ignores it."""
    for name, mode in (("images", "RGB"), ("annotations", "L")):
        (tmp_path / name).mkdir()
        for number in range(3):
            rows = np.array([values, [*values[:-1], values[-1]]], np.uint8)
            Image.fromarray(rows).convert(mode).save(tmp_path / name / f"{number}.png")
    names = [f"c{value}" for value in ids]
    data = SemanticSet(tmp_path / "images", tmp_path / "annotations", Labels.of(ids, names, [] if 0 in ids else [0]))
    survey_masks(data, learned=False)
    assert [remark for remark in data.remarks if "%" in remark] == ([said] if said else [])
