"""The ablations of the families: as the papers' tables say, different networks, trainable on small images."""

import json

import pytest
import torch
from torch.nn import functional as F

from vitrail.errors import UserError
from vitrail.flops.reproduce import read_rows
from vitrail.lab.ablations import FAMILIES, HOSTS, PAPERS_SIDE, ablations, half
from vitrail.lab.budget import width_steps
from vitrail.models import FAMILIES as NETWORKS

families = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_has_ablations():
    assert set(FAMILIES) == set(NETWORKS) - {"volo"}
    for host in HOSTS.values():
        names = ["full", *(row.name for row in host.ablations)]
        assert len(set(names)) == len(names)


@families
def test_they_are_the_papers_rows(family):
    rows = {(row["table"], json.dumps(json.loads(row["options"] or "{}"), sort_keys=True)) for row in read_rows(family)}
    for row in HOSTS[family].ablations:
        options = dict(row.options)
        if options == {"mixers": "cross_shaped"}:
            options["split_size"] = [1, 2, 7, 7]  # the constructor's default, fitted to small images
        assert row.source == "ours" or (row.source, json.dumps(options, sort_keys=True)) in rows, row.name
    assert (family == "partialformer") == all(row.source == "ours" for row in HOSTS[family].ablations)


@families
def test_each_is_another_network(family):
    """The same random numbers as weights give other outputs, also on the smallest images."""
    side = HOSTS[family].least_side
    seen = {}
    for one in ablations(family, (side, side)):
        shallow = {**one.model_options, "depths": [1, 1, 2, 1]}
        network = type(one)(one.name, one.model, shallow).build(3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
            torch.manual_seed(0)  # of the random foreground
            seen[one.name] = network.eval()(torch.randn(2, 3, side, side, generator=generator.manual_seed(1)))
    names = list(seen)
    for i, name in enumerate(names):
        assert seen[name].isfinite().all(), name
        for other in names[i + 1 :]:
            assert not torch.allclose(seen[name], seen[other], rtol=1e-4), (name, other)


@families
def test_a_step_trains_on_the_smallest_images(family):
    side = HOSTS[family].least_side
    network = ablations(family, (side, side))[0].build(3).train()
    out = network(torch.randn(4, 3, side, side))
    F.cross_entropy(out[0] if isinstance(out, tuple) else out, torch.arange(4) % 3).backward()
    # the classifier starts at 0.02, and everything is connected to it
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@families
def test_they_can_be_scaled(family):
    assert len(width_steps(ablations(family)[-1])) == 4


@families
def test_too_small_images_are_refused(family):
    with pytest.raises(UserError, match=f"{family}.*enlarge"):
        ablations(family, (96, 8))


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match="did you mean emsnet"):
        ablations("emsnets")


def test_windows_are_fitted_below_the_papers_size():
    assert [half(side) for side in (1, 2, 3, 8, 14, 20)] == [1, 1, 2, 4, 7, 7]
    assert ablations("mat", (64, 96))[0].model_options["window_size"] == 2
    assert ablations("pslt", (32, 32))[0].model_options["window_size"] == 4  # Table 5's on CIFAR
    assert ablations("pslt", (128, 128))[0].model_options["window_size"] == 4
    assert "stem_stride" not in ablations("pslt", (128, 128))[0].model_options
    assert ablations("pale", (64, 64))[2].model_options["split_size"] == [1, 2, 2, 1]
    assert ablations("pale", (64, 64))[0].model_options["pale_size"] == [7, 4, 2, 1]
    papers = (PAPERS_SIDE, PAPERS_SIDE)
    assert all(ablations(family) == ablations(family, papers) for family in FAMILIES)
