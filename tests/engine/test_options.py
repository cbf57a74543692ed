"""Options and recipes: what is typed is what is meant, and a mistake is one sentence before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vitrail.cli import main
from vitrail.cli import train as train_command
from vitrail.cli.benchmark import parser as benchmark_parser
from vitrail.cli.parsing import Line, read
from vitrail.errors import UserError


def values_of(*argv: str):
    return read(train_command.parser(), argv).values


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *(
            "r/resume",
            "d/overwrite",
            "resume",
            "true",
            "train",
            "--resume",
            "--x",
            "--data",
            "-x",
            "--json=1",
            "a=b",
            "x --debug",
        )
    ],
)
def test_a_value_is_a_value_whatever_it_looks_like(path):
    assert values_of(f"--output={path}")["output"] == path
    if not path.startswith("--"):
        assert values_of("--output", path)["output"] == path
        assert values_of("--data.root", path, "--output", "o")["data"].root == path


def test_spellings():
    line = Line(
        benchmark_parser(),
        [
            "--batch_size",
            "1,16",
            "--forms=[eager]",
            "--threads",
            "2",
            "mat_1",
            "--against",
            "a",
            "b",
            "--json",
            "--",
            "--x",
        ],
    )
    assert line.arguments == [
        *("--batch_size=[1,16]", "--forms=[eager]", "--threads=2", "mat_1", "--against", "a", "b", "--", "--x")
    ]
    assert line.switches == {"json": True}
    values = values_of("--data", "cifar10", "--image_size", "64", "48", "--resume", "--lr", "-1e-3")
    assert (values["data"].name, values["image_size"], values["resume"], values["lr"]) == (
        "cifar10",
        (64, 48),
        True,
        -1e-3,
    )
    assert values_of("--data=folder")["data"].name == "folder"
    assert values_of("--resume", "false")["resume"] is False
    assert values_of("--overwrite=true")["overwrite"] is True
    assert values_of("--lr", "1", "--lr", "2e-3")["lr"] == 2e-3  # the last one counts


def test_what_was_typed_is_known():
    call = read(train_command.parser(), ["--data.root", "data", "--model_options.depths", "[1]", "--image_size", "64"])
    assert call.typed == {"data.root", "model_options.depths", "image_size"}
    assert call.data_named
    assert not read(train_command.parser(), ["--output", "data"]).data_named


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--output", "--resume"], "--output needs a value before --resume"),
        (["--output", "--x"], "write --output=--x"),
        (["--output", "--keep_memory", "x"], "--output needs a value before --keep_memory"),
        (["--output", "--json"], "--output needs a value before --json"),
        (["--output"], "--output needs a value"),
        (["--json=maybe"], "--json must be true or false, not 'maybe'"),
        (["--resume=1"], "--resume must be true or false"),
        (["--image_size", "64", "x"], "Nothing takes 'x'"),
        (["--resume", "yes"], "Nothing takes 'yes'"),
        (["--hflip", "0"], "Unknown option --hflip: did you mean --augment.hflip or --detection.hflip"),
        (["--optim.lr", "1"], "Unknown option --optim.lr: did you mean --lr?"),
        (["--epoch", "3"], "Unknown option --epoch: did you mean --epochs"),
        (["--optim", "o.yaml"], "--optim is a group of options"),
        (["--augment", "{hflip: 0}"], "--augment is a group of options"),
        (["--" + "x" * 5000, "1"], "Unknown option --xxx"),
        (["--output", "a\0b"], "--output holds a null character"),
        (["--epochs", "1.5"], "epochs"),
        (["--image_size", "1,2,3"], "image_size"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_mistakes_of_a_line(mistake, argv, says):
    assert says in mistake("train", *argv)
    assert not list(Path().iterdir())


EMPTY = (
    "init",
    "output",
    "data.root",
    "model",
    "token_labels",
    "data.images",
    "head",
    "task",
    "lr",
    "model_options",
    "config",
)


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("value", ["", "  "])
def test_empty_values_are_refused(mistake, name, value):
    for argv in ([f"--{name}", value], [f"--{name}={value}"]):
        assert f"--{name} is empty" in mistake("train", *argv)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "argv", [["evaluate", ""], ["predict", "random:mat_1", ""], ["predict", "", "x"], ["models", " "]]
)
def test_empty_arguments_are_refused(mistake, argv):
    assert "empty" in mistake(*argv)


@pytest.mark.parametrize(
    "argv", [["train", "-h"], ["train", "--lr", "1", "--help"], ["train", "--output", "-h"], ["models", "x", "-h"]]
)
def test_help_anywhere(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    assert "usage: vitrail" in capsys.readouterr().out


def test_switches_before_the_command(capsys):
    assert main(["--json", "models", "mat_1"]) == 0
    assert capsys.readouterr().out.startswith("[")
    assert main(["models", "mat_1", "--json=false"]) == 0
    assert not capsys.readouterr().out.startswith("[")
    assert main(["--jsn", "models"]) == 2
    with pytest.raises(UserError):
        main(["--debug", "models", "nothing_like_it"])


# ---- recipes ----------------------------------------------------------------------------------------------------


def recipe(text: str | bytes) -> str:
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "r.yaml"


def test_recipes_are_read_as_written():
    file = recipe(
        "\ufefflr: 1e-3\noptim: {betas: [0.9, 0.99], decay_epochs: [1, 2], weight_decay: 1}\ndata:\n  root: '1e3'\n"
        "image_size: [3, 4]\nmodel_options: {depths: [1, 2], a: {b: null}}\noutput: 'a: [b'\nema_decay: null\n"
    )
    call = read(train_command.parser(), ["--config", file, "--model_options.depths", "[3]"])
    values = call.values
    assert (values["lr"], values["image_size"], values["output"], values["ema_decay"]) == (1e-3, (3, 4), "a: [b", None)
    assert values["model_options"] == {"depths": [3], "a": {"b": None}}
    optim = values["optim"]
    assert (optim.betas, optim.decay_epochs, optim.weight_decay) == ((0.9, 0.99), [1.0, 2.0], 1.0)
    assert values["data"].root == "1e3"
    assert call.typed == {"model_options.depths"}
    assert call.recipe["optim.betas"] == (0.9, 0.99)
    assert "optim.momentum" not in call.recipe


def test_of_several_recipes_the_last_one_counts():
    Path("a.yaml").write_text("lr: 1.0\nepochs: 3\n")
    Path("b.yaml").write_text("lr: 2.0\n")
    values = values_of("--config", "a.yaml", "--seed", "1", "--config=b.yaml")
    assert (values["lr"], values["epochs"], values["seed"]) == (2.0, 3, 1)


BAD_RECIPES = {
    "": "must hold options by name",
    "# nothing but a comment\n": "must hold options by name",
    "{}": "must hold options by name",
    "- a\n- b": "must hold options by name",
    "just words": "must hold options by name",
    "optim:\n": "optim must hold options by name, not None",
    "data:\n": "data must hold options by name, not None",
    "augment: ~\n": "augment must hold options by name, not None",
    "epochs:\n": "Neither --epochs nor --iterations",
    "batch_size:\n": "batch_size must be a whole number, not None",
    "model_options:\n": "model_options must be options by name",
    "optim: fast\n": "optim must hold options by name",
    "optim: []\n": "optim must hold options by name",
    "epochs: '3'\n": "epochs must be a whole number",
    "epochs: true\n": "epochs must be a whole number",
    "epochs: 3.0\n": "epochs must be a whole number",
    "lr: .nan\n": "lr must be a number, not nan",
    "lr: 1e999\n": "lr must be a number",
    "data: {root: 2024}\n": "data.root must be a text",
    "data: {root: 2024-01-01}\n": "data.root must be a text",
    "epoch: 3\n": "did you mean epochs",
    "optim: {lr: 1}\n": "Unknown option",
    "5: x\n": "Unknown option",
    "epochs: 3\nepochs: 4\n": "'epochs' stands twice",
    "optim: {betas: [0.9, 0.99], betas: [0.8, 0.9]}\n": "'betas' stands twice",
    "optim: {betas: [0.9]}\n": "optim.betas must be a list of 2",
    "image_size: [1, 2, 3]\n": "image_size must be",
    "task: detecton\n": "task",
    "a: &a [1]\nb: *a\n": "aliases",
    "model: !!python/object/apply:os.system ['touch PWNED']\n": "no YAML of plain values",
    "a: [" * 100: "no YAML|nested",
    "\x00": "no YAML",
    "epochs: 0x" + "f" * 100_000: "epochs",
}


@pytest.mark.parametrize("text", BAD_RECIPES, ids=lambda text: text[:25])
def test_mistakes_of_recipes(mistake, text):
    import re

    assert re.search(BAD_RECIPES[text], mistake("train", "--config", recipe(text), "--output", "o"))
    assert sorted(path.name for path in Path().iterdir()) == ["r.yaml"]


def test_files_that_are_no_recipes(mistake):
    assert "UTF-8" in mistake("train", "--config", recipe("modèle: x".encode("latin-1")))
    assert "larger than" in mistake("train", "--config", recipe("x" * 2_000_000))
    os.mkdir("folder")
    os.mkfifo("pipe")
    for name in ("folder", "pipe", "/dev/zero"):
        assert "no regular file" in mistake("train", "--config", name)
    assert "cannot be read" in mistake("train", "--config", "{epochs: 3}")


def test_what_print_config_prints_is_a_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--task", "reid", "--data", "market1501", "--reid.hflip", "0.1", "--print_config"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["reid"]["hflip"] == 0.1
    again = values_of("--config", recipe(text))
    assert (again["task"], again["reid"].hflip) == ("reid", 0.1)


# ---- what has an effect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--task detection --data coco --augment.hflip 0", "--augment.hflip 0.0 is for --task classification"),
        ("--task detection --data coco --augment.hflip 0", "use --detection.hflip"),
        ("--task detection --data coco --smoothing 0", "is for --task classification or reid; with detection leave"),
        ("--task keypoints --data coco --augment.random_erasing 0.1", "with keypoints leave it out"),
        ("--task reid --data market1501 --augment.random_erasing 0.1", "use --reid.random_erasing"),
        ("--task semantic_segmentation --data ade20k --detection.hflip 0.5", "use --segmentation.hflip"),
        ("--task detection --data coco --crop_pct 0.9", "--crop_pct"),
        ("--head retinanet", "--head retinanet is for --task detection"),
        ("--token_swap_axes", "it needs --token_labels"),
        ("--inference.flip false", "is not for classification"),
        ("--task detection --data coco --head sparse_rcnn --inference.nms_thresh null", "is not for sparse_rcnn"),
        ("--task detection --data coco --head ssdlite --detection.max_side 1333", "another head than ssdlite"),
        ("--data folder --data.root x --data.limit 3", "is not allowed for --data folder"),
        ("--optim.momentum 0.9", "an --optim.optimizer with momentum"),
        ("--optim.optimizer sgd --optim.betas [0.9,0.99]", "an --optim.optimizer with betas"),
        ("--optim.decay_epochs [8]", "--optim.schedule step"),
        ("--optim.power 1.0", "--optim.schedule poly"),
        ("--optim.schedule constant --optim.min_lr 0", "--optim.schedule cosine or poly"),
        ("--optim.warmup_epochs 0 --optim.warmup_lr 1e-6", "--optim.warmup_epochs above 0"),
        ("--ema_warmup false", "it needs --ema_decay"),
        ("--freeze backbone", "it needs --init"),
        ("--augment.mixup_prob 1", "--augment.mixup or --augment.cutmix above 0"),
        ("--augment.mixup 0.2 --augment.mixup_switch_prob 0.5", "--augment.mixup and --augment.cutmix above 0"),
        ("--augment.crop_padding 4 --augment.scale [0.5,1.0]", "--augment.crop_padding 0"),
        ("--accumulate 65", "more than the 64 image"),
        ("--resume --overwrite", "choose one"),
        ("--optim.schedule step", "has no effect without --optim.decay_epochs"),
        ("--optim.schedule step --optim.decay_epochs [1] --optim.decay_rate 1", "changes no learning rate"),
        ("--optim.schedule step --optim.decay_epochs [16]", "after the last of --epochs 16"),
        *[(f"--model_options.{name} true", "is not taken") for name in ("pretrained", "features_only", "scriptable")],
        ("--model_options.pretrained_cfg_overlay {url:x}", "is not taken"),
        ("--model_options.in_chans abc", "must be 3 .RGB. or 1 .grey."),
    ],
)
def test_options_without_an_effect_are_refused(mistake, line, says):
    import re

    sentence = mistake("train", "--output", "o", *line.split())
    assert re.search(says, sentence), sentence
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("evaluate random:lvt --model mat_1 --data digits", "random:lvt says itself which network it means"),
        ("predict timm:resnet18 x.png --model mat_1", "leave --model mat_1 out"),
        ("export random:emsnet_xxtiny --format onnx --output a.onnx --max_drop 3", "--max_drop 3.0 has no effect"),
        ("export random:emsnet_xxtiny --format onnx --output a.onnx --calibration_images 3", "needs --quantize int8"),
        (
            "export random:emsnet_xxtiny --format onnx --output a.onnx --quantize int8 --calibration_images 0",
            "--calibration_images 0 must be above 0",
        ),
        (
            "export random:emsnet_xxtiny --format onnx --output a.onnx --images x.png --data digits",
            "--images and --data both name images",
        ),
        ("evaluate --task reid --predictions . --data market1501", "--data has no effect: embeddings of reid hold"),
        ("evaluate --task reid --predictions . --data.root .", "--data.root has no effect"),
        ("evaluate --task detection --predictions . --data coco --data.workers 2", "--data.workers has no effect"),
        ("evaluate --task detection --predictions . --data coco --data.white 9", "--data.white has no effect"),
        ("benchmark emsnet_xxtiny --runtime onnxruntime --compile", "--compile has no effect: it needs torch"),
        ("benchmark emsnet_xxtiny --runtime onnxruntime --memory_format contiguous", "--memory_format has no effect"),
    ],
)
def test_options_of_commands_without_an_effect_are_refused(mistake, line, says):
    Image.new("RGB", (8, 8)).save("x.png")
    assert says in mistake(*line.split())
    assert os.listdir() == ["x.png"]


RANGES = {
    "lr": ("0", "-1", "nan", ".inf", "1e39"),
    "epochs": ("0", "-1", "1e9", "1000000"),
    "batch_size": ("0", "-4", "1000000000000"),
    "image_size": ("0", "10000000", "[0,5]", "[64,-1]"),
    "crop_pct": ("0", "1e-9", "1.5", "nan"),
    "smoothing": ("-0.1", "1"),
    "seed": ("-1", "99999999999999999999"),
    "mean": ("[]", "[0.5,0.5]", "[nan,0,0]", "[100,0,0]"),
    "std": ("[0,0,0]", "[]", "[1,1,1,1]"),
    "accumulate": ("0",),
    "max_steps": ("0", "-3"),
    "data.workers": ("-1", "1000000"),
    "data.split_seed": ("-1",),
    "data.val_fraction": ("0", "1", "nan"),
    "data.max_pixels": ("0",),
    "augment.scale": ("[0.5,0.1]", "[0,1]", "[0.5]", "[0.5,2]"),
    "augment.ratio": ("[1,.inf]", "[0,1]", "[2,1]"),
    "augment.hflip": ("-0.1", "1.1", "nan"),
    "augment.repeats": ("0",),
    "optim.weight_decay": ("-1", ".inf"),
    "optim.betas": ("[0.9,1.0]", "[-0.1,0.9]", "[0.9]"),
    "optim.layer_decay": ("0", "1.1"),
    "ema_decay": ("1", "-0.1"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RANGES.items() for value in values])
def test_values_outside_their_ranges(mistake, name, value):
    sentence = mistake("train", "--output", "o", f"--{name}={value}")
    assert name in sentence
    assert len(sentence) < 400
    assert not Path("o").exists()


def test_every_number_has_a_range():
    import dataclasses
    import re
    import typing

    from vitrail.config.train import GROUPS, TrainConfig
    from vitrail.utils.plain import LIMITS

    classes = [TrainConfig, *(typing.get_type_hints(TrainConfig)[group] for group in GROUPS)]
    without = [
        f"{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if re.search(r"\b(int|float)\b", str(field.type)) and LIMITS not in field.metadata
    ]
    assert without == ["KeypointsConfig.flip_pairs"]


def test_a_recipe_is_held_to_what_it_states(mistake):
    head = "task: detection\ndata: {name: coco}\n"
    assert "--augment.hflip" in mistake("train", "--config", recipe(head + "augment: {hflip: 0.0}\n"), "--output", "o")
    assert "--smoothing" in mistake("train", "--config", recipe(head + "smoothing: 0.0\n"), "--output", "o")
    # defaults of the run's own task are stated freely
    stated = "optim: {power: 1.0, decay_epochs: [], min_lr: 1e-5}\nema_decay: null\ndetection: {max_side: 1333}\n"
    assert "--data.root" in mistake("train", "--config", recipe(head + stated), "--output", "o")


def test_a_command_line_that_switches_off_leaves_the_recipes_values_out(capsys):
    file = recipe("data: {name: folder}\noptim: {schedule: step, decay_epochs: [2], warmup_lr: 1e-7}\n")
    argv = ["train", "--config", file, "--output", "o", "--optim.schedule", "constant", "--optim.warmup_epochs", "0"]
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert "the recipe's --optim.decay_epochs [2.0] is left out" in printed
    assert "the recipe's --optim.warmup_lr 1e-07 is left out" in printed
    assert "needs --data.root" in printed


def test_a_default_takes_a_recipes_value_back(mistake):
    file = recipe("data: {name: folder}\noptim: {power: 2.0}\n")
    assert "--optim.power 2.0 has no effect" in mistake("train", "--config", file)
    assert "needs --data.root" in mistake("train", "--config", file, "--optim.power", "1.0")


# ---- nothing is run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["train_split", "val_split", "root", "source"])
def test_no_file_starts_a_program(mistake, monkeypatch, place):
    import subprocess

    def refuse(*args, **kwargs):
        raise AssertionError(f"a program is started: {args}")

    text = "pipe:touch PWNED #.tar|5"
    data = {"name": "timm", "source": "wds/x", "root": ".", "train_split": "a.tar|3", "val_split": "a.tar|3"}
    data |= {place: f"wds/{text}" if place == "source" else text}
    if place == "source":
        data["root"] = None
    Path("a.tar").write_bytes(b"")
    os.mkdir("run")
    Path("run/config.yaml").write_text(yaml.safe_dump({"model": "emsnet_xxtiny", "data": data}))
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    for argv in (
        ["train", "--config", "run/config.yaml", "--output", "o"],
        ["train", "--config", "run/config.yaml", "--output", "o", "--allow_pipe"],
        ["train", "--config", "run/config.yaml", "--output", "run", "--resume"],
        ["evaluate", "run"],
        ["predict", "run", "."],
        ["export", "run", "--output", "x.onnx"],
    ):
        mistake(*argv)
    assert not Path("PWNED").exists()


def test_a_command_that_is_typed_needs_its_switch(mistake, monkeypatch):
    from vitrail.config import addresses

    monkeypatch.setattr(addresses, "_allowed", set())
    argv = ["train", "--data", "timm", "--data.source", "wds/", "--data.root", ".", "--output", "o"]
    argv += ["--data.train_split", "pipe:cat none.tar|4", "--data.val_split", "pipe:cat none.tar|4"]
    assert "--allow_pipe" in mistake(*argv)
    assert "--allow_pipe" not in mistake(*argv, "--allow_pipe")
    assert not addresses.is_address("wds/x")
