"""How a run is set up: weights to start from, and what is refused before anything is learned."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_helpers import TINY_MAT, photos

from vitrail.checkpoint.format import read_meta
from vitrail.config.data import DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.trainer import fit
from vitrail.errors import UserError

# ---- fine-tuning -----------------------------------------------------------------------------------------------------


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


# ---- what is refused -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("split", ["all", "holdout"])
def test_a_share_is_named_of_data_without_parts_only(recipe, tmp_path, split):
    data = replace(photos(tmp_path / "both", "abc", 4), val_split=split)
    with pytest.raises(UserError, match=rf"--data.val_split {split} has no effect: .*val is there to be measured on"):
        fit(recipe(data=data))


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
