"""Every mixer of the laboratory: the paper's own module, for any size of map, in a network that trains."""

import copy
from functools import cache

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from property_helpers import fewer
from torch import nn
from torch.nn import functional as F

import vitrail
from network_helpers import randomise
from vitrail.analysis.captured import attention_modules, captured
from vitrail.layers import Pointwise
from vitrail.models import emsnet, lab_plain, lvt, mat, names, pale, partialformer, pslt
from vitrail.models.mixers import MIXERS, Place, Pooling, make_mixer

OURS = sorted(MIXERS)
mixers = pytest.mark.parametrize("mixer", OURS)
#: narrow, for all mixers
SMALL = {"width": 24, "depths": (1, 2, 1, 1), "num_classes": 5, "stem_stride": 2}
#: those that attend, with maps that `captured` reads
WITHOUT_ATTENTION = {"identity", "pooling", "depthwise", "ems_static"}


def host(mixer, **options):
    torch.manual_seed(0)
    return timm.create_model("lab_plain", mixer=mixer, **{**SMALL, **options})


@cache
def evaluated(mixer):
    """One network for all examples of a property; they leave it as it was."""
    return host(mixer).eval()


def maps(seed, height, width, dim=24, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, height, width, generator=generator, dtype=torch.float64)


def zero(module):
    """A module in whose place nothing is added."""

    class Zero(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    return Zero()


# ---- a mixer is the family's own module -----------------------------------------------------------------------------


def mixed(mixer, reference, x, raw=None, place=None, **options):
    """Outputs of a mixer and of a reference with the same weights."""
    ours = randomise(make_mixer(mixer, place or Place(x.shape[1], 4), options))
    reference = reference.double().eval()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in reference.parameters()]
    own = dict(zip(reference.state_dict(), ours.state_dict().values(), strict=True))
    reference.load_state_dict(own)
    with torch.no_grad():
        return (ours(x), reference(x)) if raw is None else (ours(x, raw), reference(x, raw))


@pytest.mark.parametrize(
    ("mixer", "options", "reference"),
    [
        ("csa", {}, lambda: lvt.CSA(24, 4)),
        ("rasa", {"sr_ratios": [4, 2, 2, 1]}, lambda: lvt.RASA(24, 4, sr_ratio=4, recursions=2)),
        ("pale_parallel", {"pale_size": 3}, lambda: pale.PaleAttention(24, 4, "parallel", (3, 3))),
        ("pale_sequential", {"pale_size": 3}, lambda: pale.PaleAttention(24, 4, "sequential", (3, 3))),
        ("pale_vanilla", {"pale_size": 3}, lambda: pale.PaleAttention(24, 4, "vanilla", (3, 3))),
        ("pale_axial", {}, lambda: pale.PaleAttention(24, 4, "axial")),
        ("pale_cross_shaped", {"split_sizes": 2}, lambda: pale.PaleAttention(24, 4, "cross_shaped", (2, 2))),
        ("mat", {"window_size": 3}, lambda: mat.MatAttention(24, 4, window_size=3)),
        ("window", {"window_size": 3}, lambda: pslt.LadderAttention(24, 4, window_size=3)),
        ("global", {}, lambda: emsnet.GlobalAttention(24, 4)),
        ("spatial_reduction", {}, lambda: lvt.RASA(24, 4, sr_ratio=8, atrous_rates=None, recursions=1)),
        ("depthwise", {"kernel_size": 5}, lambda: nn.Conv2d(24, 24, 5, padding=2, groups=24)),
    ],
)
def test_it_is_the_familys_own_module(mixer, options, reference):
    ours, expected = mixed(mixer, reference(), maps(0, 10, 7), **options)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_partial_attention_scores_the_map_before_the_norm():
    x, raw = maps(0, 10, 7), maps(1, 10, 7)
    reference = partialformer.PartialAttention(24, 4, (1, 8))
    ours, expected = mixed(
        "partial",
        reference,
        x,
        raw=raw,
        foreground_ratios=[[1, 64], [1, 8], [1, 2], [1, 2]],
        place=Place(24, 4, stage=1),
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert not torch.equal(ours, randomise(make_mixer("partial", Place(24, 4)))(x, x))


def test_partial_attention_gets_that_map_in_the_host():
    network = randomise(host("partial"))
    block = network.stages[1].blocks[0]
    seen = []
    block.mixer.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    with torch.no_grad():
        x = block.cpe(maps(0, 5, 6, dim=48))
        block(maps(0, 5, 6, dim=48))
    torch.testing.assert_close(seen[0], (block.norm1(x), x))


@pytest.mark.parametrize("branches", [2, 3])
def test_the_ladder_is_the_papers_block_without_norms_and_ffn(branches):
    x = maps(0, 10, 9)
    ours = randomise(make_mixer("ladder", Place(24, 4), {"num_branches": branches, "window_size": 4}))
    block = pslt.LadderBlock(24, 4 // branches, shifts=pslt.shift_strides(branches, 4), window_size=4).double().eval()
    for theirs, own in zip(block.branches, ours.branches, strict=True):
        theirs.norm1, theirs.norm2, theirs.ffn = nn.Identity(), nn.Identity(), zero(theirs.ffn)
        theirs.attn.load_state_dict(own.state_dict())
    block.fusion.load_state_dict(ours.fusion.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(x), block(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mixer", "static", "dynamic"), [("ems", 1, 1), ("ems_static", 1, 0), ("ems_dynamic", 0, 1)])
def test_ems_is_the_papers_block_without_norms_and_mlp(mixer, static, dynamic):
    x = maps(0, 13, 9, dim=32)
    network = emsnet.EMSNet(
        embed_dims=(32, 32, 32, 32),
        depths=(1, 1, 1, 1),
        static_ops=emsnet.STATIC_OPS if static else (),
        dynamic_ops=emsnet.DYNAMIC_OPS if dynamic else (),
        head_dim=8 if not static else 4,
    )
    block = network.stages[0].blocks[0].double().eval()
    block.norm1, block.norm2, block.mlp = nn.Identity(), nn.Identity(), zero(block.mlp)
    ours = randomise(make_mixer(mixer, Place(32, 4)))
    own = {name.replace("ems.", "mixer."): value for name, value in ours.state_dict().items()}
    block.load_state_dict(own)
    with torch.no_grad():
        torch.testing.assert_close(x + ours(x), block(x), rtol=0, atol=1e-12)


def test_every_second_block_shifts_its_windows():
    shifts = [make_mixer("shifted_window", Place(24, 4, block=i)).shift for i in range(4)]
    assert shifts == [0, 3, 0, 3]
    ours, expected = mixed(
        "shifted_window",
        pslt.LadderAttention(24, 4, window_size=4, shift=2),
        maps(0, 10, 7),
        place=Place(24, 4, block=1),
        window_size=4,
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_sequential_pale_attention_has_columns_in_odd_blocks():
    ours, expected = mixed(
        "pale_sequential",
        pale.PaleAttention(24, 4, "sequential", (3, 3), block=1),
        maps(0, 10, 7),
        place=Place(24, 4, block=1),
        pale_size=3,
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_options_by_stage():
    places = [Place(24, 4, stage=i) for i in range(4)]
    for mixer in ("rasa", "spatial_reduction"):
        ratios = [getattr(make_mixer(mixer, place).sr, "ratio", 1) for place in places]
        assert ratios == [8, 4, 2, 1]
    stripes = [make_mixer("pale_cross_shaped", place) for place in places]
    assert [(mixer.size_r, mixer.size_c) for mixer in stripes] == [(1, 1), (2, 2), (7, 7), (7, 7)]


@fewer
@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.sampled_from([1, 3, 5]))
@example(height=4, width=5, size=3)
def test_pooling_by_its_definition(height, width, size):
    x, reach = maps(0, height, width, dim=2), size // 2
    found = Pooling(size)(x)
    for i in range(height):
        for j in range(width):
            around = x[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            torch.testing.assert_close(found[:, :, i, j], around.mean((2, 3)) - x[:, :, i, j])


# ---- in the host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpe", [True, False])
def test_a_block_by_its_definition(cpe):
    block, x = randomise(host("mat", cpe=cpe)).stages[1].blocks[0], maps(0, 5, 6, dim=48)
    with torch.no_grad():
        y = x
        if cpe:
            y = x + F.conv2d(x, block.cpe.conv.weight, block.cpe.conv.bias, padding=1, groups=48)
        y = y + block.mixer(block.norm1(y))
        torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


def test_every_mixer_is_told_where_it_stands(monkeypatch):
    told = []
    monkeypatch.setattr(lab_plain, "make_mixer", lambda name, place, options: told.append(place) or nn.Identity())
    host("identity", num_heads=(1, 2, 3, 6), drop_path_rate=0.4)
    found = [(place.dim, place.num_heads, place.stage, place.block) for place in told]
    assert found == [(24, 1, 0, 0), (48, 2, 1, 0), (48, 2, 1, 1), (96, 3, 2, 0), (192, 6, 3, 0)]


def test_stochastic_depth_rises_from_block_to_block():
    network = host("identity", drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in network.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_stem_ends_without_an_activation():
    x = torch.randn(2, 3, 16, 16)
    assert host("identity").eval().stem(x).min() < -0.5  # GELU gives no less than -0.17


@mixers
@fewer
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_size_of_image(mixer, height, width):
    network = evaluated(mixer)
    with torch.no_grad():
        features = network.forward_intermediates(torch.randn(1, 3, height, width), intermediates_only=True)
        assert [f.shape[2:] for f in features] == [(-(-height // s), -(-width // s)) for s in (2, 4, 8, 16)]
        assert network(torch.randn(1, 3, height, width)).isfinite().all()


@mixers
def test_a_training_step_reaches_every_parameter(mixer):
    # stage 3 has a map of 2 x 2, so that BatchNorm and attention have more than one token
    network = host(mixer, drop_path_rate=0.1, stem_stride=1).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    before = F.cross_entropy(network(x), y)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
        optimiser.step()
        losses.append(loss.item())
    assert min(losses) < before.item()
    assert all(p.isfinite().all() for p in network.parameters())


def test_each_mixer_computes_something_else():
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        outputs = {mixer: randomise(host(mixer))(x) for mixer in OURS}
    for i, one in enumerate(OURS):
        for other in OURS[i + 1 :]:
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-4), (one, other)


@mixers
def test_attention_is_captured(mixer):
    network = host(mixer).eval()
    if mixer in WITHOUT_ATTENTION:
        assert attention_modules(network) == []
        return
    with captured(network) as found, torch.no_grad():
        network(torch.randn(2, 3, 32, 32))
    blocks = {name.partition(".mixer")[0] for name in found}
    assert blocks == {f"stages.{i}.blocks.{j}" for i, depth in enumerate(SMALL["depths"]) for j in range(depth)}
    assert all(one.query_positions is not None for one in found.values())


@mixers
def test_the_fused_form_computes_the_same(mixer):
    network, x = randomise(host(mixer, depths=(1, 1, 1, 1))), torch.randn(2, 3, 19, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(vitrail.fuse(copy.deepcopy(network))(x), network(x), rtol=1e-9, atol=1e-9)


@mixers
def test_the_executed_count_needs_no_map(mixer):
    network = host(mixer)
    found = vitrail.profile(network, (3, 32, 32))
    assert found.params == sum(p.numel() for p in network.parameters())
    floor = vitrail.profile(host("identity"), (3, 32, 32))
    mixing = {"identity", "pooling"}
    assert (found.macs > floor.macs) == (mixer not in mixing)


def test_only_the_mixer_differs():
    """All other parameters have the same names and shapes."""
    others = []
    for mixer in OURS:
        state = host(mixer).state_dict()
        others.append({name: value.shape for name, value in state.items() if ".mixer." not in name})
    assert all(one == others[0] for one in others)


def test_strides_and_widths():
    for stride in (1, 2, 4):
        network = host("identity", stem_stride=stride)
        assert [info["reduction"] for info in network.feature_info] == [stride, 2 * stride, 4 * stride, 8 * stride]
        assert network.stem(torch.zeros(1, 3, 16, 16)).shape[2:] == (16 // stride, 16 // stride)
    assert [info["num_chs"] for info in host("identity", width=10).feature_info] == [10, 20, 40, 80]
    dims = (10, 12, 24, 40)
    network = timm.create_model("lab_plain", mixer="identity", embed_dims=dims)
    assert tuple(info["num_chs"] for info in network.feature_info) == dims


def test_without_position_encoding_global_attention_follows_a_permutation():
    network = randomise(host("global", cpe=False))
    block, x = network.stages[1].blocks[0], maps(0, 4, 5, dim=48)
    order = torch.randperm(20)
    with torch.no_grad():
        moved = x.flatten(2)[:, :, order].unflatten(2, (4, 5))
        torch.testing.assert_close(block(moved), block(x).flatten(2)[:, :, order].unflatten(2, (4, 5)))
        with_positions = randomise(host("global")).stages[1].blocks[0]
        assert not torch.allclose(with_positions(moved), with_positions(x).flatten(2)[:, :, order].unflatten(2, (4, 5)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mixer": "windows"}, "did you mean 'window'"),
        ({"mixer": "os:system"}, "register_mixer"),
        ({"mixer": 3}, "mixer=3 is not allowed"),
        ({"mixer": "global", "mixer_options": {"window_size": 4}}, "no option 'window_size'; it has none"),
        ({"mixer": "mat", "mixer_options": {"size": 4}}, "it has window_size"),
        ({"mixer": "mat", "mixer_options": [4]}, "mixer_options=[4] is not allowed"),
        ({"mixer": "rasa", "mixer_options": {"sr_ratios": [0, 4, 2, 1]}}, "sr_ratios=0 is not allowed"),
        ({"mixer": "mat", "mixer_options": {"window_size": 0}}, "window_size=0 is not allowed"),
        ({"mixer": "pale_cross_shaped", "mixer_options": {"split_sizes": 0}}, "split_sizes=0 is not allowed"),
        ({"mixer": "ladder", "mixer_options": {"window_size": 1}}, "2 or more"),
        ({"mixer": "ladder", "mixer_options": {"num_branches": 5}}, "1, 2, 3, 4, 6"),
        ({"mixer": "ladder", "width": 32}, "multiple of branches"),
        ({"mixer": "ems_static", "width": 26}, "slices of the EMS mixer"),
        ({"mixer": "depthwise", "mixer_options": {"kernel_size": 4}}, "positive odd"),
        ({"width": 7}, "width=7"),
        ({"width": 8, "embed_dims": (8, 16, 32, 64)}, "say the same"),
        ({"embed_dims": (8, 16, 32)}, "3 entries"),
        ({"num_heads": (1, 2, 4, 7)}, "embed_dims[3]=192 must be a multiple of num_heads[3]"),
        ({"stem_stride": 3}, "stem_stride=3"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=r".") as caught:
        timm.create_model("lab_plain", **options)
    assert sentence in str(caught.value)


def test_its_weights_load_again():
    network = host("mat", out_norms=True)
    again = host("mat", out_norms=True)
    again.load_state_dict({f"module.{name}": value for name, value in network.state_dict().items()})
    assert {"stages.2.blocks.0.mixer.token"} <= network.no_weight_decay()


def test_it_is_no_papers_network():
    assert "lab_plain" not in names()
    assert timm.is_model("lab_plain")
    assert lab_plain.LabPlain.__name__ == type(timm.create_model("lab_plain")).__name__


def test_one_recipe_initialises_all_mixers():
    for mixer in ("global", "mat", "rasa", "ladder", "csa"):
        network = host(mixer)
        for name, module in network.named_modules():
            if isinstance(module, (nn.Linear, Pointwise)):
                assert module.weight.abs().max() <= 2, name
                assert 0.015 < module.weight.std() < 0.025, name
    eye = host("partial").stages[1].blocks[0].mixer.head_mlp.fc1.weight.flatten(1)
    torch.testing.assert_close(eye, torch.eye(2).repeat(2, 1))
    assert 0.015 < host("partial").stages[3].blocks[0].mixer.abstract_token.std() < 0.025
    down = host("identity").stages[3].downsample.conv1.weight  # 3 x 3, to 192 channels
    assert down.std().item() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.05)


@pytest.mark.slow
@mixers
def test_graphs_compute_the_same(mixer):
    network, x = host(mixer, depths=(1, 1, 1, 1)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.jit.script(network)(x), expected)
