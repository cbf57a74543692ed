"""Which images `vitrail evaluate` measures, of the run's own data and of others, and how fast."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.config.data import DataConfig
from vitrail.config.train import TrainConfig
from vitrail.engine.evaluate import evaluate
from vitrail.engine.trainer import fit

WIDTHS = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run that learned half of a flat folder of class folders, and folders that it did not see."""
    base = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder, count in (("photos", 4), ("others", 7)):
        for name in (f"{folder}/cat", f"{folder}/dog"):
            (base / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(base / name / f"{i}.png")
    shutil.copytree(base / "others", base / "elsewhere" / "photos")
    data = DataConfig("folder", root=str(base / "photos"), val_fraction=0.5)
    config = TrainConfig(model="mat_1", model_options=WIDTHS, data=data, image_size=32, epochs=1, batch_size=4)
    fit(replace(config, output=str(base / "run"), optim=replace(config.optim, warmup_epochs=0.0), device="cpu"))
    return base


def measured(capsys, *argv):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main(["evaluate", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out), " ".join(str(one.message) for one in said)


def test_a_flat_folder_is_measured_whole_unless_it_was_learned(base, capsys):
    folder = ("--data", "folder", "--data.root")
    weights = base / "run" / "best.safetensors"
    found, said = measured(capsys, weights, *folder, base / "others")
    assert found["images"] == 14
    assert "held-out" not in said
    found, said = measured(capsys, base / "run", *folder, base / "photos")
    assert found["images"] == 4
    assert "only the held-out share, 4 images, is measured, as the others are training images" in said
    found, said = measured(capsys, base / "run", *folder, base / "photos", "--data.val_split", "all")
    assert found["images"] == 8
    # another folder of the same name, which the weights alone cannot tell from what they learned: said, not silent
    found, said = measured(capsys, weights, *folder, base / "elsewhere" / "photos")
    assert found["images"] == 2
    assert "learned from data of this name; --data.val_split all measures all" in said
    found, said = measured(capsys, base / "run", *folder, base / "elsewhere" / "photos")
    assert found["images"] == 14


def test_other_data_are_of_the_runs_kind(base, capsys):
    found, _ = measured(capsys, base / "run", "--data.root", base / "others")
    assert found["images"] == 14
    found, _ = measured(capsys, base / "run", "--data.max_pixels", 10_000)  # changes the run's own data
    assert found["images"] == 4
    assert main(["evaluate", str(base / "run" / "best.safetensors"), "--data.root", str(base / "others")]) == 2
    assert "say which kind of data it is, such as --data folder" in capsys.readouterr().err


def test_images_per_second_are_those_of_the_call(base, capsys, monkeypatch):
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr("vitrail.engine.evaluate.time.perf_counter", lambda: next(ticks, 12.0))
    rates = []
    evaluate(base / "run", DataConfig("folder", root=str(base / "others")), timed=rates.append, device="cpu")
    assert rates == [14 / 2.0]
    monkeypatch.undo()
    found, _ = measured(capsys, base / "run")
    assert found["images_per_second"] > 0
    assert main(["evaluate", str(base / "run")]) == 0
    assert " images/s, reading and preprocessing included" in capsys.readouterr().err
