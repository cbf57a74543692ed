"""What is said where a batch does not fit into memory."""

import pytest
from training_helpers import RANDOM

from vitrail.config.tasks import ReidConfig
from vitrail.config.train import TrainConfig
from vitrail.engine.memory_errors import memory_errors_explained
from vitrail.engine.trainer import fit
from vitrail.errors import UserError
from vitrail.tasks.classification import Classification


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
