"""`--compile`: the compiled network takes the training steps, and nothing else of a run notices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.compiled import compiler_errors_explained
from vitrail.engine.trainer import fit
from vitrail.errors import UserError

KEPT = ("best.safetensors", "last/model.safetensors", "last/ema.safetensors")


class Compiled(nn.Module):
    """Like what `torch.compile` returns: the model below `_orig_mod`, called through; its calls by mode and size."""

    calls: list[tuple[bool, tuple[int, ...]]] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, model: nn.Module, **options: Any):
        super().__init__()
        self._orig_mod = model
        assert options == {"dynamic": False}

    def forward(self, x: torch.Tensor) -> Any:
        self.calls.append((self._orig_mod.training, tuple(x.shape)))
        return self._orig_mod(x)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[bool, tuple[int, ...]]]:
    Compiled.calls.clear()
    monkeypatch.setattr(torch, "compile", Compiled)
    return Compiled.calls


@pytest.fixture
def recipe(tmp_path) -> TrainConfig:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "noise.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return TrainConfig(
        model="test_vit",
        model_options={"drop_path_rate": 0.2},
        data=DataConfig("cifar10", root=str(tmp_path / "noise.npz")),
        augment=AugmentConfig(hflip=0.5),
        optim=OptimConfig(warmup_epochs=0),
        batch_size=20,
        epochs=2,
        ema_decay=0.9,
        device="cpu",
        output=str(tmp_path / "eager"),
    )


def same(a: TrainConfig, b: TrainConfig, names: tuple[str, ...] = KEPT) -> None:
    for name in names:
        assert (Path(a.output) / name).read_bytes() == (Path(b.output) / name).read_bytes(), name


def test_only_training_steps_are_compiled_and_what_is_saved_has_the_networks_names(recipe, calls, tmp_path):
    own = replace(recipe, compile=True, output=str(tmp_path / "compiled"))
    summary = fit(own)
    assert calls == [(True, (20, 3, 32, 32))] * 4  # two epochs of two steps; neither validation nor examples
    assert summary["compiled"] is True
    for name in KEPT:
        with safe_open(Path(own.output) / name, "pt") as file:
            assert not [key for key in file.keys() if "_orig_mod" in key]  # noqa: SIM118 - no mapping
    assert fit(recipe)["compiled"] is False
    assert len(calls) == 4
    same(own, recipe)


def test_a_compiled_run_goes_on_where_it_was_and_uncompiled_too(recipe, calls, tmp_path):
    fit(recipe)
    for name, compile in (("both", True), ("first", False)):
        own = replace(recipe, compile=True, output=str(tmp_path / name))
        fit(replace(own, max_steps=3))
        fit(replace(own, resume=True, compile=compile))
        same(own, recipe, KEPT[1:])  # it was measured once more, where it stopped
    assert len(calls) == 4 + 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tf32": True}, "--tf32 true needs a CUDA GPU, whose number format it is; the run is on cpu"),
        ({"tf32": True, "precision": "bf16"}, "it needs --precision fp32: the products of bf16 and fp16"),
        ({"pin_memory": True}, "--pin_memory true needs a CUDA GPU, which fetches from it; the run is on cpu"),
        ({"prefetch": 3}, "--prefetch 3 has no effect: it needs --data.workers above 0"),
        ({"compile": True, "task": "detection"}, "is for --task classification or semantic_segmentation"),
        ({"compile": True, "token_labels": "maps"}, "a network without MixToken"),
        ({"compile": True, "model": "lvt", "model_options": {"mix_token": True}}, "a network without MixToken"),
        ({"optim": OptimConfig(optimizer="lamb", fused=False)}, "with a fused kernel: adam, adamw, sgd, momentum"),
    ],
)
def test_what_has_no_effect_is_refused_before_anything_is_made(recipe, changes, says):
    with pytest.raises(UserError, match=says):
        fit(replace(recipe, **changes))
    assert not Path(recipe.output).exists()


def test_a_compiler_that_fails_is_said(recipe, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def refuses(model: nn.Module, **_: Any) -> nn.Module:
        model.forward = lambda x: (_ for _ in ()).throw(InvalidCxxCompiler())
        return model

    monkeypatch.setattr(torch, "compile", refuses)
    with pytest.raises(UserError, match=r"--compile: PyTorch cannot compile .*InvalidCxxCompiler: .*train without it"):
        fit(replace(recipe, compile=True))


def test_other_errors_are_not_the_compilers():
    with pytest.raises(ZeroDivisionError), compiler_errors_explained():
        raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inductor_learns_what_the_network_learns_and_resumes_bit_identically(recipe, tmp_path, precision):
    """Without drop path, whose random numbers are the compiler's own."""
    base = replace(recipe, model_options={}, precision=precision)
    losses: dict[str, list[float]] = {}
    for name, compile in (("eager", False), ("compiled", True)):
        losses[name] = found = []
        own = replace(base, compile=compile, output=str(tmp_path / name))
        fit(own, lambda _, loss, found=found: found.append(loss))
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4 if precision == "fp32" else 2e-2)
    resumed = replace(own, output=str(tmp_path / "resumed"))
    fit(replace(resumed, max_steps=3))
    fit(replace(resumed, resume=True))
    same(resumed, own, KEPT[1:])
