"""Folders of label maps: found by the images' names in every style, and checked before they are learned from."""

import json

import numpy as np
import pytest
import torch
from data_samples import write_classes

from vitrail.data import DataConfig, TrainLoader, open_dataset
from vitrail.data.datasets.base import ArraySet, Subset
from vitrail.data.datasets.token_label_maps import TokenLabelSet, pack
from vitrail.data.transforms.base import PairTransform
from vitrail.errors import UserError


@pytest.fixture
def images(tmp_path):
    for part in ("train", "val"):
        write_classes(tmp_path / "photos" / part, {"cat": 3, "dog": 2})
    return open_dataset(DataConfig("folder", str(tmp_path / "photos")), train=True)


def a_map(number, k=2, rows=2, columns=3, classes=2):
    scores = np.random.default_rng(number).normal(size=(k, rows, columns))
    return pack(scores, np.arange(k * rows * columns).reshape(k, rows, columns) % classes, classes)


def write_maps(folder, images, style="key"):
    for i in range(len(images)):
        key = images.key(i)
        name = {"key": f"{key}.npy", "stem": key.replace(".png", ".npy"), "public": key.replace(".png", ".pt")}[style]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if style == "public":
            torch.save(torch.from_numpy(a_map(i)), folder / name)
        else:
            np.save(folder / name, a_map(i))
    return folder


@pytest.mark.parametrize("style", ["key", "stem", "public"])
def test_maps_are_found_by_the_images_names(images, tmp_path, style):
    assert [images.key(i) for i in range(5)] == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"]
    labelled = TokenLabelSet(images, write_maps(tmp_path / "maps", images, style))
    for i in range(5):
        image, (label, label_map) = labelled[i]
        assert label == int(i > 2)
        assert torch.equal(label_map, torch.from_numpy(a_map(i)).float())
        assert image.tobytes() == images[i][0].tobytes()
    assert labelled.name(1) == images.name(1)


def test_keys_do_not_change_when_a_part_is_chosen():
    whole = ArraySet(np.zeros((12, 4, 4, 3), np.uint8), np.zeros(12), ["a"], "image")
    assert [Subset(whole, [7, 3]).key(i) for i in range(2)] == ["000007", "000003"]


def test_half_precision_keeps_every_class_it_is_used_for():
    for count in (2049, 2050, 21843):
        classes = np.arange(count - 3, count).reshape(3, 1, 1)
        packed = pack(np.zeros((3, 1, 1)), classes, count)
        assert packed.astype(np.int64)[1].tolist() == classes.tolist()
    assert pack(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), 1000).dtype == np.float16


def test_batches_of_a_pair_transform(images, tmp_path):
    class Both(PairTransform):
        def __call__(self, image, target):
            return torch.full((3, 2, 2), float(target[0])), target[1].flatten()

    labelled = TokenLabelSet(images, write_maps(tmp_path / "maps", images))
    loader = TrainLoader(labelled, Both(), batch_size=5, seed=0)
    (batch,) = loader
    order = loader.order(0)
    assert batch[0][:, 0, 0, 0].tolist() == [float(i > 2) for i in order]
    expected = torch.stack([torch.from_numpy(a_map(int(i))).float().flatten() for i in order])
    assert torch.equal(batch[1], expected)
    (again,) = TrainLoader(labelled, Both(), batch_size=5, seed=0, workers=1)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_a_missing_map_is_named_before_training(images, tmp_path):
    folder = write_maps(tmp_path / "maps", images)
    (folder / "dog" / "0.png.npy").unlink()
    with pytest.raises(UserError, match=r"1 of the 5 training images have no label map in .*, the first is dog/0.png"):
        TokenLabelSet(images, folder)


def test_no_folder_and_other_classes(images, tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        TokenLabelSet(images, tmp_path / "nowhere")
    folder = write_maps(tmp_path / "maps", images)
    (folder / "maps.json").write_text(json.dumps({"teacher": "deit", "classes": ["a", "b", "c"]}))
    with pytest.raises(UserError, match="knows 3 classes, but the data has 2"):
        TokenLabelSet(images, folder)
    (folder / "maps.json").write_text("{")
    with pytest.raises(UserError, match=r"maps.json is damaged"):
        TokenLabelSet(images, folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((3, 1, 2, 2)), r"0.png.npy has the shape \(3, 1, 2, 2\) instead of \(2, k, H, W\)"),
        (np.zeros((2, 0, 2, 2)), "instead of"),
        (np.full((2, 1, 2, 2), 2.0), "names classes that are not among the data's 2"),
        (np.full((2, 1, 2, 2), 0.5), "names classes that are not"),
        (np.full((2, 1, 2, 2), np.nan), "names classes that are not"),
        (np.array([{}], dtype=object), "cannot be read"),
        (b"not numpy", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_damaged_map_is_named(images, tmp_path, content, sentence):
    folder = write_maps(tmp_path / "maps", images)
    path = folder / "cat" / "0.png.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=sentence):
        TokenLabelSet(images, folder).label_map(0)


def test_pickled_code_in_a_public_map_is_not_run(images, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    folder = write_maps(tmp_path / "maps", images, "public")
    for content in (Trap(), {"map": 1}):
        torch.save(content, folder / "cat" / "0.pt")
        with pytest.raises(UserError, match=r"cat/0.pt cannot be read"):
            TokenLabelSet(images, folder).label_map(0)
    assert not (tmp_path / "sprung").exists()
