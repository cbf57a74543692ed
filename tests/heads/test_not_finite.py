"""Values that are not finite, as a training that diverges makes them: no crash, and a loss that says so."""

import subprocess
import sys

import pytest
import torch
from detector_helpers import SMALL
from torch.nn import functional as F

from vitrail.heads.common import RegionPool
from vitrail.models.mat import sample_halved

VALUES = [float("nan"), float("inf"), float("-inf")]


def in_a_process(code: str) -> str:
    """What Python prints; a crash of the process is a failure and not the end of the tests."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    return done.stdout


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e30"])
@pytest.mark.parametrize("options", ["{}", "{'offset_range': 1.0}"])
def test_mat_takes_any_weights(value, options):
    code = f"""
import torch, vitrail
torch.manual_seed(0)
model = vitrail.create_model("mat_1", num_classes=3, depths=[1, 1, 1, 1], **{options})
with torch.no_grad():
    for name, p in model.named_parameters():
        if name.endswith("offset_conv.weight"):
            p.fill_({value!r} and float({value!r}))
loss = model(torch.randn(2, 3, 45, 70)).square().mean()
loss.backward()
print(bool(loss.isfinite()))
"""
    finite = in_a_process(code).strip()
    if value == "nan":
        assert finite == "False"


@pytest.mark.parametrize("value", VALUES)
def test_a_place_that_is_nowhere_reads_nan_and_the_others_what_they_did(value):
    x, offset = torch.randn(2, 3, 7, 10), torch.randn(2, 2, 4, 5)
    whole = sample_halved(x, offset)
    offset[0, 0, 1, 2] = offset[1, 1, 3, 4] = value
    found = sample_halved(x, offset)
    nowhere = torch.zeros(2, 4, 5, dtype=torch.bool)
    nowhere[0, 1, 2] = nowhere[1, 3, 4] = True
    assert found.isnan().equal(nowhere[:, None].expand_as(found))
    assert torch.equal(found.masked_fill(nowhere[:, None], 0), whole.masked_fill(nowhere[:, None], 0))


def test_finite_offsets_read_what_pytorch_reads():
    x = torch.randn(2, 3, 8, 6, requires_grad=True)
    offset = torch.randn(2, 2, 4, 3) * 10  # most of them outside
    rows, cols = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij")
    grid_x = (4 * cols + 2 + 2 * offset[:, 0]) / 6 - 1
    grid_y = (4 * rows + 2 + 2 * offset[:, 1]) / 8 - 1
    expected = F.grid_sample(x, torch.stack([grid_x, grid_y], -1), padding_mode="border", align_corners=False)
    found = sample_halved(x, offset)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


@pytest.mark.parametrize("value", VALUES)
def test_a_box_that_is_nowhere_reads_nan(value):
    code = f"""
import torch
from vitrail.heads.common import RegionPool
levels = {{str(i): torch.rand(1, 2, 32 >> i, 32 >> i, requires_grad=True) for i in range(4)}}
boxes = torch.tensor([[3.0, 4, 50, 60], [3, float("{value}"), 50, 60], [float("{value}")] * 4])
pooled = RegionPool(7)(levels, [boxes], [(128, 128)])
pooled.sum().backward()
print(pooled.isnan().flatten(1).all(1).tolist(), pooled[0].isfinite().all().item())
"""
    assert in_a_process(code).strip() == "[False, True, True] True"


def test_finite_boxes_read_what_torchvision_reads():
    from torchvision.ops import MultiScaleRoIAlign

    levels = {str(i): torch.rand(2, 3, 32 >> i, 32 >> i) for i in range(4)}
    boxes = [torch.rand(5, 2) * 60, torch.rand(3, 2) * 60]
    boxes = [torch.cat([own, own + 1 + torch.rand_like(own) * 66], 1) for own in boxes]
    sizes = [(128, 128), (100, 128)]
    expected = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(levels, boxes, sizes)
    assert torch.equal(RegionPool(7)(levels, boxes, sizes), expected)
    assert torch.equal(RegionPool(7).pooled_by_level(levels, boxes), expected)  # as in exported files


def test_regions_of_a_small_image_in_a_large_batch_are_its_own():
    """torchvision guesses the levels' scales from the largest image: here 1/2 to 1/16."""
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)  # its value is the column at stride 4
    levels = {str(i): ramp[..., : 32 >> i, : 32 >> i] for i in range(4)}
    pooled = RegionPool(7)(levels, [torch.tensor([[8.0, 8, 36, 36]])], [(40, 40)])
    assert pooled[0, 0, 0].tolist() == pytest.approx([(8 + 28 * (i + 0.5) / 7) / 4 for i in range(7)])


@pytest.mark.parametrize("kind", [kind.__name__ for kind in SMALL])
@pytest.mark.parametrize("what", ["body", "head"])
def test_a_detector_with_weights_that_are_not_finite_says_so_in_its_loss(kind, what):
    code = f"""
import sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
import torch
import detector_helpers as helpers
kind = next(kind for kind in helpers.SMALL if kind.__name__ == {kind!r})
model = helpers.small(kind)
with torch.no_grad():
    for name, p in model.named_parameters():
        if (".body." in name) == ({what!r} == "body"):
            p.fill_(float("nan"))
losses = model.train()(*helpers.targets())
total = sum(losses.values())
if total.requires_grad:
    total.backward()
print(bool(total.isfinite()))
with torch.no_grad():
    model.eval()([torch.rand(3, 61, 90)])
"""
    assert in_a_process(code).strip() == "False"
