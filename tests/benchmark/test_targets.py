"""The targets name existing networks and forms, and the tables show measured ratios with their targets."""

import argparse
import json

import pytest
import timm

import targets
from targets import (
    AUTHORS,
    FIXED,
    FORMS,
    NO_PEERS,
    OWN,
    PEERS,
    REFERENCE,
    TARGETS,
    Comparison,
    baselines_of,
    ceiling_table,
    forms_of,
    notes,
    shares,
    table,
    target_of,
    times,
)
from vitrail.models import names

REASON = "their code must not be copied"


def test_targets_name_what_exists():
    assert {t.network for t in TARGETS} <= set(names())
    assert all(timm.is_model(t.against) for t in TARGETS if t.against not in NO_PEERS)
    assert {t.form for t in TARGETS} == {*FORMS} - {"openvino_int8"}
    assert all(timm.is_model(name) for peers in PEERS.values() for name in peers)
    assert {*PEERS, *(t.network for t in TARGETS)} <= set(names())
    assert {t.batch for t in TARGETS} == {1, 16}
    keys = [(t.network, t.against, t.form, t.batch) for t in TARGETS]
    assert len(keys) == len(set(keys))
    assert target_of("pslt", "deit_small_patch16_224", "openvino", 1) == 1.5
    assert target_of("partialformer_b1", "efficientvit_b1", "fused", 16) == 1.6
    assert target_of("mat_2", OWN, "compiled", 1) == 1.2
    swin, *others = ["swin_tiny_patch4_window7_224", "caformer_s18", "efficientvit_b3"]
    assert baselines_of("pale_tiny") == [REFERENCE, OWN, FIXED, swin, *others]


def test_only_the_first_batch_size_is_measured_in_every_form():
    args = argparse.Namespace(forms=["fused", "compiled", "openvino"], batch_size="1,16")
    assert forms_of("mat_2", 1, args) == ["eager", "fused", "compiled", "openvino"]
    assert forms_of("mat_2", 16, args) == ["eager", "fused"]
    assert forms_of("partialformer_b1", 16, args) == ["eager", "fused", "openvino"]
    assert forms_of("pale_tiny", 16, args) == ["eager"]


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list[dict]:
    monkeypatch.setattr(
        targets,
        "TARGETS",
        [
            targets.Target("mat_1", AUTHORS, "eager", 2, 1.5),
            targets.Target("mat_1", REFERENCE, "eager", 2, 1e-6),
            targets.Target("mat_1", "resnet10t", "eager", 2, 1e6),
            targets.Target("mat_1", REFERENCE, "fused", 2, 2.0),
        ],
    )

    def no_fusion(network, images):
        raise ValueError("this network cannot be fused")

    monkeypatch.setattr("vitrail.benchmark.runtimes.fused", no_fusion)
    args = argparse.Namespace(forms=["eager", "fused"], image_size=32, threads=1, rounds=1, batch_size="2")
    return Comparison("mat_1", 2, args, tmp_path).rows()


def test_ratios_stand_beside_their_targets(rows):
    found = {(row["against"], row["form"]): row for row in rows}
    eager = found[REFERENCE, "eager"]
    assert eager["ratio"] == pytest.approx(eager["their_milliseconds"] / eager["milliseconds"])
    assert (eager["target"], eager["why"], eager["batch"]) == (1e-6, None, 2)
    assert found["resnet10t", "eager"]["milliseconds"] == eager["milliseconds"]
    assert (OWN, "eager") not in found
    lines = {line.split("|")[2].strip(): line.split("|")[4].strip() for line in table(rows).splitlines()[2:]}
    assert lines[REFERENCE] == f"**{eager['ratio']:.2f} (0.00)**"
    assert lines[AUTHORS] == "- (1.50)"
    assert lines["resnet10t"].endswith(" (1000000.00)")  # not bold: it was not reached


def test_times_are_those_of_the_comparison(rows, monkeypatch):
    monkeypatch.setattr(targets, "NETWORKS", ["mat_1"])
    lines = times(rows).splitlines()[2:]
    assert [line.split("|")[3].strip() for line in lines] == ["mat_1", REFERENCE, "resnet10t"]
    own = next(row["milliseconds"] for row in rows if row["form"] == "eager")
    assert lines[0].split("|")[4].strip() == f"{own:.1f}"


def test_a_run_is_shown_again(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "NETWORKS", ["mat_1"])
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"rows": rows, "unsteady": ["copy moved"], "ceilings": {}}))
    monkeypatch.setattr("sys.argv", ["targets.py", "--show", str(file)])
    targets.main()
    shown = capsys.readouterr()
    assert table(rows) in shown.out
    assert times(rows) in shown.out
    assert "copy moved" in shown.err


def test_what_cannot_be_measured_says_why(rows):
    found = {(row["against"], row["form"]): row for row in rows}
    assert found[AUTHORS, "eager"]["ratio"] is None
    assert found[AUTHORS, "eager"]["why"] == REASON
    assert found[REFERENCE, "fused"]["why"] == "is not available: this network cannot be fused"
    assert found["resnet10t", "fused"]["their_form"] == "eager"  # nor can theirs: it stays what it is
    said = notes(rows)
    assert f"mat_1 against authors, eager: {REASON}" in said
    assert "mat_1 against reference, fused: is not available: this network cannot be fused" in said


def test_shares_are_rates_over_the_ceiling_of_the_runtime():
    common = {"network": "mat_1", "gmac": 2.0, "batch": 4, "against": OWN}
    rows = [
        {**common, "form": "openvino", "milliseconds": 100.0},
        {**common, "form": "openvino", "milliseconds": 100.0, "against": REFERENCE},
        {**common, "form": "onnxruntime", "milliseconds": 200.0},
        {**common, "form": "eager", "milliseconds": 1.0},
        {**common, "form": "openvino_bf16", "milliseconds": None},
    ]
    rates = {"onnxruntime": [1.0, 80.0, 100.0], "openvino": [90.0, 99.0, 101.0], "openvino_bf16": [200.0]}
    found = shares(rows, rates)
    assert [(row["form"], row["gmac_per_second"], row["share"]) for row in found] == [
        ("openvino", 80.0, 80 / 99),
        ("onnxruntime", 40.0, 0.5),
    ]
    assert (
        ceiling_table(found, rates).splitlines()[-1] == "| `mat_1` | 4 | 2.00 | 40 (0.50) | 80 (0.81) | - | **0.80** |"
    )
    slow = [row for row in found if row["form"] == "onnxruntime"]
    assert ceiling_table(slow, rates).splitlines()[-1].endswith("| 40 (0.50) | - | - | 0.80 |")


def test_files_for_one_shape_stand_beside_the_default_ones():
    args = argparse.Namespace(forms=["eager", "openvino", "openvino_bf16"], batch_size="1,16")
    assert targets.fixed_forms(1, args) == ["openvino"]
    assert targets.fixed_forms(16, args) == []
    assert targets.candidate_of("x", "openvino fixed", 1, fixed_args()).dynamic == "none"
    bf16 = targets.candidate_of("x", "openvino_bf16", 1, fixed_args())
    assert (bf16.runtime, bf16.precision, bf16.dynamic, bf16.form) == ("openvino", "bf16", None, "eager")
    assert targets.candidate_of("x", "compiled", 1, fixed_args()).runtime == "torch"


def fixed_args() -> argparse.Namespace:
    return argparse.Namespace(image_size=32, threads=1)
