"""Metrics of stored predictions compared with those of the data sets' own tools.

    python benchmarks/reference_metrics.py [--data FOLDER] [--json]

FOLDER (else VITRAIL_TEST_DATA) holds coco_mini, coco_kpt_mini, ade_mini, camvid_mini and reid_sim, with predictions
and expected metrics. Exits with 1 if one differs by more than 1e-6 (average precision) or 1e-7 (others), the precision
of the expected metrics.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.config.data import DataConfig
from vitrail.metrics.stored_predictions import score

#: our name -> that of the file of expected metrics
REGIONS = {
    "aAcc": "aAcc",
    "mIoU": "mIoU_over_classes_with_union",
    "mIoU_all": "mIoU_over_all_classes_absent_as_zero",
    "mAcc": "mAcc_over_classes_in_gt",
}
SEGMENTS = {"All": "", "Things": "_things", "Stuff": "_stuff"}


def of_regions(content: dict[str, Any]) -> dict[str, float]:
    return {ours: content[theirs] for ours, theirs in REGIONS.items()}


def of_segments(content: dict[str, Any]) -> dict[str, float]:
    return {
        name.upper() + suffix: content[part][name] for part, suffix in SEGMENTS.items() for name in ("pq", "sq", "rq")
    }


def of_kind(kind: str) -> Callable[[dict[str, Any]], dict[str, float]]:
    return lambda content: content[kind]


@dataclass(frozen=True)
class Case:
    """Stored predictions: folder of the data, task, name of the data's layout, files, and where the metrics stand."""

    folder: str
    task: str
    layout: str | None
    predictions: str
    expected: str
    read: Callable[[dict[str, Any]], dict[str, float]]
    tolerance: float = 1e-7

    @property
    def name(self) -> str:
        return f"{self.folder} {self.task}"

    def metrics(self, data: Path) -> dict[str, float]:
        """The expected metrics."""
        return self.read(json.loads((data / self.folder / self.expected).read_text(encoding="utf-8")))

    def argv(self, data: Path) -> list[str]:
        """The options of `vitrail evaluate`."""
        layout = [] if self.layout is None else ["--data", self.layout, "--data.root", str(data / self.folder)]
        return ["--task", self.task, "--predictions", str(data / self.folder / self.predictions), *layout]

    def ours(self, data: Path) -> dict[str, Any]:
        """Our metrics."""
        layout = DataConfig() if self.layout is None else DataConfig(self.layout, root=str(data / self.folder))
        return score(self.task, data / self.folder / self.predictions, layout)


def of_coco(folder: str, part: str, task: str, kind: str) -> Case:
    files = (f"results/{part}_{kind}.json", f"results/{part}_expected.json")
    return Case(folder, task, "coco", *files, of_kind(kind), 1e-6)


def of_masks(folder: str) -> Case:
    return Case(folder, "semantic_segmentation", "ade20k", "results/pred", "results/expected.json", of_regions)


PANOPTIC = ("results/val_panoptic.json", "results/val_panoptic_expected.json")
REID = ("metric_case.npz", "metric_expected.json")
CASES = [
    of_coco("coco_mini", "val", "detection", "bbox"),
    of_coco("coco_mini", "val", "instance_segmentation", "segm"),
    of_coco("coco_kpt_mini", "all", "detection", "bbox"),
    of_coco("coco_kpt_mini", "all", "instance_segmentation", "segm"),
    of_coco("coco_kpt_mini", "all", "keypoints", "keypoints"),
    Case("coco_mini", "panoptic_segmentation", "coco", *PANOPTIC, of_segments),
    of_masks("ade_mini"),
    of_masks("camvid_mini"),
    Case("reid_sim", "reid", None, *REID, of_kind("expected")),
]


def rows(data: Path) -> list[dict[str, Any]]:
    """One row per metric: predictions, metric, expected value, our value, and whether they agree."""
    made = []
    for case in CASES:
        ours = case.ours(data)
        for name, expected in case.metrics(data).items():
            agrees = abs(ours[name] - expected) <= case.tolerance
            made.append(
                {
                    "predictions": case.name,
                    "metric": name,
                    "expected": expected,
                    "ours": round(float(ours[name]), 8),
                    "agrees": agrees,
                }
            )
    return made


def table(found: Sequence[dict[str, Any]]) -> str:
    lines = ["| predictions | metric | expected | ours | |", "|---|---|---:|---:|---|"]
    for row in found:
        verdict = "agrees" if row["agrees"] else "**differs**"
        lines.append(f"| {row['predictions']} | {row['metric']} | {row['expected']} | {row['ours']:.8f} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("VITRAIL_TEST_DATA"), help="folder of the data sets")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of the data sets: --data FOLDER")
    found = rows(Path(args.data))
    print(json.dumps(found, indent=1) if args.as_json else table(found))
    return 0 if all(row["agrees"] for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
