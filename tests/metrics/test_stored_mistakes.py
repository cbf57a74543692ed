"""Stored predictions that cannot be measured: one sentence with file and record."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 3, "name": "cat"}],
}
BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}


def with_entry(where: str, **changes) -> dict:
    return {**TRUTH, where: [{**TRUTH[where][0], **changes}]}


@pytest.mark.parametrize(
    ("truth", "results", "says"),
    [
        (TRUTH, [{**BOX, "image_id": 2}], "record 0: the data has no image 2"),
        (TRUTH, [BOX, {**BOX, "category_id": 5}], "record 1: the data has no category 5"),
        (TRUTH, [{key: value for key, value in BOX.items() if key != "score"}], "record 0 has no score"),
        (TRUTH, [{**BOX, "bbox": [1, 2, 3]}], "record 0: bbox must be 4 finite numbers"),
        (TRUTH, [{**BOX, "bbox": [1, 2, 3, float("nan")]}], "bbox must be 4 finite numbers"),
        (TRUTH, [{**BOX, "bbox": "1234"}], "bbox must be 4 finite numbers"),
        (TRUTH, [{**BOX, "bbox": [10**30, 1, 1, 1]}], "bbox holds 1e+30, which lies beyond any image"),
        (TRUTH, [{**BOX, "bbox": [10**400, 1, 1, 1]}], "bbox must be 4 finite numbers"),
        (TRUTH, [{**BOX, "bbox": [5, 5, -2, 3]}], "a width or height below 0"),
        (TRUTH, [{**BOX, "image_id": True}], "record 0: the data has no image True"),
        (TRUTH, [{**BOX, "image_id": [1]}], "record 0: the data has no image [1]"),
        (TRUTH, [{**BOX, "category_id": "3"}], "record 0: the data has no category '3'"),
        (TRUTH, [{**BOX, "score": float("nan")}], "the score nan is no finite number"),
        (TRUTH, [{**BOX, "score": True}], "the score True is no finite number"),
        (TRUTH, [None], "record 0 is no record"),
        (TRUTH, [{**BOX, "score": "high"}], "the score 'high' is no finite number"),
        (TRUTH, [BOX, 7], "record 1 is no record"),
        (TRUTH, {"boxes": []}, "no file of COCO results"),
        (with_entry("annotations", image_id=9), [BOX], "annotation 7: there is no image 9"),
        (with_entry("annotations", category_id=9), [BOX], "annotation 7: there is no category 9"),
        ({**TRUTH, "images": TRUTH["images"] * 2}, [BOX], "lists the image 1 twice"),
        ({**TRUTH, "categories": [{"id": 3}]}, [BOX], "category 3 has no name"),
        ({"images": []}, [BOX], "no COCO annotation file: it has no list of annotations"),
    ],
)
def test_wrong_records_are_named(mistake, tmp_path, truth, results, says):
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(results))
    argv = ["--data", "coco", "--data.annotations", str(tmp_path / "truth.json")]
    said = mistake("evaluate", "--task", "detection", "--predictions", str(tmp_path / "found.json"), *argv)
    assert says in said


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("images", "has no image 'a.jpg'"),  # where their folder is named, images are looked at
        ("train_split", "--data.train_split has no effect: predictions are measured on "),
        ("workers", "--data.workers has no effect: no image is decoded"),
    ],
)
def test_options_that_are_not_read(mistake, tmp_path, option, says):
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(TRUTH))
    (tmp_path / "found.json").write_text(json.dumps([BOX]))
    argv = ["--predictions", str(tmp_path / "found.json"), "--data", "coco", "--data.root", str(tmp_path)]
    value = {"images": str(tmp_path), "train_split": "val", "workers": "1"}[option]
    assert says in mistake("evaluate", "--task", "detection", *argv, f"--data.{option}", value)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 1, 4, 1, 4, 4]], "must be run lengths"),
        ({"size": [6, 8]}, "must be run lengths"),
        ({"size": [6, 8], "counts": [0, 47]}, "are damaged"),
        ({"size": [6, 8], "counts": [0, "48"]}, "are damaged"),
        ({"size": [6, 8], "counts": [-1, 49]}, "are damaged"),
        ({"size": [6, 8], "counts": ""}, "are damaged"),
        ({"size": [6, 8], "counts": "0"}, "are damaged"),
        ({"size": [6, 8], "counts": "0`"}, "are damaged"),
        ({"size": [6, 8], "counts": "oooooooo0"}, "are damaged"),
        ({"size": [6, 8], "counts": "0~"}, "are damaged"),
        ({"size": [8, 6], "counts": "02"}, "a mask of [8, 6] for an image of [6, 8]"),
    ],
)
def test_wrong_encodings_are_named(mistake, tmp_path, mask, says):
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "truth.json").write_text(json.dumps(with_entry("annotations", segmentation=[[1, 1, 5, 1, 5, 5]])))
    (tmp_path / "found.json").write_text(json.dumps([{**BOX, "segmentation": mask}]))
    argv = ["--data", "coco", "--data.annotations", str(tmp_path / "truth.json")]
    said = mistake("evaluate", "--task", "instance_segmentation", "--predictions", str(tmp_path / "found.json"), *argv)
    assert said.startswith(str(tmp_path / "found.json") + ", record 0")
    assert says in said


def masks(folder, **maps) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in maps.items():
        Image.fromarray(np.array(rows, dtype=np.uint8)).save(folder / f"{name}.png")


@pytest.mark.parametrize(
    ("predicted", "says"),
    [
        ({"a": [[1, 2, 3]]}, "a.png is 3x1 pixels, the true mask 2x1"),
        ({"a": [[1, 200]]}, "a.png has the value 200, which names none of the 150 classes"),
        ({"b": [[1, 2]]}, "has no mask a.png"),
        ({"a": [[[1, 2, 3], [4, 5, 6]]]}, "a.png is no mask"),
    ],
)
def test_wrong_masks_are_named(mistake, tmp_path, predicted, says):
    masks(tmp_path / "annotations", a=[[1, 150]])
    masks(tmp_path / "found", **predicted)
    argv = ["evaluate", "--task", "semantic_segmentation", "--predictions", str(tmp_path / "found")]
    assert says in mistake(*argv, "--data", "ade20k", "--data.root", str(tmp_path))


def test_a_corrupt_mask_is_named(mistake, tmp_path):
    masks(tmp_path / "annotations", a=[[1, 150]])
    (tmp_path / "annotations" / "a.png").write_bytes((tmp_path / "annotations" / "a.png").read_bytes()[:40])
    argv = ["evaluate", "--task", "semantic_segmentation", "--predictions", str(tmp_path / "annotations")]
    assert "a.png (a mask) is not an image" in mistake(*argv, "--data", "ade20k", "--data.root", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"classes": ["a", "none", "b"], "ignore_index": 1}', None),
        ('{"classes": ["a", "none"], "ignore_index": 1}', "lists one class only, 'a'"),
        ('{"classes": ["a", "a"]}', "gives two classes the name 'a'"),
        ('{"classes": ["a", null]}', "the name of class 1 must be a text, not None"),
        ('{"classes": ["a", "b"], "ignore_index": null}', "from 0 to 255, not None"),
        ('{"classes": ["a", "b"], "ignore_index": 256}', "from 0 to 255, not 256"),
        ('{"classes": ["a", "b"], "ignore_index": -1}', "from 0 to 255, not -1"),
        ('{"classes": ["a", "b"], "ignore_index": true}', "from 0 to 255, not True"),
        ('{"classes": ["a", "b"], "ignored": 0}', "is called ignore_index"),
        ('{"names": []}', "is no list of classes"),
        ("[", "is no JSON"),
        ('{"classes": []}', "a value of its own"),
    ],
)
def test_lists_of_classes(mistake, capsys, tmp_path, content, says):
    masks(tmp_path / "annotations", a=[[0, 0]])
    (tmp_path / "classes.json").write_text(content)
    argv = ["evaluate", "--task", "semantic_segmentation", "--predictions", str(tmp_path / "annotations")]
    argv += ["--data", "ade20k", "--data.root", str(tmp_path)]
    if says is None:
        from vitrail.cli import main

        assert main([*argv, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["per_class"] == [
            {"class": "a", "IoU": 1.0, "accuracy": 1.0, "pixels": 2},
            {"class": "b", "IoU": None, "accuracy": None, "pixels": 0},
        ]
    else:
        assert says in mistake(*argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--task", "detecton", "--predictions", "x"], "did you mean detection"),
        (["--task", "detection", "--predictions", "x.json"], "There is no x.json"),
        (["--task", "detection", "--predictions", "."], "measured on --data coco, not digits"),
        (["--task", "keypoints", "--predictions", ".", "--data", "coco"], "needs --data.root, or --data.annotations"),
        (["--task", "keypoints", "--predictions", ".", "--data", "coco", "--data.root", "."], "person_keypoints_val"),
        (["--task", "semantic_segmentation", "--predictions", ".", "--data", "ade20k"], "needs --data.root"),
        (["--task", "reid", "--predictions", "."], "no file of embeddings"),
        (["--task", "reid", "--predictions", ".", "--data", "digits"], "--data has no effect"),
        (["random:mat_1", "--predictions", "."], "either weights or --predictions"),
        ([], "either weights or --predictions"),
        (["random:mat_1", "--task", "detection"], "--task is for --predictions"),
        (["--task", "reid", "--predictions", ".", "--output", "x"], "--output is for weights, not --predictions"),
    ],
)
def test_what_is_measured_on_what(mistake, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    assert says in mistake("evaluate", *argv)


FIELDS = {
    f"{side}_{name}": values
    for side in ("query", "gallery")
    for name, values in (("feat", np.ones((1, 2))), ("pid", np.array([1])), ("cam", np.array([1])))
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"query_feat": FIELDS["query_feat"]}, "has no query_pid"),
        ({**FIELDS, "query_feat": np.full((1, 2), np.nan)}, "Features must be finite"),
        ({**FIELDS, "query_pid": np.array(["one"])}, "Identities and cameras must be whole numbers"),
        ({**FIELDS, "gallery_feat": np.ones((1, 3))}, "have 2 numbers, those of the gallery 3"),
        ({**FIELDS, "gallery_cam": np.array([{}])}, "no file of embeddings"),
        (FIELDS, "nothing to measure"),
    ],
)
def test_wrong_embeddings_are_named(mistake, tmp_path, fields, says):
    np.savez(tmp_path / "e.npz", **fields)
    assert says in mistake("evaluate", "--task", "reid", "--predictions", str(tmp_path / "e.npz"))


def header(shape: str, descr: str = "<f8") -> bytes:
    """An array's header alone, which says what it likes."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (header("(1000000000000, 2)") + b"0" * 16, "that its bytes do not fill"),
        (header("(1, -2)"), "that its bytes do not fill"),
        (header("(2, 2)") + b"0" * 31, "that its bytes do not fill"),
        (header("(1,)", "|O") + b"0" * 8, "no file of embeddings"),
        (header("(" * 50), "no file of embeddings"),
        (b"", "no file of embeddings"),
    ],
)
def test_headers_are_compared_with_what_they_stand_for(mistake, tmp_path, member, says):
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        for name in FIELDS:
            archive.writestr(f"{name}.npy", member)
    assert says in mistake("evaluate", "--task", "reid", "--predictions", str(tmp_path / "e.npz"))


@pytest.mark.parametrize("content", [b"PK\x03\x04abc", b"\x93NUMPY", b""])
def test_other_files_are_no_embeddings(mistake, tmp_path, content):
    (tmp_path / "e.npz").write_bytes(content)
    assert "no file of embeddings" in mistake("evaluate", "--task", "reid", "--predictions", str(tmp_path / "e.npz"))


def test_without_the_extra_it_is_named(mistake, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    for name, content in (("truth", TRUTH), ("found", [BOX])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    argv = ["evaluate", "--task", "detection", "--predictions", str(tmp_path / "found.json"), "--data", "coco"]
    assert 'pip install -e ".[detection]"' in mistake(*argv, "--data.annotations", str(tmp_path / "truth.json"))
