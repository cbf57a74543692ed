import timm
import torch

import vitrail
from vitrail.models import catalog


def test_a_network_is_the_sum_of_its_parts():
    model = timm.create_model("mat_1", num_classes=10)
    found = vitrail.profile(model, (3, 64, 96))
    children = [m for name, m in found.by_module.items() if name and "." not in name]
    assert found.macs == found.by_module[""].macs == sum(m.macs for m in children)
    assert found.params == sum(p.numel() for p in model.parameters()) == sum(m.params for m in children)
    assert next(model.parameters()).device.type == "cpu"  # the network itself is left alone


def test_names_that_begin_alike_are_told_apart():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(11)))
    assert vitrail.profile(model, (4,)).by_module["1"].macs == 16


def test_executed_is_what_the_catalogue_lists():
    entry = next(e for e in catalog.catalog() if e.name == "partialformer_b0")
    executed = vitrail.profile(timm.create_model("partialformer_b0", device="meta"))
    assert round(executed.macs / 1e9, 4) == entry.gmacs
    written = vitrail.profile(timm.create_model("partialformer_b0", device="meta"), rule="fvcore_default")
    assert written.macs > 1.1 * executed.macs


def test_any_network_of_timm_is_counted():
    found = vitrail.profile(timm.create_model("resnet18"), (3, 224, 224))
    assert round(found.macs / 1e9, 2) == 1.81
    assert "layer1" in found.tree(1)
    assert "layer1" not in found.tree(0)


def test_half_precision_networks_are_counted_as_they_are():
    model = timm.create_model("emsnet_xxtiny", dtype=torch.bfloat16, device="meta")
    assert vitrail.profile(model).params == 2_569_370
