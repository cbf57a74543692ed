"""What every family keeps at every size: batches, memory formats, features, stochastic depth, checkpointing, graphs."""

import copy
import warnings

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import NARROW, assert_same, fewer, image_sides, network, random_map, seeds
from timm.layers import DropPath
from torch import Tensor, nn

from network_helpers import SMALLEST
from vitrail.models import FAMILIES

families = pytest.mark.parametrize("family", FAMILIES)
sizes = {"height": image_sides, "width": image_sides, "seed": seeds}


def images(seed: int, height: int, width: int, batch: int = 2) -> Tensor:
    return random_map(seed, height, width, batch, dim=3)


def outputs_and_gradients(model: nn.Module, x: Tensor, seed: int = 0) -> list[Tensor]:
    """Logits, and the gradients of a loss on them for the images and every parameter, drawing from `seed`."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    model.zero_grad()
    logits = model(x)
    logits.square().sum().backward()
    return [logits.detach(), x.grad, *(p.grad for p in model.parameters())]


def assert_same_step(ours: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for a, b in zip(ours, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


# ---- batches and memory formats -----------------------------------------------------------------


@families
@fewer
@given(**sizes, batch=st.integers(1, 3))
@torch.no_grad()
def test_images_of_a_batch_do_not_meet(family, height, width, seed, batch):
    model, x = network(family), images(seed, height, width, batch)
    assert_same(model(x), torch.cat([model(image[None]) for image in x]))


@pytest.mark.parametrize(("family", "options"), [("lvt", {}), ("pale", {"qkv_norm": "none"})])
@fewer
@given(**sizes)
@torch.no_grad()
def test_networks_without_batch_statistics_train_as_they_evaluate(family, options, height, width, seed):
    model, x = copy.deepcopy(network(family, **options)), images(seed, height, width)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    evaluated = model(x)
    trained = model.train()(x)
    assert_same(trained, evaluated)
    assert_same(trained, torch.cat([model(image[None]) for image in x]))


@families
@fewer
@given(**sizes)
@torch.no_grad()
def test_memory_format_of_the_images_changes_nothing(family, height, width, seed):
    model, x = network(family), images(seed, height, width)
    expected = model(x)
    assert_same(model(x.contiguous(memory_format=torch.channels_last)), expected, 1e-10)
    assert_same(model(x.transpose(2, 3).contiguous().transpose(2, 3)), expected, 1e-10)


@families
@fewer
@given(**sizes)
@torch.no_grad()
def test_memory_format_of_the_maps_changes_nothing(family, height, width, seed):
    """The stages take contiguous maps, too, though the network itself hands on channels_last ones."""
    model, x = network(family), images(seed, height, width)
    stem = model.stem(x.contiguous(memory_format=torch.channels_last))
    assert_same(model.stages(stem.contiguous()), model.stages(stem), 1e-5)
    assert_same(model.stem(x.contiguous()), stem, 1e-5)


# ---- features -----------------------------------------------------------------------------------


@families
@fewer
@given(**sizes, indices=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(sorted))
@torch.no_grad()
def test_every_way_to_features_gives_the_same_maps(family, height, width, seed, indices):
    model, x = network(family), images(seed, height, width)
    last, maps = model.forward_intermediates(x)
    assert_same(last, model.forward_features(x))
    assert_same(model.forward_head(last), model(x))

    some = model.forward_intermediates(x, indices, stop_early=True, intermediates_only=True)
    rows = model.forward_intermediates(x, indices, output_fmt="NHWC", intermediates_only=True)
    for i, tap, row in zip(indices, some, rows, strict=True):
        assert_same(tap, maps[i])
        assert_same(row, maps[i].permute(0, 2, 3, 1))
    normed = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
    assert_same(normed[0], last)

    options = {"depths": (1, 1, 2, 2), **NARROW[family], "features_only": True, "out_indices": indices}
    tapped = timm.create_model(SMALLEST[family], **options).double().eval()
    own = tapped.model.state_dict()
    tapped.model.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
    for i, tap in zip(indices, tapped(x), strict=True):
        assert_same(tap, maps[i])


@families
@torch.no_grad()
def test_pruned_networks_keep_their_maps_and_norms(family):
    """Out norms of stages that nobody asks for go, the others stay."""
    model, x = copy.deepcopy(network(family, out_norms=True)), images(0, 65, 70)
    expected = model.forward_intermediates(x, [0, 2], intermediates_only=True)
    plain = network(family).forward_intermediates(x, [0, 2], intermediates_only=True)
    assert (expected[1] - plain[1]).abs().max() > 1e-3
    take = model.prune_intermediate_layers([0, 2])
    assert take == [0, 2]
    assert [isinstance(norm, nn.Identity) for norm in model.out_norms] == [False, True, False, True]
    assert len(model.stages) == 3
    for ours, theirs in zip(model.forward_intermediates(x, take, intermediates_only=True), expected, strict=True):
        assert_same(ours, theirs)
    assert_same(model(x), model.stages(model.stem(x)))  # no norm and no head behind the last stage left


# ---- stochastic depth and recomputation -----------------------------------------------------------


def only_drop_path_trains(model: nn.Module) -> nn.Module:
    """Evaluation mode but for stochastic depth, which is the only randomness left."""
    for module in model.eval().modules():
        if isinstance(module, DropPath):
            module.train()
    return model


@families
def test_drop_path_rests_at_rate_0_and_in_evaluation(family):
    x = images(0, 47, 61)
    never = outputs_and_gradients(copy.deepcopy(network(family)), x)
    off = outputs_and_gradients(only_drop_path_trains(copy.deepcopy(network(family, drop_path_rate=0.0))), x)
    resting = copy.deepcopy(network(family, drop_path_rate=0.5))
    assert_same_step(off, never)
    assert_same_step(outputs_and_gradients(resting, x), never)
    acting = outputs_and_gradients(only_drop_path_trains(resting), x)
    assert (acting[0] - never[0]).abs().max() > 1e-6


@families
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_recomputation_leaves_outputs_and_gradients(family, drop_path_rate):
    """Also in training, where it must drop the same paths again."""
    for size in ((64, 64), (47, 61)):
        model, x = copy.deepcopy(network(family, drop_path_rate=drop_path_rate)), images(1, *size)
        model.train()
        kept = outputs_and_gradients(model, x, seed=5)
        model.set_grad_checkpointing()
        assert all(stage.grad_checkpointing for stage in model.stages)
        assert_same_step(outputs_and_gradients(model, x, seed=5), kept)
        model.set_grad_checkpointing(False)
        assert not any(stage.grad_checkpointing for stage in model.stages)


# ---- graphs -------------------------------------------------------------------------------------


@families
def test_scripted_networks_give_the_same_outputs_and_gradients(family):
    model = copy.deepcopy(network(family))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    for size in ((64, 64), (33, 47)):
        x = images(2, *size)
        expected = outputs_and_gradients(model, x)
        for _ in range(2):  # the second run is the optimised one
            assert_same_step(outputs_and_gradients(scripted, x), expected)


def assert_same_compiled(family: str, backend: str, *sizes: tuple[int, int]) -> None:
    model = copy.deepcopy(network(family))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    try:
        for size in sizes:
            x = images(3, *size)
            assert_same_step(outputs_and_gradients(compiled, x), outputs_and_gradients(model, x), 1e-8)
    finally:
        torch._dynamo.reset()  # compiled code and its caches stay out of the other tests


@pytest.mark.slow
@families
def test_traced_gradients_are_those_of_the_network(family):
    assert_same_compiled(family, "aot_eager", (64, 64), (33, 47))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@families
def test_compiled_networks_give_the_same_outputs_and_gradients(family):
    assert_same_compiled(family, "inductor", (33, 47))
