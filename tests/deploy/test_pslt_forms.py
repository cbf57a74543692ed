"""Export forms of PSLT: the same values as the module's own, whatever its options and the size of the map."""

from itertools import product

import pytest
import torch
from export_helpers import weights_of
from torch import nn

from vitrail.config.export import ExportOptions
from vitrail.deploy import export_network
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.forms.pslt import WindowBatchLadderAttention
from vitrail.deploy.export.trace import Graph, Shape, trace
from vitrail.models.pslt import LadderAttention


def random_attention(**options) -> LadderAttention:
    """An attention of two heads of width 4 in windows of 3, all weights and biases random, in float64."""
    attn = LadderAttention(8, 2, window_size=3, dtype=torch.float64, **options).eval()
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attn


def form_of(attn: nn.Module) -> nn.Module:
    """The form that OpenVINO files have, on the same weights."""
    form = BACKENDS["openvino"].in_form(nn.Sequential(attn))[0]
    assert type(form) is WindowBatchLadderAttention
    assert [p.data_ptr() for p in form.parameters()] == [p.data_ptr() for p in attn.parameters()]
    return form


@pytest.mark.parametrize(("delivered", "pad", "masked"), [*product((False, True), ("tight", "paper"), (True, False))])
def test_windows_as_the_batch_change_no_value(delivered, pad, masked):
    for shift in (0, 1, -1):
        attn = random_attention(shift=shift, delivered=delivered, pad_mode=pad, mask_padding=masked)
        form = form_of(attn)
        for size in ((6, 9), (7, 5), (3, 3), (2, 3), (4, 2)):
            x, value = torch.randn(2, 2, 8, *size, dtype=torch.float64)
            inputs = (x, value) if delivered else (x,)
            torch.testing.assert_close(form(*inputs), attn(*inputs), rtol=1e-12, atol=1e-12)


def test_windows_as_the_batch_with_a_free_size():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), random_attention(shift=1).float())
    form = nn.Sequential(network[0], form_of(network[1]))
    program = trace(Graph(form), Shape(None, (9, 9), free_size=True))
    for batch, size in ((3, (6, 9)), (1, (7, 5)), (2, (2, 3))):
        x = torch.randn(batch, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(program.module(check_guards=False)(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_network_in_its_form_agrees_with_pytorch(tmp_path):
    options = ExportOptions("openvino", str(tmp_path / "a.xml"), dynamic="batch")
    made = export_network(weights_of("pslt_tiny", tmp_path), options)
    assert max(check.relative for check in made.checks) < 2e-6
