"""Catalog of the registered networks: parameters, multiply-adds, reported accuracy, weights and their licence.

`catalog.csv` is generated (`python -m vitrail.models.catalog > src/vitrail/models/catalog.csv`) and a test counts every
row again, so that listing the networks takes no time.
"""

from __future__ import annotations

import csv
import fnmatch
import sys
from dataclasses import asdict, dataclass, fields
from importlib import resources

import torch
from timm import create_model, list_models
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError, printable, unknown
from . import family_of, names

#: top-1 in % at 224x224 as the papers report it: PSLT Table 4, LVT Tables 3, 6 and 7, Pale Table 2, thesis Tables 3.2,
#: 4.4, 5.2 and 5.3. A network without a reported top-1 is absent.
REPORTED_TOP1 = {
    "pslt_tiny": 74.9,
    "pslt": 79.9,
    "pslt_large": 81.5,
    "lvt": 74.8,
    "lvt_r1": 73.9,
    "lvt_r3": 74.6,
    "lvt_r4": 74.9,
    "lvt_scaled": 83.3,
    "volo_d0": 74.6,
    "volo_d0_csa": 75.2,
    "volo_d0_csa_rasa": 75.6,
    "pale_tiny": 83.4,
    "pale_small": 84.3,
    "pale_base": 84.9,
    "emsnet_xxtiny": 73.1,
    "emsnet_xtiny": 77.1,
    "emsnet_tiny": 79.3,
    "mat_1": 76.2,
    "mat_2": 79.0,
    "mat_3": 80.2,
    "mat_4": 81.0,
    "mat_5": 81.9,
    "partialformer_b0": 76.7,
    "partialformer_b1": 79.3,
    "partialformer_b2": 82.0,
    "partialformer_b3": 83.0,
    "partialformer_b4": 83.9,
}

#: what is uncertain about a reported top-1; shown wherever the number is
TOP1_CAVEATS = {
    "mat_1": (
        "the row of MAT-1 in Table 4.4 is damaged in our copy of the thesis: 76.2 is legible beside a 70.5, not certain"
    )
}

#: networks whose authors published ImageNet weights (loaded with --init FILE): source and licence
AUTHORS_WEIGHTS = {
    "pslt": ("authors' file", "terms of the authors' repository"),
    "lvt": ("authors' file", "non-commercial research only"),
}


@dataclass
class Entry:
    """One network.

    Attributes:
        name: what `create_model` takes.
        family: the paper's network it belongs to.
        params: learnable parameters with the 1000-class head.
        gmacs: multiply-adds of convolutions, linear layers and attention products at 224x224, in 10^9, as executed.
        top1: ImageNet-1K accuracy the paper reports, in %; None where it reports none.
        caveat: what is uncertain about `top1`, to be shown wherever the number is; "" if nothing is.
        weights: where trained weights can come from.
        licence: of those weights.
    """

    name: str
    family: str
    params: int
    gmacs: float
    top1: float | None
    caveat: str
    weights: str
    licence: str


def count(name: str) -> Entry:
    """Build the network on the meta device and count its parameters and multiply-adds."""
    model = create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    weights, licence = AUTHORS_WEIGHTS.get(name, ("architecture only", ""))
    return Entry(
        name=name,
        family=family_of(name),
        params=sum(p.numel() for p in model.parameters()),
        gmacs=round(counter.get_total_flops() / 2e9, 4),  # torch counts a multiply-add as two
        top1=REPORTED_TOP1.get(name),
        caveat=TOP1_CAVEATS.get(name, ""),
        weights=weights,
        licence=licence,
    )


def catalog(pattern: str = "*") -> list[Entry]:
    """The networks' entries, from the generated table.

    Args:
        pattern: shell pattern of names, such as 'mat_*'.

    Raises:
        UserError: no name matches; the nearest one is named.
    """
    text = resources.files("vitrail.models").joinpath("catalog.csv").read_text(encoding="utf-8")
    entries = [
        Entry(
            name=row["name"],
            family=row["family"],
            params=int(row["params"]),
            gmacs=float(row["gmacs"]),
            top1=float(row["top1"]) if row["top1"] else None,
            caveat=row["caveat"],
            weights=row["weights"],
            licence=row["licence"],
        )
        for row in csv.DictReader(text.splitlines())
    ]
    found = [entry for entry in entries if fnmatch.fnmatchcase(entry.name, pattern)]
    if not found:
        own = [entry.name for entry in entries]
        if pattern not in own and list_models(pattern):
            raise UserError(
                f"{printable(pattern)} is not of this library but of timm, whose networks every command takes by name; "
                f"vitrail models lists the {len(own)} of this library."
            )
        raise UserError(unknown("model", pattern, own))
    return found


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, [f.name for f in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(count(name)) for name in names())
