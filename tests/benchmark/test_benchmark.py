"""The benchmark command on networks that take milliseconds."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from dense_helpers import CASES, weights_with
from vitrail.benchmark import benchmark as bench
from vitrail.benchmark import forms, machine, memory, networks, runtimes
from vitrail.benchmark.forms import Candidate, call_of
from vitrail.benchmark.networks import Build, images_of, network_of
from vitrail.benchmark.report import cells, notes
from vitrail.benchmark.settings import Settings
from vitrail.benchmark.speed import difference
from vitrail.checkpoint.load import described, load_network
from vitrail.cli import main
from vitrail.deploy.fuse.compiled import CompiledNetwork
from vitrail.errors import UserError
from vitrail.models.catalog import catalog

SMALL = ["--image_size", "32", "--rounds", "2", "--roofline", "false", "--device", "cpu"]


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("benchmark") / "new" / "times.json"
    assert main(["benchmark", "mat_1", "--against", "resnet10t", *SMALL[:-4], "--output", str(file)]) == 0
    assert [path.name for path in file.parent.iterdir()] == ["times.json"]
    return json.loads(file.read_text())


# ---- the document -----------------------------------------------------------------------------------------------


def test_the_document_says_what_ran_where(document):
    assert set(document) == {"vitrail", "settings", "machine", "roofline", "unsteady", "images", "notes", "rows"}
    assert document["settings"]["image_size"] == [32, 32]
    assert document["settings"]["models"] == ["mat_1"]
    assert {c["name"] for c in document["roofline"]} == {"fp32 linear", "fp32 pointwise", "bf16", "copy"}
    described = document["machine"]
    assert described["threads"] == 1
    assert described["versions"]["torch"] == torch.__version__.split("+")[0]
    assert described["versions"]["timm"] == timm.__version__
    assert len(described["load"]) == 2
    assert described["onednn"].count(".") == 2


def test_rows_hold_times_counts_and_shares(document):
    ours, theirs = document["rows"]
    assert (ours["source"], theirs["source"]) == ("mat_1", "timm:resnet10t")
    for row in (ours, theirs):
        low, high = row["quartiles_ms"]
        assert len(row["times_ms"]) == 2
        assert row["min_ms"] == min(row["times_ms"]) <= low <= row["median_ms"] <= high
        assert row["images_per_second"] == pytest.approx(1e3 / row["median_ms"])
        assert row["gmac_per_second"] == pytest.approx(row["gmac"] * row["images_per_second"])
        peak = max(max(c["start"], c["end"]) for c in document["roofline"] if c["name"].startswith("fp32"))
        assert row["roofline_share"] == pytest.approx(row["gmac_per_second"] / peak)
        assert row["difference"] <= 1e-5
        assert row["refused"] is None
        assert row["peak_mb"] >= 0
    assert ours["speedup"] == 1.0
    assert ours["params"] == next(e.params for e in catalog() if e.name == "mat_1")
    ratios = sorted(a / b for a, b in zip(ours["times_ms"], theirs["times_ms"], strict=True))
    assert theirs["speedup"] == pytest.approx(sum(ratios) / 2)


def test_the_table_has_a_row_a_form_and_batch(capsys, monkeypatch):
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([1e6] * len(candidates)))
    assert main(["benchmark", "mat_1", "--batch_size", "1,2", "--precision", "bf16", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[:4] for line in lines if "mat_1" in line]
    assert found == [["mat_1", "eager,", "bf16", "1"], ["mat_1", "eager,", "bf16", "2"]]
    assert "32x32, bf16, 1 thread(s)" in lines[0]


def test_training_steps_are_timed_and_leave_no_gradients(monkeypatch):
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    settings = Settings(
        ["mat_1"], batch_size=[2], image_size=(64, 64), rounds=1, training=True, roofline=False, device="cpu"
    )
    steps = []
    row = bench.benchmark(settings, lambda: steps.append(1))["rows"][0]
    assert row["difference"] is None
    assert row["roofline_share"] is None
    assert len(row["times_ms"]) == 1
    assert len(steps) == settings.work() - 1  # the memory of one is left out above


def test_a_training_step_computes_every_gradient(monkeypatch):
    network = described(timm.create_model("resnet10t", num_classes=5), "resnet10t")
    seen = {}
    module = torch.nn.Module.zero_grad

    def spy(self, set_to_none=True):
        seen.update({name: p.grad is not None for name, p in self.named_parameters()})
        module(self, set_to_none)

    monkeypatch.setattr(torch.nn.Module, "zero_grad", spy)
    call_of(Candidate("x", batch=2, image_size=(32, 32), training=True), network)()
    assert set(seen) == {name for name, _ in network.named_parameters()}
    assert all(seen.values())
    assert all(p.grad is None for p in network.parameters())  # the work is done on a copy


def test_weights_with_a_head_are_timed_with_and_without_decoding(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    task, options, _ = CASES["simple_baseline"]
    weights = weights_with("simple_baseline", task, options, tmp_path)
    assert main(["benchmark", weights, "--forms", "eager,fused", *SMALL, "--image_size", "64", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["label"] for row in rows] == ["eager", "eager + decoding", "fused", "fused + decoding"]
    assert [row["timed"] for row in rows[:2]] == ["network", "network and decoding"]
    assert rows[0]["params"] == sum(p.numel() for p in load_network(weights).parameters())
    assert rows[2]["difference"] <= 1e-4
    assert all(row["image_size"] == [64, 64] and row["median_ms"] > 0 for row in rows)


def test_weights_have_the_size_of_their_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    task, options, _ = CASES["retinanet"]
    detector = weights_with("retinanet", task, options, tmp_path)
    assert main(["benchmark", detector, *SMALL[2:], "--json"]) == 0
    done = capsys.readouterr()
    rows = json.loads(done.out)["rows"]
    assert [row["image_size"] for row in rows] == [[96, 96]] * 2
    assert "objects or segments in 1 random image(s); its time grows with what is found" in done.err
    assert [row["gmac"] for row in rows] == [None, None]


# ---- forms ------------------------------------------------------------------------------------------------------


def rows_with(monkeypatch, fuse) -> list[dict]:
    monkeypatch.setattr(runtimes, "fused", lambda network, images: fuse(copy.deepcopy(network)))
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    settings = Settings(
        ["mat_1"], image_size=(32, 32), rounds=1, forms=["eager", "fused"], roofline=False, device="cpu"
    )
    return bench.benchmark(settings)["rows"]


def test_the_fused_form_is_timed_beside_the_eager_one(monkeypatch):
    eager, fused = rows_with(monkeypatch, lambda model: model)
    assert [eager["label"], fused["label"]] == ["eager", "fused"]
    assert fused["difference"] == eager["difference"] <= 1e-5
    assert fused["median_ms"] > 0


def test_a_fused_form_that_differs_gets_no_time(monkeypatch, capsys):
    def wrong(model):
        with torch.no_grad():
            model.head.fc.bias += 1
        return model

    eager, fused = rows_with(monkeypatch, wrong)
    assert "median_ms" in eager
    assert "median_ms" not in fused
    assert "differs by" in fused["refused"]
    assert fused["difference"] > 1e-4


def test_the_compiled_form_is_warmed_up_until_it_settles(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, mode, dynamic: compiled.append(module) or module)
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    chosen = {}
    measure = bench.measure

    def spy(timed_forms, rounds, advance):
        chosen.update({c.name: (c.settle, c.tolerance) for c in timed_forms})
        return measure(timed_forms, rounds, advance=advance)

    monkeypatch.setattr(bench, "measure", spy)
    settings = Settings(["mat_1"], image_size=(32, 32), rounds=1, compile=True, roofline=False, device="cpu")
    assert [row["label"] for row in bench.benchmark(settings)["rows"]] == ["eager", "compiled"]
    assert chosen == {"mat_1 eager": (False, 1e-5), "mat_1 compiled": (True, 1e-4)}
    assert len(compiled) == 1


@pytest.mark.slow
def test_a_network_that_is_really_compiled():
    settings = Settings([], ["resnet10t"], image_size=(32, 32), rounds=2, compile=True, roofline=False, device="cpu")
    eager, compiled = bench.benchmark(settings)["rows"]
    assert compiled["refused"] is None
    assert 0 < compiled["difference"] <= 1e-4
    assert compiled["median_ms"] > 0
    assert eager["form"] == "eager"


def test_a_form_that_is_not_available_says_why(monkeypatch, capsys):
    def broken(model):
        raise RuntimeError("no such operator\nmore of it")

    eager, fused = rows_with(monkeypatch, broken)
    assert eager["refused"] is None
    assert fused["refused"] == "is not available: no such operator"
    assert fused["difference"] is None
    assert cells(fused)[3] == "not timed"
    assert notes({"unsteady": [], "notes": [], "rows": [eager, fused]}) == [
        "mat_1 fused is not timed: it is not available: no such operator"
    ]


def test_a_wrongly_folded_normalisation_would_show():
    network = network_of("mat_1", (32, 32))
    x = networks.images_of(network, 1, (32, 32))
    with torch.inference_mode():
        right = network(x)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.zero_()
        assert difference(right, network(x)) > 1e-3


def test_random_networks_are_the_same_every_time():
    first, second = (network_of(source, (32, 32)) for source in ("mat_1", "mat_1"))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_patterns_prefixes_and_baselines_are_spelt_out():
    assert networks.sources(["mat_[12]", "random:pslt", "timm:resnet18"], ["resnet18", "pvt_v2_b1"]) == [
        "mat_1",
        "mat_2",
        "pslt",
        "timm:resnet18",
        "timm:pvt_v2_b1",
    ]


def test_exported_forms_run_their_file(monkeypatch, tmp_path):
    made = []

    def export(network, meta, *, runtime, folder, images, precision, dynamic):
        made.append((meta.model, runtime, tuple(images.shape), precision, dynamic))
        torch.save(network, runtimes.file_in(folder, runtime))

    def opened(file, runtime, *, precision, threads, shape):
        assert shape == (2, 3, 32, 32)
        network = torch.load(file, weights_only=False)
        return lambda pixels: network(torch.from_numpy(pixels)).detach().numpy()

    monkeypatch.setattr(runtimes, "export", export)
    monkeypatch.setattr(runtimes, "opened", opened)
    monkeypatch.setattr(runtimes, "check_installed", lambda name: None)
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))
    settings = Settings(
        ["mat_1"],
        batch_size=[2],
        image_size=(32, 32),
        rounds=1,
        runtime=["torch", "onnxruntime"],
        roofline=False,
        device="cpu",
    )
    eager, other = bench.benchmark(settings)["rows"]
    assert made == [("mat_1", "onnxruntime", (2, 3, 32, 32), "fp32", None)]
    assert other["label"] == "eager in onnxruntime"
    assert other["difference"] <= 1e-5
    assert eager["batch"] == other["batch"] == 2


def test_files_are_written_once_and_only_whole(monkeypatch, tmp_path):
    made = []

    def export(network, meta, *, runtime, folder, **rest):
        (folder / "network.bin").write_bytes(b"half")
        if made:
            raise MemoryError("no more of it")
        made.append(runtimes.file_in(folder, runtime))
        made[0].write_bytes(b"whole")

    monkeypatch.setattr(runtimes, "export", export)
    network = network_of("mat_1", (32, 32))
    first = forms.Candidate("mat_1", runtime="openvino", image_size=(32, 32))
    # a file with a free batch is that of every batch, and OpenVINO runs the float file in bf16
    same = [first, first, replace(first, batch=2), replace(first, precision="bf16")]
    files = {forms.with_file(candidate, network, tmp_path).file for candidate in same}
    for other in ({"precision": "int8"}, {"dynamic": "none"}, {"image_size": (64, 64)}):
        with pytest.raises(MemoryError):
            forms.with_file(replace(first, **other), network, tmp_path)
    assert len(files) == 1
    assert sorted(file.read_bytes() for file in tmp_path.rglob("network.*")) == [b"half", b"whole"]


@pytest.mark.parametrize(
    ("device", "training", "mode", "frozen"),
    [
        ("cpu", False, None, True),
        ("cpu", True, None, False),
        ("cuda", False, "reduce-overhead", False),
        ("cuda", True, "reduce-overhead", False),
    ],
)
def test_weights_are_frozen_on_the_processor_and_a_gpu_gets_graphs(device, training, mode, frozen, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, **options: asked.update(options) or module)
    module = torch.nn.Identity()
    compiled = forms.compiled(module, torch.device(device), training)
    assert isinstance(compiled, CompiledNetwork) == frozen
    assert (compiled is module) != frozen
    assert asked == {"mode": mode, **({"dynamic": False} if frozen else {})}


# ---- memory and machine -------------------------------------------------------------------------------------------


def test_peak_memory_grows_with_the_batch():
    candidates = [Candidate("mat_1", batch=batch, image_size=(96, 96)) for batch in (1, 16)]
    one, cannot_be_built, sixteen = memory.peaks([candidates[0], Candidate("no_such_network"), candidates[1]])
    assert cannot_be_built is None
    assert 16 * 3 * 96 * 96 * 4 < sixteen < 200e6
    assert one < sixteen


PEAK = """
import torch
from vitrail.benchmark.memory import host_peak

def large():
    torch.ones(25_000_000)

def with_a_hole():  # what is freed first lies below what lives on, and is too small for what comes after
    first, kept = torch.ones(5_000_000), torch.ones(250_000)
    del first
    torch.ones(6_250_000)

def prepare():
    with_a_hole()
    return {call}

print(host_peak(prepare, again=True))
"""


@pytest.mark.parametrize(("call", "expected"), [("large", 100e6), ("with_a_hole", 26e6)])
def test_peak_memory_counts_what_is_in_use_at_once(call, expected):
    script = PEAK.format(call=call)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    # the kernel adds a process's pages up in lots
    assert float(found) == pytest.approx(expected, rel=0.02)


@pytest.mark.gpu
def test_peak_memory_of_a_gpu():
    device = torch.device("cuda")

    def call():
        torch.ones(25_000_000, device=device)

    assert memory.device_peak(call, device) == pytest.approx(100e6, rel=0.01)


def test_threads_and_cores_are_held_and_given_back():
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    with machine.pinned_threads(1):
        assert torch.get_num_threads() == 1
        assert len(os.sched_getaffinity(0)) == 1
    assert torch.get_num_threads() == before
    assert os.sched_getaffinity(0) == allowed


def test_the_description_holds_what_times_depend_on(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = machine.describe()
    assert found["allocator"] == {"MALLOC_TRIM_THRESHOLD_": "8000000000"}
    assert found["usable_cores"] == len(os.sched_getaffinity(0))
    assert set(found) >= {"cpu", "flags", "cores", "versions", "mkl", "onednn", "cpu_capability", "git", "gpus"}
    json.dumps(found)


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["mat_22"], "Unknown model 'mat_22': did you mean mat_2"),
        (["mat_1", "--against", "pvt_v2_b11"], "Unknown model 'pvt_v2_b11': did you mean pvt_v2_b1"),
        (["mat_1", "--against", "resnet18.nonsense"], "Model resnet18 has no weights 'nonsense': its weights are "),
        (["mat_1", "--against", "zzz"], "Unknown model 'zzz': none of the "),
        (["mat_1", "--batch_size", "0"], "--batch_size [0] must be 1 or more and at most 65,536."),
        (["mat_1", "--batch_size", "1,x"], "--batch_size must be a list (a whole number each)"),
        (["mat_1", "--image_size", "0"], "--image_size [0, 0] must be 1 or more and at most 16,384 each."),
        (["mat_1", "--rounds", "0"], "--rounds 0 must be 1 or more and at most 1,000,000."),
        (["mat_1", "--rounds", "9" * 20], "--rounds 99999999999999999999 must be 1 or more and at most 1,000,000."),
        (["mat_1", "--batch_size", "1," + "9" * 20], "--batch_size [1, 99999999999999999999] must be 1 or more"),
        (["mat_1", "--batch_size", "65537"], "--batch_size [65537] must be 1 or more and at most 65,536."),
        (
            ["mat_1", "--image_size", "9" * 20],
            f"--image_size [{'9' * 20}, {'9' * 20}] must be 1 or more",
        ),
        (["mat_1", "--threads", "4000"], "--threads 4000 must lie between 1 and"),
        (["mat_1", "--forms", "fusd"], "--forms must be one of eager, fused, not 'fusd': did you mean fused?"),
        (["mat_1", "--forms", "eager,compiled"], "--forms must be one of eager, fused, not 'compiled'"),
        (["mat_1", "--forms", "[]"], "--forms [] must have an entry at least."),
        (["mat_1", "--runtime", "tensorrt"], "--runtime must be one of torch, onnxruntime, openvino, not 'tensorrt'"),
        (["mat_1", "--precision", "int4"], "--precision must be one of fp32, bf16, int8, not 'int4'"),
        (["mat_1", "--precision", "fp32,int8"], "--precision int8 is for --runtime onnxruntime and openvino: name one"),
        (["mat_1", "--dynamic", "batch"], "--dynamic batch has no effect: it needs onnxruntime or openvino among"),
        (["mat_1", "--memory_format", "NHWC"], "--memory_format must be one of channels_last, contiguous, not 'NHWC'"),
        (["mat_1", "--training", "--forms", "eager,fused"], "--training is for the eager form"),
        (["mat_1", "--image_size", "32", "--training"], "mat_1 cannot run on images of 32x32: Expected more than 1"),
        (["mat_1", "--device", "cuda:99"], "Device 'cuda:99' cannot be used here"),
        (["mat_1", "--model_options.depht", "1"], "Model mat_1 has no option 'depht'."),
        (["mat_1", "--variants", '{"a": {"depht": 1}}'], "Model mat_1 has no option 'depht'."),
        (["mat_1", "--model_options.num_classes", "9"], "--model_options.num_classes is no option of a network that"),
        (["mat_1", "--variants", '{"a": 5}'], '--variants must be options by name, such as {"a": 1}'),
        (["--against", "resnet10t", "--model_options.a", "1"], "--model_options has no effect without a network named"),
        (["mat_1", "--head", "segforme"], "--head must be one of"),
        (["mat_1", "--head_options.channels", "8"], "--head_options is for a head: name it with --head."),
        (["mat_1", "--head", "segformer", "--head_options.chanels", "8"], "Head segformer has no option 'chanels'"),
        (["mat_1", "--head", "segformer", "--head_options.num_classes", "0"], "--head_options.num_classes 0 must be 1"),
        (["mat_1", "--head", "segformer", "--task", "detection"], "Unknown head of detection 'segformer'"),
        (["mat_1", "--task", "classification"], "--task classification has no heads"),
        (["mat_1", "--head", "retinanet", "--image_size", "64", "--compile"], "--compile is not for detectors"),
        (["mat_1", "--head", "retinanet", "--image_size", "64", "--forms", "fused"], "--forms is not for detectors"),
        (["mat_1", "--options_of", "emsnet:3.9"], "--options_of emsnet:3.9 says which networks are timed"),
        (["--options_of", "emsnet:3.9", "--model_options.a", "1"], "--options_of emsnet:3.9 says which networks"),
        (["--options_of", "emsnet:3.99"], "Unknown table 'emsnet:3.99': did you mean emsnet:3.9"),
        (["--options_of", "Table 4"], "--options_of Table 4 means one of pslt:4, lvt:4, pale:4: say which."),
        (["--options_of", "emsne:3.9"], "--options_of emsne:3.9: Unknown family 'emsne': did you mean emsnet?"),
        (["--options_of", "list", "--rounds", "1"], "--options_of list times nothing: leave rounds out."),
        (["--options-of", "emsnet:3.9", "--task", "reid"], "--task reid: the rows of emsnet:3.9 that can be timed are"),
        (["mat_1", "--images", "no/such/folder"], "no/such/folder"),
        (["mat_1", "--images", "tests", "--batch_size", "2"], "--batch_size is not for --images, which times what"),
        (["mat_1", "--images", "tests", "--compile"], "--compile is not for --images"),
        (["mat_1", "--images", "tests", "--runtime", "onnxruntime"], "--runtime is not for --images"),
        (
            ["mat_1", "--head", "retinanet", "--images", "tests", "--image_size", "64", "96"],
            "--image_size 64 96: head retinanet keeps the shape of images; give one side.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(mistake, argv, said):
    assert mistake("benchmark", *argv).startswith(said)


def test_a_runtime_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed: .*\[export\]"):
        runtimes.check_installed("onnxruntime")


def test_every_runtime_is_timed_in_the_precisions_it_has(monkeypatch, mistake):
    monkeypatch.setattr(runtimes, "check_installed", lambda name: None)
    settings = Settings(["mat_1"], runtime=["openvino", "torch", "onnxruntime"], precision=["int8", "bf16", "fp32"])
    settings.check()
    (entry,) = settings.entries()
    assert [candidate.label for candidate in settings.candidates(entry, 1)] == [
        "eager, bf16",
        "eager",
        "eager in openvino, int8",
        "eager in openvino, bf16",
        "eager in openvino",
        "eager in onnxruntime, int8",
        "eager in onnxruntime",
    ]
    said = mistake("benchmark", "mat_1", "--runtime", "onnxruntime,openvino", "--precision", "bf16")
    assert said.startswith("--runtime onnxruntime has fp32 and int8, not --precision bf16.")


def test_exported_files_have_the_axes_of_the_export_and_its_outputs(tmp_path):
    """The default file takes every batch, the fixed one no other; an int8 file is close to the float one."""
    network = network_of("mat_1", (32, 32), Build({"depths": [1, 1, 1, 1]}))
    images = images_of(network, 2, (32, 32))
    with torch.inference_mode():
        expected = network(images).numpy()
    first = forms.Candidate("mat_1", runtime="onnxruntime", batch=2, image_size=(32, 32))
    found = {}
    for dynamic, precision in ((None, "fp32"), ("none", "fp32"), (None, "int8")):
        candidate = forms.with_file(replace(first, dynamic=dynamic, precision=precision), network, tmp_path)
        run = runtimes.opened(candidate.file, "onnxruntime", precision=precision, threads=1, shape=tuple(images.shape))
        found[dynamic, precision] = run
        assert not [*Path(candidate.file).parent.glob("float_*")]
    scale = np.abs(expected).max()
    assert np.abs(found[None, "fp32"](images.numpy()) - expected).max() <= 1e-5 * scale
    assert np.abs(found["none", "fp32"](images.numpy()) - expected).max() <= 1e-5 * scale
    assert 1e-5 * scale < np.abs(found[None, "int8"](images.numpy()) - expected).max() <= 0.2 * scale
    more = torch.zeros(3, 3, 32, 32).numpy()
    assert found[None, "fp32"](more).shape == (3, expected.shape[1])
    with pytest.raises(Exception, match="invalid dimensions"):
        found["none", "fp32"](more)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="Cannot write to"):
        bench.write({}, tmp_path / "taken" / "times.json")
