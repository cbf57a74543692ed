"""timm's sources over small files of each layout, without a network."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from data_samples import encoded, real_data, sample_image, write_classes

from vitrail.config import addresses
from vitrail.data import BadImage, DataConfig, EvalLoader, Preprocess, TrainLoader, eval_transform, open_dataset
from vitrail.data.datasets.webdataset import expand, find_shards
from vitrail.errors import UserError

PLAIN = eval_transform(Preprocess((8, 10), (0.0,), (1.0,), crop_pct=1.0))


def opened(source, root, train=True, **options):
    return open_dataset(DataConfig("timm", source=source, root=str(root) if root else None, **options), train)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def class_files(counts):
    return {
        f"{name}/{i}.png": encoded(10 * c + i) for c, (name, count) in enumerate(counts.items()) for i in range(count)
    }


def marks(batches):
    """The red value of each image's first pixel, by which `image(i)` is known."""
    return [round(float(v) * 255) for x, *_ in batches for v in x[:, 0, 0, 0]]


def test_source_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"kind of timm source 'hfd': did you mean hfds"):
        opened("hfd/name", tmp_path)
    with pytest.raises(UserError, match="tensorflow_datasets"):
        opened("tfds/mnist", tmp_path)
    with pytest.raises(UserError, match=r"needs --data\.root"):
        opened("folder", None)
    with pytest.raises(UserError, match="does not exist"):
        opened("folder", tmp_path / "no")
    with pytest.raises(UserError, match="cannot be opened"):
        opened("folder", tmp_path)
    with pytest.raises(UserError, match=r"torch/cifar10.* cannot be opened"):
        opened("torch/cifar10", tmp_path)


# -- folders and tar files ---------------------------------------------------------------------------------------


def test_tar_divided_by_us(tmp_path):
    write_tar(tmp_path / "all.tar", class_files({"cat": 10, "dog": 5}))
    learn, held = opened("", tmp_path / "all.tar"), opened("tar", tmp_path / "all.tar", train=False)
    assert learn.classes == ["cat", "dog"]
    assert np.bincount(learn.targets).tolist() == [8, 4]
    assert np.bincount(held.targets).tolist() == [2, 1]
    assert "cat/" in learn.name(0)
    number = int(learn.name(0).split("/")[-1][:-4])
    assert np.array_equal(learn.image(0), sample_image(number))
    first, second = (list(TrainLoader(learn, PLAIN, 4, 0, workers)) for workers in (0, 2))
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_parts_share_the_classes_of_the_training_part(tmp_path, form):
    for part, counts in (("train", {"a": 1, "b": 2, "c": 3}), ("val", {"c": 2, "b": 1})):
        if form == "tar":
            write_tar(tmp_path / f"{part}.tar", class_files(counts))
        else:
            write_classes(tmp_path / part, counts)
    learn, held = opened("folder", tmp_path), opened("folder", tmp_path, train=False)
    assert learn.classes == held.classes == ["a", "b", "c"]
    assert np.bincount(learn.targets).tolist() == [1, 2, 3]
    assert np.bincount(held.targets, minlength=3).tolist() == [0, 1, 2]  # timm itself would count b as 0


def test_damaged_image_in_a_tar_is_named(tmp_path):
    write_tar(tmp_path / "train.tar", class_files({"a": 1, "b": 1}) | {"b/bad.png": b"no"})
    write_tar(tmp_path / "val.tar", class_files({"a": 1}))
    with pytest.raises(BadImage, match=r"train\.tar: b/bad\.png is not an image"):
        list(TrainLoader(opened("", tmp_path), PLAIN, 3, 0))
    (tmp_path / "train.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        opened("", tmp_path)


def test_torchvision_folder(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 1})
    write_classes(tmp_path / "validation", {"a": 1, "b": 1})
    learn = opened("torch/folder", tmp_path)
    assert learn.classes == ["a", "b"]
    assert learn.targets.tolist() == [0, 0, 1]
    assert np.array_equal(learn.image(2), sample_image(10))
    assert len(opened("torch/folder", tmp_path, train=False)) == 2


def test_real_folder():
    learn = opened("folder", real_data("clothing_mini"))
    assert np.bincount(learn.targets).tolist() == [40] * 10


# -- Hugging Face ------------------------------------------------------------------------------------------------


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """A local data set in parquet files, with named classes under a name of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["cat", "dog"])})
    for split, count in (("train", 12), ("validation", 4)):
        rows = {
            "img": [{"bytes": encoded(i), "path": None} for i in range(count)],
            "fine": [i % 2 for i in range(count)],
        }
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            str(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
        )
    return {"root": tmp_path / "cache", "source": str(tmp_path / "set"), "input_key": "img", "target_key": "fine"}


def test_hugging_face(hugging_face):
    source = "hfds/" + hugging_face.pop("source")
    learn, held = opened(source, **hugging_face), opened(source, train=False, **hugging_face)
    assert (len(learn), len(held)) == (12, 4)
    assert learn.classes == held.classes == ["cat", "dog"]
    assert learn.targets.tolist() == [0, 1] * 6
    assert np.array_equal(learn.image(5), sample_image(5))
    with pytest.raises(UserError, match=r"split 'nosplit', cannot be opened"):
        opened(source, **hugging_face, train_split="nosplit")
    with pytest.raises(UserError, match=r"has the fields .*fine.*: name two as data\.input_key"):
        opened(source, hugging_face["root"])


def test_hugging_face_streamed(hugging_face):
    source = "hfids/" + hugging_face.pop("source")
    with pytest.raises(UserError, match="num_samples"):
        opened(source, **hugging_face)
    learn = opened(source, **hugging_face, train_split="train|12")
    held = opened(source, train=False, **hugging_face, val_split="validation|4")
    assert learn.streaming
    assert learn.classes == ["cat", "dog"]
    loader = TrainLoader(learn, PLAIN, 4, 0)
    assert len(loader) == 3
    first = list(loader)
    assert len(set(marks(first))) == 12
    loader.set_epoch(0)
    assert marks(loader) == marks(first)
    loader.set_epoch(1)
    assert marks(loader) != marks(first)
    assert sorted(marks(loader)) == sorted(marks(first))
    measured = [list(EvalLoader(held, PLAIN, 2, rank=rank, world=2)) for rank in range(2)]
    assert sum(len(x) for part in measured for x, _, _ in part) == 4
    assert len(set(marks(measured[0] + measured[1]))) == 4


# -- WebDataset --------------------------------------------------------------------------------------------------


def write_shards(root, split, shards, per_shard, label=lambda i: str(i % 3).encode(), part="cls"):
    pytest.importorskip("webdataset")
    root.mkdir(exist_ok=True)
    for s in range(shards):
        numbers = range(s * per_shard, (s + 1) * per_shard)
        files = {}
        for i in numbers:
            files |= {f"{i:04d}.png": encoded(i), f"{i:04d}.{part}": label(i)}
        write_tar(root / f"{split}-{s:04d}.tar", files)


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / "shards", "train", 4, 6)
    write_shards(tmp_path / "shards", "val", 3, 3)
    return tmp_path / "shards"


def test_shards_are_found_counted_and_named(shards):
    learn, held = opened("wds/", shards), opened("wds/", shards, train=False)
    assert (len(learn), len(held)) == (24, 9)
    assert learn.classes == held.classes == ["0", "1", "2"]
    assert len(opened("wds/shards", shards, train_split="train-{0000..0001}.tar")) == 12
    assert len(opened("wds/shards", shards, train_split="train-{0000..0001}.tar|10")) == 10
    (shards / "classes.txt").write_text("cat\ndog\nfox\n")
    assert opened(f"wds/{shards}", None).classes == ["cat", "dog", "fox"]
    splits = {"tiny": {"name": "tiny", "filenames": ["train-0002.tar"], "shard_lengths": [6], "num_samples": 6}}
    (shards / "_info.json").write_text(json.dumps({"splits": splits}))
    assert len(opened("wds/", shards, train_split="tiny")) == 6


def test_an_epoch_of_shards(shards):
    loader = TrainLoader(opened("wds/", shards), PLAIN, 6, 0)
    first = list(loader)
    assert [len(x) for x, _ in first] == [6] * 4
    assert len(set(marks(first))) == 24
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)
    assert marks(loader) == marks(first)
    assert marks(TrainLoader(opened("wds/", shards), PLAIN, 6, 0)) == marks(first)
    loader.set_epoch(1)
    assert marks(loader) != marks(first)
    assert sorted(marks(loader)) == sorted(marks(first))
    labels = {marks([(PLAIN(sample_image(i))[None],)])[0]: i % 3 for i in range(24)}
    for x, y in first:
        assert [labels[m] for m in marks([(x,)])] == y.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_stream_is_the_tail_of_a_whole_one(shards, workers):
    loader = TrainLoader(opened("wds/", shards), PLAIN, 3, 0, workers)
    loader.set_epoch(3)
    whole = list(loader)
    assert len(whole) == 8
    assert len(set(marks(whole))) == 24
    loader.set_epoch(3, 5)
    tail = list(loader)
    assert marks(tail) == marks(whole[5:])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(tail, whole[5:], strict=True))


def test_processes_divide_the_shards(shards):
    parts = [list(TrainLoader(opened("wds/", shards), PLAIN, 6, 0, rank=r, world=2)) for r in range(2)]
    assert [[len(x) for x, _ in part] for part in parts] == [[3] * 4] * 2
    assert len(set(marks(parts[0] + parts[1]))) == 24
    with pytest.raises(UserError, match=r"4 shard\(s\) cannot feed 5 readers"):
        list(TrainLoader(opened("wds/", shards), PLAIN, 5, 0, rank=0, world=5))


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 2), (2, 2), (0, 5)])
def test_each_streamed_image_is_measured_once(shards, workers, world):
    held = opened("wds/", shards, train=False)
    parts = [list(EvalLoader(held, PLAIN, 2, workers, rank, world)) for rank in range(world)]
    batches = [batch for part in parts for batch in part]
    assert len(set(marks(batches))) == sum(len(x) for x, _, _ in batches) == 9
    numbers = [int(i) for _, _, index in batches for i in index]
    assert len(set(numbers)) == 9


PIPES = [
    "pipe:touch PWNED #.tar|4",
    "a.tar::pipe:touch PWNED #.tar",
    "{pi{pe:touch PWNED #,q},b}.tar",
    "https://h/a.tar",
]


@pytest.mark.parametrize("text", [*PIPES, " pipe:touch PWNED", "s3://bucket/{0..3}.tar", "PIPE:touch PWNED"])
@pytest.mark.parametrize("option", ["train_split", "val_split", "root", "source"])
def test_commands_and_addresses_are_not_taken_unasked(shards, monkeypatch, text, option):
    monkeypatch.chdir(shards)
    values = {"root": str(shards), "source": "wds/", option: f"wds/{text}" if option == "source" else text}
    if option == "source":
        values["root"] = None
    with pytest.raises(UserError):
        open_dataset(DataConfig("timm", **values), train=option != "val_split")
    assert not (shards / "PWNED").exists()


def test_a_command_that_was_allowed_is_run(shards, monkeypatch):
    monkeypatch.setattr(addresses, "_allowed", set())
    split = f"pipe:cat {shards}/train-0001.tar|6"
    (shards / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="--allow_pipe"):
        opened("wds/", shards, train_split=split)
    addresses.allow(split)
    assert len(opened("wds/", shards, train_split=split)) == 6


def test_a_root_that_looks_like_a_command_below_a_folder_is_a_folder(tmp_path):
    write_shards(tmp_path / "x:y", "train", 1, 4)
    loader = TrainLoader(opened("wds/", tmp_path / "x:y"), PLAIN, 4, 0)
    assert sorted(next(iter(loader))[1].tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{0..9999999999}.tar", r"stands for up to 1e\+10 files"),
        ("{0..9}" * 12 + ".tar", r"up to 1e\+12"),
        ("{a,{b,c}}" * 40 + ".tar", "files"),
        ("{a..z}" * 9 + ".tar", "files"),
        ("{" * 5000 + ".tar", "longer than"),
        ("{" * 3000 + ".tar", "braces"),
        ("a{b.tar", "braces that do not close"),
        ("${WDS_HOME}.tar", "braces, a dollar"),
        ("a.tar|" + "9" * 5000, "number of images"),
    ],
)
def test_patterns_of_shards_are_bounded(tmp_path, pattern, says):
    with pytest.raises(UserError, match=says):
        find_shards(str(tmp_path), pattern, None)


def test_patterns_expand_as_in_the_shell():
    assert expand("a-{08..10}.tar::b-{x,{y,z}}.tar") == (
        "a-08.tar",
        "a-09.tar",
        "a-10.tar",
        "b-x.tar",
        "b-y.tar",
        "b-z.tar",
    )
    assert len(expand("{0..9}{0..9}{0..9}.tar")) == 1000


def test_descriptions_of_shards_stay_in_their_folder(shards):
    for name in ("../train-0000.tar", "/etc/passwd.tar", 5, "pipe:touch PWNED.tar"):
        splits = {"tiny": {"name": "tiny", "filenames": [name], "shard_lengths": [6], "num_samples": 6}}
        (shards / "_info.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises(UserError):
            opened("wds/", shards, train_split="tiny")


def test_labels_beyond_all_classes(tmp_path):
    write_shards(tmp_path, "train", 1, 2, lambda i: b"999999999999")
    with pytest.raises(UserError, match="at most 1,000,000 classes"):
        opened("wds/", tmp_path)


def test_labels_in_json(tmp_path):
    write_shards(tmp_path, "train", 1, 4, lambda i: json.dumps({"kind": i % 2}).encode(), "json")
    learn = opened("wds/", tmp_path, target_key="kind")
    assert learn.classes == ["0", "1"]
    assert sorted(next(iter(TrainLoader(learn, PLAIN, 4, 0)))[1].tolist()) == [0, 0, 1, 1]


def test_shard_mistakes(shards, tmp_path):
    with pytest.raises(UserError, match="No shards of split 'other'"):
        opened("wds/", shards, train_split="other")
    with pytest.raises(UserError, match=r"1 of 2 shards are not in .*train-0004\.tar"):
        opened("wds/", shards, train_split="train-{0003..0004}.tar")
    with pytest.raises(UserError, match="does not exist"):
        opened("wds/", tmp_path / "none")
    with pytest.raises(UserError, match="number of images after the bar"):
        opened("wds/", shards, train_split="train|many")
    (shards / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="has the label 2"):
        list(TrainLoader(opened("wds/", shards), PLAIN, 6, 0))
    (shards / "classes.txt").unlink()
    (shards / "train-0001.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"train-0001\.tar is truncated or not a tar"):
        opened("wds/", shards)
    write_shards(tmp_path / "odd", "train", 1, 2, lambda i: b"cat")
    with pytest.raises(UserError, match="label that is not a whole number"):
        opened("wds/", tmp_path / "odd")
