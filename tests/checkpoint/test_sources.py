"""The one door to trained weights: timm's by name, the Hub's, folders in its form, files of tensors."""

import json

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf

import vitrail
from vitrail.checkpoint import remote
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import meta_of, save_weights
from vitrail.checkpoint.initialize import InitReport, init_from, same_classes
from vitrail.checkpoint.load import load_network, open_network
from vitrail.checkpoint.sources import training_data_of
from vitrail.config.data import Preprocess
from vitrail.config.train import TrainConfig
from vitrail.engine.named_weights import with_named_weights
from vitrail.errors import UserError

REVISION = "0" * 40
TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return folder


def cached(cache, repo):
    """The folder of a repository's files in the cache, as its client lays them out."""
    base = cache / f"models--{repo.replace('/', '--')}"
    snapshot = base / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(REVISION)
    return snapshot


def resnet(seed=1, **options):
    torch.manual_seed(seed)
    return timm.create_model("resnet18", **options).eval()


def equal(a, b, but=()):
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items() if not key.startswith(but))


# ---- timm by name -----------------------------------------------------------------------------------------------


def test_timm_by_name_comes_from_the_cache(cache):
    source = resnet()
    save_file(source.state_dict(), cached(cache, "timm/resnet18.a1_in1k") / "model.safetensors")
    for name in ("timm:resnet18", "timm:resnet18.a1_in1k"):
        network = open_network(name)
        assert equal(source, network)
        meta = meta_of(network)
        assert (meta.model, meta.licence, meta.training_data) == ("resnet18.a1_in1k", "apache-2.0", "ImageNet-1k")
        assert meta.note.startswith("122 tensors loaded")
        cfg = network.pretrained_cfg
        assert cfg["label_names"] == tuple(meta.classes)
        assert cfg["label_names"][:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
        assert cfg["hf_hub_id"] == "timm/resnet18.a1_in1k"
        assert "label_names" not in resnet().pretrained_cfg  # timm's own stays as it is
    model = resnet(seed=2, num_classes=3)
    report = init_from(model, "timm:resnet18", classes=["a", "b", "c"])
    assert equal(source, model, but=("fc.",))
    assert (report.source, len(report.loaded), sorted(report.left)) == (
        "timm:resnet18.a1_in1k",
        120,
        ["fc.bias", "fc.weight"],
    )
    assert report.summary() == (
        "Started from timm:resnet18.a1_in1k: 120 tensors taken over, 2 left out (fc.weight, fc.bias), fc.weight, "
        "fc.bias initialised anew because the classes of the weights are others; licence of the source weights: "
        "apache-2.0; trained on: ImageNet-1k."
    )


def test_without_a_network_one_sentence_names_the_cache(cache):
    with pytest.raises(UserError) as caught:
        open_network("timm:resnet34")
    said = str(caught.value)
    for part in (
        "timm:resnet34.a1_in1k needs model.safetensors",
        f"not in the cache {cache}/models--timm--resnet34.a1_in1k",
        "HF_HUB_OFFLINE is set",
        "`hf download timm/resnet34.a1_in1k`",
        "--model resnet34",
    ):
        assert part in said
    assert "\n" not in said
    with pytest.raises(UserError, match=r"needs config.json of org/name, which is not in the cache"):
        open_network("hf-hub:org/name")
    with pytest.raises(UserError, match=r"is no repository of the Hub: write hf-hub:ORGANISATION/NAME"):
        open_network("hf-hub:a/b/c")


def test_an_address_that_does_not_answer_is_noticed_at_once(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(remote.urllib.request, "getproxies", dict)

    def refused(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(remote.socket, "create_connection", refused)
    with pytest.raises(UserError, match=r"huggingface.co cannot be reached: Connection refused"):
        open_network("timm:resnet34")


def test_what_is_kept_of_a_start_names_no_folders_of_this_machine(tmp_path, monkeypatch):
    save_file(resnet().state_dict(), tmp_path / "trained.safetensors")
    report = init_from(resnet(seed=2), tmp_path / "trained.safetensors", "resnet18")
    assert report.source == str(tmp_path / "trained.safetensors")
    assert report.summary().startswith("Started from trained.safetensors: 122 tensors taken over")
    monkeypatch.chdir(tmp_path.parent)
    relative = f"{tmp_path.name}/trained.safetensors"
    assert init_from(resnet(seed=2), relative, "resnet18").summary().startswith(f"Started from {relative}: ")


def test_a_damaged_cached_file_is_named(cache):
    file = cached(cache, "timm/resnet18.a1_in1k") / "model.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model.safetensors does not hold the weights of timm:resnet18.a1_in1k"):
        open_network("timm:resnet18")


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("timm:mat_1", "no trained weights of mat_1 can be fetched"),
        ("timm:resnet18.nope", "Model resnet18 has no weights 'nope'"),
        ("resnet18.a1_in1k", r"timm:resnet18.a1_in1k has its weights"),
        ("mat_1", r"give random:mat_1 for fresh weights"),
    ],
)
def test_names_without_weights(cache, weights, says):
    with pytest.raises(UserError, match=says):
        open_network(weights)


def test_training_data_of_tags():
    assert training_data_of("augreg_in21k_ft_in1k") == "ImageNet-21k, then ImageNet-1k"
    assert training_data_of("openai_ft_in12k_in1k") == "OpenAI's image-text pairs, then ImageNet-12k, then ImageNet-1k"
    assert training_data_of("strange") == "as timm says of the tag strange"
    assert training_data_of("") == "not stated"


def test_imagenets_classes_by_number_and_by_name():
    info = timm.data.ImageNetInfo()
    numbers, names = info.label_names(), [info.index_to_description(i) for i in range(1000)]
    assert same_classes(numbers, names)
    assert not same_classes(numbers[::-1], names)
    assert not same_classes(["a"], names)


# ---- folders in the Hub's form ----------------------------------------------------------------------------------


def hub_folder(folder, model, safe=True, **config):
    save_for_hf(model, str(folder), safe_serialization=safe)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **config}))
    return folder


@pytest.mark.parametrize("safe", [True, False])
def test_folder_in_the_hubs_form(cache, tmp_path, safe):
    model = vitrail.create_model("mat_1", **TINY, num_classes=3).eval()
    model.pretrained_cfg.update(input_size=(3, 64, 48), mean=(0.1, 0.2, 0.3), crop_pct=0.8)
    folder = hub_folder(cached(cache, "me/net"), model, safe, label_names=["a", "b", "c"], model_args=TINY)
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets:\n- imagenet-1k\n- mine\n---\nText\n")
    for source in (folder, "hf-hub:me/net"):
        network = open_network(str(source))
        assert equal(model, network)
        meta = meta_of(network)
        assert meta.classes == ["a", "b", "c"]
        assert (meta.licence, meta.training_data) == ("mit", "imagenet-1k, mine")
        assert (meta.preprocess.image_size, meta.preprocess.mean) == ((64, 48), (0.1, 0.2, 0.3))
        assert network.pretrained_cfg["label_names"] == ("a", "b", "c")
        config = with_named_weights(TrainConfig(model=str(source)))
        assert (config.model, config.init) == ("mat_1", str(source))
        assert config.model_options == TINY


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": None}, "names no architecture of timm's"),
        ({"architecture": "mat_one"}, "Unknown model 'mat_one'"),
        ({"architecture": "hf-hub:a/b"}, "Unknown model"),
        ({"label_names": ["a"]}, "it has 3 classes and names 1"),
        ({"num_classes": 4}, "it has 4 classes|holds weights of|no weights of"),
        ({"model_args": {"pretrained": True, "checkpoint_path": "/etc/passwd"}}, "holds weights of"),
        ({"model_args": {"embed_dims": [1 << 20] * 4}}, "does not fit its tensors"),
    ],
)
def test_folder_that_does_not_fit_its_description(tmp_path, config, says):
    model = vitrail.create_model("mat_1", **TINY, num_classes=3)
    folder = hub_folder(tmp_path / "f", model, **{"model_args": TINY, **config})
    with pytest.raises(UserError, match=says):
        open_network(str(folder))


# ---- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "model", "init"),
    [
        ({"model": "resnet18", "pretrained": True}, "resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ({"model": "resnet18.tv_in1k", "pretrained": True}, "resnet18.tv_in1k", "timm:resnet18.tv_in1k"),
        ({"model": "timm:resnet18"}, "resnet18.a1_in1k", "timm:resnet18"),
        ({"model": "resnet18", "init": "timm:resnet18.tv_in1k"}, "resnet18.tv_in1k", "timm:resnet18.tv_in1k"),
        ({"model": "mat_1", "init": "timm:resnet18"}, "mat_1", "timm:resnet18"),
        ({"model": "random:mat_2"}, "mat_2", None),
        ({"model": "mat_1", "init": "w.pth"}, "mat_1", "w.pth"),
    ],
)
def test_weights_named_by_a_recipe(given, model, init):
    config = with_named_weights(TrainConfig(**given))
    assert (config.model, config.init, config.pretrained) == (model, init, False)
    assert with_named_weights(config) == config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "resnet18.a1_in1k"}, "--model alone loads none: add --pretrained"),
        ({"model": "mat_1", "pretrained": True}, "no trained weights of mat_1"),
        ({"model": "resnet18", "pretrained": True, "init": "w.pth"}, "--pretrained and --init w.pth"),
        ({"model": "timm:resnet18", "init": "w.pth"}, "names weights itself: leave --init out"),
        ({"model": "timm:resnet18", "pretrained": True}, "names weights itself: leave --pretrained out"),
    ],
)
def test_weights_named_twice_or_not_at_all(given, says):
    with pytest.raises(UserError, match=says):
        with_named_weights(TrainConfig(**given))
    if given == {"model": "resnet18.a1_in1k"}:  # a run that went on before this was asked for
        assert with_named_weights(TrainConfig(**given, resume=True)).init is None


def test_other_normalisation_is_said():
    theirs, own = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), Preprocess()
    report = InitReport("w", [], preprocess=theirs)
    assert "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5" in report.normalisation_note(own)
    assert report.normalisation_note(Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)) == ""
    assert InitReport("w", []).normalisation_note(own) == ""


# ---- what comes out ---------------------------------------------------------------------------------------------


def test_network_carries_what_it_was_trained_for(tmp_path):
    model = vitrail.create_model("mat_1", **TINY, num_classes=2)
    pre = Preprocess((64, 48), (0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear", 0.75)
    meta = WeightsMeta("mat_1", model_options=TINY, classes=["ant", "bee"], preprocess=pre, licence="mit")
    save_weights(tmp_path / "w.safetensors", model.state_dict(), meta)
    network = load_network(tmp_path / "w.safetensors")
    found = timm.data.resolve_model_data_config(network)
    assert found["input_size"] == (3, 64, 48)
    assert (found["mean"], found["std"]) == (pre.mean, pre.std)
    assert (found["interpolation"], found["crop_pct"]) == ("bilinear", 0.75)
    assert network.pretrained_cfg["label_names"] == ("ant", "bee")
    assert network.pretrained_cfg["num_classes"] == 2
    assert vitrail.create_model("mat_1").pretrained_cfg["input_size"] == (3, 224, 224)  # no other network changes
