"""The papers' tables as networks to time: their rows, and ratios on a clock that only the networks move."""

import functools
import json
import statistics

import pytest

from vitrail.benchmark import benchmark as bench
from vitrail.benchmark.paper_tables import add_ratios, printed_ratio, rows_of, table_of, tables
from vitrail.benchmark.report import TABLE_COLUMNS, cells_of, columns
from vitrail.benchmark.settings import Settings
from vitrail.benchmark.speed import TimedForm, measure
from vitrail.cli import main

#: full network and rows of the tables whose speed the papers print, with the printed ratios of times (CPU, GPU), or of
#: images a second
PRINTED = {
    "emsnet:3.8": ("EMSNet-XXTiny", {"EMSNet-XTiny": (1.40, 1.33)}),
    "emsnet:3.9": (
        "Channel Splitting / Dynamic branch / +G-MHSA",
        {
            "Baseline: Identity()": (0.66, 0.56),
            "Channel Splitting / Static branch / CoordDW": (0.87, 0.95),
            "Channel Splitting / Dynamic branch / +C-MHSA": (0.91, 0.91),
            "w/o fusion / All": (0.87, 0.95),
            "w/o channel splitting / All": (1.80, 1.91),
        },
    ),
    "mat:4.9": (
        "Token mixers: +MAT Attn",
        {
            "Pure MLP": (0.42,),
            "Token mixers: +Window Attn": (1.00,),
            "Patch embed: 3x3 conv": (0.98,),
            "Patch embed: Patch Merging": (0.88,),
            "Patch embed: Bilinear PE": (1.00,),
        },
    ),
    "pslt:10": ("PSLT-Tiny", {"PSLT": (1.05,), "PSLT-Large": (1.20,)}),
}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_ratios(name):
    table = rows_of(name)
    full = next(row for row in table if row.full)
    assert full.entry.name == PRINTED[name][0]
    found = {row.entry.name: tuple(printed_ratio(row, full).values()) for row in table if not row.full}
    expected = PRINTED[name][1]
    assert found.keys() >= expected.keys()
    for row, ratios in expected.items():
        assert found[row] == pytest.approx(ratios, abs=0.005)


def test_names_of_tables():
    for name in ("emsnet:3.9", "emsnet:Table 3.9", "EMSNet: table 3.9", "Table 3.9", "3.9"):
        assert table_of(name) == "emsnet:3.9"
    assert {"lvt:4", "lvt:5", "pale:6", *PRINTED} <= tables().keys()


def test_pale_s_modes_are_timed_as_classifiers_unless_a_task_is_named():
    found = {row.entry.name: row.entry.build for row in rows_of("pale:6")}
    assert found.keys() >= {"Axial", "Cross-Shaped", "Pale (vanilla)", "Pale (sequential)", "Pale (parallel)"}
    assert all(build.head is None for build in found.values())
    assert [row.entry.name for row in rows_of("pale:6") if row.full] == ["Pale (parallel)"]
    under = rows_of("pale:6", "semantic_segmentation")
    assert {row.entry.build.head for row in under} == {"upernet"}


def test_rows_about_one_network_are_timed_once():
    (row,) = rows_of("lvt:5", "panoptic_segmentation")[:1]
    assert row.entry.name == "Panoptic FPN LVT (COCO val); Panoptic FPN LVT (COCO test-dev)"
    assert row.entry.image_size == (800, 1200)
    assert row.entry.build.head_options["num_stuff"] == 53


def test_ratios_on_a_clock_that_only_the_networks_move(monkeypatch):
    """Each network takes seconds of its own in each round; the ratio is the median of the rounds'."""
    now, rounds = [0.0], 3
    taken = {row.entry.name: [k + 1.0, k + 3.0, 2 * k + 1.0] for k, row in enumerate(rows_of("emsnet:3.9"))}

    def timed_form(candidate, network, expected, folder):
        left = [1.0] * 3 + taken[candidate.name]  # three calls of warm-up

        def call():
            now[0] += left.pop(0)

        return candidate, TimedForm(candidate.name, call)

    monkeypatch.setattr(bench, "timed_form_of", timed_form)
    monkeypatch.setattr(bench, "measure", functools.partial(measure, clock=lambda: now[0]))
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    settings = Settings([], options_of="emsnet:3.9", image_size=32, rounds=rounds, roofline=False, device="cpu")
    document = bench.benchmark(settings)
    rows = {row["name"]: row for row in document["rows"]}
    full = next(name for name, row in rows.items() if row["full"])
    for name, row in rows.items():
        assert row["times_ms"] == [1e3 * seconds for seconds in taken[name]]
        ratios = [own / base for own, base in zip(taken[name], taken[full], strict=True)]
        assert row["ratio"] == pytest.approx(statistics.median(ratios))
        low, median, high = sorted(ratios)
        assert row["ratio_quartiles"] == pytest.approx([(low + median) / 2, (median + high) / 2])
    assert rows[full]["ratio"] == 1
    assert rows["Baseline: Identity()"]["printed"] == {"cpu_ms": "33.2", "gpu_ms": "0.24"}
    assert columns(document) == TABLE_COLUMNS
    cells = cells_of(document, rows["Baseline: Identity()"])
    assert cells[6:8] == ["CPU 0.66, GPU 0.56", "CPU 33.2 ms, GPU 0.24 ms"]


def test_ratios_are_of_one_form_and_batch_and_of_networks_with_times():
    def row(name: str, batch: int, times: list[float], label: str = "eager", refused: str | None = None) -> dict:
        return {"name": name, "batch": batch, "label": label, "times_ms": times, "refused": refused}

    table = rows_of("mat:4.9")
    full = next(one.entry.name for one in table if one.full)
    rows = [
        row(full, 1, [2.0, 4.0, 5.0]),
        row("Pure MLP", 1, [1.0, 1.0, 4.0]),
        row("Pure MLP", 16, [9.0]),
        row("Pure MLP", 1, [], "fused", "is not available"),
        row("timm:resnet10t", 1, [4.0, 4.0, 5.0]),
    ]
    add_ratios(rows, table)
    assert [one["ratio"] for one in rows] == [1.0, 0.5, None, None, 1.0]
    assert rows[1]["printed_ratio"]["throughput_img_s"] == pytest.approx(4333 / 10303)
    assert rows[4]["printed"] == {}


def test_the_tables_are_listed(capsys):
    assert main(["benchmark", "--options-of", "list", "--json"]) == 0
    found = {table["name"]: table for table in json.loads(capsys.readouterr().out)}
    assert found["emsnet:3.9"]["printed"] == ["cpu_ms", "gpu_ms"]
    assert found["lvt:4"]["tasks"] == ["semantic_segmentation"]
    assert main(["benchmark", "--options_of", "list"]) == 0
    assert "mat:4.9" in capsys.readouterr().out
