"""Every option the papers' tables vary: it builds, takes any size, trains a step, and keeps the house's contract."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

import vitrail  # noqa: F401
from vitrail.flops.reported import PAPERS, read_rows

SIZE = (72, 104)  # neither square nor a multiple of any stride or window

#: options of PartialFormer that its tables do not print as rows
MORE = [
    ("partialformer_b0", {"mixers": ["full", "full", "full", "full"]}),
    ("partialformer_b0", {"foreground_ratios": [[1, 2], [1, 2], [1, 2], [1, 2]]}),
    ("partialformer_b0", {"max_foreground": 8}),
    ("partialformer_b0", {"use_sqa": False}),
    ("partialformer_b0", {"use_sqa": False, "use_abstract_token": False}),
    ("partialformer_b0", {"head_mlp": False}),
    ("partialformer_b0", {"score_source": "norm"}),
    ("mat_1", {"token_merge": "qkv"}),
    ("mat_1", {"token_merge": "project"}),
    ("lvt", {"class_attention": False, "token_labeling": False}),
]


def ablations() -> list[tuple[str, dict]]:
    """Networks with options, once each; rows that only spell a variant's own sizes are left out.

    A variant's options are tried on the family's smaller network, and without the norms of dense outputs, which have
    no part in classification.
    """
    smaller = {"pale_small": "pale_tiny", "pale_base": "pale_tiny", "pslt_large": "pslt"}
    smaller |= {f"mat_{i}": "mat_2" for i in (3, 4, 5)}
    found = {}
    for row in (row for paper in PAPERS for row in read_rows(paper)):
        options = json.loads(row["options"] or "{}")
        options.pop("out_norms", None)
        if options and row["model"] and "embed_dims" not in options:
            model = smaller.get(row["model"], row["model"])
            found[model, json.dumps(options, sort_keys=True)] = (model, options)
    return [*found.values(), *MORE]


ABLATIONS = ablations()


def name_of(case) -> str:
    model, options = case
    return f"{model}-{json.dumps(options, separators=(',', ':'))}"


def shallow(case):
    """The network with one or two blocks a stage, which exercises the same options in less time."""
    model, options = case
    torch.manual_seed(0)
    return timm.create_model(model, **{"depths": (1, 1, 2, 2), "num_classes": 7, **options})


def test_the_tables_vary_what_the_papers_vary():
    assert len(ABLATIONS) > 60
    varied = {option for _, options in ABLATIONS for option in options}
    assert {
        "num_branches", "shift", "feature_delivery", "ffn", "fusion",  # PSLT, Tables 11-15
        "rasa_recursions", "mixers",  # LVT, Tables 6 and 7; MAT, Table 4.9; Pale, Table 6
        "pale_size", "split_size", "pad_mode",  # Pale, Tables 5 and 6
        "static_ops", "dynamic_ops", "branch_ratios", "branch_fusion", "channel_split",  # EMSNet, Tables 3.5, 3.7, 3.9
        "patch_embed", "mlp_dwconv", "token_merge",  # MAT, Tables 4.2 and 4.9
        "foreground_ratios", "head_mlp", "use_sqa",  # PartialFormer
    } <= varied  # fmt: skip


@pytest.mark.parametrize("case", ABLATIONS, ids=name_of)
def test_an_ablation_trains_a_step(case):
    model = shallow(case).train()
    classes = model.num_classes
    x, target = torch.randn(2, 3, *SIZE), torch.tensor([0, classes - 1])
    output = model(x)
    logits = output[0] if isinstance(output, tuple) else output  # with MixToken: class logits, token logits, box
    assert logits.shape == (2, classes)
    loss = F.cross_entropy(logits, target)
    if isinstance(output, tuple):
        loss = loss + F.cross_entropy(output[1].flatten(0, 1), target.repeat_interleave(output[1].shape[1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    before = loss.item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert torch.isfinite(F.cross_entropy(model.eval()(x), target))
    assert before > 0


@pytest.mark.parametrize("case", ABLATIONS, ids=name_of)
@torch.no_grad()
def test_an_ablation_keeps_the_contract(case):
    model = shallow(case).eval()
    for module in model.modules():  # zero gates would hide what is behind them
        for parameter in module.parameters(recurse=False):
            parameter += 0.02 * torch.randn_like(parameter)
    x = torch.randn(2, 3, *SIZE)
    logits = model(x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits, **close)
    torch.testing.assert_close(torch.cat([model(x[:1]), model(x[1:])]), logits, **close)
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x), **close)
    pad = 16 if case[0].startswith("volo") else 1  # VOLO pads the image first
    height, width = (-(-side // pad) * pad for side in SIZE)
    for fmap, info in zip(maps, model.feature_info, strict=True):
        stride = info["reduction"]
        assert fmap.shape == (2, info["num_chs"], -(-height // stride), -(-width // stride))
    copy = shallow(case).eval()
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy(x), logits, rtol=0, atol=0)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model(torch.randn(1, 3, 32, 40)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("case", ABLATIONS, ids=name_of)
@torch.no_grad()
def test_an_ablation_scripts(case):
    model = shallow(case).eval()
    scripted = torch.jit.script(model)
    for size in (SIZE, (64, 64)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
