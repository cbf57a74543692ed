"""The benchmark scripts' tables and images, from measured rows that are made up."""

import argparse
import itertools
import json

import pytest
import timm

import accuracy_latency
import analysis_cost
import export_forms
import export_matrix
import int8
import memory
import resolution
import settings
import training
from vitrail.benchmark.baselines import baselines
from vitrail.deploy.export.backends import BACKENDS
from vitrail.models import family_of, names
from vitrail.models.emsnet import Propagate


def row(source: str, median: float, speedup: float | None, **values) -> dict:
    fixed = {"source": source, "batch": 1, "params": 10_000_000, "gmac": 1.0, "refused": None, "peak_mb": 5.0}
    fixed |= {"runtime": "torch", "precision": "fp32", "label": "eager"}
    return {**fixed, "median_ms": median, "speedup": speedup, **values}


def document(*rows: dict, unsteady: tuple[str, ...] = ()) -> dict:
    chosen = {"forms": ["eager"], "runtime": ["torch"], "precision": ["fp32"], "threads": 1}
    return {"rows": list(rows), "unsteady": list(unsteady), "settings": chosen, "machine": {"cpu": "a processor"}}


DOCUMENTS = [
    document(row("mat_2", 20.0, 1.0), row("mat_1", 12.0, 2.0)),
    document(row("mat_2", 40.0, 1.0), row("timm:resnet50", 90.0, 0.5), unsteady=("copy moved",)),
]


# ---- baselines and accuracy against latency -----------------------------------------------------------------------


def test_baselines_exist_and_say_where_their_accuracy_is_from():
    found = baselines()
    assert len(found) == len({p.name for p in found}) == 23
    assert {p.name for p in found} <= set(timm.list_models())
    assert all(70 < p.top1 < 85 and p.image_size in (224, 256) and p.source for p in found)
    by_name = {p.name: p for p in found}
    assert (by_name["mobilevitv2_075"].top1, by_name["mobilevitv2_075"].image_size) == (75.6, 256)
    assert by_name["efficientformer_l1"].distilled
    assert not by_name["pvt_v2_b1"].distilled


def test_every_network_with_a_reported_accuracy_is_measured_once_beside_the_anchor():
    known = accuracy_latency.published()
    lots = accuracy_latency.lots(list(known))
    assert {lot[0] for lot in lots} == {"mat_2"}
    rest = [name for lot in lots for name in lot[1:]]
    assert sorted([*rest, "mat_2"]) == sorted(known)
    assert {family_of(name) for name in known if name in names()} >= {"pslt", "lvt", "pale", "emsnet", "mat"}
    assert accuracy_latency.lots(["mat_2"]) == [["mat_2"]]


def test_times_of_different_lots_are_tied_by_the_anchor():
    found = {p["name"]: p for p in accuracy_latency.points(DOCUMENTS, 1, "fp32")}
    # the anchor's median is 30 ms; resnet50 took 90 ms when the anchor took 40, so it is twice as slow
    assert {name: p["milliseconds"] for name, p in found.items()} == {"mat_1": 15.0, "mat_2": 30.0, "resnet50": 60.0}
    assert found["resnet50"]["top1"] == 80.4
    assert not found["resnet50"]["steady"]
    assert accuracy_latency.points(DOCUMENTS, 16, "fp32") == accuracy_latency.points(DOCUMENTS, 1, "int8") == []


def test_the_faster_runtime_counts_in_every_precision(tmp_path):
    def timed(source: str, *milliseconds: float) -> list[dict]:
        forms = itertools.product(("onnxruntime", "openvino"), ("fp32", "int8"))
        return [
            row(source, ms, 10.0 / ms, runtime=runtime, precision=precision, label=f"{runtime}, {precision}")
            for (runtime, precision), ms in zip(forms, milliseconds, strict=True)
        ]

    made = document(*timed("mat_2", 10.0, 8.0, 12.0, 4.0), *timed("timm:resnet50", 30.0, 20.0, 25.0, 24.0))
    made["settings"] |= {"runtime": ["onnxruntime", "openvino"], "precision": ["fp32", "int8"]}
    found = {
        p: [(o["name"], o["milliseconds"]) for o in accuracy_latency.points([made], 1, p)] for p in ("fp32", "int8")
    }
    assert found == {"fp32": [("mat_2", 10.0), ("resnet50", 25.0)], "int8": [("mat_2", 4.0), ("resnet50", 20.0)]}
    lines = accuracy_latency.table([made], [1]).splitlines()
    assert lines[0].endswith("| ms an image, fp32, batch 1 | ms an image, int8, batch 1 |")
    assert lines[2].endswith("| 10.0 ort | 4.0 |")
    assert lines[3].endswith("| 25.0 | 20.0 ort |")
    accuracy_latency.draw([made], [1], tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 1000


def test_the_table_marks_baselines_and_unsteady_times():
    lines = accuracy_latency.table(DOCUMENTS, [1, 16]).splitlines()
    assert lines[2] == "| `mat_1` | 76.2\\* | 10.0 | 1.00 | 15.0 |"
    assert lines[4] == "| `resnet50` (timm) | 80.4 | 10.0 | 1.00 | 60.0 (unsteady) |"
    assert lines[-1].startswith("\\* `mat_1`: the row of MAT-1 in Table 4.4 is damaged")


def test_the_image_is_drawn(tmp_path):
    accuracy_latency.draw(DOCUMENTS, [1, 16], tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")


def test_measured_networks_are_not_measured_again(tmp_path, monkeypatch, capsys):
    lots = []

    def fake(chosen, advance, *, files, memory):
        lots.append((chosen.models, chosen.sizes))
        return document(*[row(name, 1.0, 1.0) for name in chosen.models])

    monkeypatch.setattr(accuracy_latency, "benchmark", fake)
    file = tmp_path / "results.json"
    argv = ["accuracy_latency.py", "--results", str(file), "--batch_size", "1", "--networks", "mat_[23]", "--baselines"]
    monkeypatch.setattr("sys.argv", argv)
    accuracy_latency.main()
    monkeypatch.setattr("sys.argv", [*argv, "edgenext_small"])
    accuracy_latency.main()
    assert [models for models, _ in lots] == [["mat_2", "mat_3"], ["mat_2", "timm:edgenext_small"]]
    assert lots[1][1] == {"mat_2": (224, 224), "timm:edgenext_small": (256, 256)}
    assert len(json.loads(file.read_text())["lots"]) == 2
    assert "`edgenext_small` (timm) | 79.4 at 256" in capsys.readouterr().out


# ---- resolution ---------------------------------------------------------------------------------------------------


def sizes(network: str, *found: tuple[float, float]) -> list[dict]:
    first = found[0][0]
    rows = [{"network": network, "ms": ms, "time_growth": ms / first, "gmac": gmac} for ms, gmac in found]
    return [{**row, "size": 10 * i, "mb": 10 * i} for i, row in enumerate(rows, 1)]


def test_growth_is_a_cost_a_pixel():
    lines = resolution.table([sizes("mat_2", (2.0, 1), (8.0, 4)), sizes("lvt", (2.0, 1), (32.0, 8))]).splitlines()
    assert lines[3] == "| `mat_2` | 20 | 8.0 | 4.00 | 1.00 | 1.00 | 20.0 | 0.50 |"
    assert lines[5] == "| `lvt` | 20 | 32.0 | 8.00 | 4.00 | 2.00 | 20.0 | 0.50 |"


def test_the_sizes_of_a_network_are_measured_and_drawn(tmp_path):
    rows = resolution.rows_of("emsnet_xxtiny", [32, 64], 1)
    assert [row["size"] for row in rows] == [32, 64]
    assert rows[0]["time_growth"] == 1
    assert rows[1]["gmac"] == pytest.approx(4 * rows[0]["gmac"], rel=0.05)
    resolution.draw([rows], tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 1000


# ---- settings -----------------------------------------------------------------------------------------------------


def test_settings_are_set_against_the_default():
    turns = {"default": (20.0, 30.0, 10.0), "both": (10.0, 12.0, 7.0)}  # a machine that changes in between
    found = {name: [[row("mat_2", ms, 1.0)] for ms in each] for name, each in turns.items()}
    assert settings.table(found).splitlines()[2:] == ["| default | 20.0 (1.00x) |", "| both | 10.0 (2.00x) |"]


def test_a_setting_reaches_its_process(monkeypatch):
    def fake(command, env, **options):
        code, *argv = command[2:]
        said = {"code": code, "argv": argv, "malloc": env.get("MALLOC_TRIM_THRESHOLD_"), "pages": env.get("THP_MEM")}
        return argparse.Namespace(stdout=json.dumps({"rows": said}))

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # the user's own must not leak into the default
    monkeypatch.setattr(settings.subprocess, "run", fake)
    args = argparse.Namespace(batch_size="16", image_size=224, rounds=3)
    by_name = {setting.name: settings.run(setting, ["mat_1"], args) for setting in settings.SETTINGS}
    assert by_name["default"]["malloc"] is None
    assert by_name["glibc keeps large blocks"]["malloc"] == "8000000000"
    assert "torch.set_flush_denormal(True)" in by_name["denormals to zero"]["code"]
    assert by_name["bf16"]["argv"][-2:] == ["--rounds", "3"]
    assert {"--precision", "bf16", "mat_1"} <= set(by_name["bf16"]["argv"])


@pytest.mark.slow
def test_a_setting_runs():
    args = argparse.Namespace(batch_size="1", image_size=32, rounds=1)
    assert settings.run(settings.SETTINGS[0], ["mat_1"], args)[0]["median_ms"] > 0


# ---- training -----------------------------------------------------------------------------------------------------


def test_training_is_measured_beside_the_reference_form():
    found = training.row("mat_1", 2, 32, rounds=1)
    assert found["times_as_fast"] == pytest.approx(found["reference_ms"] / found["eager_ms"])
    assert found["times_less_memory"] == pytest.approx(found["reference_mb"] / found["eager_mb"])
    lines = training.table([found, {**found, "times_less_memory": None}]).splitlines()
    assert lines[2].startswith("| `mat_1` | 2 x 32 | ")
    assert lines[3].endswith("| - |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_training_call_goes_forward_and_backward_in_the_reference_form_too():
    call = memory.call_for("mat_1", "reference", 2, 32, training=True)
    assert call() is None
    assert memory.call_for("mat_1", "eager", 2, 32)().shape == (2, 1000)


# ---- exports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "wanted"),
    [
        (["batch", 3, "height", "width"], [(224, None)]),
        (["batch", 3, 224, 224], [(224, None), (160, None)]),
        ([1, 3, 224, 224], [(224, None), (224, 2), (160, None), (160, 2)]),
    ],
)
def test_fixed_axes_ask_for_further_files(monkeypatch, axes, wanted):
    asked = []

    def exported(model, format, image_size, batch_size=None):
        asked.append((image_size, batch_size))
        return argparse.Namespace(shape=axes)

    monkeypatch.setattr(export_matrix, "exported", exported)
    assert len(list(export_matrix.files("mat_1", "onnx", 224, 160))) == len(wanted)
    assert asked == wanted


def test_a_backend_without_forms_keeps_the_others():
    whole = BACKENDS["onnx"]
    left = export_forms.without_forms(whole, [Propagate])
    assert Propagate in whole.forms
    assert {*left.forms, Propagate} == {*whole.forms}
    assert left.in_form(Propagate(4, 2, 2)).__class__ is Propagate
    assert whole.in_form(Propagate(4, 2, 2)).__class__ is not Propagate


# ---- cost of analyses ---------------------------------------------------------------------------------------------


def test_every_method_is_measured_in_processes_of_its_own(tmp_path, monkeypatch):
    """Interactions are of one class, with few passes, from which the time of the default budget follows."""
    answers = {"_likeliest": "7", "seconds": 2.0, "memory": (5e6, 9e8)}
    asked = []

    def alone(work, *arguments):
        asked.append((work.__name__, arguments))
        if work.__name__ == "seconds" and arguments[2] == "similarity":
            return "similarity is not for this network"
        return answers[work.__name__]

    monkeypatch.setattr(analysis_cost, "alone", alone)
    monkeypatch.setattr(analysis_cost, "weights_of", lambda name, folder: folder / name)
    file = tmp_path / "cost.json"
    methods = ["gradcam", "spectrum", "interactions", "similarity"]
    analysis_cost.main(["--networks", "mat_1", "--methods", *methods, "--images", "3", "--output", str(file)])
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert [row["images"] for row in rows.values()] == [1, 3, 1, 3]
    assert (rows["gradcam"]["seconds"], rows["gradcam"]["added_mb"], rows["gradcam"]["peak_mb"]) == (2.0, 5.0, 900.0)
    assert rows["interactions"]["options"] == {"budget": [1, 2, 4, 7], "class_name": "7"}
    assert rows["interactions"]["passes"] == 4 * 2 * 4 * 7
    # 4 images, 8 pairs, 16 contexts, 7 orders
    assert rows["interactions"]["seconds_of_default_budget_computed"] == 2.0 * (4 * 8 * 16) / (2 * 4)
    assert "seconds" not in rows["similarity"]
    lines = analysis_cost.table(list(rows.values())).splitlines()
    assert lines[2] == "| `mat_1` | gradcam | 2.0 | 5 | 900 |"
    assert "interactions, 224 passes | 2.0 (computed for 14,336: 2 min)" in lines[4]
    assert "not for this network" in lines[5]
    assert [name for name, _ in asked].count("memory") == 3


def test_cost_of_analyses_is_of_every_method_by_default():
    from vitrail.analysis.explain import METHODS
    from vitrail.models import FAMILIES

    assert {"gradcam", "attention", "interactions"} <= set(METHODS)
    ours = {family_of(name) for name in analysis_cost.NETWORKS if name in names()}
    assert ours == {"pslt", "lvt", "pale", "emsnet", "mat", "partialformer"} <= set(FAMILIES)


def test_int8_rows(monkeypatch, capsys):
    found = {"network": "mat_1", "format": "onnx", "float": 61.25, "int8": 60.0, "agreement": 97.5}
    speed = {"int8_ms": 3.0, "latency_ratio": 0.75, "size_ratio": 0.25}
    boxes = {**found, **speed, "float": None, "int8": None}
    monkeypatch.setattr(int8, "measured", lambda run, format, images: boxes if run == "boxes" else {**found, **speed})
    int8.main(["run", "boxes", "--formats", "onnx"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| `mat_1` | onnx | 61.2 | 60.0 | +1.2 | 97.5 | 4.00 | 3.00 | 1.33x | 4.00x |",
        "| `mat_1` | onnx | - | - | - | 97.5 | 4.00 | 3.00 | 1.33x | 4.00x |",
    ]
