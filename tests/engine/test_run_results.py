"""Drawings and summary of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import photos

from vitrail.config.data import DataConfig
from vitrail.engine.trainer import fit
from vitrail.tasks.classification import Classification


def test_the_first_batch_is_drawn_as_the_network_saw_it(recipe):
    config = recipe(max_steps=1)
    trainer_batch = []
    original = Classification.split

    def split(task, batch, parts):
        trainer_batch.append(batch[0].clone())
        return original(task, batch, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "split", split)
        fit(config)
    sheet = np.asarray(Image.open(Path(config.output) / "train_batch.png")).astype(int)
    task = Classification(config)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (task.preprocess.mean, task.preprocess.std))
    seen = (255 * (trainer_batch[0][0] * std + mean).clamp(0, 1)).round().permute(1, 2, 0).int().numpy()
    large = seen.repeat(4, 0).repeat(4, 1)  # 32 pixels are drawn as 128
    found = any(np.array_equal(sheet[top : top + 128, 3:131], large) for top in range(sheet.shape[0] - 128) if top < 60)
    assert found


def test_a_failure_to_draw_costs_no_summary(recipe, monkeypatch, capsys):
    def fails(*_, **__):
        raise ValueError("\x1b[31mParseException")

    monkeypatch.setattr("vitrail.engine.run_results.draw_curves", fails)
    monkeypatch.setattr("vitrail.utils.plot.draw_confusion", fails)
    monkeypatch.setattr(Classification, "examples", fails)
    config = recipe(max_steps=1)
    assert fit(config)["examples"] == []
    run = Path(config.output)
    assert json.loads((run / "summary.json").read_text())["metrics"]["images"] == 40
    said = capsys.readouterr().err
    assert "curves.png could not be drawn: ValueError: \\x1b[31mParseException" in said
    assert "\x1b[31mParse" not in said


def measured_by(monkeypatch) -> list[str]:
    """What the images of runs that follow call the measured images: of curves, of confusion matrices."""
    said: list[str] = []
    monkeypatch.setattr(
        "vitrail.engine.run_results.draw_curves", lambda rows, metric, path, measured: said.append(measured)
    )
    monkeypatch.setattr("vitrail.utils.plot.draw_confusion", lambda counts, names, path, title: said.append(title))
    return said


@pytest.mark.parametrize(
    ("parts", "on_training"),
    [({"val_split": "train"}, True), ({"val_split": "all"}, True), ({"val_split": "holdout"}, False), ({}, False)],
)
def test_metrics_of_training_images_are_called_so(recipe, tmp_path, monkeypatch, capsys, parts, on_training):
    photos(tmp_path / "flat", "abc", 10)
    data = DataConfig("folder", root=str(tmp_path / "flat" / "train"), **parts)
    said = measured_by(monkeypatch)
    summary = fit(recipe(data=data, batch_size=12, epochs=1, image_size=32))
    assert summary["measured_on"] == ("training images" if on_training else "validation images")
    assert summary["metrics"]["images"] == (30 if on_training else 6)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/1"))
    assert ("training images top1 " in line, " val " in line) == (on_training, not on_training)
    assert "training images loss " in line or not on_training
    assert said == (["training images", "training images"] if on_training else ["val", ""])
