import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.layers import (
    attention,
    check_choice,
    check_divides,
    pad_to_multiple,
    per_stage,
    round_up,
    window_key_mask,
    window_partition,
    window_reverse,
)

side = st.integers(1, 20)


@given(side, side, st.integers(1, 8))
def test_padding_is_zero_at_the_bottom_and_right(height, width, multiple):
    x = torch.ones(2, height, width, 3)
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[1] == round_up(height, multiple)
    assert padded.shape[2] == round_up(width, multiple)
    assert 0 <= padded.shape[1] - height < multiple
    assert torch.equal(padded[:, :height, :width], x)
    assert padded.sum() == x.sum()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7), st.integers(1, 3))
def test_windows_hold_their_tokens_in_row_major_order_and_come_back(rows, cols, m, batch):
    x = torch.arange(batch * rows * m * cols * m * 2).reshape(batch, rows * m, cols * m, 2)
    windows = window_partition(x, m)
    assert windows.shape == (batch * rows * cols, m * m, 2)
    for i in range(rows):
        for j in range(cols):
            block = x[0, i * m : (i + 1) * m, j * m : (j + 1) * m].reshape(m * m, 2)
            assert torch.equal(windows[i * cols + j], block)
    assert torch.equal(window_reverse(windows, m, rows * m, cols * m), x)


@given(side, side, st.integers(1, 8))
def test_the_key_mask_marks_the_padding(height, width, m):
    real = window_partition(pad_to_multiple(torch.ones(1, height, width, 1), m), m)[..., 0]
    mask = window_key_mask(height, width, m, torch.device("cpu"))
    assert torch.equal(mask, real.bool())
    assert mask.any(1).all()  # no window is made of padding only


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention(masked):
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    mask = torch.rand(5, 7) > 0.3 if masked else None
    logits = q @ k.transpose(-1, -2) * 8**-0.5
    if mask is not None:
        mask[:, 0] = True
        logits = logits.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attention(q, k, v, mask), logits.softmax(-1) @ v)
    torch.testing.assert_close(attention(q, k, v, mask, scale=8**-0.5 / 2), (logits / 2).softmax(-1) @ v)


def test_options_name_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"fusion='sum' is not allowed; choose one of 'pafm', 'fc'"):
        check_choice("fusion", "sum", ("pafm", "fc"))
    with pytest.raises(ValueError, match=r"depths=\(1, 2\) has 2 entries; give one value or 4"):
        per_stage("depths", (1, 2))
    with pytest.raises(ValueError, match="embed_dims=10 must be a multiple of num_heads, which is 4"):
        check_divides("embed_dims", 10, 4, "num_heads")
    assert per_stage("mlp_ratios", 4) == (4, 4, 4, 4)
    assert per_stage("depths", [1, 2, 3, 4]) == (1, 2, 3, 4)
