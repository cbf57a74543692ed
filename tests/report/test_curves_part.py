"""The curves of boxes on a page."""

from __future__ import annotations

from types import SimpleNamespace

from vitrail.report.dense import curves_part


def test_the_curves_of_boxes_say_what_they_are():
    box = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 10.0, 10.0]}
    content = {"annotations": [{**box, "iscrowd": 0}, {**box, "bbox": [50.0, 50.0, 10.0, 10.0], "iscrowd": 0}]}
    metrics = SimpleNamespace(data=SimpleNamespace(content=content), results=[{**box, "score": 0.75}])
    drawn = str(curves_part(metrics).markup)
    assert "Precision over recall of boxes" in drawn
    assert "the area is AP50, 0.505" in drawn  # 51 of the 101 recalls are reached, at a precision of 1
    assert "highest at a score of 0.00: 0.667" in drawn  # one of one box right, one of two objects
    crowd = SimpleNamespace(data=SimpleNamespace(content={"annotations": [{**box, "iscrowd": 1}]}), results=[])
    assert curves_part(crowd) is None
