"""The width of a budget: nearest among its neighbours, counted again independently, never silently unequal."""

import itertools
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.benchmark.speed import Timing
from vitrail.errors import UserError
from vitrail.lab import Candidate, budget, cost, latencies, register_mixer, scaled
from vitrail.lab.budget import width_steps, widths, with_widths

SHALLOW = {"depths": [1, 1, 1, 1], "stem_stride": 2}
SIZE = (16, 16)


def plain(mixer, **options):
    return Candidate(mixer, "lab_plain", {**SHALLOW, "mixer": mixer, **options})


def at(candidate, equal, amount, **options):
    return scaled(candidate, equal=equal, budget=amount, image_size=SIZE, num_classes=7, **options)


def params(candidate, dims):
    """Counted from a network that timm builds."""
    options = {name: value for name, value in candidate.model_options.items() if name != "width"}
    network = timm.create_model(candidate.model, **{**options, "embed_dims": dims, "num_classes": 7}, device="meta")
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def macs(candidate):
    """PyTorch's own count of a real pass."""
    network = candidate.build(7).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, *SIZE))
    return counter.get_total_flops() / 2


# ---- widths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixer", "steps"),
    [("identity", (4, 4, 4, 8)), ("ladder", (12, 12, 12, 24)), ("ems", (8, 8, 16, 32)), ("ems_dynamic", (4, 4, 8, 16))],
)
def test_steps_follow_from_what_divides_a_width(mixer, steps):
    # heads 1, 2, 4, 8; ladder: 3 branches of 1, 1, 1, 2 heads; EMS: 2 branches of 2 attentions and heads each
    assert width_steps(plain(mixer)) == steps


def test_steps_of_a_papers_network():
    # heads of 8, 4 branches with 1 and 2 heads each, inverted residuals
    options = {"embed_dims": [24, 24, 48, 96], "num_heads": [0, 0, 2, 4], "num_branches": 3, "depths": [1, 1, 1, 1]}
    assert width_steps(Candidate("a", "pslt_tiny", options)) == (4, 4, 12, 12)


def test_widths_replace_the_first_stages():
    candidate = plain("identity", width=16)
    assert widths(candidate) == (16, 32, 64, 128)
    changed = with_widths(candidate, (8, 16, 32, 48))
    assert changed.model_options == {**SHALLOW, "mixer": "identity", "embed_dims": [8, 16, 32, 48]}
    assert widths(changed) == (8, 16, 32, 48)


def test_a_network_without_widths_is_refused():
    with pytest.raises(UserError, match="resnet10t has no option embed_dims"):
        at(Candidate("r", "resnet10t"), "params", 1e6)


# ---- the nearest width ----------------------------------------------------------------------------------------------


@settings(max_examples=3, deadline=None)
@given(mixer=st.sampled_from(["identity", "window", "ladder", "partial"]), amount=st.integers(150_000, 900_000))
def test_the_nearest_number_of_parameters(mixer, amount):
    candidate = plain(mixer)
    found = at(candidate, "params", amount)
    dims = found.candidate.model_options["embed_dims"]
    assert found.reached == params(candidate, dims)
    assert found.error == pytest.approx(found.reached / amount - 1)
    assert found.within == (abs(found.error) <= 0.03)
    # proportions are kept to a step, and no neighbour of the same proportions is nearer
    base, steps = widths(candidate), width_steps(candidate)
    factor = crossing(candidate, amount, base)
    for signs in itertools.product((-1, 0, 1), repeat=4):
        near = [d + sign * s for d, sign, s in zip(dims, signs, steps, strict=True)]
        proportional = all(abs(n - factor * b) < s - 1e-6 for n, b, s in zip(near, base, steps, strict=True))
        if min(near) > 0 and proportional:
            assert abs(params(candidate, near) - amount) >= abs(found.reached - amount), near


def crossing(candidate, amount, base):
    """The factor of all widths at which a smooth network would have as many parameters.

    Parameters are a quadratic in the factor where all widths grow alike.
    """
    (a, b, c) = (params(candidate, [factor * width for width in base]) for factor in (1, 2, 3))
    square = (c - 2 * b + a) / 2
    linear = b - a - 3 * square
    constant = a - square - linear - amount
    return (-linear + math.sqrt(linear**2 - 4 * square * constant)) / (2 * square)


@pytest.mark.parametrize("mixer", ["global", "csa"])
def test_the_nearest_number_of_multiply_adds(mixer):
    found = at(plain(mixer), "macs", 3_000_000)
    assert found.reached == macs(found.candidate)
    assert found.within == (abs(found.error) < 0.03)
    assert abs(found.error) < 0.1


@pytest.mark.parametrize("mixer", ["identity", "mat"])
def test_its_own_budget_gives_the_candidate_itself(mixer):
    candidate = plain(mixer)
    own = cost(candidate, "params", SIZE, 7)
    found = at(candidate, "params", own)
    assert found.error == 0
    assert tuple(found.candidate.model_options["embed_dims"]) == widths(candidate)


def test_a_papers_network_is_scaled():
    candidate = Candidate("full", "mat_1", {"depths": [1, 1, 1, 1], "head_hidden_size": 64, "mixers": "mat"})
    found = at(candidate, "params", 300_000)
    assert found.within
    assert found.candidate.model_options["mixers"] == "mat"
    assert sum(p.numel() for p in found.candidate.build(7).parameters()) == found.reached


# ---- never silently unequal -----------------------------------------------------------------------------------------


def test_what_is_too_small_is_said():
    found = at(plain("global"), "params", 100)
    assert not found.within
    assert "no narrower network of this kind is possible" in found.note
    assert found.reached == params(plain("global"), [4, 4, 4, 8])
    assert found.to_dict()["candidate"]["model_options"]["embed_dims"] == [4, 4, 4, 8]


def test_what_is_too_coarse_is_said():
    found = at(plain("ladder"), "params", 200_000, tolerance=1e-6)
    assert not found.within
    assert "steps of 12, 12, 12, 24 only" in found.note


def test_a_budget_beyond_the_widest_is_said(monkeypatch):
    monkeypatch.setattr(budget, "WIDEST", 2.0)
    found = at(plain("identity"), "params", 1e9)
    assert not found.within
    assert found.error < -0.9


@pytest.mark.parametrize("amount", [0, -3, math.nan, math.inf, True, "1e6"])
def test_impossible_budgets_are_refused(amount):
    with pytest.raises(UserError, match="budget="):
        at(plain("identity"), "params", amount)


def test_an_unknown_kind_of_budget_is_refused():
    with pytest.raises(UserError, match="did you mean params"):
        at(plain("identity"), "param", 1e6)


# ---- a user's own mixer that needs values ---------------------------------------------------------------------------


class Values(nn.Module):
    """Reads values when it is built and when it runs, which nothing on the meta device has."""

    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float(value) for value in torch.ones(dim)]))

    def forward(self, x):
        return x * self.scale[:, None, None] if x.sum().item() else x


@pytest.fixture
def values():
    register_mixer("values", Values)
    return plain("values")


def test_a_mixer_that_needs_values_is_scaled_by_parameters(values):
    # a scale for each channel of each block, besides the floor
    assert cost(values, "params", SIZE, 7) == params(plain("identity"), [24, 48, 96, 192]) + 24 + 48 + 96 + 192
    assert at(values, "params", 200_000).within


def test_its_multiply_adds_cannot_be_counted(values):
    with pytest.raises(UserError, match="Compare by parameters or latency"):
        cost(values, "macs", SIZE, 7)


# ---- measured times -------------------------------------------------------------------------------------------------


def test_times_are_medians_in_ms(monkeypatch):
    seconds = {"identity": 0.004, "pooling": 0.006}

    def measured(forms, rounds):
        assert rounds == 3
        assert torch.get_num_threads() == 1  # as the latency of a laboratory's results
        for form in forms:
            assert form.batch == 2
            assert form.call().shape == (2, 7)
        return [budget_timing(form.name, seconds[form.name]) for form in forms]

    monkeypatch.setattr(budget, "measure", measured)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = latencies([plain("identity"), plain("pooling")], SIZE, 7, batch=2, rounds=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == pytest.approx([4.0, 6.0])


def budget_timing(name, second):
    return Timing(name, 2, seconds=[9.0, second, 0.001])


def test_the_nearest_time(monkeypatch):
    """With times that are exactly proportional to the widths."""
    monkeypatch.setattr(budget, "latencies", lambda candidates, *a, **k: [sum(widths(one)) / 100 for one in candidates])
    found = at(plain("identity"), "latency", 2.5, batch=8)
    assert found.reached == pytest.approx(2.5, abs=0.08)
    assert found.batch == 8
    assert "ms with widths" in found.note


def test_real_times_are_measured():
    assert 0 < cost(plain("identity"), "latency", SIZE, 7, rounds=2) < 5000
