"""Mistakes of the first hour: what a newcomer types by nature, and the sentence that leads on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vitrail.cli import main
from vitrail.errors import nearest

SMALL = ["--model_options", '{"depths": [1, 1, 1, 1]}', "--image_size", "32", "--batch_size", "4", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The current folder: `photos/cat`, `photos/dog`, four images each."""
    rng = np.random.default_rng(0)
    for level, name in ((0, "cat"), (150, "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(level, level + 100, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # another tool's name of a command or an option
        ("infer runs/a photos", "vitrail predict does that"),
        ("test runs/a", "vitrail evaluate does that"),
        ("finetune photos", "vitrail train does that"),
        ("train --learning_rate 0.1", "did you mean --lr?"),
        ("train --gpu 0", "did you mean --device?"),
        ("train --amp", "did you mean --precision?"),
        ("train --imgsz 64", "did you mean --image_size?"),
        ("train --weights a.pth", "did you mean --init?"),
        ("train --dataset photos", "did you mean --data.root?"),
        ("train --early_stopping 3", "did you mean --patience?"),
        ("train --epoch 3", "did you mean --epochs"),
        ("train --batch 3", "did you mean --batch_size"),
        ("train --Model mat_1", "did you mean --model "),
        ("train --model emsnet", "did you mean emsnet_tiny"),
        ("train --model MAT_1", "did you mean mat_1"),
        # where the images are
        ("train photos", "name the folder of the images by --data.root photos"),
        ("train --data photos", "write --data folder --data.root photos"),
        ("train --data.root photos/cat/0.png", "is a file: name its layout by --data"),
        ("train --data coco --data.root photos", "--data coco is of another --task than classification"),
        ("train --data folder --data.root photos --output photos", "choose one beside it"),
        ("train --data folder --data.root photos --output photos/run", "choose one beside it"),
        # how an option is written
        ("train help", "vitrail help train"),
        ("train -o runs/x", "begin with two dashes, not with one as '-o': did you mean --optim or --output?"),
        ("train --resume runs/a", "--output runs/a --resume"),
        ("train --image_size 224x224", "not '224x224': write --image_size 224, or --image_size 224 320"),
        ("train --image_size big", "must be a whole number or a list of 2"),
        ("train --epochs 1.5", "--epochs must be a whole number or null, not '1.5'"),
        ("train --seed abc", "--seed must be a whole number, not 'abc'"),
        ("train --model_options 3", "options by name, such as {"),
        ("train --print_shtab", "Unknown option --print_shtab"),
        ("export runs/a", "vitrail export needs --format and --output"),
        ("report runs/a", "vitrail report needs --output"),
        ("predict runs/a", "vitrail predict needs IMAGES"),
        # what is no trained network
        ("evaluate mat_1", "mat_1 is a network; train it first, or give random:mat_1"),
        ("export mat_1 --format onnx --output a.onnx", "random:mat_1"),
        ("train --init resnet18", "timm:resnet18 has its weights"),
        ("models resnet*", "of timm, whose networks every command takes by name"),
        ("train --freeze backbone", "it needs --init: without it the frozen weights are random"),
        ("train --keep last --patience 2", "it needs --keep best"),
    ],
)
def test_a_natural_mistake_leads_on(mistake, photos, line, says):
    assert says in mistake(*line.split())
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]  # nothing was begun


def test_no_type_of_python_and_no_foreign_option_is_shown(mistake, capsys):
    for value in ("[1, 2]", "x", "3"):
        assert "class '" not in mistake("train", "--model_options", value)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "shtab" not in capsys.readouterr().out


def test_a_root_alone_means_a_folder_per_class(photos, capsys):
    assert main(["train", "--data.root", "photos", *SMALL, "--max_steps", "1", "--output", "run"]) == 0
    assert "--data folder is assumed" in capsys.readouterr().err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["name"] == "folder"


def test_the_layout_of_a_task_is_assumed(mistake, photos, capsys):
    assert main(["train", "--task", "detection", "--data.root", "photos"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("vitrail: --data coco is assumed")
    assert "instances_train" in said[-1]


def test_digits_named_with_a_folder_are_refused(mistake, photos):
    assert "digits are embedded" in mistake("train", "--data", "digits", "--data.root", "photos")


def splits(root: Path, classes: dict[str, tuple[int, int]]) -> None:
    """`train` and `val` below a root, with so many images of each class."""
    for name, counts in classes.items():
        for split, count in zip(("train", "val"), counts, strict=True):
            for number in range(count):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                colour = (60 * len(name), 40 * number, 100)
                Image.new("RGB", (40, 40), colour).save(root / split / name / f"{split}{number}.png")


def test_a_run_beside_the_splits_is_no_class_and_a_class_without_images_is_named(photos, capsys):
    splits(Path("data"), {"a": (3, 2), "bb": (3, 2), "ccc": (2, 0)})
    argv = ["train", "--data.root", "data", *SMALL, "--max_steps", "1", "--output", "data/runs/a"]
    assert main(argv) == 0
    assert "1 of 3 classes have no image to measure on: ccc" in capsys.readouterr().err
    assert main(["evaluate", "data/runs/a"]) == 0
    table = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert table[-2:] == ["a", "bb"]  # no row for ccc


def test_annotated_images_go_into_a_folder(photos, capsys):
    assert main(["predict", "random:mat_1", "photos", "--save", "seen.jpg"]) == 2
    assert "--save seen.jpg names a file, but a folder is written: give --save seen." in capsys.readouterr().err
    assert not Path("seen.jpg").exists()


def test_a_broken_image_blocks_no_second_try(mistake, photos):
    whole = (photos / "cat" / "1.png").read_bytes()
    (photos / "cat" / "1.png").write_bytes(whole[:60])
    argv = ["train", "--data", "folder", "--data.root", "photos", *SMALL, "--epochs", "1", "--output", "run"]
    assert "1.png is truncated or corrupt" in mistake(*argv, "--optim.warmup_epochs", "0")
    (photos / "cat" / "1.png").write_bytes(whole)
    assert main([*argv, "--optim.warmup_epochs", "0"]) == 0


def test_the_nearest_names_begin_alike_or_differ_in_capitals():
    names = ["resnet50", "emsnet_tiny", "emsnet_xtiny", "mat_1"]
    assert nearest("emsnet", names) == ["emsnet_tiny", "emsnet_xtiny", "resnet50"]
    assert nearest("MAT_1", names) == ["mat_1"]
    assert nearest("x" * 100, names) == []
