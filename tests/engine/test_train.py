import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrail
from vitrail.checkpoint.format import read_meta
from vitrail.checkpoint.run_dir import read_log
from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.config.tasks import ReidConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.memory_errors import memory_errors_explained
from vitrail.engine.trainer import Trainer, fit, is_better
from vitrail.errors import Interrupted, UserError
from vitrail.tasks.classification import Classification
from vitrail.utils.plain import to_dict

PLAIN = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
# everything that draws random numbers, so that a run that goes on has every chance to differ
RANDOM = AugmentConfig(mixup=0.4, cutmix=1.0, random_erasing=0.5, auto_augment="rand-m5-mstd0.5")
TINY_MAT = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    """120 + 40 images of ten classes, each class a colour under noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3))

    def part(count):
        y = np.arange(count) % 10
        noise = rng.integers(-40, 40, (count, 32, 32, 3))
        return (colours[y][:, None, None] + noise).clip(0, 255).astype(np.uint8), y

    x_train, y_train = part(120)
    x_test, y_test = part(40)
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def recipe(npz, tmp_path):
    def make(output="run", **changes) -> TrainConfig:
        values = {
            "model": "test_vit",
            "data": DataConfig("cifar10", root=str(npz)),
            "augment": PLAIN,
            "optim": OptimConfig(warmup_epochs=1),
            "batch_size": 24,
            "epochs": 2,
            "device": "cpu",
            "output": str(tmp_path / output),
        }
        return TrainConfig(**{**values, **changes})

    return make


def steps_of(config) -> tuple[list[float], dict]:
    losses = []

    def on_step(step, loss):
        assert step == len(losses)
        losses.append(loss)

    return losses, fit(config, on_step)


def same_files(a, b, names):
    for name in names:
        assert (Path(a) / name).read_bytes() == (Path(b) / name).read_bytes(), name


# ---- what a run leaves ------------------------------------------------------------------------------------------


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


# ---- going on ---------------------------------------------------------------------------------------------------


def random_recipe(recipe, output):
    return recipe(
        output,
        epochs=3,
        augment=RANDOM,
        model_options={"drop_path_rate": 0.2, "proj_drop_rate": 0.1},
        optim=OptimConfig(warmup_epochs=1, clip_grad=1.0),
        ema_decay=0.9,
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def uninterrupted(npz, tmp_path_factory):
    """A run with all the randomness there is: its folder and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    config = random_recipe(
        lambda output, **changes: TrainConfig(
            **{
                "model": "test_vit",
                "data": DataConfig("cifar10", root=str(npz)),
                "batch_size": 24,
                "device": "cpu",
                "output": str(folder / output),
                **changes,
            }
        ),
        "run",
    )
    losses, _ = steps_of(config)
    assert len(losses) == 15
    return Path(config.output), losses


WHOLE = ("best.safetensors", "last/model.safetensors", "last/ema.safetensors")

QUIET = {"capture_output": True, "text": True, "timeout": 400, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}

KILLED = """
import json, os, signal, sys
import torch
from vitrail.config.train import TrainConfig
from vitrail.utils.plain import from_dict
from vitrail.engine.trainer import fit
torch.set_num_threads(1)
def kill(step, loss):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
fit(from_dict(TrainConfig, json.loads(sys.argv[1])), kill)
"""


def test_killed_in_mid_epoch_and_resumed_ends_bit_identical(recipe, uninterrupted):
    config = random_recipe(recipe, "killed")
    command = [sys.executable, "-c", KILLED, json.dumps(to_dict(config))]
    done = subprocess.run(command, **QUIET)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = json.loads((Path(config.output) / "last" / "loop.json").read_text())
    assert (state["epoch"], state["batch"], state["step"]) == (1, 3, 8)
    losses = {}
    fit(replace(config, resume=True), losses.__setitem__)
    whole, expected = uninterrupted
    assert losses == dict(enumerate(expected[8:], 8))
    same_files(config.output, whole, WHOLE)


def test_ctrl_c_saves_and_says_how_to_go_on(recipe, uninterrupted):
    config = random_recipe(recipe, "stopped")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"step 4 of 15.*--resume"):
        fit(config, lambda step, _: step == 2 and os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is handler
    fit(replace(config, resume=True))
    same_files(config.output, uninterrupted[0], WHOLE)


def test_max_steps_stops_and_more_go_on(recipe, uninterrupted):
    config = random_recipe(recipe, "short")
    summary = fit(replace(config, max_steps=5))
    assert (summary["steps"], summary["epochs"]) == (5, 1)
    fit(replace(config, max_steps=7, resume=True))
    fit(replace(config, resume=True))
    same_files(config.output, uninterrupted[0], WHOLE[1:])
    epochs = [row.split(",")[0] for row in (Path(config.output) / "metrics.csv").read_text().splitlines()[1:]]
    assert epochs == ["1", "2", "3"]


def test_iterations_end_the_run_in_mid_epoch(recipe):
    config = recipe(epochs=None, iterations=7, optim=OptimConfig(warmup_epochs=0, min_lr=0.0), lr=1e-3)
    summary = fit(config)  # of 5 steps an epoch
    assert (summary["steps"], summary["epochs"]) == (7, 2)
    rows = [row.split(",") for row in (Path(config.output) / "metrics.csv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [["1", "5"], ["2", "7"]]
    assert float(rows[0][2]) == pytest.approx(1e-3 * (1 + math.cos(math.pi * 5 / 7)) / 2)
    assert float(rows[1][2]) == pytest.approx(0.0, abs=1e-12)  # the cosine of the whole run ends with it


def test_iterations_stopped_and_resumed_are_the_same(recipe):
    optim = OptimConfig(warmup_epochs=None, warmup_iterations=2)
    whole, parts = (recipe(name, epochs=None, iterations=7, optim=optim) for name in ("whole", "parts"))
    fit(whole)
    fit(replace(parts, max_steps=6))
    assert fit(replace(parts, resume=True))["steps"] == 7
    same_files(whole.output, parts.output, ["last/model.safetensors"])


def test_run_killed_before_its_first_state_begins_anew(recipe):
    config = recipe(max_steps=1)
    fit(config)
    for leftover in Path(config.output, "last").iterdir():
        leftover.unlink()
    assert fit(replace(config, resume=True))["steps"] == 1


def test_damaged_state_is_said(recipe):
    config = recipe(max_steps=1)
    fit(config)
    model = Path(config.output, "last", "model.safetensors")
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"saved state .*last is damaged"):
        fit(replace(config, resume=True))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loop.json", {"epoch": "x"}),
        ("loop.json", {"batch": 1000}),
        ("loop.json", {"step": -5}),
        ("loop.json", {"epoch": 0}),
        ("loop.json", {"history": "x"}),
        ("loop.json", {"history": [{"epoch": 0}]}),
        ("loop.json", {"best": {"epoch": 7, "top1": 3.0}}),
        ("loop.json", {"seconds": float("inf")}),
        ("loop.json", {"digests": []}),
        ("loop.json", {"digests": {"../config.yaml": "0"}}),
        ("loop.json", {"unknown": 1}),
        ("note.json", None),
        ("data.json", None),
        ("optimizer.bin", None),
        ("random_states_0.pkl", None),
        ("best_metrics.safetensors", None),
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_every_damage_of_a_state_is_said(short, tmp_path, name, change, checked):
    """With the digests of its files, and without them, as after an edit by hand."""
    run = tmp_path / "run"
    shutil.copytree(short.output, run)
    loop = json.loads((run / "last" / "loop.json").read_text())
    if not checked:
        loop["digests"] = {}
    loop |= change or {}
    (run / "last" / "loop.json").write_text(json.dumps(loop))
    if change is None:
        file = run / "last" / name
        content = b"[1]" if name.endswith("json") else file.read_bytes()[:-100]
        file.write_bytes(content)
        if name.startswith("random") and not checked:
            return  # every step is seeded by itself: nothing rests on that file
    with pytest.raises(UserError, match=r"saved state .*last is damaged \(.+\); start anew"):
        fit(replace(short, output=str(run), resume=True))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 5000, b"name: my own", b"data: {val_fraction: abc}", b"- 1"])
def test_a_damaged_recipe_of_a_run_is_said(short, tmp_path, content):
    run = tmp_path / "run"
    shutil.copytree(short.output, run)
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged or no recipe of a run: .+"):
        fit(replace(short, output=str(run), resume=True))
    from vitrail.engine.evaluate import evaluate

    with pytest.raises(UserError, match=r"config\.yaml is damaged or no recipe of a run: .+"):
        evaluate(str(run))


@pytest.fixture(scope="module")
def short(npz, tmp_path_factory):
    """A run of seven steps, five an epoch."""
    config = TrainConfig(
        model="test_vit",
        data=DataConfig("cifar10", root=str(npz)),
        augment=PLAIN,
        batch_size=24,
        epochs=3,
        max_steps=7,
        device="cpu",
        output=str(tmp_path_factory.mktemp("short") / "run"),
    )
    fit(config)
    return config


# ---- on the same data -------------------------------------------------------------------------------------------


def photos(root, names, count):
    for i, name in enumerate(names):
        for part, number in (("train", count), ("val", 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(number):
                Image.fromarray(np.full((16, 16, 3), 80 * i + k, np.uint8)).save(folder / f"{k}.png")
    return DataConfig("folder", root=str(root))


def swap_folders(root):
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / "aside")
        (root / part / "b").rename(root / part / "a")
        (root / part / "aside").rename(root / part / "b")


@pytest.mark.parametrize(
    ("names", "count", "change", "sentence"),
    [
        ("abc", 3, None, "training images .* changed: 24 then, 9 now"),
        ("abc", 16, None, "training images .* changed: 24 then, 48 now"),
        ("abz", 8, None, "class number 2 was 'c' then and is 'z' now"),
        ("abcd", 6, None, "class number 3 was none then and is 'd' now"),
        ("abc", 8, swap_folders, "files of other content"),
        ("abc", 8, lambda root: (root / "val" / "a" / "0.png").unlink(), "validation images .* 6 then, 5 now"),
    ],
)
def test_a_run_goes_on_with_the_same_data_only(recipe, tmp_path, names, count, change, sentence):
    config = recipe(data=photos(tmp_path / "then", "abc", 8), batch_size=4, epochs=3, max_steps=7, image_size=32)
    config.optim.warmup_epochs = 0
    fit(config)
    data = photos(tmp_path / "now", names, count)
    if change is not None:
        change(tmp_path / "now")
    before = {p: p.read_bytes() for p in Path(config.output).rglob("*") if p.is_file() and "events" not in p.parts}
    with pytest.raises(UserError, match=sentence):
        fit(replace(config, data=data, resume=True, max_steps=9))
    assert before == {p: p.read_bytes() for p in before}
    moved = photos(tmp_path / "moved", "abc", 8)
    assert fit(replace(config, data=moved, resume=True, max_steps=8))["steps"] == 8


# ---- same steps, other layout -----------------------------------------------------------------------------------


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


# ---- fine-tuning ------------------------------------------------------------------------------------------------


def test_frozen_backbone_stays_bit_for_bit(recipe):
    base = recipe("base", model="mat_1", model_options=TINY_MAT, max_steps=2)
    fit(base)
    tuned = replace(base, output=base.output + "2", init=base.output, freeze="backbone", lr=1e-2)
    fit(tuned)
    before = load_file(Path(base.output, "best.safetensors"))
    after = load_file(Path(tuned.output, "last", "model.safetensors"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("head" in name and "conv" not in name and "bn" not in name for name in changed)
    assert "tensors taken over" in read_meta(tuned.output).note


def test_other_classes_restart_the_classifier(recipe, tmp_path):
    base = recipe("base", max_steps=1)
    fit(base)
    for i, name in enumerate(("blue", "green", "red")):
        for part, count in (("train", 6), ("val", 2)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((40, 48, 3), 60 * i + k, np.uint8)).save(folder / f"{k}.png")
    config = recipe("tuned", data=DataConfig("folder", root=str(tmp_path / "photos")), init=base.output, batch_size=6)
    summary = fit(config)
    assert "head.weight, head.bias initialised anew" in summary["note"]
    assert read_meta(config.output).classes == ["blue", "green", "red"]


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_divergence_stops_and_the_last_good_state_is_kept(recipe):
    optim = OptimConfig(schedule="step", warmup_epochs=0, decay_epochs=[1], decay_rate=1e30)  # explodes in epoch 1
    config = recipe(optim=optim, epochs=3, checkpoint_every=1)
    with pytest.raises(UserError, match=r"diverged: the loss of step \d+ is not finite; the last good state is in"):
        fit(config)
    last = Path(config.output, "last")
    assert json.loads((last / "loop.json").read_text())["step"] >= 5
    assert all(bool(t.isfinite().all()) for t in load_file(last / "model.safetensors").values())
    assert vitrail_load(config.output)


@pytest.mark.parametrize("steps", [5, 2])
@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("what", ["weight", "buffer"])
def test_what_is_not_finite_after_the_last_step_is_never_kept(recipe, monkeypatch, steps, ema, what):
    """The loss of the step was finite; the gradient, or what a norm has seen, was not."""
    config = recipe(model="mat_1", model_options=TINY_MAT, epochs=1, ema_decay=ema, checkpoint_every=1, max_steps=steps)
    original = Trainer.train_step

    def step(trainer, batch):
        total = original(trainer, batch)
        if trainer.state.step == steps - 1:
            network = trainer.network
            tensor = next(network.parameters()) if what == "weight" else next(network.buffers())
            with torch.no_grad():
                tensor[(0,) * tensor.ndim] = float("nan") if what == "weight" else float("inf")
        return total

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(UserError, match=rf"diverged: the loss of step {steps} is not finite; the last good state is"):
        fit(config)
    run = Path(config.output)
    assert not (run / "best.safetensors").exists()
    assert json.loads((run / "last" / "loop.json").read_text())["step"] == steps - 1
    assert all(bool(t.isfinite().all()) for t in load_file(run / "last" / "model.safetensors").values())


@pytest.mark.parametrize(("keep", "kept"), [("best", 0), ("last", 1)])
def test_the_last_weights_are_kept_where_that_is_asked_for(recipe, monkeypatch, keep, kept):
    monkeypatch.setattr("vitrail.engine.trainer.is_better", lambda value, best: False)  # the first epoch is the best
    config = recipe(keep=keep)
    summary = fit(config)
    rows = (Path(config.output) / "metrics.csv").read_text().splitlines()
    top1 = float(rows[1 + kept].split(",")[rows[0].split(",").index("val_top1")])
    assert (summary["best_epoch"], summary["metrics"]["top1"]) == (kept + 1, top1)
    assert read_meta(Path(config.output)).metrics["top1"] == top1
    last, weights = Path(config.output) / "last" / "model.safetensors", Path(config.output) / "best.safetensors"
    same = all(torch.equal(value, load_file(last)[name]) for name, value in load_file(weights).items())
    assert same == (keep == "last")


# ---- early stopping ---------------------------------------------------------------------------------------------


@pytest.fixture
def never_better(monkeypatch):
    """The first epoch that is validated is the best one."""
    monkeypatch.setattr("vitrail.engine.trainer.is_better", lambda value, best: False)


def log_of(config) -> list[float]:
    return [row["epoch"] for row in read_log(config.output)]


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"patience": 1}, [1, 2]),
        ({"patience": 2}, [1, 2, 3]),
        ({"patience": 2, "ema_decay": 0.5}, [1, 2, 3]),
        ({"patience": 2, "eval_every": 2}, [2, 4]),  # known at epoch 4: two since the best one
        ({"patience": 3, "eval_every": 2}, [2, 4, 6]),  # three have passed at epoch 5, which is known at 6
        ({"patience": 6}, [1, 2, 3, 4, 5, 6]),
        ({}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_run_stops_when_epochs_have_passed_without_a_better_one(recipe, never_better, options, epochs):
    config = recipe(epochs=6, **options)
    summary = fit(config)
    assert log_of(config) == epochs
    assert summary["epochs"] == epochs[-1]
    assert summary["stopped_early"] == (epochs[-1] < 6)
    assert summary["best_epoch"] == epochs[0]


def test_a_better_epoch_renews_the_patience(recipe, monkeypatch):
    answers = iter([False, True, False, False, True])  # of epochs 2 to 6: 3 is better, then none for two
    monkeypatch.setattr("vitrail.engine.trainer.is_better", lambda value, best: next(answers))
    config = recipe(epochs=9, patience=2)
    assert fit(config)["best_epoch"] == 3
    assert log_of(config) == [1, 2, 3, 4, 5]


def test_patience_survives_a_stop_and_a_stopped_run_goes_on_with_more(recipe, never_better, capsys):
    whole, parts = recipe("whole", epochs=5, patience=3), recipe("parts", epochs=5, patience=3)
    fit(whole)
    fit(replace(parts, max_steps=13))  # of 5 steps an epoch: in the third one
    fit(replace(parts, resume=True))
    same_files(whole.output, parts.output, ["last/model.safetensors", "best.safetensors"])
    assert log_of(parts) == log_of(whole) == [1, 2, 3, 4]
    capsys.readouterr()
    fit(replace(parts, resume=True))
    said = capsys.readouterr().err
    assert "the run is complete" in said
    assert "stopped after epoch 4 of 5: none since epoch 1 was better (--patience 3)" in said
    full = recipe("full", epochs=5)
    fit(full)
    assert fit(replace(parts, patience=9, resume=True))["stopped_early"] is False
    same_files(full.output, parts.output, ["last/model.safetensors"])


# ---- epochs of older versions -----------------------------------------------------------------------------------


def test_a_state_that_counts_epochs_from_0_goes_on(recipe):
    whole, parts = recipe("whole", epochs=3), recipe("parts", epochs=3)
    fit(whole)
    fit(replace(parts, max_steps=7))
    file = Path(parts.output, "last", "loop.json")
    state = json.loads(file.read_text())
    assert state["version"] == 3
    for row in state["history"]:
        row["epoch"] -= 1
        del row["best_epoch"]
    state["best"]["epoch"] -= 1
    file.write_text(json.dumps({**state, "version": 2}))
    summary = fit(replace(parts, resume=True))
    same_files(whole.output, parts.output, ["last/model.safetensors"])
    assert log_of(parts) == [1, 2, 3]
    assert 1 <= summary["best_epoch"] <= 3


def test_a_log_that_counts_epochs_from_0_is_read_as_one_from_1(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val_AP\n1,10,0.5\n3,20,nan\n")  # of --eval_every 2
    assert read_log(tmp_path) == [
        {"epoch": 2, "step": 10, "val_AP": 0.5, "best_epoch": None},
        {"epoch": 4, "step": 20, "val_AP": None, "best_epoch": None},
    ]
    (tmp_path / "metrics.csv").write_text("epoch,best_epoch,step\n2,2,10\n4,2,20\n")
    assert [row["epoch"] for row in read_log(tmp_path)] == [2, 4]


# ---- the first batch --------------------------------------------------------------------------------------------


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


def test_any_metric_is_better_than_none():
    nan = float("nan")
    pairs = [(1, 0), (0, 1), (0, nan), (nan, 0), (nan, nan)]
    assert [is_better(*pair) for pair in pairs] == [True, False, True, False, False]


def test_a_failure_to_draw_costs_no_summary(recipe, monkeypatch, capsys):
    def fails(*_, **__):
        raise ValueError("\x1b[31mParseException")

    monkeypatch.setattr("vitrail.engine.trainer.draw_curves", fails)
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
        "vitrail.engine.trainer.draw_curves", lambda rows, metric, path, measured: said.append(measured)
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


@pytest.mark.parametrize("split", ["all", "holdout"])
def test_a_share_is_named_of_data_without_parts_only(recipe, tmp_path, split):
    data = replace(photos(tmp_path / "both", "abc", 4), val_split=split)
    with pytest.raises(UserError, match=rf"--data.val_split {split} has no effect: .*val is there to be measured on"):
        fit(recipe(data=data))


def test_steps_beyond_the_run_are_said(recipe, capsys):
    assert fit(recipe(max_steps=80000))["steps"] == 10
    said = capsys.readouterr().err
    assert "--max_steps 80000 is more than the whole run: it ends after 10 steps (--epochs 2 of 5 each)" in said
    assert said.count("80000 trains as many") == 1
    fit(recipe("other", max_steps=10))
    assert "--max_steps" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--max_steps 8 lies after the last of --iterations 7"):
        fit(recipe("third", epochs=None, iterations=7, max_steps=8))


@pytest.mark.parametrize(
    ("optim", "changes", "sentence"),
    [
        (
            {"warmup_epochs": 50.0},
            {},
            "--optim.warmup_epochs 50 is more than half the run: the warm-up takes 5 of its 10",
        ),
        (
            {"warmup_epochs": None, "warmup_iterations": 6},
            {},
            "--optim.warmup_iterations 6 is more than half the run: the warm-up takes 5",
        ),
        ({"warmup_epochs": 1.0, "warmup_lr": 1.0}, {}, "--optim.warmup_lr 1 is above the highest learning rate, 0.001"),
        ({"warmup_epochs": 0.0, "min_lr": 1.0}, {}, "--optim.min_lr 1 is above the highest learning rate, 0.001"),
        ({"warmup_epochs": 0.0, "cooldown_epochs": 0.01}, {}, "--optim.cooldown_epochs 0.01 is less than half a step"),
        (
            {"schedule": "step", "decay_epochs": [1.0, 9.0]},
            {"epochs": None, "iterations": 10},
            "--optim.decay_epochs 9 lies behind the last step, 10",
        ),
        ({"lr_base_batch": 256}, {"batch_size": 500}, "the learning rate is that of --batch_size 500"),
        (
            {},
            {"batch_size": 500, "accumulate": 200},
            "--accumulate 200 is more than the 120 image.s. that each process",
        ),
        ({}, {"eval_every": 3}, "--eval_every 3 is more than the 2 epochs of the run: it is measured once, at its end"),
        ({}, {"checkpoint_every": 11}, "--checkpoint_every 11 is more than the 10 steps of the run"),
        ({"warmup_epochs": 1.0}, {"eval_every": 2, "checkpoint_every": 10, "max_steps": 10}, None),
        ({}, {"lr": 1e-7}, None),  # of defaults nothing is said
    ],
)
def test_numbers_that_the_run_cannot_keep_are_said(recipe, optim, changes, sentence):
    config = recipe(optim=OptimConfig(**optim), **changes)
    batch = min(config.batch_size, 120)
    batches = MagicMock(batch_size=batch, **{"__len__.return_value": 120 // batch})
    trainer = MagicMock(config=config, batches=batches, total_epochs=2)
    trainer.accelerator.num_processes = 1
    warnings = Trainer.length_warnings(trainer)
    assert (len(warnings), bool(re.search(sentence or "$", "".join(warnings)))) == (sentence is not None, True), (
        warnings
    )


def test_what_a_run_that_goes_on_cannot_take_is_refused(recipe, capsys):
    config = recipe(max_steps=4)
    fit(config)
    for changes, sentence in (
        ({"max_steps": 3}, "--max_steps 3: the run in .* stands at step 4 already; give more"),
        ({"init": "other.safetensors"}, "--init other.safetensors has no effect: .* goes on with its own weights"),
    ):
        with pytest.raises(UserError, match=sentence):
            fit(replace(config, resume=True, **changes))
    assert fit(replace(config, resume=True))["steps"] == 4
    assert "the run is complete: nothing is left to do" in capsys.readouterr().err
    assert fit(replace(config, resume=True, max_steps=5))["steps"] == 5
    assert "going on at step 4 of 5" in capsys.readouterr().err


def vitrail_load(path):
    from vitrail.checkpoint.load import load_network

    return all(bool(p.isfinite().all()) for p in load_network(path).parameters())


def test_full_disk_leaves_the_old_state_whole(recipe):
    config = recipe(checkpoint_every=1, max_steps=6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step(step, _):
        if step == 3:  # from now on no file may grow beyond 100 kB, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(UserError, match=r"No space left on the disk of .*--resume"):
            fit(config, on_step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = Path(config.output)
    assert json.loads((run / "last" / "loop.json").read_text())["step"] == 3
    assert not (run / ".last.new").exists()
    whole = replace(config, output=config.output + "2")
    fit(whole)
    fit(replace(config, resume=True))
    same_files(run, whole.output, ("last/model.safetensors",))


@pytest.mark.parametrize(
    ("changes", "processes", "sentence"),
    [
        ({"batch_size": 24}, 1, "--batch_size 12, or for the same result --accumulate 2"),
        ({"batch_size": 24, "accumulate": 6}, 1, "--batch_size 12, or for the same result --accumulate 12"),
        ({"batch_size": 24, "accumulate": 12}, 1, "--batch_size 12"),  # parts of one image may be refused
        ({"batch_size": 24}, 8, "--batch_size 8"),
        ({"batch_size": 6, "augment": RANDOM}, 1, "--batch_size 2, or for the same result --accumulate 2"),
        ({"batch_size": 2, "accumulate": 2}, 1, "a smaller --image_size or --model"),
        ({"batch_size": 1}, 1, "a smaller --image_size or --model"),
        ({"task": "reid", "batch_size": 64}, 1, "--batch_size 32"),
        ({"task": "reid", "batch_size": 20}, 1, "--batch_size 8"),
        ({"task": "reid", "batch_size": 64}, 4, "--batch_size 32"),
        ({"task": "reid", "batch_size": 8}, 1, "a smaller --image_size or --model"),
        (
            {"task": "reid", "batch_size": 32, "reid": ReidConfig(triplet_weight=0)},
            1,
            "--batch_size 16, or for the same result --accumulate 2",
        ),
        ({"task": "reid", "batch_size": 8, "reid": ReidConfig(triplet_weight=0)}, 1, "a smaller --image_size or"),
    ],
)
def test_what_takes_less_memory_is_not_refused(changes, processes, sentence):
    config = TrainConfig(**changes)
    with (
        pytest.raises(UserError, match=f"; try {sentence}.*\\.$") as error,
        memory_errors_explained(config, processes),
    ):
        raise MemoryError
    assert ("--accumulate 2." in str(error.value)) == ("--accumulate 2" in sentence)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "[enforce] can't allocate memory"])
def test_too_large_a_batch_is_said(recipe, monkeypatch, message):
    def loss(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(UserError, match=r"--batch_size 24 .*try --batch_size 12, or .*--accumulate 2"):
        fit(recipe())


def test_other_runtime_errors_pass(recipe, monkeypatch):
    def loss(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(recipe())


def test_folder_with_a_run_is_refused_until_told(recipe):
    config = recipe(max_steps=1)
    fit(config)
    mine = Path(config.output, "notes.txt")
    mine.write_text("keep me")
    with pytest.raises(UserError, match=r"already holds a run: .*--resume.*--overwrite"):
        fit(config)
    with pytest.raises(UserError, match=r"started with --lr 0.001, not 0.5"):
        fit(replace(config, resume=True, lr=0.5))
    with pytest.raises(UserError, match=r"no run in .* to resume"):
        fit(replace(config, output=config.output + "3", resume=True))
    assert fit(replace(config, overwrite=True, lr=2e-3))["steps"] == 1
    assert mine.read_text() == "keep me"


def test_failed_beginnings_leave_a_run_alone(recipe):
    config = recipe(max_steps=1)
    fit(config)
    before = Path(config.output, "best.safetensors").read_bytes()
    with pytest.raises(UserError, match="Unknown model 'mat_11'"):
        fit(replace(config, model="mat_11", overwrite=True))
    assert Path(config.output, "best.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "gpu"}, "--device 'gpu' is none of auto, cpu, cuda"),
        ({"device": "cuda:99"}, "--device cuda:99: this machine has"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"precision": "int8"}, "--precision must be one of fp32, bf16, fp16, not 'int8'"),
        ({"freeze": "head"}, "--freeze must be one of none, backbone, not 'head'"),
        ({"epochs": 0}, "--epochs 0 must be above 0"),
        ({"smoothing": 1.0}, "--smoothing 1.0 must be 0 or more and below 1"),
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"task": "clasification"}, "--task must be one of classification, .*, not 'clasification'"),
        ({"model_options": {"no_such": 1}}, "Model test_vit has no option 'no_such'"),
        ({"optim": OptimConfig(optimizer="adamv")}, "Unknown optimizer 'adamv': did you mean"),
        ({"iterations": 9}, "--epochs 2 and --iterations 9 both say how long the run is: add --epochs null or"),
        ({"epochs": None}, "Neither --epochs nor --iterations says how long the run is"),
        ({"epochs": None, "iterations": 0}, "--iterations 0 must be above 0"),
        ({"optim": OptimConfig(warmup_iterations=1)}, "--optim.warmup_epochs 2.0 and --optim.warmup_iterations 1 both"),
        ({"optim": OptimConfig(warmup_epochs=None, warmup_iterations=-1)}, "--optim.warmup_iterations -1 must be 0 or"),
        ({"optim": OptimConfig(cooldown_epochs=2)}, "leaves nothing of --epochs 2"),
    ],
)
def test_wrong_values_are_named(recipe, changes, sentence):
    config = recipe(**changes)
    with pytest.raises(UserError, match=sentence):
        fit(config)
    assert not Path(config.output).exists()


def test_bf16_trains(recipe):
    losses, summary = steps_of(recipe(precision="bf16", max_steps=3))
    assert all(np.isfinite(losses))
    assert summary["precision"] == "bf16"


@pytest.mark.parametrize("module", ["accelerate", "matplotlib", "tensorboard"])
def test_a_missing_extra_is_said_before_anything_is_learned(recipe, monkeypatch, module):
    wanted = recipe()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module}, .* pip install -e \"\.\[train\]\""):
        fit(wanted)
    assert not Path(wanted.output).exists()


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80"])
def test_a_class_folder_whose_name_is_not_utf8_is_refused_before_anything_is_learned(tmp_path, name):
    for part in ("train", "val"):
        for label in ("a", os.fsdecode(name)):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (60 * i, 0, 90)).save(folder / f"{i}.png")
    data = DataConfig("folder", root=str(tmp_path))
    config = TrainConfig(model="mat_1", image_size=32, batch_size=4, data=data, output=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"The name of class '.*\\x.*' is no text in UTF-8: give it another one"):
        fit(config)
    assert not (tmp_path / "run").exists()
