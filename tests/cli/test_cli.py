"""The command line as its users meet it: what it prints, and what a mistake gets."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vitrail
from vitrail.cli import main

TINY = ["--model", "mat_1", "--model_options", '{"depths": [1, 1, 1, 1]}', "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of a few steps on the digits."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert main(["train", *TINY, "--epochs", "1", "--max_steps", "4", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 50, 3), 60 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


# ---- models -----------------------------------------------------------------------------------------------------


def test_models_lists_every_network_with_its_parameters(capsys):
    assert main(["models", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == vitrail.list_models()
    assert entries["mat_2"]["params"] == 10_767_496
    assert entries["pslt"]["top1"] == 79.9
    assert entries["lvt"]["licence"] == "non-commercial research only"


def test_models_takes_a_pattern(capsys):
    assert main(["models", "pale_*"]) == 0
    out = capsys.readouterr().out
    assert "pale_base" in out
    assert "mat_1" not in out


# ---- train ------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_documentation_says(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "best.safetensors",
        "summary.json",
        "curves.png",
        "confusion.png",
        "per_class.csv",
        "metrics.csv",
        "events",
        "config.yaml",
        "last",
    } <= names
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"] == "mat_1"
    assert config["data"]["name"] == "digits"


def test_train_prints_json_and_nothing_else(capsys, tmp_path):
    argv = ["train", *TINY, "--epochs", "1", "--max_steps", "2", "--output", str(tmp_path / "r"), "--json"]
    assert main(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 2
    assert 0 <= summary["metrics"]["top1"] <= 100


def test_options_win_over_the_recipe(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: pslt_tiny\nlr: 0.5\ndata: {name: folder, val_fraction: 0.4}\noptim: {clip_grad: 3.0}\n")
    argv = ["train", "--config", str(recipe), "--lr", "0.25", "--data.root", "x", "--image_size", "64", "48"]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"], config["lr"], config["optim"]["clip_grad"]) == ("pslt_tiny", 0.25, 3.0)
    assert (config["data"]["name"], config["data"]["val_fraction"], config["data"]["root"]) == ("folder", 0.4, "x")
    assert list(config["image_size"]) == [64, 48]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], ["Unknown command 'trian'", "train"]),
        (["train", "--lerning_rate", "1"], ["Unknown option --lerning_rate"]),
        (["train", "--model", "mat1"], ["Unknown model 'mat1'", "mat_1"]),
        (["train", "--data", "diggits"], ["diggits", "digits"]),
        (["train", "--data", "folder"], ["--data.root"]),
        (["train", "--data", "folder", "--data.root", "nowhere"], ["nowhere"]),
        (["train", "--lr", "fast"], ["lr", "fast"]),
        (["train", "--epochs", "0"], ["epochs", "0"]),
        (["train", "--precision", "fp8"], ["precision", "fp8", "bf16"]),
        (["train", "--device", "gpu"], ["--device", "gpu"]),
        (["train", "--task", "detecton"], ["detecton"]),
        (["train", "--model_options", '{"windowsize": 3}'], ["mat_1", "windowsize"]),
        (["train", "--model_options", '{"token_merge": "sum"}'], ["token_merge", "sum", "query"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "--init", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["train", "--resume"], ["no run"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["evaluate", "random:mat_9"], ["mat_9", "mat_"]),
        (["predict", "random:mat_1", "no/images/*.jpg"], ["no/images"]),
        (["predict", "random:mat_1"], ["IMAGES"]),
        (["models", "resnet*"], ["resnet"]),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_with_one_sentence(mistake, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    sentence = mistake(*argv)
    for word in says:
        assert word in sentence
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_an_unknown_entry_of_a_recipe_is_named(mistake, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: mat_1\nepoch: 3\n")
    assert "epoch" in mistake("train", "--config", str(recipe), "--output", str(tmp_path / "r"))


def test_a_run_is_never_overwritten_unasked(mistake, trained):
    before = (trained / "best.safetensors").read_bytes()
    sentence = mistake("train", *TINY, "--output", str(trained))
    assert "--resume" in sentence
    assert "--overwrite" in sentence
    assert (trained / "best.safetensors").read_bytes() == before


def test_debug_shows_the_traceback(tmp_path):
    from vitrail.errors import UserError

    with pytest.raises(UserError):
        main(["evaluate", str(tmp_path / "nowhere"), "--debug"])


# ---- evaluate ---------------------------------------------------------------------------------------------------


def test_evaluate_repeats_the_metrics_of_the_run(capsys, trained, tmp_path):
    assert main(["evaluate", str(trained), "--json", "--output", str(tmp_path / "report")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    summary = json.loads((trained / "summary.json").read_text())
    assert metrics["top1"] == summary["metrics"]["top1"]
    assert metrics["loss"] == pytest.approx(summary["metrics"]["loss"], rel=1e-6)
    reported = {"metrics.json", "per_class.csv", "confusion.png", ".vitrail-files.jsonl"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == reported


def test_evaluate_needs_the_data_of_bare_weights(mistake, trained):
    weights = str(trained / "best.safetensors")
    assert "--data" in mistake("evaluate", weights)
    assert main(["evaluate", weights, "--data", "digits"]) == 0


def test_evaluate_refuses_other_classes(mistake, trained, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for split in ("train", "val"):
            Image.new("RGB", (32, 32)).save(tmp_path / split / name / "a.png")
    sentence = mistake("evaluate", str(trained), "--data", "folder", "--data.root", str(tmp_path))
    assert "the class 'cat', which is none of those" in sentence
    assert "0, 1, 2" in sentence


# ---- predict ----------------------------------------------------------------------------------------------------


def test_predict_gives_probabilities_and_images(capsys, trained, images, tmp_path):
    out = tmp_path / "annotated"
    argv = ["predict", str(trained), str(images), "--save", str(out), "--top_k", "10", "--json"]
    assert main(argv) == 0
    results = json.loads(capsys.readouterr().out)
    assert [Path(r["path"]).name for r in results] == ["0.png", "1.png", "2.png"]
    for result in results:
        assert sum(result["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert result["probabilities"] == sorted(result["probabilities"], reverse=True)
        annotated = Image.open(result["saved"])
        assert annotated.height > annotated.width * 40 / 50


def test_predict_says_what_the_network_says(capsys, trained, images):
    assert main(["predict", str(trained), str(images / "1.png"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    model = vitrail.load(trained)
    x = torch.full((1, 3, 32, 32), 60 / 255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.meta.preprocess.mean, model.meta.preprocess.std))
    with torch.no_grad():
        probabilities = model((x - mean) / std).softmax(1)[0]
    assert result["classes"][0] == model.meta.classes[int(probabilities.argmax())]
    assert result["probabilities"][0] == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_predict_takes_globs_and_each_image_once(capsys, trained, images):
    assert main(["predict", str(trained), str(images / "[01].png"), str(images / "0.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_corrupt_image_is_skipped_and_the_others_are_done(capsys, trained, images):
    (images / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    assert main(["predict", str(trained), str(images), "--json"]) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert [bool(r["error"]) for r in results].count(True) == 1
    assert len(results) == 4
    assert "bad.jpg" in captured.err


def test_only_corrupt_images_are_a_mistake(trained, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert main(["predict", str(trained), str(tmp_path / "bad.jpg")]) == 2


def test_fresh_weights_are_said_to_be_so(capsys, images):
    assert main(["predict", "random:mat_1", str(images / "0.png")]) == 0
    assert "random" in capsys.readouterr().err


# ---- weights that cannot be used ----------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pickle_with_code_is_refused(capsys, mistake, tmp_path, images):
    weights = tmp_path / "evil.pth"
    with open(weights, "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    sentence = mistake("predict", str(weights), str(images), "--model", "mat_1")
    assert "refused" in sentence or "damaged" in sentence
    torch.save({"state_dict": Evil()}, weights)
    assert "refused" in mistake("predict", str(weights), str(images), "--model", "mat_1")
    assert "must never" not in capsys.readouterr().out


def test_truncated_weights_are_named(mistake, trained, tmp_path, images):
    weights = tmp_path / "cut.safetensors"
    weights.write_bytes((trained / "best.safetensors").read_bytes()[:-1000])
    assert "cut.safetensors" in mistake("predict", str(weights), str(images))


def test_weights_of_another_network_are_named(mistake, trained, tmp_path):
    weights = str(trained / "best.safetensors")
    argv = ["train", "--model", "pslt_tiny", "--init", weights, "--output", str(tmp_path / "r"), "--max_steps", "1"]
    sentence = mistake(*argv)
    assert "mat_1" in sentence
    assert "pslt_tiny" in sentence


def test_an_authors_file_needs_its_network_named(mistake, tmp_path, images):
    weights = tmp_path / "authors.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, weights)
    assert "--model" in mistake("predict", str(weights), str(images))


def test_keeping_memory_where_there_is_no_glibc_is_said(capsys, monkeypatch):
    monkeypatch.setattr("vitrail.cli.keep_memory", lambda: False)
    assert main(["models", "mat_1", "--keep_memory"]) == 0
    assert "glibc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "{name}", "a.png"],
        ["predict", "random:mat_1", "{name}"],
        ["predict", "random:mat_1", ".", "--save", "{name}"],
        ["evaluate", "{name}"],
        ["evaluate", "random:mat_1", "--data", "folder", "--data.root", "{name}"],
        ["evaluate", "random:mat_1", "--output", "{name}"],
        ["evaluate", "--task", "detection", "--data", "coco", "--data.root", ".", "--predictions", "{name}"],
        ["explain", "{name}", "a.png"],
        ["explain", "random:mat_1", "a.png", "--save", "{name}"],
        ["export", "{name}", "--format", "onnx", "--output", "a.onnx"],
        ["export", "random:mat_1", "--format", "onnx", "--output", "{name}/a.onnx"],
        ["benchmark", "{name}"],
        ["benchmark", "random:mat_1", "--output", "{name}"],
        ["token_labels", "{name}", "--output", "out"],
        ["token_labels", "random:mat_1", "--data", "digits", "--output", "{name}"],
        ["train", "--output", "{name}"],
        ["train", "--init", "{name}", "--output", "out"],
        ["train", "--config", "{name}", "--output", "out"],
        ["train", "--data", "coco", "--data.root", "{name}", "--task", "detection", "--output", "out"],
        ["train", "--data", "coco", "--data.annotations", "{name}", "--task", "detection", "--output", "out"],
        ["train", "--data", "ade20k", "--data.root", "{name}", "--task", "semantic_segmentation", "--output", "out"],
        ["train", "--data", "market1501", "--data.root", "{name}", "--task", "reid", "--output", "out"],
        ["train", "--data", "cifar10", "--data.root", "{name}", "--output", "out"],
        ["train", "--data", "imagenet", "--data.root", "{name}", "--output", "out"],
        ["train", "--data", "timm", "--data.source", "folder", "--data.root", "{name}", "--output", "out"],
    ],
    ids=lambda argv: "-".join(word for word in argv if word.isidentifier() or word.startswith("--")),
)
@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "loop"], ids=["long", "deep", "circle"])
def test_a_name_that_file_systems_refuse_ends_in_a_sentence(capsys, tmp_path, monkeypatch, argv, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    Image.new("RGB", (8, 8)).save("a.png")
    assert main([word.replace("{name}", name) for word in argv]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()[-1]) <= 1500
    assert "unsteady" not in said  # nothing is measured before the name is looked at
    assert not (tmp_path / "out").exists()
