"""Formulas of token mixers against the counts of real modules, over random sizes."""

import random
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrail.flops.counting import Counts, count
from vitrail.flops.mixers import EXAMPLE, FORMULAS, HEADS, PROPERTIES, count_mixer, count_weights
from vitrail.models.mixers import MIXERS

DOCS = Path(__file__).parents[2] / "docs"


class SpatialMLP(nn.Module):
    """One matrix over all positions, the same for every channel."""

    def __init__(self, tokens):
        super().__init__()
        self.mix = nn.Linear(tokens, tokens, bias=False)

    def forward(self, x):
        return self.mix(x.flatten(2)).view_as(x)


def counted(name, size, heads):
    """Multiply-adds and weights of a real module."""
    height, width, dim = size
    if name in MIXERS:
        return count_mixer(name, size, heads)
    if name == "partial_executed":
        return count_mixer("partial", size, heads, as_written=False)
    with torch.device("meta"):
        module = SpatialMLP(height * width) if name == "spatial_mlp" else nn.Conv2d(dim, dim, 3, padding=1)
    found = sum(count(module.eval(), (dim, height, width)).values(), Counts())
    return found.conv + found.linear + found.matmul, count_weights(module)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_the_count_of_its_module(name):
    draw = random.Random(name)
    for _ in range(4):
        heads = draw.choice([1, 2, 4])
        # sides that windows of 7 and cells of 8 divide, more than one window
        size = (56 * draw.randint(1, 2), 56 * draw.randint(1, 2), heads * 8 * draw.randint(1, 6))
        found = FORMULAS[name]
        assert (found.macs(*size, heads), found.weights(*size, heads)) == counted(name, size, heads), (size, heads)


def test_the_example_of_the_thesis():
    found = {name: round(formula.macs(*EXAMPLE, HEADS) / 1e6, 2) for name, formula in FORMULAS.items()}
    assert found == {
        "convolution": 115.61,
        "depthwise": 9.83,
        "spatial_mlp": 629.41,
        "global": 1310.2,
        "window": 71.05,
        "spatial_reduction": 58.61,
        "mat": 99.24,
        "partial": 40.11,
        "partial_executed": 5.0,
    }
    assert FORMULAS["spatial_mlp"].weights(*EXAMPLE, HEADS) == 9_834_496


def test_every_mixer_of_the_papers_is_in_the_table():
    of_papers = {name for name, kind in MIXERS.items() if kind.family not in ("", "own")}
    assert of_papers == set(PROPERTIES) | {"mat", "partial"}


def test_the_page_is_what_its_generator_writes():
    page = runpy.run_path(str(DOCS / "papers.py"))["mixers_page"]
    assert (DOCS / "papers" / "mixers.md").read_text(encoding="utf-8") == page()
