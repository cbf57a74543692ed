import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vitrail.layers import fold3x3, unfold3x3

side = st.integers(1, 12)


def unfolded(x):
    """(B, H, W, C) -> (B, h, w, 9, C) by torch's unfold."""
    batch, height, width, channels = x.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), 3, padding=1, stride=2)
    rows, cols = (height + 1) // 2, (width + 1) // 2
    return columns.reshape(batch, channels, 9, rows, cols).permute(0, 3, 4, 2, 1)


@given(side, side)
def test_windows_are_those_of_unfold(height, width):
    x = torch.randn(2, height, width, 3)
    assert torch.equal(unfold3x3(x), unfolded(x))


@given(side, side)
def test_fold_sums_the_overlaps_as_torchs_fold(height, width):
    windows = torch.randn(2, (height + 1) // 2, (width + 1) // 2, 9, 3, dtype=torch.float64)
    columns = windows.permute(0, 4, 3, 1, 2).reshape(2, 27, -1)
    expected = F.fold(columns, (height, width), 3, padding=1, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(fold3x3(windows, height, width), expected)


@given(side, side)
def test_fold_is_the_adjoint_of_unfold(height, width):
    x = torch.randn(1, height, width, 2, dtype=torch.float64)
    y = torch.randn(1, (height + 1) // 2, (width + 1) // 2, 9, 2, dtype=torch.float64)
    torch.testing.assert_close((unfold3x3(x) * y).sum(), (x * fold3x3(y, height, width)).sum())
