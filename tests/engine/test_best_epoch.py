"""Which weights a run keeps, and when it ends for want of better ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import TINY_MAT, log_of, same_files

from vitrail.checkpoint.format import read_meta
from vitrail.config.train import OptimConfig
from vitrail.engine.trainer import Trainer, fit, is_better
from vitrail.errors import UserError

# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_any_metric_is_better_than_none():
    nan = float("nan")
    pairs = [(1, 0), (0, 1), (0, nan), (nan, 0), (nan, nan)]
    assert [is_better(*pair) for pair in pairs] == [True, False, True, False, False]


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


def vitrail_load(path):
    from vitrail.checkpoint.load import load_network

    return all(bool(p.isfinite().all()) for p in load_network(path).parameters())


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


# ---- early stopping --------------------------------------------------------------------------------------------------


@pytest.fixture
def never_better(monkeypatch):
    """The first epoch that is validated is the best one."""
    monkeypatch.setattr("vitrail.engine.trainer.is_better", lambda value, best: False)


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
