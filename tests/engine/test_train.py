"""The training loop: what a run learns and leaves, and that its layout changes nothing."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_helpers import PLAIN, QUIET, TINY_MAT, steps_of

import vitrail
from vitrail.checkpoint.format import read_meta
from vitrail.config.data import DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.trainer import fit
from vitrail.errors import UserError
from vitrail.tasks.classification import Classification
from vitrail.utils.plain import to_dict

# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_run_learns_and_leaves_everything(recipe):
    config = recipe(epochs=6, lr=2e-3)
    summary = fit(config)
    assert summary["metrics"]["top1"] > 60  # ten colours; chance is 10 %
    assert summary["steps"] == 30
    run = Path(config.output)
    assert json.loads((run / "summary.json").read_text()) == summary
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 7
    assert rows[0].startswith("epoch,step,lr,train_loss,train_accuracy,val_top1,val_top5")
    for image in ("curves.png", "confusion.png"):
        assert Image.open(run / image).size[0] > 300
    assert (run / "per_class.csv").read_text().count("\n") == 11
    meta = read_meta(run)
    assert (meta.model, len(meta.classes), meta.preprocess.image_size) == ("test_vit", 10, (32, 32))
    assert meta.training_data == "cifar10: colours.npz"
    assert meta.metrics["top1"] == summary["metrics"]["top1"]
    assert {"truth", "prediction", "probability", "name"} == set(summary["examples"][0])
    assert {"torch", "timm", "vitrail"} <= set(summary["versions"])
    assert summary["hardware"]["cores"] == os.cpu_count()
    written = json.loads((run / ".vitrail-run").read_text())["written"]
    left = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}  # nothing half-written, no lock
    assert left == {*written, ".vitrail-run"}


def test_kept_weights_give_the_recorded_accuracy(recipe):
    config = recipe(epochs=2)
    summary = fit(config)
    model = vitrail.create_model("test_vit", num_classes=10, img_size=32).eval()
    model.load_state_dict(load_file(Path(config.output) / "best.safetensors"))
    x, y, _ = zip(*Classification(config).eval_batches(), strict=True)
    with torch.no_grad():
        right = (model(torch.cat(x)).argmax(1) == torch.cat(y)).sum().item()
    assert summary["metrics"]["top1"] == 100 * right / 40


def test_tensorboard_holds_every_step(recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = recipe(max_steps=4)
    losses, _ = steps_of(config)
    events = EventAccumulator(str(Path(config.output) / "events")).Reload()
    np.testing.assert_allclose([e.value for e in events.Scalars("train/loss")], losses, rtol=1e-6)


def test_iterations_end_the_run_in_mid_epoch(recipe):
    config = recipe(epochs=None, iterations=7, optim=OptimConfig(warmup_epochs=0, min_lr=0.0), lr=1e-3)
    summary = fit(config)  # of 5 steps an epoch
    assert (summary["steps"], summary["epochs"]) == (7, 2)
    rows = [row.split(",") for row in (Path(config.output) / "metrics.csv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [["1", "5"], ["2", "7"]]
    assert float(rows[0][2]) == pytest.approx(1e-3 * (1 + math.cos(math.pi * 5 / 7)) / 2)
    assert float(rows[1][2]) == pytest.approx(0.0, abs=1e-12)  # the cosine of the whole run ends with it


def test_bf16_trains(recipe):
    losses, summary = steps_of(recipe(precision="bf16", max_steps=3))
    assert all(np.isfinite(losses))
    assert summary["precision"] == "bf16"


# ---- same steps, other layout ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory(npz, tmp_path_factory):
    """Eight steps of a plain run in one process."""
    config = TrainConfig(
        model="test_vit",
        data=DataConfig("cifar10", root=str(npz)),
        augment=replace(PLAIN, scale=(0.5, 1.0), hflip=0.5),
        batch_size=24,
        epochs=2,
        max_steps=8,
        device="cpu",
        output=str(tmp_path_factory.mktemp("plain") / "run"),
    )
    losses, summary = steps_of(config)
    return config, losses, summary


def test_accumulation_changes_nothing(trajectory, tmp_path):
    config, losses, summary = trajectory
    parts, other = steps_of(replace(config, accumulate=5, output=str(tmp_path / "run")))  # 24 = 5 + 5 + 5 + 5 + 4
    np.testing.assert_allclose(parts, losses, rtol=1e-5)
    assert other["final"]["val_loss"] == pytest.approx(summary["final"]["val_loss"], rel=1e-5)


TWO = """
import json, sys
import torch
from vitrail.config.train import TrainConfig
from vitrail.utils.plain import from_dict
from vitrail.engine.trainer import fit
torch.set_num_threads(1)
losses = []
summary = fit(from_dict(TrainConfig, json.loads(sys.argv[1])), lambda step, loss: losses.append(loss))
if summary["processes"] == 2:
    open(sys.argv[2], "w").write(json.dumps([losses, summary["final"], summary["metrics"]]))
"""


def test_two_processes_follow_the_same_losses(trajectory, tmp_path):
    config, losses, summary = trajectory
    script, result = tmp_path / "two.py", tmp_path / "result.json"
    script.write_text(TWO)
    config = replace(config, accumulate=2, output=str(tmp_path / "run"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(script), json.dumps(to_dict(config)), str(result)]
    done = subprocess.run(command, **QUIET)
    assert done.returncode == 0, done.stderr
    two, final, metrics = json.loads(result.read_text())
    np.testing.assert_allclose(two, losses, rtol=1e-5)
    assert final["val_loss"] == pytest.approx(summary["final"]["val_loss"], rel=1e-5)
    assert final["train_accuracy"] == summary["final"]["train_accuracy"]
    assert metrics["images"] == 40
    assert (tmp_path / "run" / "last" / "random_states_1.pkl").is_file()
    with pytest.raises(UserError, match="saved by 2 processes and cannot go on with 1"):
        fit(replace(config, resume=True))


TINY_PALE = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]}


@pytest.mark.parametrize(("model", "options"), [("mat_1", TINY_MAT), ("pale_tiny", TINY_PALE)])
def test_batch_norms_of_two_processes_learn_as_those_of_one(trajectory, tmp_path, model, options):
    config = replace(trajectory[0], model=model, model_options=options, max_steps=6)
    losses, summary = steps_of(replace(config, output=str(tmp_path / "one")))
    script, result = tmp_path / "two.py", tmp_path / "result.json"
    script.write_text(TWO)
    config = replace(config, output=str(tmp_path / "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(script), json.dumps(to_dict(config)), str(result)], **QUIET)
    assert done.returncode == 0, done.stderr
    two, final, _ = json.loads(result.read_text())
    np.testing.assert_allclose(two, losses, rtol=0, atol=1e-4)
    assert final["val_loss"] == pytest.approx(summary["final"]["val_loss"], abs=1e-3)


def test_average_of_the_weights_by_hand(recipe):
    config = recipe(ema_decay=0.8, ema_warmup=False, checkpoint_every=1, max_steps=4)
    states = []

    def on_step(step, _):
        if step:  # the state of the step before is on disk
            states.append(load_file(Path(config.output, "last", "model.safetensors")))

    fit(config, on_step)
    last = Path(config.output, "last")
    states.append(load_file(last / "model.safetensors"))
    average = states[0]  # timm's average begins as a copy after the first step ...
    for state in states[1:]:
        average = {name: 0.8 * average[name] + 0.2 * state[name] for name in average}
    kept = load_file(last / "ema.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-6)
    same = load_file(Path(config.output, "best.safetensors"))
    assert all(torch.equal(same[name], kept[name]) for name in kept)
