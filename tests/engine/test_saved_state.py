"""The saved state: runs that were killed, stopped or damaged, and what they go on with."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training_helpers import PLAIN, QUIET, RANDOM, log_of, photos, same_files, steps_of

from vitrail.checkpoint.run_dir import read_log
from vitrail.config.data import DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.trainer import fit
from vitrail.errors import Interrupted, UserError
from vitrail.utils.plain import to_dict

# ---- going on --------------------------------------------------------------------------------------------------------


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


# ---- damage ----------------------------------------------------------------------------------------------------------


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


# ---- on the same data ------------------------------------------------------------------------------------------------


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


# ---- epochs of older versions ----------------------------------------------------------------------------------------


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
