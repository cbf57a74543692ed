"""What the first lines of a run say about numbers that it cannot keep."""

import re
from unittest.mock import MagicMock

import pytest

from vitrail.config.train import OptimConfig
from vitrail.engine.opening_lines import length_warnings
from vitrail.engine.trainer import fit
from vitrail.errors import UserError


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
    setup = MagicMock(config=config, batches=batches, total_epochs=2)
    setup.accelerator.num_processes = 1
    warnings = length_warnings(setup)
    assert (len(warnings), bool(re.search(sentence or "$", "".join(warnings)))) == (sentence is not None, True), (
        warnings
    )
