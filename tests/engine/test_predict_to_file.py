"""Predictions in a file: every form, shares that make a whole, and calls that go on after a kill."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from dense_helpers import CASES, MASKS, SHORT, weights_with
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.config.tasks import InferenceConfig
from vitrail.engine import predict_to_file as module
from vitrail.engine.journal import Journal
from vitrail.engine.predict import predict
from vitrail.engine.predict_to_file import predict_to_file
from vitrail.engine.shards import Shard, shard_of
from vitrail.errors import Interrupted, UserError

#: images in the folder; one of them is broken
COUNT = 11


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = folder / f"{i % 3}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path)
    (folder / "1" / "4.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    model = vitrail.create_model("mat_1", num_classes=4, **SHORT)
    meta = WeightsMeta("mat_1", SHORT, classes=["a", "b, c", '"d"', "é"], preprocess=Preprocess((32, 32)))
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_weights(path, model.state_dict(), meta)
    return str(path)


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def test_json_lines_are_what_predict_finds(photos, classifier, tmp_path):
    done = predict_to_file(classifier, photos, tmp_path / "r.jsonl", top_k=2)
    assert (done.images, done.failed, done.resumed, done.shard) == (COUNT, 1, 0, "1/1")
    found = lines(tmp_path / "r.jsonl")
    for one, other in zip(found, predict(classifier, photos, top_k=2), strict=True):
        assert one["path"] == other.path
        assert one["error"] == other.error
        if other.prediction is not None:
            assert one["classes"] == other.prediction.classes
            assert one["probabilities"] == pytest.approx(other.prediction.probabilities, abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.about.json"]
    about = json.loads((tmp_path / "r.jsonl.about.json").read_text())
    assert about["network"]["classes"] == ["a", "b, c", '"d"', "é"]
    assert about["summary"]["errors"] == done.errors
    assert "4.png" in done.errors[0]


def test_tables_say_the_same(photos, classifier, tmp_path):
    arrow = pytest.importorskip("pyarrow.parquet")
    for ending in ("jsonl", "csv", "parquet"):
        predict_to_file(classifier, photos, tmp_path / f"r.{ending}", top_k=2)
    found = lines(tmp_path / "r.jsonl")
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = arrow.read_table(tmp_path / "r.parquet").to_pylist()
    names = ["path", "class", "probability", "class_2", "probability_2", "error"]
    assert list(rows[0]) == list(table[0]) == names
    for one, row, typed in zip(found, rows, table, strict=True):
        classes, probabilities = one.get("classes", [None] * 2), one.get("probabilities", [None] * 2)
        expected = [one["path"], classes[0], probabilities[0], classes[1], probabilities[1], one["error"]]
        assert list(typed.values()) == expected
        assert list(row.values()) == ["" if value is None else str(value) for value in expected]


FOUND = InferenceConfig(score_thresh=0.0, max_detections=2)


@pytest.mark.parametrize("case", ["retinanet", "semantic_fpn", "simple_baseline", "bnneck", "mask_rcnn"])
def test_every_task_has_its_columns(case, photos, tmp_path):
    arrow = pytest.importorskip("pyarrow.parquet")
    task, options, _ = CASES[case] if case in CASES else (MASKS[1], MASKS[2], None)
    weights = weights_with(case, task, options, tmp_path)
    inference = FOUND if case in ("retinanet", "mask_rcnn") else None
    images = [photos / "0" / "0.png", photos / "1" / "4.png"]
    predict_to_file(weights, images, tmp_path / "r.parquet", inference=inference)
    rows = arrow.read_table(tmp_path / "r.parquet").to_pylist()
    (result, _) = predict(weights, images, inference=inference, note=str)
    record = result.prediction.to_dict()
    assert rows[-1]["error"]
    assert {value for name, value in rows[-1].items() if name not in ("path", "error")} == {None}
    if case in ("retinanet", "mask_rcnn"):
        assert [[r[side] for side in ("left", "top", "right", "bottom")] for r in rows[:-1]] == record["boxes"]
        assert [(r["class"], r["score"]) for r in rows[:-1]] == list(
            zip(record["classes"], record["scores"], strict=True)
        )
        assert [json.loads(r["mask"]) for r in rows[:-1] if "mask" in r] == record.get("masks", [])
    elif case == "semantic_fpn":
        assert {r["class"]: r["share"] for r in rows[:-1]} == record["shares"]
    elif case == "simple_baseline":
        assert [rows[0][f"b_{value}"] for value in ("x", "y", "score")] == record["keypoints"][0][1]
    else:
        assert rows[0]["embedding"] == pytest.approx(record["embedding"])


def test_cocos_form_has_the_ids_of_a_file(photos, tmp_path):
    weights = weights_with("retinanet", *CASES["retinanet"][:2], tmp_path)
    content = {
        "images": [{"id": 70 + i, "file_name": f"{i}.png"} for i in range(COUNT - 2)],
        "categories": [{"id": n, "name": name} for n, name in ((5, "b"), (9, "a"), (40, "other"), (12, "c"))],
    }
    (tmp_path / "info.json").write_text(json.dumps(content))
    done = predict_to_file(
        weights, photos, tmp_path / "r.json", coco_images=str(tmp_path / "info.json"), inference=FOUND
    )
    assert (done.images, done.left_out, done.failed) == (COUNT - 2, 2, 1)
    found = json.loads((tmp_path / "r.json").read_text())
    expected = {
        int(r.path.split("/")[-1][:-4]): r.prediction for r in predict(weights, photos, inference=FOUND, note=str)
    }
    assert {one["image_id"] for one in found} == {70 + i for i in range(COUNT - 2) if i != 4}
    for i in (0, 7):
        own = [one for one in found if one["image_id"] == 70 + i]
        assert [one["category_id"] for one in own] == [(9, 5, 12)[label] for label in expected[i].labels]
        boxes = np.array([one["bbox"] for one in own])
        boxes[:, 2:] += boxes[:, :2]
        assert boxes == pytest.approx(expected[i].boxes, abs=1e-3)
        assert [one["score"] for one in own] == pytest.approx(expected[i].scores.tolist())
    # without the file: numbers of names, places of classes
    predict_to_file(weights, photos / "0", tmp_path / "plain.json", inference=FOUND)
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert {one["image_id"] for one in plain} == {0, 3, 6, 9}
    assert {one["category_id"] for one in plain} <= {1, 2, 3}


@pytest.mark.parametrize("count", [2, 5])
def test_shares_make_a_whole(photos, classifier, tmp_path, count):
    predict_to_file(classifier, photos, tmp_path / "whole.jsonl")
    for index in range(1, count + 1):
        predict_to_file(classifier, photos, tmp_path / "part.jsonl", shard=f"{index}/{count}")
    parts = [lines(tmp_path / f"part-{i:05d}-of-{count:05d}.jsonl") for i in range(1, count + 1)]
    assert all(len(part) < COUNT for part in parts)
    union = sorted((one for part in parts for one in part), key=lambda one: one["path"])
    whole = sorted(lines(tmp_path / "whole.jsonl"), key=lambda one: one["path"])
    for one, other in zip(union, whole, strict=True):
        assert {**one, "probabilities": 0} == {**other, "probabilities": 0}
        assert one.get("probabilities") == pytest.approx(other.get("probabilities"), abs=1e-6)


def test_shares_of_a_name_do_not_depend_on_others():
    shards = [Shard(i, 7) for i in range(1, 8)]
    sizes = np.zeros(7)
    for n in range(7000):
        taken = [i for i, shard in enumerate(shards) if shard.takes(f"train/{n:08d}.jpg")]
        assert len(taken) == 1
        sizes[taken[0]] += 1
    assert abs(sizes - 1000).max() < 5 * 1000**0.5
    assert shard_of("2/3", {"RANK": "1", "WORLD_SIZE": "4"}) == Shard(6, 12)
    assert shard_of(None, {"RANK": "3", "WORLD_SIZE": "4"}) == Shard(4, 4)
    everyone = {shard_of(f"{i}/3", {"RANK": str(r), "WORLD_SIZE": "4"}).index for i in (1, 2, 3) for r in range(4)}
    assert everyone == set(range(1, 13))
    for wrong in ("0/3", "4/3", "3", "1/0", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(UserError, match="--shard"):
            shard_of(wrong, {})
    with pytest.raises(UserError, match="RANK"):
        shard_of(None, {"RANK": "4", "WORLD_SIZE": "4"})


@pytest.mark.parametrize("torn", [b"", b'{"path": "x", "err', b"\0\0\0"])
def test_a_call_that_was_stopped_goes_on(photos, classifier, tmp_path, monkeypatch, torn):
    """Killed in a line or between two: nothing is lost, nothing stands twice, nothing is computed again."""
    file, partial = tmp_path / "r.jsonl", tmp_path / "r.jsonl.partial"
    predict_to_file(classifier, photos, tmp_path / "whole.jsonl", batch_size=1)
    original, opened = module.predict_files, []

    def counted(*args, **kwargs):
        for result in original(*args, **kwargs):
            opened.append(result.path)
            yield result
            if len(opened) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "predict_files", counted)
    with pytest.raises(Interrupted, match="5 results"):
        predict_to_file(classifier, photos, file, batch_size=1)
    assert not file.exists()
    with open(partial, "ab") as stream:
        stream.write(torn)
    done = predict_to_file(classifier, photos, file, batch_size=1)
    assert (done.images, done.resumed, len(opened)) == (COUNT, 5, COUNT)
    assert len(set(opened)) == COUNT
    assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_killed_process_goes_on(photos, classifier, tmp_path):
    """SIGKILL after the third result, in a process of its own."""
    program = f"""
import os, signal
from vitrail.engine import journal, predict_to_file as module
add = journal.Journal.add
def killing(self, *args):
    add(self, *args)
    if self.count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.add = killing
module.predict_to_file({classifier!r}, {str(photos)!r}, {str(tmp_path / "r.csv")!r}, shard="1/1")
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=200).returncode == -9
    assert predict_to_file(classifier, photos, tmp_path / "r.csv").resumed == 3
    predict_to_file(classifier, photos, tmp_path / "whole.csv")
    with open(tmp_path / "r.csv") as one, open(tmp_path / "whole.csv") as other:
        assert [row[0] for row in csv.reader(one)] == [row[0] for row in csv.reader(other)]


def test_a_complete_file_is_not_computed_again(photos, classifier, tmp_path, monkeypatch):
    file = tmp_path / "r.csv"
    predict_to_file(classifier, photos / "0", file)
    before = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(module, "predict_files", lambda *args, **kwargs: pytest.fail("computed again"))
        assert predict_to_file(classifier, photos / "0", file).complete
    assert file.read_bytes() == before
    # other options, and other images: the file, which is ours, is made anew
    assert not predict_to_file(classifier, photos / "0", file, top_k=1).complete
    assert b"class_2" not in file.read_bytes()
    assert predict_to_file(classifier, photos, file).images == COUNT


def test_files_of_others_are_never_replaced(photos, classifier, tmp_path):
    file = tmp_path / "r.csv"
    for name, sentence in (("r.csv", "r.csv was not"), ("r.csv.partial", "partial"), ("r.csv.about.json", "about")):
        (tmp_path / name).write_text("{}\n")
        with pytest.raises(UserError, match=sentence):
            predict_to_file(classifier, photos, file)
        assert (tmp_path / name).read_text() == "{}\n"
        (tmp_path / name).unlink()
    predict_to_file(classifier, photos / "0", file)
    file.write_text("changed")
    with pytest.raises(UserError, match="changed since"):
        predict_to_file(classifier, photos, file)
    with pytest.raises(UserError, match="no folder"):
        predict_to_file(classifier, photos, tmp_path / "none" / "r.csv")


def test_the_beginning_of_another_prediction_is_refused(photos, classifier, tmp_path):
    settings = {"weights": "other"}
    journal = Journal(tmp_path / "r.csv.partial", settings)
    with pytest.raises(UserError, match="Another process"):
        predict_to_file(classifier, photos, tmp_path / "r.csv")
    journal.close()
    with pytest.raises(UserError, match=r"other settings \(weights"):
        predict_to_file(classifier, photos, tmp_path / "r.csv")
    assert Journal(tmp_path / "r.csv.partial", settings).count == 0


def test_mistakes_on_the_command_line(photos, classifier, tmp_path, capsys, monkeypatch):
    def sentence(*argv):
        assert main(["predict", classifier, str(photos), *argv]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "r.csv")
    assert "must end in .csv, .jsonl, .parquet or .json" in sentence("--output", str(tmp_path / "r.txt"))
    assert "--output FILE" in sentence("--shard", "1/2")
    assert "give one of them" in sentence("--output", out, "--save", str(tmp_path / "s"))
    assert "--coco_images is for" in sentence("--output", out, "--coco_images", "x.json")
    assert "detection" in sentence("--output", str(tmp_path / "r.json"))
    assert "1/8 to 8/8" in sentence("--output", out, "--shard", "0/8")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "--output FILE" in sentence()
    assert main(["predict", classifier, str(photos), "--output", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "r-00002-of-00002.csv")


def test_memory_does_not_grow_with_the_folder(classifier, tmp_path, monkeypatch):
    """A folder in which names appear as they are asked for: never more than a batch ahead."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked = []

    def endless(folder, left_out):
        for _ in range(200):
            asked.append(1)
            yield "a.png"

    monkeypatch.setattr("vitrail.engine.predict.iterate_images", endless)
    ahead = []
    original = Journal.add

    def noted(self, *args):
        ahead.append(len(asked) - before - self.count)
        original(self, *args)

    monkeypatch.setattr(Journal, "add", noted)
    before = 1 + 48  # the first name, and those of the levels
    predict_to_file(classifier, tmp_path, tmp_path / "r.jsonl", batch_size=4)
    assert len(ahead) == 200
    assert max(ahead) <= 4
