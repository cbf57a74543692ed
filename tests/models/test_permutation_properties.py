"""Mixers that know no position: windows, groups or tokens that change places take their outputs along."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import (
    DIM,
    MIXERS,
    assert_same,
    counts,
    emsnet_mixer,
    fewer,
    mixer,
    quick,
    random_map,
    randomise,
    seeds,
)
from torch import Tensor

from vitrail.models.emsnet import GlobalAttention
from vitrail.models.lvt import RASA
from vitrail.models.mat import TOKEN_MERGES, MatAttention, WindowAttention
from vitrail.models.pale import PaleAttention
from vitrail.models.pslt import LadderAttention


def moved(x: Tensor, order: list[int], height: int, width: int) -> Tensor:
    """The map cut into tiles of `height` x `width`, and tile `order[i]` put at place i, row by row."""
    cols = x.shape[3] // width
    tiles = [tile for band in x.split(height, 2) for tile in band.split(width, 3)]
    bands = [[tiles[i] for i in order[start : start + cols]] for start in range(0, len(order), cols)]
    return torch.cat([torch.cat(band, 3) for band in bands], 2)


def shuffled(number: int, seed: int) -> list[int]:
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()


def assert_moves_tiles(net: torch.nn.Module, x: Tensor, tile: tuple[int, int], seed: int) -> None:
    net = randomise(net)
    order = shuffled(x.shape[2] // tile[0] * (x.shape[3] // tile[1]), seed)
    assert_same(net(moved(x, order, *tile)), moved(net(x), order, *tile))


tiles = {"rows": counts, "cols": counts, "m": st.integers(1, 4), "seed": seeds}


# ---- windows and patches --------------------------------------------------------------------------------------------


@quick
@given(**tiles, delivered=st.booleans())
def test_unshifted_windows_may_change_places(rows, cols, m, seed, delivered):
    net = randomise(LadderAttention(4, 2, m + 1, delivered=delivered))
    x, value = (random_map(seed + i, rows * (m + 1), cols * (m + 1), dim=4) for i in range(2))
    order = shuffled(rows * cols, seed)

    def move(t):
        return moved(t, order, m + 1, m + 1)

    given_too = [value] if delivered else []
    assert_same(net(move(x), *(move(v) for v in given_too)), move(net(x, *given_too)))


@quick
@given(**tiles, merge=st.sampled_from(("none", *TOKEN_MERGES)))
def test_windows_of_mat_may_change_places(rows, cols, m, seed, merge):
    """Abstract tokens know no position either: they carry the same between windows wherever these lie."""
    net = WindowAttention(4, 2, m) if merge == "none" else MatAttention(4, 2, m, token_merge=merge)
    assert_moves_tiles(net, random_map(seed, rows * m, cols * m, dim=4), (m, m), seed)


@quick
@given(**tiles)
def test_cells_of_reduced_keys_may_change_places(rows, cols, m, seed):
    net = RASA(4, 2, m, atrous_rates=(), recursions=2)
    assert_moves_tiles(net, random_map(seed, rows * m, cols * m, dim=4), (m, m), seed)


@quick
@given(**tiles)
def test_patches_of_the_global_branch_may_change_places(rows, cols, m, seed):
    options = {"static_ops": (), "dynamic_ops": ("gmhsa",), "patch_sizes": (2, 4, 4, m)}
    x = random_map(seed, rows * m, cols * m)
    assert_moves_tiles(emsnet_mixer(**options), x, (m, m), seed)


@quick
@given(rows=counts, cols=counts, seed=seeds, kind=st.sampled_from(("pale global", "full", "emsnet tokens")))
def test_tokens_of_global_attention_may_change_places(rows, cols, seed, kind):
    nets = {"pale global": PaleAttention(DIM, 2, "global", qkv_kernel=0), "emsnet tokens": GlobalAttention(DIM, 2)}
    net = {**nets, "full": MIXERS["full"]()}[kind]
    assert_moves_tiles(net, random_map(seed, rows, cols), (1, 1), seed)


@quick
@given(**tiles, by=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
def test_maps_may_roll_by_whole_windows(rows, cols, m, seed, by):
    x = random_map(seed, rows * (m + 1), cols * (m + 1), dim=4)
    for net in (LadderAttention(4, 2, m + 1), WindowAttention(4, 2, m + 1), MatAttention(4, 2, m + 1)):
        net = randomise(net)
        by_pixels = [(m + 1) * steps for steps in by]
        assert_same(net(x.roll(by_pixels, (2, 3))), net(x).roll(by_pixels, (2, 3)))


@quick
@given(rows=counts, cols=counts, m=st.integers(2, 5), shift=st.integers(1, 4), seed=seeds)
def test_whole_windows_of_a_shifted_grid_are_those_of_a_map_that_begins_there(rows, cols, m, shift, seed):
    shift = shift % m or 1
    net = randomise(LadderAttention(4, 2, m, shift))
    x = random_map(seed, (rows + 1) * m, (cols + 1) * m, dim=4)
    inner = (..., slice(shift, shift + rows * m), slice(shift, shift + cols * m))
    net_there = randomise(LadderAttention(4, 2, m))
    assert_same(net(x)[inner], net_there(x[inner]))


# ---- groups of rows and columns -------------------------------------------------------------------------------------


def regrouped(x: Tensor, number: int, order: list[int], axis: int) -> Tensor:
    """Rows (axis 2) or columns (axis 3) of interlaced group `order[i]` put where those of group i lay."""
    index = torch.arange(x.shape[axis]).reshape(-1, number)[:, order].flatten()
    return x.index_select(axis, index)


def pale_mixer(name: str, size: tuple[int, int]) -> torch.nn.Module:
    return randomise(PaleAttention(8, 4, name, size, qkv_kernel=0))


pales = {"n_r": counts, "n_c": counts, "size": st.tuples(st.integers(1, 3), st.integers(1, 3)), "seed": seeds}


@quick
@given(**pales, name=st.sampled_from(("parallel", "sequential")))
def test_interlaced_groups_may_change_places(n_r, n_c, size, seed, name):
    net, x = pale_mixer(name, size), random_map(seed, n_r * size[0], n_c * size[1], dim=8)

    def move(t):
        return regrouped(regrouped(t, n_r, shuffled(n_r, seed), 2), n_c, shuffled(n_c, seed + 1), 3)

    assert_same(net(move(x)), move(net(x)))


@quick
@given(**pales)
def test_whole_pales_may_change_places(n_r, n_c, size, seed):
    net, x = pale_mixer("vanilla", size), random_map(seed, n_r * size[0], n_r * size[1], dim=8)
    order = shuffled(n_r, seed)

    def move(t):
        return regrouped(regrouped(t, n_r, order, 2), n_r, order, 3)

    assert_same(net(move(x)), move(net(x)))


@quick
@given(**pales, name=st.sampled_from(("parallel", "sequential", "axial", "vanilla")), by=st.integers(-5, 5))
def test_maps_of_full_interlaced_groups_may_roll_by_any_step(n_r, n_c, size, seed, name, by):
    n_c = n_r if name == "vanilla" else n_c
    net, x = pale_mixer(name, size), random_map(seed, n_r * size[0], n_c * size[1], dim=8)
    by = (by, by) if name == "vanilla" else (by, 2 * by)  # a whole pale rolls as one
    assert_same(net(x.roll(by, (2, 3))), net(x).roll(by, (2, 3)))


@quick
@given(**pales)
def test_stripes_may_change_places(n_r, n_c, size, seed):
    x = random_map(seed, n_r * size[0], n_c * size[1], dim=8)
    down, across = shuffled(n_r, seed), shuffled(n_c, seed + 1)

    def move(t):
        return moved(moved(t, down, size[0], t.shape[3]), across, t.shape[2], size[1])

    net = pale_mixer("cross_shaped", size)
    assert_same(net(move(x)), move(net(x)))


def test_stripes_are_no_interlaced_groups():
    """The two tests of groups tell them apart: adjacent rows that leave their stripe change the result."""
    x = random_map(0, 4, 4, dim=8)
    for name, keeps in (("parallel", True), ("cross_shaped", False)):
        net = pale_mixer(name, (2, 2))
        rolled = net(x.roll((1, 0), (2, 3)))
        assert torch.allclose(rolled, net(x).roll((1, 0), (2, 3))) == keeps


# ---- images of a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXERS)
@fewer
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=seeds)
def test_images_of_a_batch_may_change_places_and_do_not_meet(name, height, width, seed):
    net, x = mixer(name), random_map(seed, height, width, batch=3)
    out = net(x)
    assert_same(net(x.flip(0)), out.flip(0))
    assert_same(net(x[1:2]), out[1:2])


@pytest.mark.parametrize("name", MIXERS)
@fewer
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=seeds)
def test_memory_format_of_a_mixers_map_changes_nothing(name, height, width, seed):
    net, x = mixer(name), random_map(seed, height, width)
    formats = (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3))
    for same in formats:
        assert_same(net(same), net(x), 1e-10)
    # in float32, too, and on channels that lie apart
    net, apart = net.float(), torch.randn(2, height, width, 2 * DIM)[..., ::2].permute(0, 3, 1, 2)
    assert_same(net(apart), net(apart.contiguous()), 1e-5)
