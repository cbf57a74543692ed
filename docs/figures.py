"""Draw the plots of networks: `python docs/figures.py` writes docs/networks.png and docs/tradeoffs.png.

Ours come from the catalog and from the papers' tables, others from the table of competitors; nothing is measured.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vitrail.flops.reported import COMPETITORS, ReportedRow, reported_rows
from vitrail.models import FAMILIES
from vitrail.models.catalog import TOP1_CAVEATS, catalog
from vitrail.utils.plot import place_labels

HERE = Path(__file__).parent
TITLES = {
    "pslt": "PSLT",
    "lvt": "LVT",
    "volo": "VOLO-D0",
    "pale": "Pale",
    "emsnet": "EMSNet",
    "mat": "MAT",
    "partialformer": "PartialFormer",
}
COLORS = dict(zip(FAMILIES, ["#1b6ca8", "#c2452d", "#8c6d46", "#4a7a2c", "#8a5aa8", "#b3741a", "#1f8683"], strict=True))
GREY = "#6b6b6b"


@dataclass(frozen=True)
class Point:
    """A network in a plot; `params` in millions, for its area."""

    label: str
    x: float
    y: float
    color: str
    params: float = 5.0

    @property
    def area(self) -> float:
        """In square points."""
        return 14 + 2 * self.params

    @property
    def radius(self) -> float:
        """In points."""
        return self.area**0.5 / 2


def caveats(names: Iterable[str]) -> str:
    """What is uncertain about the networks' accuracies, behind the mark of their labels."""
    return "; ".join(f"* {TOP1_CAVEATS[name]}" for name in names if name in TOP1_CAVEATS)


def marked(label: str, name: str) -> str:
    """A label with a mark where the accuracy is uncertain."""
    return f"{label}*" if name in TOP1_CAVEATS else label


def label(axes: Any, points: list[Point], size: float = 6.5) -> None:
    """Write the points' labels beside them."""
    ordered = sorted(points, key=lambda point: -point.x)  # those in crowds on the right have least room
    place_labels(axes, [(p.label, p.x, p.y, p.radius) for p in ordered], size)


def scatter(axes: Any, points: list[Point], line: bool = False) -> None:
    """Points, and a line through them."""
    points = sorted(points, key=lambda point: point.x)
    if line:
        axes.plot([p.x for p in points], [p.y for p in points], "-", color=points[0].color, linewidth=1, alpha=0.6)
    areas = [point.area for point in points]
    axes.scatter([p.x for p in points], [p.y for p in points], areas, [p.color for p in points], zorder=3)


def competitors() -> list[ReportedRow]:
    """Other networks with a printed accuracy."""
    return [row for row in reported_rows(COMPETITORS) if row.value("top1") and row.flops_g]


def others(value: str) -> list[Point]:
    """Other networks over their printed "flops_g" or "params_m"."""
    return [
        Point(
            row.row.partition(" (")[0], float(getattr(row, value)), row.results["top1"].value, GREY, float(row.params_m)
        )
        for row in competitors()
    ]


def finish(axes: Any, xlabel: str) -> None:
    """Labels of the axes and a light grid."""
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def networks() -> None:
    """docs/networks.png: accuracy over multiply-adds of every network, and of others."""
    figure, axes = plt.subplots(figsize=(10, 6.6), dpi=130)
    every = others("flops_g")
    scatter(axes, every)
    axes.scatter([], [], 30, GREY, label="other networks")
    for family in FAMILIES:
        entries = [e for e in catalog() if e.family == family and e.top1]
        own = [Point(marked(e.name, e.name), e.gmacs, e.top1 or 0, COLORS[family], e.params / 1e6) for e in entries]
        scatter(axes, own, line=True)
        axes.scatter([], [], 30, COLORS[family], label=TITLES[family])
        every = [*own, *every]
    axes.set_xscale("log")
    axes.set_xlim(0.27, 30)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    finish(axes, "multiply-adds of one image, in 10$^9$: ours as executed at 224x224, others as printed")
    axes.set_ylabel("ImageNet-1K top-1 reported, %")
    axes.legend(frameon=False, loc="lower right", title="area: parameters")
    figure.text(0.01, 0.01, caveats(e.name for e in catalog()), fontsize=7)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    label(axes, every)
    figure.savefig(HERE / "networks.png")


def tradeoffs() -> None:
    """docs/tradeoffs.png: after thesis Fig. 5.1, over multiply-adds and parameters, and Fig. 4.4, over speed."""
    figure, panels = plt.subplots(1, 3, figsize=(17, 7), dpi=110)
    kinds = (
        ("flops_g", "multiply-adds printed, 10$^9$", (0.25, 30)),
        ("params_m", "parameters printed, millions", (2.2, 200)),
    )
    for axes, (value, title, limits) in zip(panels, kinds, strict=False):
        rows = [row for row in reported_rows("partialformer") if row.value("top1")]
        own = [
            Point(row.row, float(getattr(row, value)), row.results["top1"].value, COLORS["partialformer"])
            for row in rows
        ]
        rest = [Point(p.label, p.x, p.y, GREY) for p in others(value)]
        scatter(axes, rest)
        scatter(axes, own, line=True)
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
        finish(axes, title)
        label(axes, [*own, *rest], 6)
    panels[0].set_ylabel("ImageNet-1K top-1 reported, %")
    panels[0].set_title("PartialFormer and others over multiply-adds", fontsize=9)
    panels[1].set_title("PartialFormer and others over parameters", fontsize=9)
    speed(panels[2])
    figure.tight_layout()
    figure.savefig(HERE / "tradeoffs.png")


def speed(axes: Any) -> None:
    """Printed accuracy over printed images a second: token mixers and patch embeddings of MAT-2, and PSLT's table."""
    mixers = [
        Point(
            row.row.replace("Token mixers: +", "").replace("Patch embed: ", "embedding: "), speed, top1, COLORS["mat"]
        )
        for row in reported_rows("mat")
        if (speed := row.value("throughput_img_s")) and (top1 := row.value("top1")) and row.row != "Pure MLP"
    ]
    mixers = list({(p.x, p.y): p for p in reversed(mixers)}.values())
    ladder = [
        Point(row.row, row.value("fps") or 0, row.value("top1") or 0, COLORS["pslt"])
        for row in reported_rows("pslt")
        if row.value("fps")
    ]
    rest = [
        Point(row.row, row.value("fps") or 0, row.value("top1") or 0, GREY) for row in competitors() if row.value("fps")
    ]
    for points in (mixers, ladder, rest):
        scatter(axes, points)
    axes.set_xscale("log")
    axes.set_xlim(400, 8000)
    axes.set_xticks([500, 1000, 2000, 5000], ["500", "1000", "2000", "5000"])
    axes.xaxis.set_minor_formatter(lambda x, _: "")
    finish(axes, "images a second as printed")
    axes.set_title("Local attentions over speed: MAT-2's table; PSLT's, of another device", fontsize=9)
    label(axes, [*mixers, *ladder, *rest], 7)


if __name__ == "__main__":
    networks()
    tradeoffs()
