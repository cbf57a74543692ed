"""Classes keep their meaning: parts and classes told apart, and classes matched by name."""

from __future__ import annotations

import os
import unicodedata
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from data_samples import sample_image, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.train import TrainConfig
from vitrail.data import DataConfig, open_dataset
from vitrail.data.datasets.base import ArraySet
from vitrail.data.datasets.classes import check_same_classes, class_positions, with_classes_of
from vitrail.data.datasets.division import changed_options, check_division
from vitrail.data.datasets.imagenet import standard_names, standard_wnids
from vitrail.data.datasets.splits import TRAIN_NAMES, VAL_NAMES, check_disjoint, for_measuring, split_word
from vitrail.errors import UserError
from vitrail.tasks import build_task


def opened(root, train=True, name="folder", **options):
    return open_dataset(DataConfig(name, root=str(root), **options), train)


def of_classes(*names):
    return ArraySet(np.zeros((len(names), 2, 2, 3), np.uint8), np.arange(len(names)), names, "image")


# -- parts -------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(TRAIN_NAMES + VAL_NAMES)
AROUND = st.sampled_from(["", "_set", "-set", " set", "Set", "_images", "_data", ".images", "2017", "_split_2012"])


@settings(max_examples=200, deadline=None)
@given(WORDS, AROUND, st.lists(st.booleans(), min_size=40, max_size=40))
def test_a_part_is_known_whatever_its_capitals(word, around, capitals):
    name = "".join(c.upper() if up else c for c, up in zip(word + around, capitals, strict=False))
    assert split_word(name) == word


@pytest.mark.parametrize(
    "name", ["trains", "testify", "tester", "valley", "training shoe", "train1", "contest", "devil"]
)
def test_a_class_is_no_part(name):
    assert split_word(name) is None


@pytest.mark.parametrize(
    ("train", "val"),
    [("Training", "Test"), ("TRAIN", "VAL"), ("training_set", "test_set"), ("train_images", "Val-Images")],
)
def test_parts_with_capitals(tmp_path, train, val):
    write_classes(tmp_path / train, {"pear": 3, "apple": 2})
    write_classes(tmp_path / val, {"pear": 1, "apple": 1})
    (tmp_path / "papers").mkdir()
    learn, held = opened(tmp_path), opened(tmp_path, train=False)
    assert learn.classes == held.classes == ["apple", "pear"]
    assert [len(learn), len(held)] == [5, 2]
    assert learn.notes() == [f"not used: papers in {tmp_path}"]


@pytest.mark.parametrize("name", ["imagenet", "timm"])
def test_parts_with_capitals_of_other_readers(tmp_path, name):
    write_classes(tmp_path / "Training", {"n00000002": 3, "n00000001": 2})
    write_classes(tmp_path / "VAL", {"n00000001": 1, "n00000002": 1})
    source = {"source": "folder"} if name == "timm" else {}
    learn, held = (opened(tmp_path, train, name, **source) for train in (True, False))
    assert learn.classes == held.classes == ["n00000001", "n00000002"]
    assert [len(learn), len(held)] == [5, 2]


def test_a_test_folder_beside_the_classes_is_no_class(tmp_path):
    write_classes(tmp_path, {"pear": 3, "apple": 2})
    write_classes(tmp_path / "Test", {"pear": 1, "apple": 2})
    assert opened(tmp_path).classes == ["apple", "pear"]
    assert np.bincount(opened(tmp_path, train=False).targets).tolist() == [2, 1]


def test_folders_of_the_same_class_folders_are_no_classes(tmp_path):
    for part in ("seg_train", "seg_pred", "more"):
        write_classes(tmp_path / part, {"sea": 1, "street": 1} | ({"forest": 1} if part != "seg_pred" else {}))
    with pytest.raises(UserError, match=r"Folders 'more' and 'seg_pred' in .* hold the same 2 folders \(sea, street\)"):
        opened(tmp_path)


def test_one_inner_folder_in_common_says_nothing(tmp_path):
    for name in ("n1", "n2"):
        write_classes(tmp_path / name, {"images": 3})
    assert opened(tmp_path).classes == ["n1", "n2"]


def test_two_folders_for_one_part(tmp_path):
    for part in ("train", "Train_set", "val"):
        write_classes(tmp_path / part, {"a": 1, "b": 1})
    with pytest.raises(UserError, match="two folders for one split, 'Train_set' and 'train'"):
        opened(tmp_path)


def test_one_folder_under_two_names(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "val").symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match="are the same folder"):
        opened(tmp_path, train=False)


def test_files_in_both_parts(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "val", {"a": 1, "b": 1})
    learn = opened(tmp_path)
    check_disjoint(learn, opened(tmp_path, train=False))
    os.link(tmp_path / "train" / "a" / "1.png", tmp_path / "val" / "a" / "copy.png")
    (tmp_path / "val" / "b" / "link.png").symlink_to(tmp_path / "train" / "b" / "0.png")
    with pytest.raises(UserError, match=r"2 of the 4 images to measure on are images to learn from.*copy.png"):
        check_disjoint(learn, opened(tmp_path, train=False))


def test_all_is_for_validation(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 6})
    assert len(opened(tmp_path, train=False, val_split="all")) == 10
    assert len(opened(tmp_path, train=False, val_split="holdout")) == len(opened(tmp_path, train=False)) == 2
    assert "2 of 10 images are held out" in " ".join(opened(tmp_path).notes())
    named = opened(tmp_path, train=False, val_split="train")
    assert len(named) == 10
    assert named.notes() == ["these are training images, as --data.val_split train says"]
    assert len(opened(tmp_path, val_split="train")) == 10
    with pytest.raises(UserError, match="no folder 'test'"):
        opened(tmp_path, train=False, val_split="test")


def test_named_parts(tmp_path):
    for part, count in (("train", 2), ("val", 3), ("other", 4)):
        write_classes(tmp_path / part, {"a": count, "b": count})
    sizes = {
        split: len(opened(tmp_path, train=False, val_split=split)) for split in ("validation", "other", "train", "all")
    }
    assert sizes == {"validation": 6, "other": 8, "train": 4, "all": 6}
    assert len(opened(tmp_path, train_split="other")) == 8


# -- names -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 3000), min_size=2, max_size=30), st.booleans())
def test_numbers_are_in_the_order_of_numbers(tmp_path_factory, numbers, padded):
    root = tmp_path_factory.mktemp("numbers")
    names = [f"{number:04d}" if padded else str(number) for number in sorted(numbers)]
    write_classes(root, dict.fromkeys(names[::-1], 2))
    assert opened(root).classes == names


def test_one_number_written_twice(tmp_path):
    write_classes(tmp_path, {"1": 1, "01": 1, "2": 1})
    with pytest.raises(UserError, match="two class folders for one number"):
        opened(tmp_path)


def test_accents_stored_in_two_ways(tmp_path):
    composed, apart = (unicodedata.normalize(form, "crêpe") for form in ("NFC", "NFD"))
    write_classes(tmp_path / "train", {composed: 2, "b": 2})
    write_classes(tmp_path / "val", {apart: 1, "b": 1})
    held = opened(tmp_path, train=False)
    assert held.classes == ["b", composed]
    assert held.image(1).size == (10, 8)
    write_classes(tmp_path / "train", {apart: 1})
    with pytest.raises(UserError, match="stored in two ways"):
        opened(tmp_path)


def test_what_is_left_out_is_said(tmp_path):
    write_classes(tmp_path / "train", {"Cat": 2, "cat": 2, "dog": 1})
    write_classes(tmp_path / "val", {"Cat": 2, "cat": 2})
    for i in range(3):
        (tmp_path / "train" / "cat" / f"{i}.heic").write_bytes(b"x")
        (tmp_path / "train" / "dog" / f"photo{i}").write_bytes(b"x")
    (tmp_path / "train" / "dog" / "Thumbs.db").write_bytes(b"x")
    sample_image().save(tmp_path / "train" / "loose.png")
    notes = opened(tmp_path).notes()
    assert "3 .heic, 3 without ending" in notes[0]
    assert notes[1].startswith("1 images directly in")
    assert "Cat and cat" in notes[2]
    assert opened(tmp_path, train=False).notes()[-1] == "1 of 3 classes have no image to measure on: dog"


# -- a network's classes -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcé1-", min_size=1, max_size=4), min_size=2, max_size=8, unique=True), st.data())
def test_classes_are_matched_by_name(known, data):
    some = data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
    positions = class_positions(known, of_classes(*some), "w")
    assert [known[place] for place in positions] == some
    found = with_classes_of(known, of_classes(*some), "w")
    assert [found.classes[target] for target in found.targets] == some


def test_other_classes_are_refused():
    for known, found, name in (
        (["1", "2", "3"], ["2", "3", "4"], "'4'"),
        (["cat", "dog"], ["cat", "dogs"], r"'dogs', .*did you mean 'dog'"),
        (["0", "1"], ["a", "b"], "'a'"),
        (["a", "b"], ["0", "1"], "'0'"),
    ):
        with pytest.raises(UserError, match=f"the class {name}"):
            with_classes_of(known, of_classes(*found), "w")
    assert class_positions(["1", "2", "10"], of_classes("01", "10", "02"), "w") == [0, 2, 1]


def test_the_order_counts_where_nothing_is_renumbered():
    check_same_classes(["a", "b"], of_classes("a", "b"), "w")
    with pytest.raises(UserError, match="number 0 is 'b' here and 'a' there"):
        check_same_classes(["a", "b"], of_classes("b", "a"), "w")
    with pytest.raises(UserError, match="knows 3 classes, but the data has 2"):
        check_same_classes(["a", "b", "c"], of_classes("a", "b"), "w")


def test_data_without_names_are_taken_by_number():
    images = of_classes("0", "1", "2")
    images.unnamed = True
    assert class_positions(["a", "b", "c"], images, "w") == [0, 1, 2]
    with pytest.raises(UserError):
        class_positions(["a", "b"], images, "w")


# -- ImageNet ----------------------------------------------------------------------------------------------------


def test_imagenet_v2_by_number(tmp_path):
    numbers = [0, 1, 2, 10, 134, 517, 999]
    write_classes(tmp_path / "imagenetv2", {str(n): 1 for n in numbers})
    for root in (tmp_path, tmp_path / "imagenetv2"):
        images = opened(root, train=False, name="imagenet_v2")
        assert images.targets.tolist() == numbers
        assert len(images.classes) == len(set(images.classes)) == 1000
    assert class_positions(standard_names(), images, "timm:x") == list(range(1000))
    assert images.classes[134] != images.classes[517]  # two cranes
    ours = [f"{n.split(',')[0]}" for n in standard_names()]
    assert class_positions(images.classes[::-1], images, "w") == list(range(1000))[::-1]
    with pytest.raises(UserError, match="crane"):
        class_positions(ours, images, "w")


@pytest.mark.parametrize("name", ["1000", "cat", "-1", "n01440764", "1.5"])
def test_imagenet_v2_knows_other_names(tmp_path, name):
    write_classes(tmp_path, {"0": 1, name: 1})
    with pytest.raises(UserError, match=f"folder '{name}'"):
        opened(tmp_path, train=False, name="imagenet_v2")


def test_imagenet_v2_is_not_learned(tmp_path):
    with pytest.raises(UserError, match="no images to learn from"):
        opened(tmp_path, name="imagenet_v2")


def test_folders_of_wordnet_numbers(tmp_path):
    wnids = standard_wnids()
    some = [7, 134, 517, 900]
    write_classes(tmp_path / "val", {wnids[n]: 1 for n in some})
    for name in ("folder", "imagenet"):
        write_classes(tmp_path / "train", {wnids[n]: 1 for n in some}) if name == "imagenet" else None
        images = with_classes_of(standard_names(), opened(tmp_path, train=False, name=name), "timm:x")
        assert images.targets.tolist() == some


def test_numbers_under_an_imagenet_network_are_named(tmp_path):
    write_classes(tmp_path, {str(n): 2 for n in range(12)})
    with pytest.raises(UserError, match=r"--data imagenet_v2"):
        with_classes_of(standard_names(), opened(tmp_path, train=False), "timm:x")


def test_a_list_of_classes_leads_nowhere_else(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    for wnids, says in ((["a", "../x"], "leads out"), (["a", "/etc"], "leads out"), (["a", "a"], "twice")):
        rows = "".join(f"{i};{w};x{i}\n" for i, w in enumerate(wnids))
        (tmp_path / "classes.csv").write_text("\ufeffindex;wnid;name\n" + rows)
        with pytest.raises(UserError, match=says):
            opened(tmp_path, name="imagenet")
    (tmp_path / "classes.csv").write_text("\ufeffIndex;wnid;Name\n1;a;one\n0;b;zero\n;;\n")
    assert opened(tmp_path, name="imagenet").classes == ["zero", "one"]


# -- measuring named data ----------------------------------------------------------------------------------------


def test_new_folders_are_measured_whole_and_the_runs_own_are_not(tmp_path):
    write_classes(tmp_path / "own", {"a": 10, "b": 10})
    write_classes(tmp_path / "new", {"b": 3, "a": 4})
    own = DataConfig("folder", root=str(tmp_path / "own"), val_fraction=0.5, split_seed=3)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    held = open_dataset(own, False)
    for root in (tmp_path / "own", tmp_path / "link"):
        named = open_dataset(for_measuring(DataConfig("folder", root=str(root)), own), False)
        assert [named.key(i) for i in range(len(named))] == [held.key(i) for i in range(len(held))]
    for known in (own, None):
        assert len(open_dataset(for_measuring(DataConfig("folder", root=str(tmp_path / "new")), known), False)) == 7
    digits = DataConfig("digits")
    assert for_measuring(digits, None) == digits


def test_data_of_one_class_are_refused(tmp_path):
    write_classes(tmp_path / "train", {"a": 3, "b": 3})
    write_classes(tmp_path / "val", {"a": 2})
    (tmp_path / "val" / "b").mkdir()
    config = TrainConfig(model="emsnet_xxtiny", image_size=32, data=DataConfig("folder", root=str(tmp_path)))
    with pytest.raises(UserError, match="All 2 images to measure on are of the class 'a'"):
        build_task(config)
    sample_image().save(tmp_path / "val" / "b" / "0.png")
    notes = build_task(config).notes()
    assert notes == ["batches have 6 images, all there are to learn from, and not the 64 of --batch_size"]
    (tmp_path / "val" / "b" / "1.png").symlink_to(tmp_path / "train" / "b" / "1.png")
    with pytest.raises(UserError, match="1 of the 4 images to measure on are images to learn from"):
        build_task(config)


def test_the_share_that_is_measured_is_the_run_s(tmp_path):
    own = DataConfig("folder", root=str(tmp_path), val_fraction=0.4, split_seed=3)
    bare = DataConfig("folder", root=str(tmp_path))
    for data in (bare, replace(bare, val_split="holdout"), replace(bare, val_fraction=0.4), own):
        measured = for_measuring(data, own)
        assert (measured.val_split, measured.val_fraction, measured.split_seed) == ("holdout", 0.4, 3)
    for name, value in (("val_fraction", 0.5), ("split_seed", 1)):
        with pytest.raises(UserError, match=rf"--data.{name} {value} is not what these weights were trained with"):
            for_measuring(replace(bare, **{name: value}), own)
    digits = for_measuring(DataConfig(), DataConfig(val_fraction=0.1))
    assert digits.val_fraction == 0.1
    elsewhere = for_measuring(replace(bare, root=str(tmp_path / "x"), val_split="holdout", val_fraction=0.5), own)
    assert elsewhere.val_fraction == 0.5


@pytest.mark.parametrize(
    ("parts", "changes", "says"),
    [
        (True, {"val_fraction": 0.5}, "--data.val_fraction has no effect: .*val is there to be measured on"),
        (True, {"split_seed": 5}, "--data.split_seed has no effect"),
        (True, {"val_split": "all"}, "--data.val_split all has no effect"),
        (False, {"val_split": "all", "val_fraction": 0.5}, "with --data.val_split all nothing is held out"),
        (False, {"val_split": "train", "split_seed": 5}, "with --data.val_split train nothing is held out"),
        (False, {"val_fraction": 0.5}, None),
        (False, {"val_split": "holdout", "split_seed": 5}, None),
        (True, {"val_split": "train"}, None),
    ],
)
def test_options_of_a_share_need_one(tmp_path, parts, changes, says):
    for part in ("train", "val") if parts else (".",):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
    data = DataConfig("folder", root=str(tmp_path), **changes)
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_division(data, "classification", changed_options(data))


@pytest.mark.parametrize(("option", "word"), [("train_split", "tran"), ("val_split", "vla"), ("val_split", "all")])
def test_a_split_that_timm_s_folders_have_not(tmp_path, option, word):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    data = DataConfig("timm", source="folder", root=str(tmp_path), **{option: word})
    with pytest.raises(UserError, match=f"has no split '{word}', as data.{option} says"):
        open_dataset(data, train=False)
    whole = replace(data, train_split="train", val_split="train")
    assert len(open_dataset(whole, train=False)) == len(open_dataset(whole, train=True)) == 2
