"""The plots of networks: every label finds a free place, and an uncertain number is marked."""

import runpy
from pathlib import Path

import pytest

from vitrail.models.catalog import TOP1_CAVEATS

FIGURES = Path(__file__).parents[1] / "docs" / "figures.py"


@pytest.mark.parametrize("name", ["networks", "tradeoffs"])
def test_a_plot_is_drawn_without_labels_over_each_other(name, tmp_path):
    found = runpy.run_path(str(FIGURES))
    found[name].__globals__["HERE"] = tmp_path
    found[name]()  # raises where a label has no free place
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_uncertain_accuracies_are_marked():
    found = runpy.run_path(str(FIGURES))
    assert {name: found["marked"](name, name) for name in TOP1_CAVEATS} == {name: f"{name}*" for name in TOP1_CAVEATS}
    assert found["marked"]("mat_2", "mat_2") == "mat_2"
    assert found["caveats"](["mat_2", "mat_1"]).startswith("* the row of MAT-1")
