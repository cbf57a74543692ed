"""Every program and command of the tutorials runs, in the order of its page; long trainings are shortened."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.cli import main

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.M | re.S)


def run_page(name: str, folder: Path, **shorter: str) -> list[str]:
    """Run a page's blocks in a folder; `shorter` gives other values to options. Returns the commands.

    Python blocks with a file name are written to that file, the others are run.
    """
    run = []
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "docs").symlink_to(ROOT / "docs")
    for language, title, text in BLOCK.findall((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
        if language == "python" and title:
            (folder / title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{name}.md", "exec"), {"__name__": "__main__"})
        elif language == "sh":
            run += text.splitlines()
            for command in text.splitlines():
                run_command(command, shorter)
    return run


def run_command(command: str, shorter: dict[str, str]) -> None:
    program, *words = shlex.split(command)
    for i, word in enumerate(words[:-1]):
        words[i + 1] = shorter.get(word.removeprefix("--"), words[i + 1]) if word.startswith("--") else words[i + 1]
    if program == "vitrail":
        assert main(words) == 0, command
    else:
        assert program == "python"
        subprocess.run([sys.executable, *words], check=True)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_every_tutorial_is_tested():
    tested = set(re.findall(r'run_page\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert tested == {page.stem for page in TUTORIALS.glob("*.md")}


def test_the_quick_start_in_python(capsys):
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for language, _, block in BLOCK.findall(text):
        if language == "python":
            exec(compile(block, "index.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "torch.Size([1, 10])"


def test_own_photographs(folder, capsys):
    run_page("own_photos", folder, epochs="2")
    said = capsys.readouterr().out
    assert "photos/val/temple/0.jpg" in said
    assert "top1" in said
    assert len(list((folder / "runs/photos/annotated").glob("*.png"))) == 16
    assert len(list((folder / "runs/photos/seen").glob("*.gradcam.png"))) == 8
    for file in ("best.safetensors", "curves.png", "confusion.png", "metrics.csv", "summary.json", "config.yaml"):
        assert (folder / "runs/photos" / file).is_file()


@pytest.mark.slow
def test_export_to_a_device(folder):
    pytest.importorskip("onnxruntime")
    run_page("own_photos", folder, epochs="1")
    run_page("device", folder, max_drop="100")
    assert (folder / "photos-int8.onnx").stat().st_size < (folder / "photos.onnx").stat().st_size / 1.5


@pytest.mark.slow
def test_own_photographs_are_learned(folder, capsys):
    run_page("own_photos", folder)
    top1 = re.search(r"top1\s+([\d.]+)", capsys.readouterr().out)
    assert float(top1.group(1)) >= 95


@pytest.mark.slow
def test_boxes(folder):
    pytest.importorskip("faster_coco_eval")
    run_page("boxes", folder, epochs="1")
    assert len(list((folder / "runs/boxes/annotated").glob("*.png"))) == 12


def test_segmentation(folder):
    run_page("segmentation", folder, epochs="1")
    assert len(list((folder / "runs/masks/annotated/masks").glob("*.png"))) == 8


@pytest.mark.slow
def test_reid(folder, capsys):
    run_page("reid", folder, epochs="1")
    assert capsys.readouterr().out.count("is most like") == 32


@pytest.mark.slow
def test_mixers(folder):
    run_page("mixers", folder, epochs="1", seeds="1")
    assert (folder / "runs/lab/lab.html").is_file()
    assert (folder / "runs/own/runs").is_dir()


@pytest.mark.slow
def test_backbone(folder, capsys):
    pytest.importorskip("onnxruntime")
    run_page("backbone", folder)
    printed = [float(line) for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"\d+\.\d+", line)]
    assert printed[0] >= 90  # top-1 of the digits
    assert (folder / "plainnet.onnx").is_file()
