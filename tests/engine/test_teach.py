"""A teacher's cached outputs against the teacher itself, and runs with a teacher that are stopped and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrail  # noqa: F401
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import read_meta, save_weights
from vitrail.cli import main
from vitrail.config.data import AugmentConfig, DataConfig, Preprocess
from vitrail.config.train import DistillConfig, OptimConfig, TrainConfig
from vitrail.engine.teach import teach
from vitrail.engine.trainer import fit
from vitrail.errors import UserError
from vitrail.tasks import teacher as teachers
from vitrail.utils.plain import to_dict

COLOURS = {"blue": (20, 30, 200), "red": (200, 30, 20), "yellow": (200, 200, 20)}
TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
RANDOM = AugmentConfig(scale=(0.5, 1.0), mixup=0.4, cutmix=1.0, random_erasing=0.5, auto_augment="rand-m5-mstd0.5")
PLAIN = AugmentConfig(scale=(0.5, 1.0))
EVERYTHING = {
    "augment": RANDOM,
    "model_options": {"img_size": 32, "drop_path_rate": 0.2, "proj_drop_rate": 0.1},
    "distill": DistillConfig(features=0.5),
    "ema_decay": 0.9,
    "accumulate": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight images a class, and six without a label."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for split, count in (("train", 8), ("val", 2)):
            (root / "classes" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + rng.integers(-20, 20, (32, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "classes" / split / name / f"{i}.png")
    (root / "more").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(root / "more" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    def write(seed):
        torch.manual_seed(seed)
        network = timm.create_model("mat_1", num_classes=3, **TINY)
        meta = WeightsMeta("mat_1", TINY, classes=list(COLOURS), preprocess=Preprocess((32, 32)), licence="CC0-1.0")
        path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
        save_weights(path, network.state_dict(), meta)
        return str(path)

    return write


@pytest.fixture(scope="module")
def teacher(weights):
    return weights(3)


@pytest.fixture
def recipe(photos, teacher, tmp_path):
    def make(output="run", unlabelled=False, **changes) -> TrainConfig:
        more = str(photos / "more") if unlabelled else None
        values = {
            "model": "test_vit",
            "model_options": {"img_size": 32},
            "data": DataConfig("folder", root=str(photos / "classes"), unlabelled=more),
            "augment": PLAIN,
            "image_size": 32,
            "batch_size": 8,
            "epochs": 3,
            "optim": OptimConfig(warmup_epochs=1),
            "teacher": teacher,
            "device": "cpu",
            "output": str(tmp_path / output),
        }
        return TrainConfig(**{**values, **changes})

    return make


def losses_of(config) -> list[float]:
    found: list[float] = []
    fit(config, lambda _, loss: found.append(loss))
    return found


def same_weights(one, other, names=("best.safetensors", "last/model.safetensors", "last/ema.safetensors")):
    for name in names:
        a, b = (load_file(Path(folder) / name) for folder in (one, other))
        assert set(a) == set(b)
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], name


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.npy")}


# ---- cached outputs are the teacher's -----------------------------------------------------------------------------


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("augment", [PLAIN, RANDOM], ids=["plain", "mixed"])
def test_cached_outputs_teach_what_the_teacher_does(recipe, tmp_path, monkeypatch, augment, unlabelled):
    monkeypatch.setattr(teachers, "ROWS", 7)  # several files an epoch, whose ends are those of no batch
    options = {"augment": augment, "unlabelled": unlabelled, "distill": DistillConfig(features=0.5)}
    direct = losses_of(recipe("direct", **options))
    report = teach(recipe("cache", **options), "both")
    count = 24 + 6 * unlabelled
    used = count - count % 8 if augment is RANDOM else count
    assert (report.made, report.kept, report.epochs) == (3 * used, 0, 3)
    cached = losses_of(recipe("cached", teacher=str(tmp_path / "cache"), **options))
    np.testing.assert_allclose(cached, direct, rtol=0, atol=1e-6)
    assert len(cached) == 9
    one, other = (load_file(tmp_path / name / "best.safetensors") for name in ("direct", "cached"))
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=1e-5) for key in one)
    assert read_meta(tmp_path / "cached").training_data == read_meta(tmp_path / "direct").training_data


def test_outputs_of_unmixed_images_serve_any_batch_size(recipe, tmp_path):
    teach(recipe("cache", batch_size=5))
    direct = losses_of(recipe("direct", batch_size=12))
    cached = losses_of(recipe("cached", batch_size=12, teacher=str(tmp_path / "cache")))
    np.testing.assert_allclose(cached, direct, rtol=0, atol=1e-6)


def test_a_stopped_call_goes_on_and_more_epochs_are_added(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "ROWS", 7)
    config = recipe("cache", augment=RANDOM)
    teach(replace(config, epochs=2))
    folder, whole = tmp_path / "cache", files_below(tmp_path / "cache")
    assert sorted(whole)[:4] == [f"0000/logits_{first:07d}.npy" for first in (0, 7, 14, 21)]
    for name in ("0000/logits_0000021.npy", "0001/logits_0000014.npy", "0001/logits_0000021.npy"):
        (folder / name).unlink()
    report = teach(replace(config, epochs=2))
    assert (report.made, report.kept) == (3 + 7 + 3, 48 - 13)
    assert files_below(folder) == whole
    report = teach(replace(config, epochs=3))
    assert (report.made, report.kept, report.epochs) == (24, 48, 3)
    assert whole.items() <= files_below(folder).items()
    assert teach(replace(config, epochs=3)).made == 0


def test_the_outputs_by_hand(recipe, teacher, tmp_path):
    from vitrail.checkpoint.load import open_network
    from vitrail.tasks.classification import Classification

    config = recipe("cache", epochs=1, mean=Preprocess().mean, std=Preprocess().std)
    teach(config)
    task = Classification(config)
    x, _ = next(iter(task.train_batches(0, 1)))
    with torch.no_grad():
        expected = open_network(teacher)(x)
    stored = np.load(tmp_path / "cache" / "0000" / "logits_0000000.npy")
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored[:8], expected.numpy(), atol=1e-6)


# ---- what does not fit is refused ---------------------------------------------------------------------------------


@pytest.fixture
def cache(recipe, tmp_path):
    teach(recipe("cache", epochs=2))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "they were made with seed 0, and it is 1 here"),
        (
            {"image_size": 64, "model_options": {"img_size": 64}},
            r"made with image_size \[32, 32\], and it is \[64, 64\]",
        ),
        ({"augment": replace(PLAIN, hflip=0.0)}, r"made with augment.hflip 0.5, and it is 0.0 here"),
        ({"augment": replace(PLAIN, mixup=0.5)}, "made with augment.mixup 0.0, and it is 0.5 here"),
        ({"unlabelled": True}, "they are of other training images: 24 then, 30 now"),
        ({"epochs": 3}, "has the teacher's outputs for 2 of the run's 3 epochs"),
        ({"distill": DistillConfig(features=1.0)}, "holds no features"),
    ],
)
def test_outputs_of_another_run_are_refused(recipe, cache, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(recipe(**{"epochs": 2, "teacher": str(cache), **changes}))
    assert not Path(recipe().output).exists()


def test_mixed_images_need_the_batches_they_were_mixed_in(recipe, tmp_path):
    teach(recipe("cache", augment=RANDOM))
    with pytest.raises(UserError, match="made with batch_size 8, and it is 6 here"):
        fit(recipe(augment=RANDOM, batch_size=6, teacher=str(tmp_path / "cache")))


def test_other_augmented_images_are_noticed(recipe, cache):
    views = np.load(cache / "views.npy")
    np.save(cache / "views.npy", views + 0.1)
    with pytest.raises(UserError, match="as with another version of timm or Pillow"):
        fit(recipe(epochs=2, teacher=str(cache)))


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "pickle", "info"])
def test_damaged_outputs_are_said(recipe, cache, damage):
    file = cache / "0001" / "logits_0000000.npy"
    stored = np.load(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "shape":
        np.save(file, stored[:5])
    elif damage == "nan":
        np.save(file, np.full_like(stored, np.nan))
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    else:
        (cache / "teacher.json").write_text('{"teacher": 3}')
    with pytest.raises(UserError, match=r"damaged|has the shape|not finite"):
        fit(recipe(epochs=2, teacher=str(cache)))


def test_a_folder_of_other_things_is_left_alone(recipe, cache, weights, tmp_path):
    before = files_below(cache)
    with pytest.raises(UserError, match="they are of another teacher, mat_1"):
        teach(recipe("cache", epochs=2, teacher=weights(4)))
    with pytest.raises(UserError, match="made with seed 0, and it is 7 here"):
        teach(recipe("cache", epochs=2, seed=7))
    assert files_below(cache) == before
    (cache / "0001" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 0001/notes.txt, which vitrail teach did not write"):
        teach(recipe("cache", epochs=2, overwrite=True))
    assert (cache / "0001" / "notes.txt").read_text() == "mine"
    (cache / "0001" / "notes.txt").unlink()
    assert teach(recipe("cache", epochs=1, seed=7, overwrite=True)).made == 24
    with pytest.raises(UserError, match="give the teacher itself"):
        teach(recipe("other", teacher=str(cache)))


def test_a_link_in_the_folder_is_not_followed_out_of_it(recipe, tmp_path):
    teach(recipe("cache", epochs=1))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "0001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of"):
        teach(recipe("cache", epochs=2))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_too_little_room_is_said_before_anything_is_made(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(UserError, match=r"take 0\.0 GB, and .* has 0\.0 GB left"):
        teach(recipe("cache"))
    assert not (tmp_path / "cache").exists()


# ---- stopped runs go on -------------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
import torch
from vitrail.config.train import TrainConfig
from vitrail.utils.plain import from_dict
from vitrail.engine.trainer import fit
torch.set_num_threads(1)
def kill(step, loss):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
fit(from_dict(TrainConfig, json.loads(sys.argv[1])), kill)
"""
QUIET = {"capture_output": True, "text": True, "timeout": 400, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_run_with_a_teacher_goes_on_bit_for_bit(recipe, tmp_path, cached):
    options = {**EVERYTHING, "unlabelled": True}
    if cached:
        teach(recipe("cache", **options), "both")
        options["teacher"] = str(tmp_path / "cache")
    whole = losses_of(recipe("whole", **options))
    config = recipe("killed", **options)
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(to_dict(config))], **QUIET)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert losses_of(replace(config, resume=True)) == whole[4:]  # saved every second step
    same_weights(tmp_path / "killed", tmp_path / "whole")
    assert "projection.weight" in load_file(tmp_path / "whole" / "last" / "model.safetensors")
    assert not [key for key in load_file(tmp_path / "whole" / "best.safetensors") if "projection" in key]
    meta = read_meta(tmp_path / "whole")
    assert meta.training_data.endswith("unlabelled images of more; teacher mat_1 (CC0-1.0)")


def test_another_teacher_cannot_go_on(recipe, weights, teacher, tmp_path):
    config = recipe(epochs=1, max_steps=1)
    fit(config)
    with pytest.raises(UserError, match="goes on with the same teacher"):
        fit(replace(config, teacher=weights(4), max_steps=2, resume=True))
    moved = shutil.copy(teacher, tmp_path / "moved.safetensors")
    assert fit(replace(config, teacher=str(moved), max_steps=2, resume=True))["steps"] == 2


def test_a_run_learns_from_a_run_in_bf16(recipe, tmp_path):
    fit(recipe("first", teacher=None, epochs=1))
    summary = fit(recipe("second", teacher=str(tmp_path / "first"), epochs=1, precision="bf16"))
    assert np.isfinite(summary["final"]["train_loss"])


TWO = """
import json, sys
import torch
from vitrail.config.train import TrainConfig
from vitrail.utils.plain import from_dict
from vitrail.engine.trainer import fit
torch.set_num_threads(1)
losses = []
summary = fit(from_dict(TrainConfig, json.loads(sys.argv[1])), lambda step, loss: losses.append(loss))
open(sys.argv[2], "w").write(json.dumps([losses, summary["processes"]]))
"""


@pytest.mark.slow
def test_two_processes_follow_the_losses_of_one(recipe, tmp_path):
    options = {"unlabelled": True, "distill": DistillConfig(features=0.5), "accumulate": 2}
    teach(recipe("cache", **options), "both")
    options["teacher"] = str(tmp_path / "cache")
    alone = losses_of(recipe("one", **options))
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "two.py"), json.dumps(to_dict(recipe("two", **options))), str(tmp_path / "two.json")]
    done = subprocess.run(command, **QUIET)
    assert done.returncode == 0, done.stderr
    losses, processes = json.loads((tmp_path / "two.json").read_text())
    assert processes == 2
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


# ---- by command -----------------------------------------------------------------------------------------------------


def test_by_command(photos, teacher, tmp_path, capsys, mistake):
    data = ["--data", "folder", "--data.root", str(photos / "classes"), "--image_size", "32", "--device", "cpu"]
    shared = [*data, "--epochs", "1", "--batch_size", "8"]
    assert main(["teach", teacher, *shared, "--output", str(tmp_path / "cache"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"teacher": "mat_1", "epochs": 1, "made": 24, "kept": 0}.items() <= report.items()
    run = ["train", *shared, "--model_options.depths", "[1,1,1,1]", "--output", str(tmp_path / "run")]
    assert main([*run, "--teacher", str(tmp_path / "cache")]) == 0
    assert "teacher: outputs of mat_1 (CC0-1.0)" in capsys.readouterr().err
    assert main(["teach", teacher, *shared, "--output", str(tmp_path / "cache")]) == 0
    assert "0 outputs of mat_1 made and 24 kept" in capsys.readouterr().out
    assert "Unknown option --lr" in mistake("teach", teacher, *shared, "--output", str(tmp_path / "x"), "--lr", "1")
    assert "output" in mistake("teach", teacher, *shared)
    config = tmp_path / "recipe.yaml"
    config.write_text("task: reid\nlr: 0.1\n")
    said = mistake("teach", teacher, *shared, "--output", str(tmp_path / "x"), "--config", str(config))
    assert "cached for classification alone" in said
    assert not (tmp_path / "x").exists()
