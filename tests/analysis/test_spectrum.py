"""Spectra of feature maps: closed forms, layers, parts of EMSNet's blocks, plots."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.layers import maps_of
from vitrail.analysis.result import Moments
from vitrail.analysis.spectrum import (
    Point,
    Spectrum,
    frequencies,
    half_diagonal,
    log_amplitude,
    plot_depth,
    points_of,
    spectrum,
)
from vitrail.errors import UserError
from vitrail.models.emsnet import Propagate

ZERO = math.log(1e-6)  # -13.8155


def diagonal(maps):
    return half_diagonal(log_amplitude(maps))


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (14, 14)])
def test_a_constant_has_frequency_0_alone(size):
    found = diagonal(torch.full(size, 0.7, dtype=torch.float64))
    assert found[0].item() == pytest.approx(math.log(0.7 * size[0] * size[1] + 1e-6), abs=1e-12)
    assert found[1:].tolist() == pytest.approx([ZERO] * (len(found) - 1), abs=1e-7)
    assert pytest.approx(-13.8155, abs=1e-4) == ZERO


@pytest.mark.parametrize("side", [16, 15])
def test_a_cosine_along_the_diagonal_has_one_frequency(side):
    steps = torch.arange(side, dtype=torch.float64)
    for k in range(1, side // 2):
        found = diagonal(torch.cos(2 * math.pi * k * (steps[:, None] + steps) / side))
        expected = [ZERO] * (side - side // 2)
        expected[k] = math.log(side**2 / 2)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert math.log(16**2 / 2) == pytest.approx(4.8520, abs=1e-4)


@pytest.mark.parametrize(("n", "p"), [(4, 2), (7, 4), (3, 6)])
def test_spreading_tokens_multiplies_their_spectrum_by_a_known_law(n, p):
    tokens = torch.randn(1, 1, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = Propagate(1, 1, p, dtype=torch.float64)  # at initialisation: nearest neighbour
    side = n * p
    up = torch.fft.fft2(spread(tokens, side, side)[0, 0]).abs().diagonal()
    down = torch.fft.fft2(tokens[0, 0]).abs().diagonal()
    for k in range(1, side):
        law = (math.sin(math.pi * k * p / side) / math.sin(math.pi * k / side)) ** 2
        assert up[k].item() == pytest.approx(down[k % n].item() * law, abs=1e-12)
    if p > 2:  # a zero of the law on this half of the diagonal
        found = diagonal(spread(tokens, side, side).detach())[0, 0]
        assert found[n].item() == pytest.approx(ZERO, abs=1e-6)


def test_circular_convolution_adds_its_kernels_spectrum():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 1, 14, 14, dtype=torch.float64, generator=generator)
    kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64, generator=generator)
    out = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="circular"), kernel)
    response = torch.zeros(14, 14, dtype=torch.float64)
    response[:3, :3] = kernel[0, 0]
    added = (diagonal(out) - diagonal(maps))[0, 0]
    assert added.tolist() == pytest.approx(diagonal(response).tolist(), abs=1e-4)  # 1e-6 is in each logarithm


def test_frequency_0_lies_in_the_middle_and_the_last_entry_below_pi():
    for side, last in ((56, 0.964), (28, 0.929), (14, 0.857), (7, 0.857)):
        assert frequencies(side, "true")[-1] == pytest.approx(last, abs=5e-4)
        assert frequencies(side, "index")[-1] == 1
        shifted = log_amplitude(torch.ones(side, side))
        assert (shifted == shifted.max()).nonzero().tolist() == [[side // 2, side // 2]]


def test_moments_of_batches_are_those_of_all():
    values = 1000 + torch.randn(11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments()
    for batch in values.split(4):
        moments.add(batch)
    assert moments.mean == pytest.approx(values.mean(0).numpy(), abs=1e-12)
    assert moments.standard_error() == pytest.approx((values.std(0) / math.sqrt(11)).numpy(), abs=1e-12)
    single = Moments()
    single.add(values[:1])
    assert np.isnan(single.standard_error()).all()


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("emsnet_xxtiny", num_classes=3).eval()


def test_the_mean_of_logarithms_over_channels_and_images(network, images):
    found = spectrum(network, images)
    names = found.arrays["relative"].coords["layer"]
    assert names[0] == "stages.0.blocks.0"
    assert names[-1] == "stages.3.blocks.1"
    maps = maps_of(network, images, names)["stages.1.blocks.1"]
    amplitude = np.log(np.abs(np.fft.fft2(maps.double().numpy())) + 1e-6)  # (3, C, 8, 8)
    assert np.fft.ifftshift(found.map_of("stages.1.blocks.1")) == pytest.approx(amplitude.mean((0, 1)), abs=1e-9)
    per_image = np.stack([amplitude[:, :, k, k].mean(1) for k in range(4)], 1)
    row = found.arrays["log_amplitude"].take(layer="stages.1.blocks.1").values
    assert row[:4] == pytest.approx(per_image.mean(0), abs=1e-9)
    assert np.isnan(row[4:]).all()
    relative = per_image - per_image[:, :1]
    error = found.arrays["relative_error"].take(layer="stages.1.blocks.1").values
    assert error[:4] == pytest.approx(relative.std(0, ddof=1) / math.sqrt(3), abs=1e-9)
    assert found.about["images"] == 3
    assert found.about["model"] == "emsnet_xxtiny"
    assert found.arrays["depth"].values[[0, -1]].tolist() == [0, 1]
    assert math.isnan(found.rise()[0][-1])  # a map of 2 x 2 has frequency 0 alone on this half
    assert "3 images" in found.summary()
    assert "±" in found.summary()
    assert "undefined after stages.3.blocks.1" in found.summary()
    one = spectrum(network, images[:1], layers=["stages.0.blocks.0"])
    assert one.summary().count(" after ") == 1
    assert "±" not in one.summary()


def test_batches_stream(network, images):
    once = spectrum(network, images)
    for streamed in (spectrum(network, iter(images.split(2))), spectrum(network, images, batch_size=1)):
        assert streamed.about["images"] == 3
        for name, array in once.arrays.items():
            assert array.values == pytest.approx(streamed.arrays[name].values, abs=1e-4, nan_ok=True)


def test_residual_additions_apart(images):
    for name, blocks, each in (("emsnet_xxtiny", 10, 2), ("partialformer_b0", 16, 3), ("resnet34", 16, 1)):
        network = timm.create_model(name, num_classes=3)
        points = points_of(network, "residual")
        assert len(points) == 1 + blocks * each
    network = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    found = spectrum(network, images, granularity="residual")
    assert len(found.points) == 1 + 2 * 12
    block, kept = network.blocks[3], {}
    handle = block.register_forward_hook(lambda m, inputs, o: kept.update(x=inputs[0]))
    with torch.inference_mode():
        network(images)
        mixed = kept["x"] + block.attn(block.norm1(kept["x"]))
    handle.remove()
    maps = mixed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert found.map_of("blocks.3 mixer") == pytest.approx(log_amplitude(maps).mean((0, 1)).numpy(), abs=1e-4)


def test_operators_of_emsnet(network, images):
    found = spectrum(network, images, granularity="operator", layers=["stages.0.blocks.1"])
    names = [point.name for point in found.points]
    assert len(names) == 10
    # `channel` whitening takes the mean over channels: every position's channels add up to 0
    mixer = network.get_submodule("stages.0.blocks.1.mixer")
    kept = {}
    handle = mixer.static.register_forward_hook(lambda m, inputs, o: kept.update(x=inputs[0], y=o))
    with torch.inference_mode():
        network(images)
        raw = F.conv2d(kept["x"], mixer.static.whiten.weight)
    handle.remove()
    for part, maps in (
        ("1x1 convolution W", raw),
        ("whitened X_w", raw - raw.mean(1, keepdim=True)),
        ("static output", kept["y"]),
    ):
        expected = log_amplitude(maps).mean((0, 1)).numpy()
        assert found.map_of(f"stages.0.blocks.1 {part}") == pytest.approx(expected, abs=1e-3)
    assert len(points_of(network, "operator")) == 10 * 10
    local_only = timm.create_model("emsnet_xxtiny", num_classes=3, static_ops=("dw",), dynamic_ops=())
    assert [point.part for point in points_of(local_only, "operator")][:2] == ["depthwise X_m", "static output"]


@pytest.mark.parametrize("mode", ["channel", "spatial"])
def test_whitening_has_three_maps(mode, images):
    network = timm.create_model("emsnet_xxtiny", num_classes=3, whiten=mode).eval()
    found = spectrum(network, images, granularity="whitening", layers=["stages.0.blocks.0", "stages.2.blocks.0"])
    assert [point.part for point in found.points] == 2 * ["input X_s", "1x1 convolution W", "whitened X_w"]
    whitened = found.points[2].name
    if mode == "spatial":  # no frequency 0, so nothing to relate to
        assert found.about["mean_removed"] == [whitened, found.points[5].name]
        assert np.isnan(found.arrays["relative"].take(layer=whitened).values).all()
        assert found.arrays["log_amplitude"].take(layer=whitened).values[0] < -8
    else:
        assert "mean_removed" not in found.about
    assert found.plot().size[0] > 300
    assert found.plot("curves").size[0] > 300


@pytest.mark.parametrize(("blocks", "parts"), [(1, 3), (2, 10), (5, 3), (8, 3), (18, 3), (18, 10)])
def test_maps_of_parts_are_drawn_about_as_wide_as_high(blocks, parts):
    points = [
        Point(f"stages.0.blocks.{block}", str(part), "", lambda *_: None)
        for block in range(blocks)
        for part in range(parts)
    ]
    lines, columns, cells = Spectrum({"granularity": "operator"}, {}, points)._grid()
    assert len(set(cells)) == len(points)
    assert columns % parts == 0
    assert columns <= 2 * parts or columns < 3 * lines
    assert lines < 2 * columns
    for i in range(0, len(points), parts):  # those of a block side by side, in their order
        (line, first), *others = cells[i : i + parts]
        assert first % parts == 0
        assert others == [(line, first + n) for n in range(1, parts)]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "twins_svt_small", "resnet34"])
def test_timms_networks(name, images):
    options = {"img_size": 64, "window_size": 2} if name.startswith("swin") else {}
    options = {"img_size": 64} if name.startswith("twins") else options
    network = timm.create_model(name, num_classes=3, **options).eval()
    found = spectrum(network, images, granularity="residual", frequency="true")
    assert np.isfinite(found.arrays["log_amplitude"].values[:, 0]).all()


def test_plots(network, images):
    found = spectrum(network, images)
    operators = spectrum(network, images, granularity="operator")
    drawn = [found.plot(one) for one in ("curves", "depth", "maps")]
    drawn += [operators.plot("depth"), plot_depth([found, spectrum(network, images[:1])])]
    assert all(min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 20 for image in drawn)
    asked = spectrum(network, images, drawing="depth")
    assert asked.plot().tobytes() == found.plot("depth").tobytes()
    assert "C-MHSA" in operators.summary()
    assert operators.to_dict()["relative"]["axes"] == ["layer", "entry"]


def test_mistakes_are_refused(network, images):
    def refused(match, *args, **options):
        with pytest.raises(UserError, match=match):
            spectrum(*args, **options)

    refused("granularity='pixel' is not allowed; choose one of block", network, images, granularity="pixel")
    refused("frequency='real'", network, images, frequency="real")
    refused("batch_size=0", network, images, batch_size=0)
    refused(r"did you mean stages\.3\.blocks\.1", network, images, layers=["stages.3.block.1"])
    refused("square images", network, images[:, :, :32])
    refused("at least one image", network, iter(()))
    refused("has none of them here", timm.create_model("resnet18", num_classes=3), images, granularity="operator")
    refused("gives no map", network, images, layers=["head"])
    refused("never enters layer unused", _Idle(), images, layers=["unused"])
    refused("drawing='pie'", network, images, drawing="pie")
    with pytest.raises(UserError, match="drawing='pie'"):
        spectrum(network, images[:1]).plot("pie")
    assert not any(module._forward_hooks for module in network.modules())


class _Idle(nn.Module):
    """A network with a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Identity()

    def forward(self, x):
        return x
