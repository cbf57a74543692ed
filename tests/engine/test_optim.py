import math
from itertools import pairwise

import pytest
import torch

import vitrail
from vitrail.checkpoint.initialize import is_classifier
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.optim import build_optimizer, build_schedule, param_groups, peak_lr, run_steps
from vitrail.errors import UserError
from vitrail.factory import assemble

TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "num_classes": 5}

TINY_DEPTHS = {"depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def mat():
    return vitrail.create_model("mat_1", **TINY)


def rates(steps, lr=1.0, epochs=10, per_epoch=10, iterations=None, **optim):
    config = TrainConfig(lr=lr, epochs=epochs, iterations=iterations, optim=OptimConfig(**optim))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr(config))
    schedule = build_schedule(optimizer, config, per_epoch)
    found = []
    for step in steps:
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_first_step_has_the_warmup_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    build_schedule(optimizer, TrainConfig(lr=1.0, optim=OptimConfig(warmup_epochs=2, warmup_lr=0.125)), 10)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_cosine_at_closed_form_points():
    optim = {"schedule": "cosine", "warmup_epochs": 2, "warmup_lr": 0.1, "min_lr": 0.05}
    steps = (0, 10, 19, 20, 50, 75, 100)
    expected = [0.1, 0.1 + 0.9 * 10 / 20, 0.1 + 0.9 * 19 / 20]
    expected += [0.05 + 0.95 * (1 + math.cos(math.pi * n / 100)) / 2 for n in steps[3:]]
    assert rates(steps, **optim) == pytest.approx(expected)
    assert rates([50], **optim)[0] == pytest.approx(0.525)


def test_cooldown_stays_at_the_end():
    found = rates([79, 80, 99], schedule="cosine", warmup_epochs=0, min_lr=0.01, cooldown_epochs=2)
    assert found[1:] == [0.01, 0.01]
    assert found[0] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 79 / 80)) / 2)


def test_steps_fall_on_the_epochs_named():
    found = rates([0, 29, 30, 59, 60, 99], schedule="step", warmup_epochs=0, decay_epochs=[6, 3], decay_rate=0.1)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_after_warmup():
    found = rates([0, 5, 10, 99], schedule="constant", warmup_epochs=1, warmup_lr=0.0, decay_epochs=[2])
    assert found == pytest.approx([0, 0.5, 1, 1])


def test_warmup_takes_at_most_half_of_a_short_run():
    assert rates([5], epochs=1, warmup_epochs=5, warmup_lr=0.0, schedule="constant") == [1.0]


def test_a_run_of_iterations_ends_its_schedule_there():
    # 37 iterations of 10 steps an epoch: the warm-up, too, is counted in them
    optim = {
        "schedule": "poly",
        "power": 1.0,
        "warmup_epochs": None,
        "warmup_iterations": 4,
        "warmup_lr": 0.2,
        "min_lr": 0.0,
    }
    found = rates([0, 2, 4, 20, 36, 37], epochs=None, iterations=37, **optim)
    assert found == pytest.approx([0.2, 0.6, *(1 - n / 37 for n in (4, 20, 36)), 0.0])
    assert rates([7], epochs=None, iterations=8, **{**optim, "warmup_iterations": 500})[0] == pytest.approx(1 / 8)
    assert run_steps(TrainConfig(epochs=None, iterations=37), 10) == 37
    assert run_steps(TrainConfig(epochs=3), 10) == 30


def test_a_cooldown_as_long_as_the_iterations_is_refused():
    with pytest.raises(UserError, match=r"cooldown_epochs 4\.0.*leaves nothing of --iterations 37"):
        rates([0], epochs=None, iterations=37, cooldown_epochs=4.0)


def test_rate_grows_with_the_batch():
    assert peak_lr(TrainConfig(lr=5e-4, batch_size=1024, optim=OptimConfig(lr_base_batch=512))) == 1e-3
    assert peak_lr(TrainConfig(lr=5e-4, batch_size=1024)) == 5e-4


def named_groups(model, **optim):
    groups = param_groups(model, OptimConfig(**optim), lambda name: is_classifier(name, model))
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in groups:
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group.get("lr_scale", 1.0), group["weight_decay"])
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def test_biases_norms_and_exempt_names_have_no_weight_decay(mat):
    groups = named_groups(mat, weight_decay=0.1)
    spared = mat.no_weight_decay()
    for name, p in mat.named_parameters():
        assert groups[name] == (1.0, 0.0 if p.ndim <= 1 or name in spared else 0.1), name


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_everything_decays_where_asked(mat, layer_decay):
    usual = named_groups(mat, weight_decay=0.1, layer_decay=layer_decay)
    groups = named_groups(mat, weight_decay=0.1, layer_decay=layer_decay, decay_norms=True)
    assert groups == {name: (scale, 0.1) for name, (scale, _) in usual.items()}


def test_layer_decay_is_a_power_of_the_depth(mat):
    groups = named_groups(mat, layer_decay=0.5)
    head = next(name for name in groups if is_classifier(name, mat))
    assert groups[head][0] == 1.0
    blocks = [
        next(scale for name, (scale, _) in groups.items() if name.startswith(prefix))
        for prefix in ("stem", "stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1", "stages.2.blocks.0")
    ]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == len(blocks)
    assert all(math.log2(scale) == round(math.log2(scale)) for scale, _ in groups.values())
    assert blocks[3] == 2 * blocks[2]  # neighbours in one stage


def test_backbone_scale_spares_the_classifier(mat):
    plain = named_groups(mat, layer_decay=0.5)
    scaled = named_groups(mat, layer_decay=0.5, backbone_lr_scale=0.1)
    for name, (scale, decay) in plain.items():
        factor = 1.0 if is_classifier(name, mat) else 0.1
        assert scaled[name] == (pytest.approx(scale * factor), decay)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
def test_every_optimiser_steps_with_its_settings(mat, name):
    config = TrainConfig(lr=0.1, optim=OptimConfig(optimizer=name, backbone_lr_scale=0.1, momentum=0.8))
    optimizer = build_optimizer(mat, config, lambda n: is_classifier(n, mat))
    schedule = build_schedule(optimizer, config, 10)
    schedule.step_update(20)  # the end of warm-up
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {
        round(x, 6) for x in (rates([20], lr=0.1, epochs=16, min_lr=1e-5)[0] * f for f in (1, 0.1))
    }
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8
    mat(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


UNDECAYED = ["pslt_tiny", "mat_1", "partialformer_b0", "lvt", "emsnet_xxtiny", "pale_tiny"]
UNDECAYED += ["swin_tiny_patch4_window7_224", "convnext_atto", "mvitv2_tiny"]
UNDER = {"retinanet": {}, "sparse_rcnn": {"num_stages": 1}, "ssdlite": {}, "semantic_fpn": {}, "bnneck": {}}


@pytest.mark.parametrize("name", UNDECAYED)
def test_what_a_network_says_of_itself_holds_under_every_head(name):
    """Weight decay and layer decay of the network's tensors are those of classification."""
    with torch.device("meta"):
        alone = vitrail.create_model(name, num_classes=3)
    plain = named_groups(alone, weight_decay=0.05)
    layers = named_groups(alone, layer_decay=0.5)
    spared = {n for n, p in alone.named_parameters() if p.ndim > 1 and not plain[n][1]}
    assert bool(spared) == (name not in ("emsnet_xxtiny", "pale_tiny", "convnext_atto"))
    for head, options in UNDER.items():
        with torch.device("meta"):
            model = assemble(name, head, {}, options)
        prefix = model.backbone_network()[0]
        groups = named_groups(model, weight_decay=0.05)
        own = [n for n in groups if n.startswith(prefix)]
        assert len(own) > 10
        assert {n: groups[n][1] for n in own} == {n: plain[n.removeprefix(prefix)][1] for n in own}
        decayed = named_groups(model, layer_decay=0.5)
        assert {scale for n, (scale, _) in decayed.items() if not n.startswith(prefix)} == {1.0}
        order = sorted(own, key=lambda n: decayed[n][0])
        for a, b in pairwise(order):  # the same layers in the same order, whose last may be the head's own
            ours = decayed[b][0] / decayed[a][0]
            theirs = layers[b.removeprefix(prefix)][0] / layers[a.removeprefix(prefix)][0]
            assert ours == theirs or decayed[b][0] == 1.0, (head, a, b)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_blocks_are_computed_again_in_backward_under_a_head(head):
    model = assemble("mat_1", head, TINY_DEPTHS)
    model.set_grad_checkpointing()
    stages = model.backbone_network()[1].stages
    assert all(stage.grad_checkpointing for stage in stages)
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in stages)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum"])
def test_a_fused_step_is_the_optimisers_step(name):
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 3)
        config = TrainConfig(lr=0.1, optim=OptimConfig(optimizer=name, fused=fused))
        optimizer = build_optimizer(model, config, lambda name: False)
        assert [bool(group["fused"]) for group in optimizer.param_groups] == [fused] * len(optimizer.param_groups)
        for _ in range(3):
            model(torch.randn(4, 7)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(model.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
