"""Every command of the README and every Python example runs, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotated_helpers import write_coco
from vitrail.analysis.explain import METHODS
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.factory import assemble, build_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
PYTHON_PAGE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
ANALYSIS_PAGE = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
SHORT = {"depths": [1, 1, 1, 1]}
SET_UP = "python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "


def photographs(folder: Path) -> None:
    """Three classes that differ in colour, a few noisy images each, below train and val."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (80, 100, 3), dtype=np.uint8)
                pixels[..., channel] += 140
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")


def run(command: str, folder: Path) -> str:
    """Run a command line of the README, with the interpreter of the tests in the place of `.venv`."""
    bin_folder = Path(sys.executable).parent
    command = command.replace(".venv/bin/", f"{bin_folder}/")
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_no_other_commands():
    pip, vitrail = ".venv/bin/pip", ".venv/bin/vitrail"
    images, heads, deploy = [vitrail] * 3, [pip, *[vitrail] * 3], [pip, *[vitrail] * 2]
    assert [c.split()[0] for c in COMMANDS] == ["python3.11"] * 2 + images + heads + deploy + [vitrail] * 4


def test_the_second_command_is_what_ci_runs():
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_the_first_command_learns_the_digits(tmp_path):
    command = COMMANDS[0]
    assert command.startswith(SET_UP + '".[train]" && ')  # the environment of the tests was set up the same way
    out = run(command.split(" && ")[-1], tmp_path)
    top1 = float(re.search(r"top1\s+([\d.]+)", out).group(1))
    assert top1 >= 98
    assert "validation image" in out
    assert {"best.safetensors", "curves.png", "summary.json"} <= set(os.listdir(tmp_path / "runs" / "digits"))


@pytest.mark.timeout(900)
def test_the_commands_for_your_own_images(tmp_path):
    photographs(tmp_path / "photos")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train, evaluate, predict = COMMANDS[2:5]
    _install, export, predict_file, explain, report, compare, models = COMMANDS[9:]
    assert "top1" in run(train, tmp_path)
    assert "red" in run(evaluate, tmp_path)
    assert run(predict, tmp_path).count(".jpg") == 24
    assert len(list((tmp_path / "runs" / "photos" / "annotated").glob("*.png"))) == 24
    assert "photos.onnx" in run(export, tmp_path)
    assert run(predict_file, tmp_path).count(".jpg") == 24
    assert run(explain, tmp_path).count("stages.3") == 24
    assert len(list((tmp_path / "runs" / "photos" / "seen").glob("*.gradcam.png"))) == 24
    assert "top1" in run(report, tmp_path)
    assert "resnet18" in run(compare, tmp_path)
    for page in ("photos.html", "comparison.html"):
        assert (tmp_path / page).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "partialformer_b4" in run(models, tmp_path)


@pytest.mark.timeout(900)
def test_the_commands_for_boxes(tmp_path):
    write_coco(tmp_path / "coco", {"train": 2, "val": 2})
    (tmp_path / "photos").symlink_to(tmp_path / "coco" / "images" / "val")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    _install, train, evaluate, predict = COMMANDS[5:9]
    assert "AP50" in run(train + " --epochs 1", tmp_path)  # of 120
    assert "AP50" in run(evaluate, tmp_path)
    assert run(predict, tmp_path).count(".png") == 2
    assert len(list((tmp_path / "runs" / "boxes" / "annotated").glob("*.png"))) == 2


def weights(folder: Path, model: torch.nn.Module, **description) -> None:
    """A run directory that holds fresh weights alone."""
    folder.mkdir(parents=True)
    meta = WeightsMeta("mat_1", SHORT, classes=["a", "b", "c"], preprocess=Preprocess((64, 64)), **description)
    save_weights(folder / "best.safetensors", model.state_dict(), meta)


def example(text: str, folder: Path) -> list[str]:
    """What a Python example prints, line by line."""
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_python_example(tmp_path):
    assert example(PYTHON[0], tmp_path) == ["[(1, 64, 50, 84), (1, 128, 25, 42), (1, 256, 13, 21), (1, 512, 7, 11)]"]


@pytest.mark.timeout(900)
def test_the_python_page(tmp_path):
    pytest.importorskip("onnxruntime")
    photographs(tmp_path / "drawn")
    (tmp_path / "photos").mkdir()
    (tmp_path / "drawn" / "train" / "red" / "0.jpg").rename(tmp_path / "photos" / "1.jpg")
    head_options = {"num_classes": 3, "channels": 8}
    weights(tmp_path / "runs" / "photos", build_model("mat_1", SHORT, 3))
    detector = assemble("mat_1", "retinanet", SHORT, head_options)
    weights(tmp_path / "runs" / "boxes", detector, task="detection", head="retinanet", head_options=head_options)
    out = example("".join(PYTHON_PAGE), tmp_path)
    assert out[0] == "['mat_1', 'mat_2', 'mat_3', 'mat_4', 'mat_5']"
    assert "0.5" in out  # the mIoU: 1, 1/2 and 0
    assert (tmp_path / "photos.onnx").is_file()
    assert (tmp_path / "annotated" / "1.png").is_file()


@pytest.mark.timeout(900)
def test_the_page_of_analyses(tmp_path, monkeypatch):
    photographs(tmp_path / "drawn")
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("red", "blue")):
        (tmp_path / "drawn" / "val" / name / "0.jpg").rename(tmp_path / "photos" / f"{number + 1}.jpg")
    weights(tmp_path / "runs" / "photos", build_model("mat_1", SHORT, 3))
    out = example("".join(re.findall(r"```python\n(.*?)```", ANALYSIS_PAGE, re.S)), tmp_path)
    assert out[0].startswith("mat_1: where layer stages.2 speaks for")
    assert (tmp_path / "gradcam.png").is_file()
    assert len(list((tmp_path / "seen").glob("*.png"))) == 2
    commands = re.findall(r"^    (vitrail .*)$", ANALYSIS_PAGE, re.M)
    methods = {re.search(r"--method (\w+)", command).group(1) for command in commands if "--method" in command}
    assert {*methods, "gradcam", "interactions"} == set(METHODS)
    # interactions need a network that is often right, predictions several networks with a head
    run_here = [command for command in commands if not re.search("interactions|predictions", command)]
    monkeypatch.chdir(tmp_path)
    for command in run_here:
        assert main(command.split()[1:]) == 0
