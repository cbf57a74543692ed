"""Exported files of strangers: what could run code, read other files or ask for anything is refused unread."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.deploy.export.backends.torch_export import FUNCTIONS, check_torch_export, is_size, is_tensor_operator
from vitrail.errors import UserError

#: would leave a file called RUN where it is evaluated
HARM = "__import__('pathlib').Path('RUN').touch()"


def rewritten(source: Path, target: Path, change, more: dict[str, bytes] | None = None, packed: bool = False) -> None:
    """A copy of an archive whose graph is what `change` makes of it, with further entries."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                graph = json.loads(content)
                change(graph)
                content = json.dumps(graph).encode()
            new.writestr(entry.filename, content)
        for name, content in (more or {}).items():
            new.writestr(name, content)
    shutil.copy(f"{source}.json", f"{target}.json")


def first(value, key: str):
    """The first dictionary that has an entry."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if key in value:
                return value
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    raise KeyError(key)


def put(key: str, value):
    return lambda graph: first(graph, key).update({key: value})


def put_int(graph, expression: str) -> None:
    """An expression in the place of a size."""
    first(graph, "as_int").update(as_expr={"expr_str": expression, "hint": {"as_int": 2}})
    first(graph, "as_int").pop("as_int")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graph: put_int(graph, HARM), "expr_str"),
        (lambda graph: put_int(graph, "Pow(10, Pow(10, 10))"), "expr_str"),
        (lambda graph: put_int(graph, "Symbol('s0').func.__globals__"), "expr_str"),
        (put("target", "torch.os.system"), "target 'torch.os.system'"),
        (put("target", "_operator.methodcaller"), "target"),
        (put("target", "torch.ops.aten.from_file.default"), "target"),
        (put("target", "torch.hub.load"), "target"),
        (put("target", "#custom"), "target"),
        (put("in_spec", '[1, {"type": "collections.defaultdict", "context": "os", "children_spec": []}]'), "in_spec"),
        (put("in_spec", "[" * 100_000), "in_spec"),
        (put("guards_code", [HARM]), "guards_code"),
        (put("torch_version", "\n" + HARM), "torch_version"),
        (lambda graph: first(graph, "name").update(name=f"x={HARM}"), "name"),
        (lambda graph: graph.update({HARM: 1}), "name"),
    ],
)
def test_a_graph_that_would_run_code_is_refused(mistake, files, tmp_path, images, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    rewritten(files["torch_export"], tmp_path / "a.pt2", change)
    sentence = mistake("predict", "a.pt2", str(images))
    assert sentence.startswith("a.pt2 is refused")
    assert says in sentence
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize(
    "name",
    [
        "a/data/aotinductor/model/x.so",
        "a/data/constants/custom_obj_0",
        "a/extra/x.py",
        "a/../../x",
        "a/data/weights/x.pt",
    ],
)
def test_entries_that_no_graph_needs_are_refused(mistake, files, tmp_path, images, name):
    rewritten(files["torch_export"], tmp_path / "a.pt2", lambda graph: None, {name: b"x"})
    assert "is refused" in mistake("predict", str(tmp_path / "a.pt2"), str(images))


def test_packed_entries_are_refused(mistake, files, tmp_path, images):
    """They may unpack to any size."""
    rewritten(files["torch_export"], tmp_path / "a.pt2", lambda graph: None, packed=True)
    assert "compressed entry" in mistake("predict", str(tmp_path / "a.pt2"), str(images))


def test_an_honest_copy_is_read(files, tmp_path):
    rewritten(files["torch_export"], tmp_path / "a.pt2", lambda graph: None)
    check_torch_export(tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("s0", True),
        ("1 + ((s14 - 1)//16)", True),
        ("Add(FloorDiv(Symbol('s14', positive=True, integer=True), Integer(16)), Integer(1))", True),
        ("Pow(Add(s0, 1), Integer(-1))", True),
        ("Pow(s0, 3)", False),
        ("s0**2", False),
        ("Pow(" * 20 + "s0" + ", 2)" * 20, False),
        ("9" * 30, False),
        ("open('x')", False),
        ("Symbol('x y')", False),
        ("s0.real", False),
        ("s0[0]", False),
        ("(lambda: 0)()", False),
        ("[x for x in s0]", False),
        ("Integer", True),
        ("(" * 3000, False),
        ("", False),
    ],
)
def test_expressions_of_sizes(text, harmless):
    assert is_size(text) == harmless


class StandIns(dict):
    """What names mean to a text that is evaluated with nothing else: 2 for sizes, 1 for whatever a function gives."""

    def __missing__(self, name):
        return (lambda *_, **__: 1) if FUNCTIONS.fullmatch(name) else 2


@given(st.text(alphabet="s01+-*/()., '=<[_:lMaxAd", max_size=30))
def test_accepted_expressions_give_numbers(text):
    if is_size(text):
        try:
            value = eval(text, {"__builtins__": {}}, StandIns())
        except (ArithmeticError, TypeError):
            return
        assert isinstance(value, (int, float)) or callable(value) or value in ("s0", "s1")


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("torch.ops.aten.conv2d.default", True),
        ("torch.ops.aten.gelu.default", True),
        ("torch.ops.aten.from_file.default", False),
        ("torch.ops.aten.nothing.default", False),
        ("torch.ops.aten.conv2d.nothing", False),
        ("torch.ops.fbgemm.conv2d.default", False),
        ("torch.os.system", False),
    ],
)
def test_tensor_operators(name, harmless):
    assert is_tensor_operator(name) == harmless


# ---- ONNX -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "near.bin"])
def test_onnx_weights_in_other_files_are_refused(mistake, files, tmp_path, images, location):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(files["onnx"])
    tensor = model.graph.initializer[0]
    (tmp_path / "near.bin").write_bytes(bytes(1 << 16))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    sentence = mistake("predict", str(tmp_path / "a.onnx"), str(images))
    assert "takes weights from another file" in sentence
    assert location in sentence


def test_onnx_weights_in_other_files_of_an_inner_graph_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    from vitrail.deploy.export.backends import BACKENDS

    outside = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="x")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=outside)], "inner", [], [])
    node = onnx.helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([node], "outer", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="another file"):
        BACKENDS["onnx"].check_file(tmp_path / "a.onnx")


# ---- descriptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(input=[]), "entries by name"),
        (lambda d: d["input"].update(shape=[1, 3, 32]), "input.shape"),
        (lambda d: d["input"].update(shape=["x", 3, 32, 32]), "input.shape"),
        (lambda d: d["input"].update(shape=["batch", "channels", 32, 32]), "input.shape"),
        (lambda d: d["input"].update(shape=[10**9, 3, 32, 32]), "input.shape"),
        (lambda d: d["input"].update(shape=["batch", 3, 64, 32]), "input.shape"),
        (lambda d: d["input"].update(shape=None), "input.shape must be a list"),
        (lambda d: d["input"].update(preprocessing_embedded="yes"), "preprocessing_embedded must be true or false"),
        (lambda d: d.update(outputs="logits"), "outputs must be a list"),
        (lambda d: d.update(output_kind="anything"), "output_kind must be one of"),
        (lambda d: d.update(format="onnx2"), "describes a file of"),
        (lambda d: d.update(quantized=4), "quantized must be one of"),
        (lambda d: d.update(classes={"a": 1}), "classes"),
        (lambda d: d.update(classes=[1, 2]), "classes"),
        (lambda d: d.update(preprocess="x"), "preprocess"),
        (lambda d: d["preprocess"].update(std=[0, 1, 1]), "std"),
        (lambda d: d["preprocess"].update(crop_pct=0), "crop_pct"),
        (lambda d: d["preprocess"].update(image_size=[10**6, 10**6]), "1000000"),
        (lambda d: d.update(versions=[]), "versions"),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_descriptions_of_wrong_types(mistake, files, tmp_path, images, format, change, says):
    path = tmp_path / files[format].name
    shutil.copy(files[format], path)
    description = json.loads(Path(f"{files[format]}.json").read_text())
    change(description)
    Path(f"{path}.json").write_text(json.dumps(description))
    sentence = mistake("predict", str(path), str(images))
    assert says in sentence
    assert len(sentence) < 600


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff\xfe", b"null", b"{", b""])
def test_descriptions_that_are_none(mistake, files, tmp_path, images, content):
    path = tmp_path / files["onnx"].name
    shutil.copy(files["onnx"], path)
    Path(f"{path}.json").write_bytes(content)
    assert str(path) in mistake("predict", str(path), str(images))


@pytest.mark.parametrize("count", [3, 11])
def test_classes_that_are_not_as_many_as_the_outputs(mistake, files, tmp_path, images, count):
    path = tmp_path / files["onnx"].name
    shutil.copy(files["onnx"], path)
    description = json.loads(Path(f"{files['onnx']}.json").read_text())
    description["classes"] = [f"class {i}" for i in range(count)]
    Path(f"{path}.json").write_text(json.dumps(description))
    assert f"names {count} classes" in mistake("predict", str(path), str(images))


@pytest.mark.parametrize(("version", "age"), [(None, "an earlier"), (1, "an earlier"), (99, "a newer")])
def test_files_of_another_version_are_refused(mistake, files, tmp_path, images, version, age):
    path = tmp_path / files["onnx"].name
    shutil.copy(files["onnx"], path)
    metadata = json.loads(Path(f"{files['onnx']}.json").read_text())
    metadata["metadata_version"] = version
    if version is None:
        del metadata["metadata_version"]
    Path(f"{path}.json").write_text(json.dumps(metadata))
    sentence = mistake("predict", str(path), str(images))
    assert f"exported by {age} version of vitrail" in sentence
    assert "export the network again" in sentence
