"""What a mistake gets from `vitrail export`, and a damaged, foreign or dangerous file from predict and evaluate."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from export_helpers import EACH, INT8, weights_of

from vitrail.cli import main
from vitrail.deploy.export import export as exports
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.runtime import open_deployed
from vitrail.deploy.export.trace import Graph


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--format", "onxx", "--output", "a.onnx"], ["onxx", "onnx"]),
        (["--format", "onnx", "--output", "a.xml"], ["a.xml", ".onnx"]),
        (["--format", "onnx", "--output", "there.onnx"], ["there.onnx", "--overwrite"]),
        (["--format", "onnx", "--output", "there.onnx/a.onnx"], ["there.onnx"]),
        (["--format", "onnx", "--output", "a.onnx", "--dynamic", "size"], ["--dynamic", "size", "batch,size"]),
        (["--format", "onnx", "--output", "a.onnx", "--dynamic", "batch", "--batch_size", "2"], ["--batch_size"]),
        (["--format", "executorch", "--output", "a.pte", "--dynamic", "batch"], ["executorch", "fixed"]),
        (["--format", "onnx", "--output", "a.onnx", "--quantize", "int4"], ["int4", "int8"]),
        (["--format", "onnx", "--output", "a.onnx", "--quantize", "int8"], ["--data"]),
        (
            ["--format", "onnx", "--output", "a.onnx", "--features", *INT8, "digits"],
            ["--features"],
        ),
        (["--format", "torch_export", "--output", "a.pt2", *INT8, "digits"], ["torch_export"]),
        (["--format", "executorch", "--output", "a.pte", *INT8, "digits"], ["executorch"]),
        (["--format", "onnx", "--output", "a.onnx", "--image_size", "0"], ["--image_size"]),
        (["--format", "onnx", "--output", "a.onnx", "--images", "none.jpg"], ["none.jpg"]),
        (["--format", "onnx", "--output", "a.onnx", "--image_size", "9" * 20], ["--image_size", "at most 8,192"]),
        (["--format", "onnx", "--output", "a.onnx", "--batch_size", "9" * 20], ["--batch_size", "at most 65,536"]),
        (["--format", "onnx", "--output", "a.onnx", "--threads", "9" * 20], ["--threads", "at most 1,024"]),
        (["--format", "onnx", "--output", "a.onnx", "--tolerance", "0"], ["--tolerance"]),
        (
            [
                "--format",
                "onnx",
                "--output",
                "a.onnx",
                *INT8,
                "folder",
                "--data.root",
                "empty",
            ],
            ["empty"],
        ),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_with_one_sentence_and_leaves_nothing(mistake, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("precious")
    (tmp_path / "empty").mkdir()
    weights = weights_of("mat_1", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    sentence = mistake("export", weights, *argv)
    for word in says:
        assert word in sentence
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.onnx").read_text() == "precious"


def test_a_runtime_that_disagrees_leaves_nothing(mistake, tmp_path, monkeypatch):
    weights = weights_of("mat_1", tmp_path)
    out = tmp_path / "out"
    out.mkdir()

    def other(program, path, metadata, shape):
        torch.export.save(torch.export.export(Graph(Wrong()), (shape.example(),)), path)

    monkeypatch.setattr(BACKENDS["torch_export"], "write_graph", other)
    argv = ["export", weights, "--format", "torch_export", "--output", str(out / "a.pt2"), "--dynamic", "none"]
    sentence = mistake(*argv)
    assert "differ from PyTorch's" in sentence
    assert "--tolerance 0.0001" in sentence
    assert list(out.iterdir()) == []


class Wrong(torch.nn.Module):
    """Ten numbers that no network said."""

    def forward(self, x):
        return x.mean((2, 3))[:, :1].expand(-1, 10).clone()


def test_free_axes_that_fail_give_way_only_when_nobody_asked_for_them(capsys, mistake, tmp_path, monkeypatch):
    weights = weights_of("mat_1", tmp_path)
    real = BACKENDS["torch_export"].trace

    def fixed_only(graph, shape):
        if shape.free:
            raise exports.CannotExport("this graph branches on sizes")
        return real(graph, shape)

    monkeypatch.setattr(BACKENDS["torch_export"], "trace", fixed_only)
    argv = ["export", weights, "--format", "torch_export", "--output", str(tmp_path / "a.pt2")]
    assert "branches on sizes" in mistake(*argv, "--dynamic", "batch")
    assert main([*argv, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["shape"] == [1, 3, 64, 64]
    assert len(made["notes"]) == 2


def test_only_networks_that_see_many_sizes_get_files_of_every_size(capsys, tmp_path):
    """A classifier's images are resized to one size, for which its file is faster; a backbone serves all sizes."""
    weights, made = weights_of("mat_1", tmp_path), {}
    for name, more in {"logits": [], "asked": ["--dynamic", "batch,size"], "features": ["--features"]}.items():
        argv = ["export", weights, "--format", "torch_export", "--output", str(tmp_path / f"{name}.pt2"), *more]
        assert main([*argv, "--json"]) == 0
        made[name] = json.loads(capsys.readouterr().out)
    assert made["logits"]["shape"] == ["batch", 3, 64, 64]
    assert made["logits"]["notes"] == ["one size only, which is faster: --dynamic batch,size frees the size"]
    assert made["asked"]["shape"] == made["features"]["shape"] == ["batch", 3, "height", "width"]
    assert made["asked"]["notes"] == []


def test_a_missing_package_is_named_with_its_extra(mistake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    argv = ["export", "random:mat_1", "--format", "onnx", "--output", str(tmp_path / "a.onnx")]
    assert 'pip install -e ".[export]"' in mistake(*argv)


def test_an_older_file_is_replaced_on_demand(files, run, tmp_path):
    path = tmp_path / "a.pt2"
    path.write_text("old")
    argv = ["export", str(run), "--format", "torch_export", "--output", str(path), "--dynamic", "none", "--overwrite"]
    assert main(argv) == 0
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("format", EACH)
def test_a_damaged_file_is_named(mistake, files, format, tmp_path, images):
    path = tmp_path / files[format].name
    for file in BACKENDS[format].files(files[format]):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path.write_bytes(files[format].read_bytes()[:200])
    sentence = mistake("predict", str(path), str(images))
    assert path.name in sentence
    assert "damaged" in sentence


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def with_entry(source: Path, target: Path, name: str, content: bytes) -> None:
    """A copy of a zip archive with one entry replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for entry in old.namelist():
            if entry != f"{root}/{name}":
                new.writestr(entry, old.read(entry))
        new.writestr(f"{root}/{name}", content)
    shutil.copy(f"{source}.json", f"{target}.json")


def test_a_graph_with_a_pickle_of_code_is_refused(capsys, mistake, files, tmp_path, images):
    torch.save(Evil(), tmp_path / "inputs.pt")
    with zipfile.ZipFile(files["torch_export"]) as archive:
        inputs = next(name for name in archive.namelist() if "sample_inputs" in name).split("/", 1)[1]
    pickled = {"config": {"w": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
    entries = {
        inputs: (tmp_path / "inputs.pt").read_bytes(),
        "data/constants/model_constants_config.json": json.dumps(pickled).encode(),
        "data/constants/opaque_obj_0": pickle.dumps(Evil()),
    }
    for i, (name, content) in enumerate(entries.items()):
        path = tmp_path / f"evil{i}.pt2"
        with_entry(files["torch_export"], path, name, content)
        sentence = mistake("predict", str(path), str(images))
        assert "refused" in sentence
        assert "must never" not in capsys.readouterr().out


def test_a_lost_description_is_read_from_inside_an_onnx_file(mistake, files, tmp_path, images):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(files["onnx"].read_bytes())
    assert main(["predict", str(alone), str(images)]) == 0
    alone = tmp_path / "alone.pt2"
    alone.write_bytes(files["torch_export"].read_bytes())
    assert "alone.pt2.json" in mistake("predict", str(alone), str(images))
    (tmp_path / "alone.pt2.json").write_text("{}")
    assert "alone.pt2.json is damaged" in mistake("predict", str(alone), str(images))


def test_a_runtime_that_does_not_run_the_file_is_refused(mistake, files, run, images):
    onnx_file = str(files["onnx"])
    assert ".xml" in mistake("predict", onnx_file, str(images), "--runtime", "openvino")
    assert "--format onnx" in mistake("evaluate", str(run), "--runtime", "onnxruntime")
    assert "tensorrt" in mistake("predict", onnx_file, str(images), "--runtime", "tensorrt")
    assert "nowhere.onnx" in mistake("predict", "nowhere.onnx", str(images))
    assert "--model" in mistake("predict", onnx_file, str(images), "--model", "mat_1")


def test_an_input_that_does_not_fit_is_named(files):
    with pytest.raises(ValueError, match=r"\(1, 3, 40, 40\) does not fit .*digits.onnx, which takes 3 x 32 x 32"):
        open_deployed(files["onnx"])(torch.zeros(1, 3, 40, 40))


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("format", "output", "read"),
    [
        ("openvino", "network.xml", "network.bin"),  # the file of weights beside the graph
        ("torch_export", "network.pt2", "network.pt2"),
        ("onnx", "network.onnx", "network.onnx"),
        ("onnx", "photo.onnx", "photo.onnx.json"),  # the description
        ("openvino", "hard.xml", "hard.bin"),
    ],
)
def test_what_an_export_reads_is_never_replaced(mistake, tmp_path, monkeypatch, format, output, read, overwrite):
    monkeypatch.chdir(tmp_path)
    weights = ["network.bin" if output == "hard.xml" else read, "--model", "mat_1"]
    (tmp_path / weights[0]).write_text("precious")
    if output == "hard.xml":
        os.link("network.bin", "hard.bin")
    if read.startswith("photo"):
        weights = [weights_of("mat_1", tmp_path), "--images", read]
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    sentence = mistake("export", *weights, "--format", format, "--output", output, *overwrite)
    assert f"{read} is read by this command, and never written over" in sentence
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("file", ["a.xml", "a.bin", "a.xml.json"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_an_export_replaces_no_link_and_no_folder(mistake, tmp_path, monkeypatch, file, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    if kind == "folder":
        (tmp_path / file).mkdir()
    else:
        (tmp_path / file).symlink_to("mine.txt" if kind == "link" else "nothing.txt")
    sentence = mistake("export", "random:mat_1", "--format", "openvino", "--output", "a.xml", "--overwrite")
    assert f"{file} is a folder or a link" in sentence
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_hidden_folder_beside_the_output_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".a.pt2.new", "a.pt2.new", ".vitrail-new-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with exports._kept_if_whole(tmp_path / "a.pt2", BACKENDS["torch_export"]) as path:
        path.write_text("x")
        path.with_name("a.pt2.json").write_text("{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [".a.pt2.new", "a.pt2.new", ".vitrail-new-", "a.pt2", "a.pt2.json"]
    )
    assert all((tmp_path / name / "mine.txt").exists() for name in (".a.pt2.new", "a.pt2.new", ".vitrail-new-"))
