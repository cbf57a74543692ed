"""Attention captured from the forward pass: weights times values are the layer's output, which does not change."""

import pytest
import timm
import torch
import torchvision
from timm.models.mobilevit import MobileVitBlock
from torch import nn

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.attention import attention
from vitrail.analysis.attention_layouts import reduced_size
from vitrail.analysis.captured import attention_modules, captured
from vitrail.analysis.gradcam import gradcam
from vitrail.analysis.spectrum import spectrum
from vitrail.errors import UserError
from vitrail.layers import fold3x3
from vitrail.layers.class_attention import ClassAttention
from vitrail.models.emsnet import ConvAttention, GlobalAttention
from vitrail.models.lvt import CSA, RASA
from vitrail.models.mat import MatAttention, WindowAttention
from vitrail.models.pale import PaleAttention
from vitrail.models.partialformer import FullAttention, PartialAttention
from vitrail.models.pslt import LadderAttention

#: name -> (network, options, side of the images)
CASES = {
    "pslt": ("pslt_tiny", {}, 272),  # maps of 17 and 9: shifted windows with padding
    "pslt_paper": ("pslt_tiny", {"pad_mode": "paper"}, 144),
    "pale_parallel": ("pale_tiny", {"depths": (1, 1, 1, 1)}, 72),
    "pale_paper": ("pale_tiny", {"depths": (1, 1, 1, 1), "pad_mode": "paper"}, 72),
    "pale_vanilla": ("pale_tiny", {"depths": (1, 1, 1, 1), "mixers": "vanilla"}, 72),
    "pale_sequential": ("pale_tiny", {"depths": (2, 2, 2, 2), "mixers": "sequential"}, 72),
    "pale_axial": ("pale_tiny", {"depths": (1, 1, 1, 1), "mixers": "axial"}, 72),
    "pale_cross_shaped": ("pale_tiny", {"depths": (1, 1, 1, 1), "mixers": "cross_shaped"}, 72),
    "emsnet": ("emsnet_xxtiny", {}, 104),
    "emsnet_masked": ("emsnet_xxtiny", {"mask_border": True}, 104),
    "mat": ("mat_1", {"depths": (1, 1, 2, 2)}, 272),
    "mat_one_window": ("mat_1", {"depths": (1, 1, 2, 2)}, 64),
    "mat_paper": ("mat_1", {"depths": (1, 1, 1, 1), "pad_mode": "paper"}, 144),
    "mat_qkv": ("mat_1", {"depths": (1, 1, 1, 1), "token_merge": "qkv"}, 144),
    "mat_window": ("mat_1", {"depths": (1, 1, 1, 1), "mixers": ("none", "none", "window", "window")}, 144),
    "lvt": ("lvt", {}, 72),
    "lvt_r3": ("lvt_r3", {"sr_pad": True}, 72),
    "lvt_outlook": ("lvt", {"mixers": ("outlook", "sa", "sa", "sa")}, 64),
    "partialformer": ("partialformer_b0", {}, 72),
    "partialformer_plain": ("partialformer_b0", {"head_mlp": False, "use_abstract_token": False}, 72),
    "partialformer_random": ("partialformer_b0", {"score": "random", "deterministic": True}, 72),
    "partialformer_full": ("partialformer_b0", {"mixers": "full"}, 72),
    "deit": ("deit_tiny_patch16_224", {"img_size": 64}, 64),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 72, "window_size": 4}, 72),
    "pvt": ("pvt_v2_b1", {}, 64),
    "mobilevit": ("mobilevit_s", {}, 64),
    "twins": ("twins_svt_small", {"img_size": 64}, 64),
    "nest": ("nest_tiny", {"img_size": 64}, 64),
    "levit": ("levit_128s", {"img_size": 128}, 128),
}
TIMM = ("deit", "swin", "pvt", "mobilevit", "twins")


def built(case, dtype=torch.float32):
    name, options, side = CASES[case]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, **options).eval().to(dtype)
    return network, torch.randn(2, 3, side, side, dtype=dtype)


def ladder_output(module, inputs, maps):
    (one,) = maps.values()
    height, width = inputs[0].shape[2:]
    out = (one.weights @ one.values).flatten(1, 2)
    full = (height, width)
    if module.pad_first:
        full = tuple(-(-side // module.window_size) * module.window_size for side in full)
    _, _, inverse = module.window_layout(height, width, out.device)
    return module.proj(module.reverse(out, inverse, *full))[:, :, :height, :width]


def pale_output(module, inputs, maps):
    height, width = inputs[0].shape[2:]
    halves = []
    for one in maps.values():
        out = one.weights @ one.values  # (B, groups, heads, tokens, d)
        out = out.transpose(2, 3).flatten(3)
        held = one.query_positions[0] >= 0
        flat = out.new_zeros(out.shape[0], height * width, out.shape[3])
        times = out.new_zeros(height * width)
        for group in range(out.shape[1]):  # a token of two pales gets the mean
            places = one.query_positions[0, group][held[group]]
            flat[:, places] += out[:, group, held[group]]
            times[places] += 1
        halves.append((flat / times[:, None]).unflatten(1, (height, width)))
    return module.proj(torch.cat(halves, -1).permute(0, 3, 1, 2))


def on_map(one, size):
    """Weights times values of windows that share no token, put on the map: (B, H, W, C)."""
    out = (one.weights @ one.values).transpose(2, 3).flatten(3).flatten(1, 2)
    places = one.query_positions.flatten()
    flat = out.new_zeros(out.shape[0], size[0] * size[1], out.shape[2])
    flat[:, places[places >= 0]] = out[:, places >= 0]
    return flat.unflatten(1, tuple(size))


def window_output(module, inputs, maps):
    (one,) = maps.values()
    return module.proj(on_map(one, inputs[0].shape[2:]).permute(0, 3, 1, 2))


def mat_output(module, inputs, maps):
    size = inputs[0].shape[2:]
    local, abstraction, mixing, fusion = (maps[part] for part in ("local", "abstraction", "mixing", "fusion"))
    summary = (abstraction.weights @ abstraction.values).flatten(2)  # (B, nW, C)
    value = module.split_heads(module.mix_qkv(summary), 3)[2]
    if mixing.values is not None:
        assert torch.allclose(value, mixing.values[:, 0], atol=1e-5)
    mixed = module.mix_proj((mixing.weights[:, 0] @ value).transpose(1, 2).flatten(2))
    value = module.split_heads(module.kv(mixed), 2)[1]
    fused = (fusion.weights[:, 0] @ value).transpose(1, 2).flatten(2)
    fused = fused[:, fusion.query_positions[0, 0] >= 0].unflatten(1, tuple(size))
    return module.proj((on_map(local, size) + fused).permute(0, 3, 1, 2))


def folded_output(module, inputs, maps):
    (one,) = maps.values()
    height, width = inputs[0].shape[2:]
    rows, cols = (height + 1) // 2, (width + 1) // 2
    out = (one.weights @ one.values).transpose(2, 3).flatten(3)
    return module.proj(fold3x3(out.unflatten(1, (rows, cols)), height, width).permute(0, 3, 1, 2))


def rasa_output(module, inputs, maps):
    assert [name for name in maps if "." not in name] == [f"pass_{n}" for n in range(1, module.recursions + 1)]
    one = maps[f"pass_{module.recursions}"]
    assert one.key_size == reduced_size(module.sr, *inputs[0].shape[2:])
    x = module.proj(on_map(one, inputs[0].shape[2:]).permute(0, 3, 1, 2))
    return nn.functional.silu(x) if module.output_act else x


def partial_output(module, inputs, maps):
    tokens = inputs[0].permute(0, 2, 3, 1).flatten(1, 2)
    mixed, query = maps["mixed"], maps["query"]
    foreground, _ = module.project_foreground((mixed.weights @ mixed.values)[:, 0].transpose(1, 2).flatten(2))
    shift = module.channel_mlp(module.weighted_values(query.weights[:, 0, :, 0], tokens))
    out = tokens + shift
    index = mixed.query_positions[:, 0, int(module.abstract_token is not None) :, None].expand(-1, -1, tokens.shape[2])
    assert query.weights[:, 0, :, 0].gather(2, index[:, None, :, 0].expand(-1, module.num_heads, -1)).max() == 0
    return out.scatter(1, index, foreground).unflatten(1, tuple(inputs[0].shape[2:])).permute(0, 3, 1, 2)


def class_token_output(module, inputs, maps):
    (one,) = maps.values()
    return module.proj((one.weights @ one.values)[:, 0].transpose(1, 2).flatten(2))


def timm_output(module, inputs, maps):
    (one,) = maps.values()
    out = (one.weights @ one.values).transpose(2, 3).flatten(3)  # (B, windows, tokens, C)
    if type(module).__name__ == "LocallyGroupedAttn":
        out = on_map(one, inputs[1]).flatten(1, 2)
    if type(module).__module__ == "timm.models.nest":  # the heads of a channel stand beside each other
        out = out.unflatten(3, (module.num_heads, -1)).transpose(3, 4).flatten(3)
    return module.proj(out.reshape(*inputs[0].shape[:-2], out.shape[-2], -1))


OUTPUTS = {
    LadderAttention: ladder_output,
    PaleAttention: pale_output,
    WindowAttention: window_output,
    MatAttention: mat_output,
    ConvAttention: folded_output,
    CSA: folded_output,
    GlobalAttention: window_output,
    FullAttention: window_output,
    RASA: rasa_output,
    PartialAttention: partial_output,
    ClassAttention: class_token_output,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES)
def test_weights_times_values_are_the_layers_output(case, dtype, tolerance):
    network, images = built(case, dtype)
    calls = {}
    handles = [
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: calls.update({name: (i, o)}))
        for name in attention_modules(network)
    ]
    with torch.inference_mode():
        with captured(network) as maps:
            network(images)
        for name in attention_modules(network):
            module, (inputs, output) = network.get_submodule(name), calls[name]
            own = {key[len(name) + 1 :]: one for key, one in maps.items() if f"{key}.".startswith(f"{name}.")}
            found = OUTPUTS.get(type(module), timm_output)(module, inputs, own)
            assert torch.allclose(found, output, atol=tolerance * max(1, output.abs().max()), rtol=0), name
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("case", CASES)
def test_rows_sum_to_one_and_the_pass_is_as_without(case):
    network, images = built(case)
    with torch.inference_mode():
        torch.manual_seed(1)
        plain = network(images)
        torch.manual_seed(1)
        with captured(network) as maps:
            output = network(images)
    assert torch.equal(output, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    for name, one in maps.items():
        assert one.weights.shape[0] == 2
        if name.endswith(".mixed"):
            continue
        sums = one.weights.sum(-1)  # (B, windows, heads, queries)
        if one.query_positions is not None and (one.query_positions >= 0).any():
            on = (one.query_positions >= 0).expand(2, sums.shape[1], sums.shape[3])
            sums = sums.transpose(2, 3)[on]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5), name


@pytest.mark.parametrize("case", ["pslt", "pslt_paper", "pale_parallel", "pale_paper", "pale_vanilla", "mat"])
def test_no_token_attends_to_padding(case):
    network, images = built(case)
    with torch.inference_mode(), captured(network) as maps:
        network(images)
    padded = 0
    for one in maps.values():
        on, off = one.query_positions[0] >= 0, one.key_positions[0] < 0  # (windows, queries), (windows, keys)
        assert one.weights[0].sum(1)[on[:, :, None] & off[:, None]].sum() == 0
        padded += off.sum()
    assert padded > 0


def test_the_padding_of_images_is_no_foreground():
    network, images = built("partialformer")
    mask = torch.zeros(2, 72, 72, dtype=torch.bool)
    mask[1, :, 40:] = True
    with torch.inference_mode(), captured(network, ["stages.1"]) as maps:
        network.forward_features(images, padding_mask=mask)
    places = maps["stages.1.blocks.0.attn.mixed"].query_positions[:, 0, 1:]
    assert (places[0] >= 0).all()
    assert (places[1] < 0).any()
    assert (places[1][places[1] >= 0] % 9 < 5).all()


@pytest.mark.parametrize("case", TIMM)
def test_unfused_attention_gives_what_passes_through_attn_drop(case):
    network, images = built(case)
    with torch.inference_mode():
        with captured(network) as fused:
            network(images)
        passed = {}
        for name, module in network.named_modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
            if name.endswith("attn_drop"):
                module.register_forward_hook(lambda m, i, o, name=name: passed.update({name: o}))
        with captured(network) as unfused:
            network(images)
    assert len(passed) == len(unfused) == len(fused)
    for name, one in unfused.items():
        assert torch.equal(one.weights, passed[f"{name}.attn_drop"].reshape(one.weights.shape)), name
        assert torch.allclose(one.weights, fused[name].weights, atol=1e-6)
        assert torch.allclose(one.values, fused[name].values, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 3, -3, 1])
def test_windows_of_a_branch_are_what_its_output_depends_on(shift):
    module = LadderAttention(8, 2, shift=shift).eval()
    x = torch.randn(1, 8, 17, 15, requires_grad=True)
    network = nn.Sequential(module)
    with captured(network) as maps:
        output = network(x)
    for row, col in ((0, 0), (3, 9), (16, 14), (8, 2)):
        support = torch.autograd.grad(output[0, :, row, col].sum(), x, retain_graph=True)[0][0].abs().sum(0) > 0
        assert torch.equal(maps["0"].region_of(row * 15 + col), support)


@pytest.mark.parametrize("mixer", ["parallel", "vanilla", "sequential", "axial", "cross_shaped", "global"])
@pytest.mark.parametrize("size", [(12, 12), (11, 7)])
def test_pale_of_a_token_is_what_its_output_depends_on(mixer, size):
    module = PaleAttention(8, 2, mixer=mixer, pale_size=(3, 3), qkv_kernel=0).eval()
    x = torch.randn(1, 8, *size, requires_grad=True)
    network = nn.Sequential(module)
    with captured(network) as maps:
        output = network(x)
    for row, col in ((5, 1), (0, 0), (size[0] - 1, size[1] - 1)):
        support = torch.autograd.grad(output[0, :, row, col].sum(), x, retain_graph=True)[0][0].abs().sum(0) > 0
        region = torch.stack([one.region_of(row * size[1] + col) for one in maps.values()]).any(0)
        assert torch.equal(region, support)
        if size == (12, 12) and (mixer == "parallel" or (mixer == "vanilla" and row % 4 == col % 4)):
            assert region.sum() == 3 * 12 + 3 * 12 - 3 * 3 == 63


def test_swins_shifted_windows_are_what_a_block_depends_on():
    network, images = built("swin")
    block = network.layers[0].blocks[1]
    images.requires_grad_()
    with captured(network, ["layers.0.blocks.1"]) as maps:
        kept = {}
        handle = block.register_forward_hook(lambda m, i, o: kept.update(x=i[0], y=o))
        network(images)
    handle.remove()
    assert list(maps) == ["layers.0.blocks.1.attn"]
    for row, col in ((0, 0), (5, 9), (17, 17)):
        gradient = torch.autograd.grad(kept["y"][0, row, col].sum(), kept["x"], retain_graph=True)[0]
        assert torch.equal(maps["layers.0.blocks.1.attn"].region_of(row * 18 + col), gradient[0].abs().sum(-1) > 0)


def test_mobilevits_pixels_attend_to_those_at_their_place_of_a_patch():
    block = MobileVitBlock(8, 8, patch_size=2, transformer_dim=8, num_heads=2, transformer_depth=1).eval()
    block.conv_kxk = block.conv_1x1 = block.conv_proj = nn.Identity()
    block.conv_fusion = None
    network = nn.Sequential(block)
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    with captured(network) as maps:
        output = network(x)
    (one,) = maps.values()
    for row, col in ((0, 0), (3, 4), (5, 1)):
        # of one channel: the block ends with a LayerNorm, over whose channels the sum is constant
        gradient = torch.autograd.grad(output[0, 0, row, col], x, retain_graph=True)[0][0].abs().sum(0)
        assert torch.equal(one.region_of(row * 6 + col), gradient > 0)
        assert one.region_of(row * 6 + col).sum() == 9


def test_a_token_of_3x3_windows_sees_all_its_windows():
    network = nn.Sequential(CSA(4, 2).eval())
    with captured(network) as maps, torch.inference_mode():
        network(torch.randn(1, 4, 12, 12))
    sees = {token: maps["0"].region_of(token[0] * 12 + token[1]).sum().item() for token in ((4, 4), (4, 5), (5, 5))}
    assert sees == {(4, 4): 9, (4, 5): 15, (5, 5): 25}
    assert torch.allclose(maps["0"].map_of(4 * 12 + 5).sum((2, 3)), torch.ones(1, 2))


def test_the_query_of_one_dilation_alone():
    """The query is the sum over dilations, so without the others its weights are those of that dilation."""
    several, single = (RASA(8, 2, sr_ratio=2, atrous_rates=rates, recursions=2).eval() for rates in ((1, 3, 5), (3,)))
    single.load_state_dict(several.state_dict())
    x = torch.randn(2, 8, 12, 12)
    with captured(network := nn.Sequential(several)) as maps, torch.inference_mode():
        network(x)
    with captured(network := nn.Sequential(single)) as alone, torch.inference_mode():
        network(x)
    parts = [f"0.pass_{n}{end}" for n in (1, 2) for end in ("", ".dilation_1", ".dilation_3", ".dilation_5")]
    assert list(maps) == parts
    assert torch.equal(maps["0.pass_1.dilation_3"].weights, alone["0.pass_1"].weights)
    assert torch.equal(alone["0.pass_1.dilation_3"].weights, alone["0.pass_1"].weights)


def test_the_map_of_a_token_is_its_row_of_the_weights():
    network, images = built("deit")
    with captured(network, ["blocks.3.attn"]) as maps, torch.inference_mode():
        network(images)
    one = maps["blocks.3.attn"]
    assert torch.equal(one.map_of(6), one.weights[:, 0, :, 1 + 6, 1:].unflatten(2, (4, 4)))
    assert one.array().sizes == {"image": 2, "window": 1, "head": 3, "query": 17, "key": 17}


def test_selected_foreground_is_where_the_maps_say():
    network, images = built("partialformer")
    with captured(network, ["stages.2.blocks.0.attn"]) as maps, torch.inference_mode():
        network(images)
    module = network.stages[2].blocks[0].attn
    kept = {}
    handle = module.register_forward_hook(lambda m, i, o: kept.update(inputs=i))
    with torch.inference_mode():
        network(images)
        reference = module.attention_maps(*kept["inputs"])
    handle.remove()
    mixed = maps["stages.2.blocks.0.attn.mixed"]
    assert torch.equal(mixed.query_positions[:, 0, 1:], reference["index"])
    assert torch.allclose(mixed.weights[:, 0], reference["mixed"], atol=1e-6)
    assert torch.allclose(maps["stages.2.blocks.0.attn.softmax"].weights[:, 0], reference["softmax"], atol=1e-6)
    assert torch.allclose(maps["stages.2.blocks.0.attn.query"].weights[:, 0, :, 0], reference["query"], atol=1e-6)


def test_a_second_pass_replaces_the_first_and_a_failed_one_leaves_nothing_behind():
    network, images = built("emsnet")
    with captured(network, ["stages.0"]) as maps, torch.inference_mode():
        network(images)
        network(images[:1])
        assert all(one.weights.shape[0] == 1 for one in maps.values())
        with pytest.raises(RuntimeError):
            network(images[:, :2])
        assert not maps
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_networks_and_names_without_attention_are_refused():
    with pytest.raises(UserError, match=r"No attention of .* can be captured"), captured(timm.create_model("resnet18")):
        pass
    network, _ = built("mat_window")
    with pytest.raises(UserError, match=r"stages\.2\.blocks"), captured(network, ["stages.2.block"]):
        pass
    with pytest.raises(UserError, match=r"layers with attention are stages\.2"), captured(network, ["stages.0"]):
        pass


@pytest.mark.parametrize("options", [{}, {"kdim": 20, "vdim": 28, "bias": False}, {"add_bias_kv": True}])
def test_pytorchs_own_attention(options):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, **options)

        def forward(self, x):  # (images, tokens, channels)
            widths = (24, options.get("kdim", 24), options.get("vdim", 24))
            query, key, value = (x[..., :width].transpose(0, 1) for width in widths)
            return self.attention(query, key, value, need_weights=False)[0].transpose(0, 1)

    torch.manual_seed(0)
    network, x = nn.Sequential(Block()).double().eval(), torch.randn(2, 16, 28, dtype=torch.float64)
    with torch.inference_mode(), captured(network) as maps:
        output = network(x)
    one = maps["0.attention"]
    assert torch.allclose(one.weights.sum(-1), torch.ones((), dtype=torch.float64))
    if "add_bias_kv" in options:
        assert one.values is None
        assert one.weights.shape == (2, 1, 3, 16, 17)
        return
    found = network[0].attention.out_proj((one.weights @ one.values)[:, 0].transpose(1, 2).flatten(2))
    assert torch.allclose(found, output, atol=1e-12)
    assert one.key_size == (4, 4)


def test_torchvisions_column_of_tokens():
    torch.manual_seed(0)
    options = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    network = torchvision.models.VisionTransformer(**options, num_classes=3).eval()
    network.heads.head.weight.data.normal_()  # torchvision's zeros say nothing
    images, outputs = torch.randn(2, 3, 64, 64), {}
    names = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    for name in names:
        own = network.get_submodule(f"{name}.self_attention")
        own.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output[0]}))
    with torch.inference_mode():
        plain = network(images)
        with captured(network) as maps:
            assert torch.allclose(network(images), plain, atol=1e-6)
        for name in names:
            one = maps[f"{name}.self_attention"]
            assert one.query_positions.flatten().tolist() == [-1, *range(16)]
            module = network.get_submodule(f"{name}.self_attention")
            found = module.out_proj((one.weights @ one.values)[:, 0].transpose(1, 2).flatten(2))
            assert torch.allclose(found, outputs[name], atol=1e-5)
    assert attention(network, images, at=(20, 40)).arrays["self_attention"].values.shape == (2, 4, 4)
    told = gradcam(network, images)
    assert told.about["layer"] == names[1]  # the last one's tokens reach no logit
    assert told.arrays["weights"].values.any()
    assert spectrum(network, images).arrays["relative"].values.shape[0] == 3


def test_mixed_heads_are_what_multiplies_the_values():
    torch.manual_seed(0)
    network = timm.create_model("cait_xxs24_224", img_size=64, num_classes=3).eval()
    name, kept = "blocks.3.attn", {}
    module = network.get_submodule(name)
    handle = module.register_forward_hook(lambda m, i, o: kept.update(inputs=i, output=o))
    with captured(network, [name]) as maps, torch.inference_mode():
        network(torch.randn(1, 3, 64, 64))
        assert torch.allclose(timm_output(module, kept["inputs"], maps), kept["output"], atol=1e-5)
    handle.remove()
    assert maps[name].query_size == (4, 4)


@pytest.mark.parametrize("name", ["edgenext_xx_small", "davit_tiny"])
def test_attention_over_channels_is_none_between_tokens(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    assert attention_modules(network) == []
    with pytest.raises(UserError, match=r"No attention of .* can be captured"), captured(network):
        pass


def test_blocks_of_a_nested_network_are_what_their_tokens_depend_on():
    network, images = built("nest")
    name = "levels.0.transformer_encoder.0.attn"
    with captured(network, [name]) as maps, torch.inference_mode():
        network(images)
    one = maps[name]
    assert one.weights.shape == (2, 16, 3, 16, 16)
    region = one.region_of(5 * 16 + 9)
    assert region.nonzero()[:, 0].unique().tolist() == [4, 5, 6, 7]
    assert region.nonzero()[:, 1].unique().tolist() == [8, 9, 10, 11]
