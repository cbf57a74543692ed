"""Trackers of the user: what they are given, and what happens where one is missing or fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.cli import main
from vitrail.config.train import TrainConfig
from vitrail.engine import trackers
from vitrail.engine.trackers import Trackers, others
from vitrail.errors import UserError

#: a tracker with the interface of Trackio, which writes what it is given into a file
STUB = """
import json, os
class _Config(dict):
    def update(self, values, allow_val_change): note("config", values)
config = _Config()
def note(*what):
    with open(os.environ["NOTES"], "a") as file: file.write(json.dumps(what) + "\\n")
class Run:
    def log(self, values, step=None): note("log", values, step)
    def finish(self): note("finish")
def init(project, **options):
    note("init", project, options)
    return Run()
"""
TRAIN = [
    "train",
    "--model_options",
    '{"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}',
]
TRAIN += ["--max_steps", "2", "--epochs", "1", "--batch_size", "8", "--device", "cpu"]


def test_a_tracker_gets_the_recipe_and_every_number(tmp_path):
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio" / "__init__.py").write_text(STUB)
    (tmp_path / "trackio-1.0.dist-info").mkdir()
    (tmp_path / "trackio-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 1.0\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NOTES": str(tmp_path / "notes")}
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vitrail", *TRAIN, "--output", str(run), "--tracker", "trackio"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert notes[0] == ["init", "vitrail", {"name": "run"}]
    assert notes[1][0] == "config"
    assert (notes[1][1]["batch_size"], notes[1][1]["optim.optimizer"]) == (8, "adamw")
    assert notes[-1] == ["finish"]
    logged = [note[1:] for note in notes if note[0] == "log"]
    assert [step for values, step in logged if "train/loss" in values] == [0, 1]
    (top1,) = [values["epoch/val_top1"] for values, _ in logged if "epoch/val_top1" in values]
    assert top1 == json.loads((run / "summary.json").read_text())["metrics"]["top1"]
    assert not (run / "events").exists()  # TensorBoard was not asked for


def test_a_missing_tracker_is_refused_before_training(tmp_path, capsys):
    assert main([*TRAIN, "--output", str(tmp_path / "run"), "--tracker", "tensorboard,mlflow"]) == 2
    assert "--tracker mlflow needs mlflow, which is not installed: pip install mlflow." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*TRAIN, "--output", str(tmp_path / "run"), "--tracker", "wand"]) == 2
    assert "wandb" in capsys.readouterr().err


class Failing:
    """Accelerate's object with a tracker that starts and then fails."""

    def __init__(self, starts: bool = True):
        self.starts, self.calls = starts, 0

    def init_trackers(self, *args, **kwargs):
        if not self.starts:
            raise ValueError("no account\nmore")

    def log(self, values, step):
        self.calls += 1
        raise ConnectionError("the server is gone")


def test_a_tracker_that_fails_does_not_end_the_run(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: Path)
    config, said, accelerator = TrainConfig(tracker=["wandb", "wandb", "tensorboard"]), [], Failing()
    assert others(config) == ["wandb"]
    made = Trackers(accelerator, config, said.append)
    made.log({"loss": 1.0}, 0)
    made.log({"loss": 1.0}, 1)
    assert accelerator.calls == 1
    assert said == ["The tracker failed and gets nothing more: ConnectionError: the server is gone."]
    with pytest.raises(UserError, match=r"--tracker wandb cannot start: ValueError: no account\."):
        Trackers(Failing(starts=False), config, said.append)
