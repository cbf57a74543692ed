"""What every network of the house keeps, whatever its paper."""

import subprocess
import sys
import warnings

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrail
from network_helpers import SMALLEST, randomised, small
from vitrail.models import FAMILIES, catalog, family_of

#: exact learnable parameters with 1000 classes, from the specifications
PARAMETERS = {
    "pslt_tiny": 4_298_988,
    "pslt": 9_257_302,
    "pslt_large": 16_099_312,
    "lvt": 5_521_844,
    "lvt_r1": 5_521_844,
    "lvt_r3": 5_521_844,
    "lvt_r4": 5_521_844,
    "lvt_scaled": 32_175_350,
    "volo_d0": 3_886_460,
    "volo_d0_csa": 4_033_916,
    "volo_d0_csa_rasa": 4_044_284,
    "pale_tiny": 21_748_712,
    "pale_small": 48_308_200,
    "pale_base": 85_324_776,
    "emsnet_xxtiny": 2_569_370,
    "emsnet_xtiny": 2_958_254,
    "emsnet_xtiny_c128": 2_311_884,
    "emsnet_tiny": 5_468_186,
    "mat_1": 6_713_664,
    "mat_2": 10_767_496,
    "mat_3": 17_008_164,
    "mat_4": 29_056_584,
    "mat_5": 50_107_944,
    "partialformer_b0": 5_298_672,
    "partialformer_b1": 8_238_348,
    "partialformer_b2": 21_081_134,
    "partialformer_b3": 36_105_008,
    "partialformer_b4": 64_465_748,
}

#: parameters of the four-map backbone without classifier, norm and class attention
DENSE_PARAMETERS = {
    "pslt_tiny": 3_913_220,
    "pslt": 8_679_150,
    "pslt_large": 15_328_776,
    "lvt": 3_429_092,
    "volo_d0": 2_759_148,
    "volo_d0_csa": 2_906_604,
    "volo_d0_csa_rasa": 2_916_972,
    "emsnet_xxtiny": 2_375_986,
    "emsnet_xtiny": 2_764_870,
    "emsnet_tiny": 5_210_674,
    "mat_1": 5_183_064,
    "mat_2": 9_154_976,
    "mat_3": 15_354_684,
    "mat_4": 27_280_224,
    "mat_5": 48_167_744,
    "partialformer_b0": 3_770_248,
    "partialformer_b1": 6_627_876,
    "partialformer_b2": 19_306_566,
    "partialformer_b3": 34_166_344,
    "partialformer_b4": 62_198_892,
}


def test_the_names_are_those_of_the_interface():
    assert vitrail.list_models() == list(PARAMETERS)
    assert vitrail.list_models("mat_*") == [f"mat_{i}" for i in range(1, 6)]
    assert all(timm.is_model(name) for name in PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", DENSE_PARAMETERS)
def test_dense_parameter_counts_are_exact(name):
    model = timm.create_model(name, features_only=True, device="meta")
    assert sum(p.numel() for p in model.parameters()) == DENSE_PARAMETERS[name]


def test_pale_dense_parameters_include_an_output_norm_each():
    counts = {"pale_tiny": 21_236_608, "pale_small": 47_540_544, "pale_base": 84_301_568}
    for name, count in counts.items():
        model = timm.create_model(name, features_only=True, out_norms=True, device="meta")
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("entry", catalog.catalog(), ids=lambda e: e.name)
def test_the_catalogue_counts_again(entry):
    assert catalog.count(entry.name) == entry


def test_the_catalogue_lists_every_network():
    assert [entry.name for entry in catalog.catalog()] == vitrail.list_models()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(height=st.integers(32, 97), width=st.integers(32, 97))
def test_any_size_gives_maps_at_the_strides(family, height, width):
    model = small(family, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    if family == "volo":  # pads the image first
        height, width = -(-height // 16) * 16, -(-width // 16) * 16
    strides = (8, 16, 16, 16) if family == "volo" else (4, 8, 16, 32)
    assert tuple(model.feature_info.reduction()) == strides
    for fmap, channels, stride in zip(maps, model.feature_info.channels(), strides, strict=True):
        assert fmap.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert fmap.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_a_batch_gives_what_its_images_give_alone(family, size):
    model = randomised(small(family)).eval()
    x = torch.randn(3, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(x[i : i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_format_and_repetition_change_nothing(family):
    model = randomised(small(family)).eval()
    x = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        first = model(x)
        torch.testing.assert_close(model(x), first, rtol=0, atol=0)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_leave_no_trace_in_an_instance(family):
    model = randomised(small(family)).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(x)
        for size in [(33, 200), (224, 224), (40, 32)]:
            model(torch.randn(1, 3, *size))
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_three_ways_to_features_agree(family):
    model = randomised(small(family)).eval()
    names = dict(model.named_parameters())
    tapped = small(family, features_only=True).eval()
    tapped.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in tapped.model.state_dict()})
    x = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        for a, b in zip(maps, tapped(x), strict=True):
            torch.testing.assert_close(a, b)
    assert {n.removeprefix("model.") for n, _ in tapped.named_parameters()} <= set(names)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_at_large_activations(family, dtype):
    model = small(family)
    x = 100 * torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype):
        out = model(x)
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_close_to_full(family):
    # which tokens PartialFormer chooses is discontinuous in its input; its other mixer chooses none
    model = small(family, **({"mixers": "full"} if family == "partialformer" else {})).eval()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        full = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
    assert (half.float() - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_weights_and_training_step(family):
    def step():
        torch.manual_seed(3)
        model = small(family, drop_path_rate=0.2)
        loss = model(torch.randn(2, 3, 64, 64)).square().mean()
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    (loss_a, grads_a), (loss_b, grads_b) = step(), step()
    assert loss_a == loss_b
    assert all(torch.equal(a, b) for a, b in zip(grads_a, grads_b, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_leaves_gradients_as_they_were(family):
    model = randomised(small(family)).eval()
    x = torch.randn(2, 3, 64, 64)

    def gradients():
        model.zero_grad()
        model(x).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing(True)
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_back_whole_on_empty_storage(family):
    model = timm.create_model(SMALLEST[family], num_classes=10, device="meta", dtype=torch.float64)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    model.init_weights()
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 64, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_three_channel_weights_serve_one_channel_images(family):
    from timm.models import adapt_input_conv

    rgb, grey = small(family), small(family, in_chans=1)
    key = f"{rgb.pretrained_cfg['first_conv']}.weight"
    state = rgb.state_dict()
    state[key] = adapt_input_conv(1, state[key])
    grey.load_state_dict(state)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey.eval()(x), rgb.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_or_wrong_option_is_named(family):
    with pytest.raises(TypeError, match="window_sise"):
        small(family, window_sise=7)
    with pytest.raises(ValueError, match="global_pool"):
        small(family, global_pool="median")
    with pytest.raises(ValueError, match=r"depths|embed_dims"):
        small(family, depths=(1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_without_a_graph_break(family):
    # in a process of its own: compiled code and its caches stay out of the other tests
    code = (
        "import sys, torch, timm, vitrail\n"
        "model = timm.create_model(sys.argv[1], depths=(1, 1, 2, 2), num_classes=10).eval()\n"
        "compiled = torch.compile(model, fullgraph=True, backend='eager', dynamic=False)\n"
        "for size in ((64, 64), (33, 47)):\n"
        "    x = torch.randn(2, 3, *size)\n"
        "    with torch.no_grad():\n"
        "        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)\n"
        "out = compiled(torch.randn(2, 3, 64, 64)).mean()\n"
        "out.backward()\n"
    )
    subprocess.run([sys.executable, "-c", code, SMALLEST[family]], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_inductor_gives_the_same_on_a_size_that_nothing_divides(family):
    model = randomised(small(family)).eval()
    x = torch.randn(2, 3, 97, 131)
    with torch.inference_mode():
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scripted_gives_the_same_at_every_size(family):
    model = randomised(small(family)).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    for size in [(64, 64), (47, 61)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)


def test_families_are_found_by_name():
    assert family_of("emsnet_xtiny_c128") == "emsnet"
    with pytest.raises(KeyError):
        family_of("resnet50")
