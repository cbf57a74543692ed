"""Each layout on disk, its classes and its mistakes."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
from data_samples import real_data, sample_image, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data import DATASETS, BadImage, DataConfig, open_dataset
from vitrail.data.arrays import check_array
from vitrail.data.datasets.base import stratified_split
from vitrail.errors import BadOption, UserError


def opened(name, root, train=True, **options):
    return open_dataset(DataConfig(name, root=str(root), **options), train)


def pixels(dataset, index=0):
    return np.asarray(dataset.image(index))


# -- the door ----------------------------------------------------------------------------------------------------


def test_names_and_roots():
    with pytest.raises(UserError, match=r"'cifar10' or 'cifar100'|did you mean cifar10"):
        open_dataset(DataConfig("cifar1"), True)
    for name in DATASETS[1:-1]:
        with pytest.raises(UserError, match=r"needs --data\.root"):
            open_dataset(DataConfig(name), True)
        with pytest.raises(UserError, match="does not exist"):
            opened(name, "no/such/place", train=name != "imagenet_v2")
    with pytest.raises(UserError, match="embedded"):
        opened("digits", ".")
    with pytest.raises(UserError, match=r"needs --data\.source"):
        open_dataset(DataConfig("timm"), True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (DataConfig(limit=8), "data.limit=8 is not allowed for digits; it is for coco, ade20k."),
        (DataConfig(val_split="test"), "data.val_split='test' is not allowed for digits"),
        (
            DataConfig("imagenet", root="images", val_fraction=0.1),
            "data.val_fraction=0.1 is not allowed for imagenet",
        ),
        (DataConfig("folder", root="images", source="hfds/x"), "data.source='hfds/x' is not allowed for folder"),
        (DataConfig("coco", classes="list.json"), "data.classes='list.json' is not allowed for coco"),
        (DataConfig("coco", limit=0), "--data.limit 0 must be 1 or more"),
    ],
)
def test_options_of_other_data_and_impossible_values(config, says):
    with pytest.raises(BadOption) as caught:
        config.check()
    assert says in str(caught.value)
    if config.name in DATASETS:
        with pytest.raises(BadOption):
            open_dataset(config, train=True)


# -- splitting ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_split_holds_back_of_each_class_some_and_never_all(counts, fraction, seed):
    targets = np.repeat(np.arange(len(counts)), counts)
    learn, held = stratified_split(targets, fraction, seed, [str(i) for i in range(len(counts))])
    assert sorted([*learn, *held]) == list(range(len(targets)))
    for c, count in enumerate(counts):
        back = int((targets[held] == c).sum())
        assert 1 <= back <= count - 1
        assert abs(back - fraction * count) <= 1
    again = stratified_split(targets, fraction, seed, [str(i) for i in range(len(counts))])
    assert np.array_equal(held, again[1])


def test_split_is_the_same_for_ever():
    # Fixed numbers: a change here would silently mix training and validation images of existing runs.
    _, held = stratified_split(np.repeat([0, 1], 10), 0.3, 7, ["a", "b"])
    assert held.tolist() == [0, 7, 9, 11, 13, 14]


def test_split_mistakes():
    with pytest.warns(UserWarning, match="Only one image in class 'b'"):
        learn, held = stratified_split(np.array([0, 0, 1]), 0.5, 0, ["a", "b"])
    assert len(held) == 1
    assert 2 in learn
    with pytest.raises(UserError, match="No class has two images"):
        stratified_split(np.array([0, 1]), 0.5, 0, ["a", "b"])
    for fraction in (0, 1, -1, float("nan")):
        with pytest.raises(ValueError, match="val_fraction="):
            stratified_split(np.array([0, 0]), fraction, 0, ["a"])
    assert issubclass(BadOption, UserError)


# -- digits ------------------------------------------------------------------------------------------------------


def test_digits():
    learn, held = open_dataset(DataConfig(), True), open_dataset(DataConfig(), False)
    assert len(learn) + len(held) == 1797
    assert np.allclose(np.bincount(held.targets), np.bincount(learn.targets) / 4, atol=1)
    assert learn.classes == [str(i) for i in range(10)]
    image, label = learn[0]
    assert image.mode == "RGB"
    assert image.size == (8, 8)
    assert isinstance(label, int)
    assert np.unique(learn.dataset.pixels).tolist() == [round(v * 255 / 16) for v in range(17)]
    assert not {pixels(held, i).tobytes() for i in range(len(held))} & {
        pixels(learn, i).tobytes() for i in range(len(learn))
    }
    other = open_dataset(DataConfig(split_seed=1), False)
    assert not np.array_equal(other.indices, held.indices)


# -- folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_folder_with_two_parts(tmp_path, val):
    write_classes(tmp_path / "train", {"b": 3, "a": 2, "C": 1})
    write_classes(tmp_path / val, {"a": 1, "b": 2})
    learn, held = opened("folder", tmp_path), opened("folder", tmp_path, train=False)
    assert learn.classes == held.classes == ["C", "a", "b"]
    assert learn.targets.tolist() == [0, 1, 1, 2, 2, 2]
    assert held.targets.tolist() == [1, 2, 2]
    assert learn.name(5) == str(tmp_path / "train" / "b" / "2.png")
    assert np.array_equal(pixels(learn, 5), np.asarray(sample_image(2)))


def test_folder_divided_by_us(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 5})
    learn, held = opened("folder", tmp_path), opened("folder", tmp_path, train=False)
    assert np.bincount(learn.targets).tolist() == [8, 4]
    assert np.bincount(held.targets).tolist() == [2, 1]
    names = [learn.name(i) for i in range(12)] + [held.name(i) for i in range(3)]
    assert len(set(names)) == 15
    (tmp_path / "both").mkdir()
    for name in "ab":
        (tmp_path / name).rename(tmp_path / "both" / name)
    (tmp_path / "both").rename(tmp_path / "train")
    assert [opened("folder", tmp_path).name(i)[-7:] for i in range(12)] == [n[-7:] for n in names[:12]]


def test_classes_called_train_and_test(tmp_path):
    write_classes(tmp_path, {"train": 3, "test": 3, "car": 3})
    assert opened("folder", tmp_path).classes == ["car", "test", "train"]


def test_nested_and_linked_folders_and_odd_names(tmp_path):
    write_classes(tmp_path / "root", {"größe": 1, "b": 1})
    write_classes(tmp_path / "root" / "b", {"deep": 2})
    write_classes(tmp_path, {"elsewhere": 2})
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / ".cache").mkdir()
    with pytest.warns(UserWarning, match="größe"):
        learn, held = opened("folder", tmp_path / "root"), opened("folder", tmp_path / "root", train=False)
    assert learn.classes == ["b", "größe", "linked"]
    assert np.bincount([*learn.targets, *held.targets]).tolist() == [3, 1, 2]
    assert learn.image(list(learn.targets).index(1)).size == (10, 8)


def test_only_a_part_to_measure_on(tmp_path):
    write_classes(tmp_path / "val", {"a": 1, "b": 1})
    assert len(opened("folder", tmp_path, train=False)) == 2
    with pytest.raises(UserError, match="no 'train' folder"):
        opened("folder", tmp_path)


def test_folder_mistakes(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        opened("folder", tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no class folders"):
        opened("folder", tmp_path)
    with pytest.raises(UserError, match="is a file"):
        opened("folder", tmp_path / "notes.txt")
    sample_image().save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"1 image\(s\) directly in it"):
        opened("folder", tmp_path)
    write_classes(tmp_path, {"cat": 2})
    with pytest.raises(UserError, match="at least two classes"):
        opened("folder", tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog holds no images"):
        opened("folder", tmp_path)


def test_unknown_class_to_measure_on(tmp_path):
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "val", {"cat": 1, "dogs": 1})
    with pytest.raises(UserError, match=r"'dogs' \(did you mean 'dog'\?\)"):
        opened("folder", tmp_path, train=False)


def test_bad_images_are_named(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "0.png").write_bytes(b"no")
    (tmp_path / "a" / "1.png").write_bytes(b"no")
    learn = opened("folder", tmp_path)
    with pytest.raises(BadImage, match=r"a/[01]\.png"):
        learn[0]
    with pytest.raises(BadImage, match="10 x 8 pixels, more than the 8 that"):
        opened("folder", tmp_path, max_pixels=8).image(1)


# -- cifar -------------------------------------------------------------------------------------------------------


def cifar_arrays(num_classes, count):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % num_classes


def write_official(root, num_classes, count=100, protocol=2):
    """Files as the official ones: rows of 3072 bytes, channel by channel; protocol 2 as from Python 2."""
    images, labels = cifar_arrays(num_classes, count)
    rows = images.transpose(0, 3, 1, 2).reshape(count, -1)
    names = [f"name{i}" for i in range(num_classes)]
    folder = root / ("cifar-10-batches-py" if num_classes == 10 else "cifar-100-python")
    folder.mkdir()

    def dump(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol))

    if num_classes == 10:
        for i in range(5):
            part = slice(i * count // 5, (i + 1) * count // 5)
            dump(f"data_batch_{i + 1}", {"data": rows[part], "labels": labels[part].tolist()})
        dump("test_batch", {"data": rows[:10], "labels": labels[:10].tolist()})
        dump("batches.meta", {"label_names": names})
    else:
        dump("train", {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": [0] * count})
        dump("test", {"data": rows[:10], "fine_labels": labels[:10].tolist()})
        dump("meta", {"fine_label_names": names})
    return folder, images, labels


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar_official_files(tmp_path, num_classes, protocol):
    folder, images, labels = write_official(tmp_path, num_classes, protocol=protocol)
    for root in (tmp_path, folder):
        learn = opened(f"cifar{num_classes}", root)
        assert learn.targets.tolist() == labels.tolist()
        assert np.array_equal(learn.pixels, images)
        assert learn.classes[3] == "name3"
        assert np.array_equal(pixels(opened(f"cifar{num_classes}", root, train=False), 9), images[9])
    (folder / ("batches.meta" if num_classes == 10 else "meta")).unlink()
    assert opened(f"cifar{num_classes}", tmp_path).classes[3] == "3"


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_cifar_refuses_code(tmp_path):
    folder, *_ = write_official(tmp_path, 10)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": _Code(str(tmp_path / "owned")), "labels": []}))
    with pytest.raises(UserError, match=r"data_batch_3 is refused: it holds code \(posix.mkdir\)"):
        opened("cifar10", tmp_path)
    assert not (tmp_path / "owned").exists()
    np.savez(tmp_path / "a.npz", x_train=np.array([_Code(str(tmp_path / "owned"))], dtype=object), y_train=[0])
    with pytest.raises(UserError, match="is refused"):
        opened("cifar10", tmp_path / "a.npz")
    assert not (tmp_path / "owned").exists()


def test_cifar_damaged_files(tmp_path):
    folder, *_ = write_official(tmp_path, 10)
    whole = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="data_batch_2 is truncated or corrupt"):
        opened("cifar10", tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"other": 1}))
    with pytest.raises(UserError, match="data_batch_2 lacks data or labels"):
        opened("cifar10", tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}))
    with pytest.raises(UserError, match="do not hold 32 x 32"):
        opened("cifar10", tmp_path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(UserError, match="data_batch_2 is missing"):
        opened("cifar10", tmp_path)


def write_npz(path, num_classes=10, **changes):
    images, labels = cifar_arrays(num_classes, 2 * num_classes)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:5], "y_test": labels[:5, None]} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def test_cifar_npz(tmp_path):
    write_npz(tmp_path / "a.npz")
    for root in (tmp_path, tmp_path / "a.npz"):
        assert len(opened("cifar10", root)) == 20
        assert opened("cifar10", root, train=False).targets.tolist() == [0, 1, 2, 3, 4]
    write_npz(tmp_path / "b.npz", class_names=np.array([f"n{i}" for i in range(10)]))
    assert opened("cifar10", tmp_path / "b.npz").classes[1] == "n1"
    with pytest.raises(UserError, match=r"holds 2 \.npz files"):
        opened("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "lacks x_train; it has y_train"),
        ({"class_names": np.array(["a", "b"])}, "names 2 classes, but cifar10 has 10"),
        ({"x_train": np.zeros((20, 32, 32), np.uint8)}, "must be"),
        ({"x_train": np.zeros((20, 32, 32, 3), np.float32)}, "uint8, not"),
        ({"y_train": np.zeros(3, np.int64)}, "as many whole-number labels"),
        ({"y_train": np.linspace(0, 9, 20)}, "whole-number labels"),
        ({"y_train": np.arange(20)}, "labelled 0 to 19, but cifar10 has 10"),
        ({"y_train": np.zeros(20, np.int64)}, "has 1 classes"),
        ({"y_train": np.arange(20) % 10 - 1}, "labelled -1 to 8"),
    ],
)
def test_cifar_npz_mistakes(tmp_path, changes, message):
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(UserError, match=message):
        opened("cifar10", tmp_path)


def test_cifar_truncated_npz_and_wrong_places(tmp_path):
    write_npz(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.npz is truncated or not an \.npz file"):
            opened("cifar10", tmp_path)
    (tmp_path / "a.npz").rename(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"unpack cifar-10-python\.tar\.gz first"):
        opened("cifar10", tmp_path)
    with pytest.raises(UserError, match="unpack an archive first"):
        opened("cifar10", tmp_path / "cifar-10-python.tar.gz")
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(UserError, match=r"expected cifar-100-python or one \.npz file"):
        opened("cifar100", tmp_path)
    write_npz(tmp_path / "ten.npz")
    with pytest.raises(UserError, match="has 10 classes, labelled 0 to 9, but cifar100 has 100"):
        opened("cifar100", tmp_path)


# -- imagenet ----------------------------------------------------------------------------------------------------

TENCH, CRANE_BIRD, CRANE_MACHINE = "n01440764", "n02012849", "n03126707"


def test_imagenet_with_class_folders(tmp_path):
    write_classes(tmp_path / "train", {CRANE_MACHINE: 1, TENCH: 2, CRANE_BIRD: 1})
    write_classes(tmp_path / "val", {CRANE_BIRD: 1, TENCH: 1})
    learn, held = opened("imagenet", tmp_path), opened("imagenet", tmp_path, train=False)
    assert learn.classes == held.classes == ["tench", f"crane ({CRANE_BIRD})", f"crane ({CRANE_MACHINE})"]
    assert learn.targets.tolist() == [0, 0, 1, 2]
    assert held.targets.tolist() == [0, 1]


def test_imagenet_without_training_part_has_the_standard_1000_classes(tmp_path):
    write_classes(tmp_path / "val", {CRANE_BIRD: 1})
    held = opened("imagenet", tmp_path, train=False)
    assert len(held.classes) == len(set(held.classes)) == 1000
    assert held.targets.tolist() == [134]
    with pytest.raises(UserError, match="train does not exist"):
        opened("imagenet", tmp_path)


@pytest.mark.parametrize("form", ["LOC_val_solution.csv", "val_labels.txt"])
@pytest.mark.parametrize("kaggle", [False, True])
def test_imagenet_with_flat_val(tmp_path, form, kaggle):
    base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" if kaggle else tmp_path
    write_classes(base / "train", {TENCH: 1, CRANE_BIRD: 1})
    (base / "val").mkdir()
    for i in (1, 2):
        sample_image(i).save(base / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    with pytest.raises(UserError, match=r"add LOC_val_solution\.csv"):
        opened("imagenet", tmp_path, train=False)
    lines = [(2, TENCH), (1, CRANE_BIRD)]
    if form.endswith("csv"):
        rows = ["ImageId,PredictionString"] + [f"ILSVRC2012_val_0000000{i},{wnid} 1 2 3 4" for i, wnid in lines]
    else:
        rows = [f"ILSVRC2012_val_0000000{i}.JPEG {wnid}" for i, wnid in lines]
    (tmp_path / form).write_text("\n".join(rows) + "\n")
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{CRANE_BIRD} big bird, b\n{TENCH} tench, Tinca tinca\n")
    held = opened("imagenet", tmp_path, train=False)
    assert held.classes == ["tench", "big bird"]
    assert held.targets.tolist() == [1, 0]
    sample_image().save(base / "val" / "extra.JPEG")
    with pytest.raises(UserError, match=r"1 image\(s\) are not in the list of labels, such as extra\.JPEG"):
        opened("imagenet", tmp_path, train=False)


def test_imagenet_classes_csv(tmp_path):
    write_classes(tmp_path / "val", {"n2": 1, "n1": 1})
    table = tmp_path / "classes.csv"
    table.write_text("index,wnid,name\n1,n1,one\n0,n2,two\n2,n3,three\n")
    held = opened("imagenet", tmp_path, train=False)
    assert held.classes == ["two", "one", "three"]
    assert sorted(held.targets.tolist()) == [0, 1]
    table.write_text("index,wnid,name\n0,n1,one\n1,n3,three\n")
    with pytest.raises(UserError, match="'n2'"):
        opened("imagenet", tmp_path, train=False)
    table.write_text("index,wnid,name\n0,n1,one\n2,n2,three\n")
    with pytest.raises(UserError, match="without gaps"):
        opened("imagenet", tmp_path, train=False)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="columns index, wnid and name"):
        opened("imagenet", tmp_path, train=False)


# -- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [10, 100])
def test_real_cifar(num_classes):
    root = real_data(f"cifar{num_classes}_mini")
    learn, held = opened(f"cifar{num_classes}", root), opened(f"cifar{num_classes}", root, train=False)
    assert (len(learn), len(held)) == (5000, 1000)
    assert set(np.bincount(learn.targets)) == {5000 // num_classes}
    assert set(np.bincount(held.targets)) == {1000 // num_classes}
    assert learn.classes[:2] == (["airplane", "automobile"] if num_classes == 10 else ["apple", "aquarium_fish"])
    mean = learn.pixels.mean((0, 1, 2)) / 255  # of the full set: 0.4914, 0.4822, 0.4465 and 0.5071, 0.4865, 0.4409
    assert np.allclose(mean, (0.4914, 0.4822, 0.4465) if num_classes == 10 else (0.5071, 0.4865, 0.4409), atol=0.01)
    assert held.image(0).size == (32, 32)


def test_real_clothing():
    root = real_data("clothing_mini")
    learn, held = opened("folder", root), opened("folder", root, train=False)
    assert np.bincount(learn.targets).tolist() == [40] * 10
    assert np.bincount(held.targets).tolist() == [8] * 10
    assert learn.classes == sorted(learn.classes)
    assert learn.classes[0] == "dress"
    for i in range(0, 400, 40):
        assert f"/{learn.classes[learn.targets[i]]}/" in learn.name(i)
        assert min(learn.image(i).size) <= 256
    divided, back = opened("folder", f"{root}/train"), opened("folder", f"{root}/train", train=False)
    assert np.bincount(divided.targets).tolist() == [32] * 10
    assert np.bincount(back.targets).tolist() == [8] * 10


def test_real_imagenet():
    root = real_data("imagenet_mini")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = opened("imagenet", root, train=False)
    assert len(held) == 200
    assert len(set(held.classes)) == 1000
    assert held.targets.tolist() == list(range(0, 1000, 5))
    assert held.classes[0] == "tench"
    assert min(held.image(0).size) <= 256


def header_of(shape: str, kind: str = "|u1") -> bytes:
    """The beginning of an .npy file that claims a shape."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", ["(1000000000000, 32, 32, 3)", "(10, 32, 32, 3)", "(-1, 32, 32, 3)"])
def test_headers_that_claim_more_than_there_is(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", header_of(shape) + bytes(32 * 32 * 3))
        archive.writestr("y_train.npy", header_of("(1,)", "<i8") + bytes(8))
    with pytest.raises(UserError, match=r"a\.npz, x_train has a header of shape"):
        opened("cifar10", tmp_path / "a.npz")
    (tmp_path / "a.npy").write_bytes(header_of(shape) + bytes(4))
    with pytest.raises(UserError, match=r"a\.npy has a header of shape"):
        check_array(tmp_path / "a.npy")
