"""Every partition of a map into windows, groups, patches or tokens, and the way back."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import assert_same, counts, fewer, image_sides, network, quick, random_map, seeds, sides
from torch import nn
from torch.nn import functional as F

from vitrail.layers import pad_to_multiple, window_partition
from vitrail.models import mat, pale, pslt
from vitrail.models.emsnet import PatchTokens, Propagate
from vitrail.models.mat import WindowAttention
from vitrail.models.pslt import LadderAttention, inverse_window_index, same_region_mask, shifted_window_index

CPU = torch.device("cpu")
windows = st.integers(1, 5).flatmap(lambda m: st.tuples(st.just(m), st.integers(1 - m, m - 1)))  # side and shift
shifted = {"height": sides, "width": sides, "window": windows}


# ---- PSLT: a cyclic roll is a gather by indices ---------------------------------------------------------------------


@quick
@given(**shifted, seed=seeds)
def test_gathered_windows_are_those_of_the_rolled_map(height, width, window, seed):
    m, shift = window
    x = random_map(seed, height, width, dim=3).permute(0, 2, 3, 1)
    padded = pad_to_multiple(x, m)
    rolled = torch.roll(padded, (-shift, -shift), (1, 2))
    gathered = padded.flatten(1, 2)[:, shifted_window_index(*padded.shape[1:3], m, shift, CPU)]
    assert torch.equal(gathered.reshape(-1, m * m, 3), window_partition(rolled, m))


@quick
@given(**shifted)
def test_every_pixel_comes_back_from_its_place_in_the_windows(height, width, window):
    m, shift = window
    index, inverse = (f(height, width, m, shift, CPU) for f in (shifted_window_index, inverse_window_index))
    assert torch.equal(index[inverse], torch.arange(height * width))
    padding = torch.ones(len(index), dtype=torch.bool).index_fill(0, inverse, False)
    assert not index[padding].any()  # the rest is padding, for which pixel 0 stands in


@quick
@given(size=sides, window=windows, mask_padding=st.booleans())
def test_segments_are_neighbours_of_the_map_inside_one_window(size, window, mask_padding):
    m, shift = window
    padded = -(-size // m) * m
    place = [(p + shift) % padded for p in range(padded)]  # the pixel at every place of the rolled axis
    for number, seen in enumerate(same_region_mask(size, m, shift, mask_padding, CPU)):
        pixels = place[number * m : (number + 1) * m]
        for i, a in enumerate(pixels):
            for j, b in enumerate(pixels):
                near = a - b == i - j  # no jump over the end of the map between them
                assert seen[i, j] == (near and (not mask_padding or (a < size) == (b < size))) or (
                    mask_padding and a >= size and b >= size
                )


def rolled_attention(net: LadderAttention, x: torch.Tensor) -> torch.Tensor:
    """Shifted windows as Swin words them: roll, cut, attend under a mask of regions, put together, roll back."""
    height, width, m, heads = *x.shape[2:], net.window_size, net.num_heads
    shift = net.shift if min(height, width) > m else 0
    qkv = F.conv2d(x, net.qkv.weight, net.qkv.bias)
    rows, cols = -(-height // m) * m, -(-width // m) * m
    across, down = ((torch.arange(side) - shift % m) // m for side in (width, height))
    region = F.pad(100 * down[:, None] + across, (0, cols - width, 0, rows - height), value=10**6)  # padding: its own
    maps = F.pad(qkv, (0, cols - width, 0, rows - height))
    maps, region = (torch.roll(t, (-shift, -shift), (-2, -1)) for t in (maps, region))
    out = torch.zeros_like(maps[:, : x.shape[1]])
    bias = net.relative_position_bias_table[net.relative_position_index].permute(2, 0, 1)
    for i in range(0, rows, m):
        for j in range(0, cols, m):
            cell = (..., slice(i, i + m), slice(j, j + m))
            q, k, v = maps[cell].flatten(2).transpose(1, 2).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            own = region[cell].flatten()
            logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + bias
            logits = logits.masked_fill(own[:, None] != own[None], float("-inf"))
            out[cell] = (logits.softmax(-1) @ v).transpose(2, 3).reshape(len(x), -1, m, m)
    out = torch.roll(out, (shift, shift), (-2, -1))[:, :, :height, :width]
    return F.conv2d(out, net.proj.weight, net.proj.bias)


@quick
@given(height=sides, width=sides, m=st.sampled_from((2, 3, 4)), shift=st.integers(-3, 3), seed=seeds)
def test_shifted_attention_is_that_of_the_rolled_map(height, width, m, shift, seed):
    net = LadderAttention(4, 2, m, shift if abs(shift) < m else 1).double()
    nn.init.normal_(net.relative_position_bias_table)
    x = random_map(seed, height, width, dim=4)
    assert_same(net(x), rolled_attention(net, x))


# ---- MAT: windows of several heads ----------------------------------------------------------------------------------


@quick
@given(height=sides, width=sides, m=st.integers(1, 6), heads=st.sampled_from((1, 2, 4)), seed=seeds)
def test_joining_undoes_splitting_into_windows(height, width, m, heads, seed):
    qkv = random_map(seed, height, width, dim=24).permute(0, 2, 3, 1)
    for attn in (WindowAttention(8, heads, m), WindowAttention(8, heads, m, mask_padding=False)):
        single = attn.mask_padding and height <= m and width <= m
        parts = attn.split(qkv)
        assert parts.shape[3] == (height * width if single else m * m)
        for part, wanted in zip(parts, qkv.chunk(3, dim=3), strict=True):
            assert torch.equal(attn.join(part, height, width), wanted)


# ---- Pale: rows and columns -----------------------------------------------------------------------------------------


@quick
@given(height=sides, width=sides, size=st.integers(1, 6), seed=seeds)
def test_groups_of_rows_hold_their_tokens_row_by_row(height, width, size, seed):
    x = random_map(seed, height, width, dim=3).permute(0, 2, 3, 1)
    number = -(-height // size)
    interlaced = [group for part in pale.split_interlaced(x, size) for group in part.unbind(1)]
    stripes = [group for part in pale.split_stripes(x, size) for group in part.unbind(1)]
    assert len(interlaced) == len(stripes) == number
    for i in range(number):
        assert torch.equal(interlaced[i], x[:, i::number].flatten(1, 2))
        assert torch.equal(stripes[i], x[:, i * size : (i + 1) * size].flatten(1, 2))


@quick
@given(rows=counts, cols=counts, number=st.integers(1, 6), seed=seeds)
def test_pales_come_back_and_meet_in_the_mean(rows, cols, number, seed):
    height, width = rows * number, cols * number
    x = random_map(seed, height, width, dim=3).permute(0, 2, 3, 1)
    pales = pale.split_pales(x, number)
    assert_same(pale.merge_pales(pales, height, width), x)
    # told apart by the pale they lay in, the tokens show which two pales they come from
    named = torch.arange(number, dtype=torch.float64).reshape(1, number, 1, 1).expand(1, -1, pales.shape[2], 1)
    mean = pale.merge_pales(named, height, width)[0, :, :, 0]
    row, col = torch.arange(height)[:, None] % number, torch.arange(width)[None] % number
    assert_same(mean, (row + col).double() / 2)


# ---- patches --------------------------------------------------------------------------------------------------------


def unmerged(merging: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a patch merging writes into its channels, when its layers pass everything on."""
    merging.norm = merging.bn = nn.Identity()
    layer = merging.reduction if hasattr(merging, "reduction") else merging.conv
    with torch.no_grad():
        layer.weight.copy_(torch.eye(12)[:, :, None, None])
        if layer.bias is not None:
            layer.bias.zero_()
    return merging(x)


@quick
@given(height=sides, width=sides, seed=seeds)
def test_merged_patches_come_back(height, width, seed):
    x = random_map(seed, height, width, dim=3)
    padded = F.pad(x, (0, width % 2, 0, height % 2))
    cells = unmerged(pslt.PatchMerging(3, 12).double(), x).unflatten(1, (2, 2, 3))  # column, row, channel
    assert torch.equal(cells.permute(0, 3, 4, 2, 5, 1).flatten(4, 5).flatten(2, 3), padded)
    cells = unmerged(mat.PatchMerging(3, 12).double(), x).unflatten(1, (3, 2, 2))  # channel, row, column
    assert torch.equal(cells.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3), padded)


@quick
@given(height=sides, width=sides, p=st.integers(1, 6), expand=st.integers(1, 3), seed=seeds)
def test_pooling_takes_back_what_was_spread(height, width, p, expand, seed):
    tokens = random_map(seed, -(-height // p), -(-width // p), dim=2 * expand)
    spread = Propagate(2 * expand, 2, p, dtype=torch.float64)(tokens, height, width)
    group_means = tokens.unflatten(1, (2, expand)).mean(2)
    for kind in ("avg", "max"):
        assert_same(PatchTokens(2, 2, p, kind).pool(spread), group_means)


@fewer
@given(height=image_sides, width=image_sides, seed=seeds)
def test_networks_see_every_pixel(height, width, seed):
    """No partition of the stems loses the last rows or columns of an image whose size does not divide."""
    for family in ("pslt", "volo", "pale", "emsnet", "mat", "partialformer"):
        x = random_map(seed, height, width, batch=1, dim=3).requires_grad_()
        (gradient,) = torch.autograd.grad(network(family).stem(x).square().sum(), x)
        assert (gradient.abs().sum(1) > 0).all(), family
