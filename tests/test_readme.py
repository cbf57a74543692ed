"""Every command of the README runs, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotated_helpers import write_coco

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SET_UP = "python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "


def photographs(folder: Path) -> None:
    """Three classes that differ in colour, a few noisy pictures each, below train and val."""
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
    pictures, heads, deploy = [vitrail] * 3, [pip, *[vitrail] * 3], [pip, *[vitrail] * 2]
    assert [c.split()[0] for c in COMMANDS] == ["python3.11"] * 2 + pictures + heads + deploy + [vitrail]


def test_the_second_command_is_what_ci_runs():
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_the_first_command_learns_the_digits(tmp_path):
    command = COMMANDS[0]
    assert command.startswith(SET_UP + '".[train]" && ')  # the environment of the tests was set up the same way
    out = run(command.split(" && ")[-1], tmp_path)
    top1 = float(re.search(r"top1\s+([\d.]+)", out).group(1))
    assert top1 >= 98
    assert "held-back picture" in out
    assert {"best.safetensors", "curves.png", "summary.json"} <= set(os.listdir(tmp_path / "runs" / "digits"))


@pytest.mark.timeout(900)
def test_the_commands_for_your_own_pictures(tmp_path):
    photographs(tmp_path / "photos")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train, evaluate, predict = COMMANDS[2:5]
    _install, export, predict_file, models = COMMANDS[9:]
    assert "top1" in run(train, tmp_path)
    assert "red" in run(evaluate, tmp_path)
    assert run(predict, tmp_path).count(".jpg") == 24
    assert len(list((tmp_path / "runs" / "photos" / "pictures").glob("*.png"))) == 24
    assert "photos.onnx" in run(export, tmp_path)
    assert run(predict_file, tmp_path).count(".jpg") == 24
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
    assert len(list((tmp_path / "runs" / "boxes" / "pictures").glob("*.png"))) == 2


def test_the_python_example():
    done = subprocess.run([sys.executable, "-c", PYTHON[0]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[(1, 64, 50, 84), (1, 128, 25, 42), (1, 256, 13, 21), (1, 512, 7, 11)]"


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
