"""Folders in the Hub's form that vitrail writes, read by timm and by vitrail, and their way to the Hub."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
import yaml

import vitrail
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.errors import UserError
from vitrail.factory import assemble

OPTIONS = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
PRE = Preprocess((64, 48), (0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear", 0.75)
METRICS = {"top1": 81.25, "images": 160}


def saved(folder, model, **changes):
    values = {"model": "mat_1", "model_options": OPTIONS, "classes": ["ant", "bee"], "preprocess": PRE, **changes}
    values = {"licence": "mit", "training_data": "insects", "metrics": METRICS, **values}
    folder.mkdir()
    save_weights(folder / "best.safetensors", model.state_dict(), WeightsMeta(**values))
    return vitrail.load(folder)


@pytest.fixture
def loaded(tmp_path):
    torch.manual_seed(0)
    model = vitrail.create_model("mat_1", **OPTIONS, num_classes=2)
    return saved(tmp_path / "run", model, note="Started from timm:x: 3 tensors taken over.")


def test_timm_reads_the_folder(loaded, tmp_path):
    folder = loaded.save_pretrained(tmp_path / "hub")
    x = torch.randn(2, 3, 64, 48)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(x), loaded(x))
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (3, 64, 48)
    assert (tuple(found["mean"]), tuple(found["std"])) == (PRE.mean, PRE.std)
    assert (found["interpolation"], found["crop_pct"]) == ("bilinear", 0.75)
    assert model.pretrained_cfg["label_names"] == ["ant", "bee"]
    # Transformers' wrapper names the number of classes itself, beside the folder's options
    config = json.loads((folder / "config.json").read_text())
    built = timm.create_model(config["architecture"], num_classes=2, **config["model_args"])
    assert built.state_dict().keys() == model.state_dict().keys()


def test_vitrail_reads_the_folder(loaded, tmp_path):
    folder = loaded.save_pretrained(tmp_path / "hub")
    again = vitrail.load(folder)
    assert again.meta == loaded.meta
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in again.state_dict().items())
    loaded.save_pretrained(folder)  # its own files are replaced
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README.md was there before, or was changed"):
        loaded.save_pretrained(folder)


def test_card(loaded, tmp_path):
    text = (loaded.save_pretrained(tmp_path / "hub") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("mit", "timm", "image-classification")
    for part in (
        "Trained on insects. Started from timm:x: 3 tensors taken over.",
        "Classes: ant, bee.",
        "| top1 | 81.25 |",
        "## Licence\n\nmit",
        "## Intended use",
        "vitrail predict hub photo.jpg",
        'timm.create_model("local-dir:hub", pretrained=True)',
    ):
        assert part in text


def test_card_of_another_licence_and_task(tmp_path):
    head = {"num_classes": 2, "channels": 8}
    network = assemble("mat_1", "segformer", OPTIONS, head)
    task = {"task": "semantic_segmentation", "head": "segformer", "head_options": head}
    loaded = saved(tmp_path / "run", network, **task, licence="research only", metrics={})
    folder = loaded.save_pretrained(tmp_path / "hub")
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["library_name"]) == ("other", "vitrail")
    assert "research only" in text
    assert "None were measured." in text
    again = vitrail.load(folder)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), loaded(x))


@pytest.mark.parametrize("has_card", [False, True])
def test_push(loaded, monkeypatch, has_card):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo, private, exist_ok):
            calls["made"] = (repo, private, exist_ok)
            return SimpleNamespace(repo_id=f"me/{repo}")

        def file_exists(self, repo, name):
            return has_card

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            calls["uploaded"] = repo_id, sorted(file.name for file in folder_path_of(folder_path)), ignore_patterns
            calls["card"] = next(f for f in folder_path_of(folder_path) if f.name == "README.md").read_text()

    def folder_path_of(path):
        from pathlib import Path

        return list(Path(path).iterdir())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    loaded.push_to_hub("net", private=True, token="t")
    assert calls["token"] == "t"
    assert calls["made"] == ("net", True, True)
    repo, names, ignored = calls["uploaded"]
    assert repo == "me/net"
    assert {"README.md", "config.json", "model.safetensors"} <= set(names)
    assert ("README.md" in ignored) == has_card
    assert ".vitrail-*" in ignored
    assert 'timm.create_model("hf-hub:me/net", pretrained=True)' in calls["card"]


def test_what_the_hub_refuses_is_one_sentence(loaded, monkeypatch):
    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, *_, **__):
            raise OSError("401 Unauthorized\nand forty lines")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(UserError, match=r"^The Hub did not take net: 401 Unauthorized \(`hf auth login`"):
        loaded.push_to_hub("net")
