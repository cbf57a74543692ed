"""Draw the README's plot: `python docs/figures.py` writes docs/networks.png from the catalog."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vitrail.models import FAMILIES
from vitrail.models.catalog import catalog

TITLES = {
    "pslt": "PSLT",
    "lvt": "LVT",
    "volo": "VOLO-D0",
    "pale": "Pale",
    "emsnet": "EMSNet",
    "mat": "MAT",
    "partialformer": "PartialFormer",
}
COLORS = ["#1b6ca8", "#c2452d", "#8c8c8c", "#5b8c3a", "#8a5aa8", "#d0902b", "#2a9d9a"]


def main() -> None:
    """Draw and save the plot."""
    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=130)
    for family, color in zip(FAMILIES, COLORS, strict=True):
        entries = sorted((e for e in catalog() if e.family == family and e.top1), key=lambda e: e.gmacs)
        xs, ys = [e.gmacs for e in entries], [e.top1 for e in entries]
        axes.plot(xs, ys, "-", color=color, linewidth=1.2, alpha=0.7)
        axes.scatter(xs, ys, [12 + 3 * e.params / 1e6 for e in entries], color=color, label=TITLES[family], zorder=3)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.set_xlabel("multiply-adds of one 224x224 image, in 10$^9$, as executed here")
    axes.set_ylabel("ImageNet-1K top-1 reported, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, loc="lower right", title="area: parameters")
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "networks.png")


if __name__ == "__main__":
    main()
