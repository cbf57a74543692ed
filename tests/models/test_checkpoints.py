"""Weights files through `timm.create_model(name, checkpoint_path=FILE)`, for every family."""

import copy
import io
import pickle

import pytest
import torch
from property_helpers import NARROW
from safetensors.torch import save_file
from torch import nn

from network_helpers import small
from vitrail.models import FAMILIES
from vitrail.models.checkpoints import encoder_of, renamed, unwrap


def build(family, **options):
    """The family's smallest network, narrow and with one block a stage."""
    return small(family, **{"depths": (1, 1, 1, 1), **NARROW[family], **options}).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """A network whose every parameter, norms and statistics too, differs from a fresh one's."""
    model = build(request.param)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape))
    model.family = request.param
    return model


@pytest.fixture
def load(model, tmp_path):
    """A network of the same family from a file of the content given."""

    def load(content, **options):
        torch.save(content, tmp_path / "w.pth")
        return build(model.family, checkpoint_path=tmp_path / "w.pth", **options)

    return load


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal_maps(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def maps(model, x):
    return model.forward_intermediates(x, intermediates_only=True)


# ---- what fits ------------------------------------------------------------------------------------------------------


def test_own_files_return_the_network(model, load, tmp_path):
    state = model.state_dict()
    without_counts = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for content in (
        dict(state),
        without_counts,
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        {"ema_state_dict": dict(state), "epoch": 3},
    ):
        assert same(load(content).state_dict(), state)
    path = tmp_path / "w.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    assert same(build(model.family, checkpoint_path=str(path)).state_dict(), state)


@torch.inference_mode()
def test_a_classifier_and_a_detector_give_their_encoder(model, load):
    x = torch.randn(1, 3, 64, 72)
    state = model.state_dict()
    others = {"rpn_head.weight": torch.ones(2)}
    detectors = [
        {"state_dict": {f"{prefix}{name}": value for name, value in state.items()} | others, "meta": {}}
        for prefix in ("backbone.", "backbone.model.")
    ]
    for content in (dict(state), *detectors):
        assert equal_maps(load(content, features_only=True)(x), maps(model, x))
        assert equal_maps(load(content, features_only=True, out_indices=(0, 2))(x), maps(model, x)[::2])
        assert torch.equal(load(content, num_classes=0)(x), model.forward_head(model.forward_features(x), True))


@torch.inference_mode()
def test_an_encoder_alone_leaves_what_stands_behind_as_initialised(model, load):
    x = torch.randn(1, 3, 64, 72)
    encoder = {k: v for k, v in model.state_dict().items() if k.startswith(("stem.", "stages."))}
    assert equal_maps(load(encoder, features_only=True)(x), maps(model, x))
    behind = {k for k in build(model.family, num_classes=0).state_dict() if not k.startswith(("stem.", "stages."))}
    if behind:
        with pytest.warns(UserWarning, match=rf"no weights of {min(behind).partition('.')[0]}: kept as initialised"):
            headless = load(encoder, num_classes=0)
        assert equal_maps(maps(headless, x), maps(model, x))
    classifier = model.pretrained_cfg["classifier"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)") as error:
        load(encoder)
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        assert f'"{name}.weight"' in str(error.value)


@torch.inference_mode()
def test_output_norms_are_fresh_unless_the_file_has_them(model, load):
    with pytest.warns(UserWarning, match="no weights of out_norms: kept as initialised"):
        normed = load(dict(model.state_dict()), features_only=True, out_norms=True)
    stages = {f"model.{k}": v for k, v in model.state_dict().items() if k.startswith("stages.")}
    assert same({k: v for k, v in normed.state_dict().items() if k in stages}, stages)
    moved = {name: value + 1 for name, value in normed.state_dict().items()}  # names begin with "model."
    assert same(load(moved, features_only=True, out_norms=True).state_dict(), moved)


def test_copies_and_pickles_read_files_too(model):
    detector = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    file = io.BytesIO(pickle.dumps(build(model.family)))
    for fresh in (copy.deepcopy(build(model.family)), pickle.load(file)):
        fresh.load_state_dict(detector)
        assert same(fresh.state_dict(), model.state_dict())


def test_a_network_inside_another_module_loads_under_its_prefix(model):
    outer, fresh = nn.ModuleDict({"encoder": model}), nn.ModuleDict({"encoder": build(model.family)})
    fresh.load_state_dict(outer.state_dict())
    assert same(fresh.state_dict(), outer.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"encoder\.stem\.gate\""):
        fresh.load_state_dict({**outer.state_dict(), "encoder.stem.gate": torch.ones(1)})


# ---- what is refused ------------------------------------------------------------------------------------------------

WITHOUT_CLASSIFIER = [{}, {"features_only": True}, {"num_classes": 0}]


@pytest.mark.parametrize("options", WITHOUT_CLASSIFIER, ids=str)
def test_entries_too_many_or_too_few_are_named(model, load, options):
    state = dict(model.state_dict())
    gone = next(name for name in state if name.startswith("stages.2.") and name.endswith(".weight"))
    too_many = ["stages.1.blocks.0.gate.weight", "gate.weight", "stem.gate"]
    inside = "model." if "features_only" in options else ""
    with pytest.raises(RuntimeError) as error:
        load({**state, **dict.fromkeys(too_many, torch.ones(3))}, **options)
    listed = ", ".join(f'"{inside}{name}"' for name in sorted(too_many))
    assert ", ".join(sorted(str(error.value).split("state_dict: ")[1].strip(". ").split(", "))) == listed
    del state[gone]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{inside}{gone}"\.'):
        load(state, **options)


def test_a_classifier_of_other_classes_is_refused(model, load):
    with pytest.raises(RuntimeError, match=r"size mismatch for [\w.]+: .*\[10"):
        load(dict(model.state_dict()), num_classes=11)


def test_two_entries_for_one_place_are_refused():
    one = torch.ones(1)
    assert renamed([("a", "x", one), ("b", "y", one)]) == {"x": one, "y": one}
    with pytest.raises(ValueError, match="'a' and 'b' of the file are both 'x'"):
        renamed([("a", "x", one), ("b", "x", one)])


def test_only_a_detector_loses_its_other_parts():
    one = torch.ones(1)
    assert encoder_of({"backbone.0.weight": one, "head.weight": one}).keys() == {"backbone.0.weight", "head.weight"}
    assert encoder_of({"backbone.net.0": one, "head.weight": one}, "net") == {"net.0": one}
    assert unwrap({"state_dict": {"module.stem.weight": one, "epoch": 3}}) == {"stem.weight": one}


# ---- wrappers of trainers -------------------------------------------------------------------------------------------

PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model._orig_mod.",
    "net.",
    "backbone.",
    "student.backbone.",
    "ema.module.",
    "_forward_module.model.",
    "lightning.trainer.any.depth.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", [(), ("state_dict",), ("checkpoint", "weights"), ("a", "b", "c", "d")], ids=str)
def test_any_prefix_and_any_entry_is_taken_off(model, prefix, wrapper):
    content = {prefix + name: value for name, value in model.state_dict().items()}
    for name in reversed(wrapper):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    assert same(unwrap(content, model), model.state_dict())


def test_loading_takes_wrappers_off(model):
    for prefix in PREFIXES:
        fresh = build(model.family)
        fresh.load_state_dict({prefix + name: value for name, value in model.state_dict().items()})
        assert same(fresh.state_dict(), model.state_dict())


def test_what_compiling_recomputing_and_sharding_write_inside_names_is_taken_off(model):
    for word in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        inner = {name.replace("stages.1.", f"stages.1.{word}."): v for name, v in model.state_dict().items()}
        assert same(unwrap({"module." + name: v for name, v in inner.items()}, model), model.state_dict())


def test_parts_beside_a_wrapped_network_are_left(model):
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    others = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(4), "log_scale": torch.ones(())}
    assert same(unwrap({"state_dict": {**state, **others}}, model), model.state_dict())


def moved(state, by):
    return {name: value + by for name, value in state.items()}


@pytest.mark.parametrize(
    "averaged", ["state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "swa_model"]
)
def test_averaged_weights_come_first_wherever_they_stand(model, averaged):
    state = model.state_dict()
    for content in (
        {averaged: dict(state), "state_dict": moved(state, 1)},
        {"state_dict": moved(state, 1), averaged: {"module": dict(state)}},
        {f"{averaged}.{name}": value for name, value in state.items()}
        | {f"model.{name}": value for name, value in moved(state, 1).items()},
    ):
        assert same(unwrap(content, model), state)


def test_a_teacher_comes_last(model):
    state = model.state_dict()
    assert same(unwrap({"teacher": moved(state, 1), "student": dict(state)}, model), state)
    assert same(unwrap({"teacher": dict(state)}, model), state)


def test_two_networks_of_which_nothing_tells_which_is_meant_are_refused(model):
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"several networks with the same names: 'best', 'last'; save the one"):
        unwrap({"best": dict(state), "last": moved(state, 1)}, model)
    assert same(unwrap({"best": dict(state), "last": dict(state)}, model), state)  # the same twice


def test_without_the_network_the_usual_wrappers_are_taken_off():
    one = torch.ones(1)
    for prefix in ("module.", "model.", "module.model.", "model._orig_mod.", "net.module."):
        assert unwrap({"state_dict": {f"{prefix}stem.weight": one}}) == {"stem.weight": one}
    assert unwrap({"weights": {"stem.weight": one}}) == {"stem.weight": one}
    assert unwrap({"epoch": 3, "optimizer": {"state": one}}) == {}


# ---- the layout of implementations on token sequences ---------------------------------------------------------------

TOKEN_LAYOUT = {
    "pale": [(".cpe.conv.", ".cpe."), (".attn.", ".mixer."), (".dw.", ".dwconv."), (".pw.", ".pwconv.")],
    "partialformer": [
        (".cpe.conv.", ".cpe."),
        (".attn.abstract_token", ".mixer.token"),
        (".attn.head_mlp.fc", ".mixer.head_fc"),
        (".attn.", ".mixer."),
        *((f"stem.conv{i}.norm.", f"stem.bn{i}.") for i in (1, 2, 3)),
        *((f"stem.conv{i}.conv.", f"stem.conv{i}.") for i in (1, 2, 3)),
        ("head.pre_logits.fc.", "head.hidden."),
    ],
}


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize("family", TOKEN_LAYOUT)
def test_token_sequences_layout_is_read(family, prefix):
    source, target = build(family), build(family)
    content = {}
    for name, value in source.state_dict().items():
        for ours, theirs in [*TOKEN_LAYOUT[family], (".downsample.conv1.", ".downsample.conv.")]:
            name = name.replace(ours, theirs)
        pointwise = value.ndim == 4 and value.shape[2:] == (1, 1)
        content[prefix + name] = value[:, :, 0, 0] if pointwise else value
    assert not content.keys() & source.state_dict().keys() or not prefix
    target.load_state_dict({"state_dict": content, "epoch": 3})
    assert same(target.state_dict(), source.state_dict())
