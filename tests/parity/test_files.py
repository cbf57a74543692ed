"""Reference weights as files, read by `timm.create_model(name, checkpoint_path=FILE)`: what fits, what is refused."""

import re

import pytest
import timm
import torch
from cases import Case, bare, cases, dense
from compare import network, write

#: a case of every way in which files name their entries
NAMED = ["pslt:pslt_tiny", "lvt:lvt", "lvt:volo_d0", "pale:pale_tiny", "emsnet:emsnet_xxtiny", "mat:mat_1"]
NAMED += ["partialformer:partialformer_b0"]
CASES = {str(case): case for case in cases() if str(case) in NAMED}
pytestmark = pytest.mark.skipif(not CASES, reason="no stored outputs of reference implementations beside test data")
each = pytest.mark.parametrize("name", NAMED)


def load(case: Case, tmp_path, content, **options):
    path = write(tmp_path / "weights.pth", content)
    return timm.create_model(case.model, checkpoint_path=path, **{**case.options, **options}).eval()


LEFTOVER = {
    "pslt:pslt_tiny": [
        "layers.0.blocks.0.gate.weight",
        "layers.5.blocks.0.blocks.0.norm1.weight",
        "conv_layers.44.conv.0.weight",
        "conv_layers.0.conv.1.weight",
        "teacher.attn_mask",
    ],
    "lvt:lvt": ["backbone.weight", "backbone.0.0.gate.weight", "backbone.7.0.proj.weight", "pos_embed"],
    "lvt:volo_d0": ["network.0.0.attn.gate", "patch_embed.conv.2.weight", "return_head.weight"],
    "pale:pale_tiny": ["stages.0.blocks.0.gate.weight", "stem.gate.bias", "stages.0.blocks.0.mixer.q.dw3conv.weight"],
    "partialformer:partialformer_b0": ["stages.0.blocks.0.gate.weight", "stem.gate.bias", "stem.bn4.weight"],
    "emsnet:emsnet_xxtiny": ["stages.0.blocks.0.gate.weight", "stem.gate.bias"],
    "mat:mat_1": ["stages.0.blocks.0.gate.weight", "stem.gate.bias"],
}


@each
@pytest.mark.parametrize("options", [{}, {"features_only": True}, {"num_classes": 0}], ids=str)
def test_entries_too_many_are_named(name, options, tmp_path):
    case = CASES[name]
    content = case.wrap({**case.weights(), **dict.fromkeys(LEFTOVER[name], torch.zeros(2))})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: ") as error:
        load(case, tmp_path, content, **options)
    for leftover in LEFTOVER[name]:
        end = leftover.rpartition(".")[2]
        assert re.search(rf"\"[\w.]*{end}\"", str(error.value)), leftover
    assert "Missing" not in str(error.value)


MISSING = {
    "pslt:pslt_tiny": {
        "patch_embed.proj.3.weight": "stem.1.conv.weight",
        "conv_layers.4.se.fc1.bias": "stages.1.blocks.0.se.fc1.bias",
        "layers.0.downsample.norm.bias": "stages.3.downsample.norm.bias",
        "layers.1.blocks.1.blocks.2.attn.relative_position_bias_table": (
            "stages.3.blocks.1.branches.2.attn.relative_position_bias_table"
        ),
    },
    "lvt:lvt": {
        "backbone.1.0.proj.weight": "stages.1.downsample.conv1.weight",
        "backbone.2.1.0.attn.q.weight": "stages.2.blocks.0.mixer.q.weight",
    },
    "lvt:volo_d0": {
        "pos_embed": "stages.1.downsample.pos_embed",
        "network.2.0.attn.qkv.weight": "stages.1.blocks.0.mixer.kv.weight",
    },
    "pale:pale_tiny": {
        "stages.2.downsample.conv.weight": "stages.2.downsample.conv1.weight",
        "stages.2.blocks.3.cpe.bias": "stages.2.blocks.3.cpe.conv.bias",
        "stages.0.blocks.1.mixer.k.pwconv.weight": "stages.0.blocks.1.attn.k.pw.weight",
        "stages.0.blocks.1.mixer.v.dwconv.weight": "stages.0.blocks.1.attn.v.dw.weight",
    },
    "partialformer:partialformer_b0": {
        "stem.bn2.running_var": "stem.conv2.norm.running_var",
        "stages.1.blocks.1.mixer.token": "stages.1.blocks.1.attn.abstract_token",
        "stages.3.blocks.0.mixer.head_fc2.weight": "stages.3.blocks.0.attn.head_mlp.fc2.weight",
    },
    "emsnet:emsnet_xxtiny": {"stem.conv2.weight": "stem.conv2.weight"},
    "mat:mat_1": {"stages.2.downsample.offset_conv.weight": "stages.2.downsample.offset_conv.weight"},
}


@each
@pytest.mark.parametrize("options", [{}, {"features_only": True}, {"num_classes": 0}], ids=str)
def test_entries_too_few_are_named(name, options, tmp_path):
    case = CASES[name]
    weights = {theirs: value for theirs, value in case.weights().items() if theirs not in MISSING[name]}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: ") as error:
        load(case, tmp_path, case.wrap(weights), **options)
    for ours in MISSING[name].values():
        assert f'{ours}"' in str(error.value)
    assert "Unexpected" not in str(error.value)


@each
def test_a_classifier_and_a_detector_give_their_encoder(name, tmp_path):
    case = CASES[name]
    weights = case.weights()
    x = torch.randn(1, 3, 64, 96)
    full = load(case, tmp_path, case.wrap(weights))
    headless = load(case, tmp_path, case.wrap(weights), num_classes=0)
    pyramids = [load(case, tmp_path, wrap(weights), features_only=True) for wrap in (bare, dense)]
    first = load(case, tmp_path, dense(weights), features_only=True, out_indices=(0, 1))
    with torch.inference_mode():
        wanted = full.forward_intermediates(x, intermediates_only=True)
        for found in (*(pyramid(x) for pyramid in pyramids), headless.forward_intermediates(x)[1]):
            assert len(found) == 4
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert torch.equal(headless(x), full.forward_head(full.forward_features(x), pre_logits=True))
        assert all(torch.equal(a, b) for a, b in zip(first(x), wanted[:2], strict=True))


def test_a_segmenter_of_the_encoder_alone_says_what_it_lacks(tmp_path):
    case = next(case for case in cases("lvt") if case.key == "lvt_backbone")
    content = dense(case.weights())
    x = torch.randn(1, 3, 64, 96)
    with pytest.warns(UserWarning, match="no weights of post: kept as initialised"):
        headless = timm.create_model("lvt", checkpoint_path=write(tmp_path / "w.pth", content), num_classes=0).eval()
    with torch.inference_mode():
        wanted = network(case, tmp_path)(x)
        found = headless.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*\"head.weight\""):
        timm.create_model("lvt", checkpoint_path=tmp_path / "w.pth")


def test_a_file_with_two_entries_for_one_place_is_refused(tmp_path):
    case = CASES["pslt:pslt_tiny"]
    weights = case.weights()
    weights["stem.0.conv.weight"] = weights["patch_embed.proj.0.weight"] + 1
    with pytest.raises(ValueError, match=r"'patch_embed\.proj\.0\.weight' and 'stem\.0\.conv\.weight' of the file"):
        load(case, tmp_path, weights)
