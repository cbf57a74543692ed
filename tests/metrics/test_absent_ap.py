"""AP of what the data does not have: not a number in JSON, and a dash in the table."""

from __future__ import annotations

import json
import re

import pytest

from vitrail.cli import main

pytest.importorskip("faster_coco_eval")


def test_absent_ap_is_the_same_in_table_and_json(capsys, tmp_path):
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{**box, "id": 1, "area": 100, "iscrowd": 0}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([{**box, "score": 0.9}]))
    argv = ["evaluate", "--task", "detection", "--predictions", str(tmp_path / "found.json"), "--data", "coco"]
    argv += ["--data.annotations", str(tmp_path / "truth.json")]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    absent = [name for name, value in found.items() if value is None]
    assert absent == ["APm", "APl", "ARm", "ARl"]
    assert (found["AP"], found["APs"]) == (pytest.approx(1), pytest.approx(1))
    assert [row["AP"] for row in found["per_class"]] == [pytest.approx(1), None]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "-1.0" not in table  # (the file's path may hold -1)
    for name in (*absent, "dog"):
        assert re.search(rf"^ *{name} +- *$", table, re.MULTILINE)
