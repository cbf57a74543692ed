"""The ablations of the papers, each inside its own network: what `vitrail lab --host FAMILY` compares.

The networks are small versions of the papers': a laboratory trains many of them on small images. What a table varies is
varied as it says; widths, depths and, below 224 pixels, windows are ours, and the same for all ablations of a family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, unknown
from .candidates import Candidate


@dataclass(frozen=True)
class Ablation:
    """One row of a paper's ablation table.

    Attributes:
        name: short; "full" is the network itself.
        source: the paper's table; "ours" where the paper prints none.
        options: of the network's constructor.
    """

    name: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """A family's network, small, and its ablations.

    Attributes:
        model: a name of `timm.create_model`.
        options: that make it small.
        ablations: beside the network itself.
        least_side: of images, in pixels, below which ablations cannot be told from each other.
        fit: windows for images below 224 pixels, as options, from the shorter side; None where nothing has to fit.
    """

    model: str
    options: dict[str, Any]
    ablations: tuple[Ablation, ...]
    least_side: int = 64
    fit: Callable[[int], dict[str, Any]] | None = None


PAPERS_SIDE = 224


def half(side: int, most: int = 7) -> int:
    """The largest window of at most `most` pixels of which two or more lie along a side."""
    return max(1, min(most, (side + 1) // 2))


def fit_pslt(side: int) -> dict[str, Any]:
    """Up to 64 pixels the strides of Table 5; windows that are several in stage 3."""
    strides = {"stem_stride": 1, "stage1_stride": 1} if side <= 64 else {}
    return {**strides, "window_size": max(2, half(side // (4 if strides else 16)))}


def fit_pale(side: int) -> dict[str, Any]:
    """Pales and stripes of which every stage has several where it can."""
    sides = [side // stride for stride in (4, 8, 16, 32)]
    split = [half(own, most) for own, most in zip(sides, (1, 2, 7, 7), strict=True)]
    return {"pale_size": [half(own) for own in sides], "split_size": split}


def fit_mat(side: int) -> dict[str, Any]:
    """Windows of which stage 3 has several."""
    return {"window_size": half(side // 16)}


_STATIC = ["whiten", "dw", "pe2", "pe4", "gate"]

#: family -> its network and ablations
HOSTS: dict[str, Host] = {
    "pslt": Host(
        "pslt_tiny",
        {"embed_dims": [24, 48, 96, 192], "depths": [2, 2, 4, 2], "num_heads": [0, 0, 2, 4]},
        (
            Ablation("2 branches", "Table 11", {"num_branches": 2}),
            Ablation("4 branches", "Table 11", {"num_branches": 4}),
            Ablation("6 branches", "Table 11", {"num_branches": 6}),
            Ablation("no shift", "Table 12", {"shift": False}),
            Ablation("no feature delivery", "Table 12", {"feature_delivery": False}),
            Ablation("FFN", "Table 13", {"ffn": "mlp"}),
            Ablation("FC", "Table 14", {"fusion": "fc"}),
            Ablation("AW", "Table 14", {"fusion": "aw"}),
            Ablation("concat", "Table 14", {"fusion": "concat"}),
            Ablation("SE", "Table 14", {"fusion": "se"}),
            Ablation("LSA", "Table 15", {"ffn": "mlp", "fusion": "concat"}),
        ),
        least_side=32,
        fit=fit_pslt,
    ),
    "lvt": Host(
        "lvt",
        {"embed_dims": [32, 32, 80, 128]},
        (
            Ablation("1 recursion", "Table 7", {"rasa_recursions": 1}),
            Ablation("3 recursions", "Table 7", {"rasa_recursions": 3}),
            Ablation("4 recursions", "Table 7", {"rasa_recursions": 4}),
            # the paper's rows of these mixers are of VOLO-D0
            Ablation("CSA and SA", "Table 6", {"mixers": ["csa", "sa", "sa", "sa"]}),
            Ablation("outlook and SA", "Table 6", {"mixers": ["outlook", "sa", "sa", "sa"]}),
        ),
    ),
    "pale": Host(
        "pale_tiny",
        {"embed_dims": [32, 64, 128, 256], "depths": [2, 2, 4, 2]},
        (
            Ablation("axial", "Table 6", {"mixers": "axial"}),
            Ablation("cross-shaped", "Table 6", {"mixers": "cross_shaped"}),
            Ablation("vanilla", "Table 6", {"mixers": "vanilla"}),
            Ablation("sequential", "Table 6", {"mixers": "sequential"}),
        ),
        fit=fit_pale,
    ),
    "emsnet": Host(
        "emsnet_xxtiny",
        {},
        (
            Ablation("baseline", "Table 3.5", {"static_ops": [], "dynamic_ops": []}),
            Ablation("whitening", "Table 3.5", {"static_ops": ["whiten"], "dynamic_ops": []}),
            Ablation(
                "one scale",
                "Table 3.5",
                {"static_ops": ["whiten", "dw", "pe2"], "dynamic_ops": [], "branch_ratios": [0.5, 0.5, 0.0]},
            ),
            Ablation("two scales", "Table 3.5", {"static_ops": ["whiten", "dw", "pe2", "pe4"], "dynamic_ops": []}),
            Ablation("static branch", "Table 3.5", {"static_ops": _STATIC, "dynamic_ops": []}),
            Ablation("static branch and C-MHSA", "Table 3.5", {"static_ops": _STATIC, "dynamic_ops": ["cmhsa"]}),
            Ablation("shares 2-1-1", "Table 3.7", {"branch_ratios": [0.5, 0.25, 0.25]}),
            Ablation("shares 1-1-2", "Table 3.7", {"branch_ratios": [0.25, 0.25, 0.5]}),
            Ablation("no fusion", "Table 3.9", {"branch_fusion": False}),
            Ablation("no channel splitting", "Table 3.9", {"channel_split": False}),
        ),
    ),
    "mat": Host(
        "mat_1",
        {"depths": [2, 2, 4, 2], "head_hidden_size": 384},
        (
            Ablation("MAT in stages 1-4", "Table 4.2", {"mixers": ["mat", "mat", "mat", "mat"]}),
            Ablation("MAT in stages 2-4", "Table 4.2", {"mixers": ["none", "mat", "mat", "mat"]}),
            Ablation("MAT in stage 4", "Table 4.2", {"mixers": ["none", "none", "none", "mat"]}),
            Ablation("pure MLP", "Table 4.9", {"mixers": ["none", "none", "none", "none"], "mlp_dwconv": False}),
            Ablation("window attention", "Table 4.9", {"mixers": ["none", "none", "window", "window"]}),
            Ablation("3x3 patch embedding", "Table 4.9", {"patch_embed": "conv3x3"}),
            Ablation("patch merging", "Table 4.9", {"patch_embed": "merging"}),
        ),
        fit=fit_mat,
    ),
    "partialformer": Host(
        "partialformer_b0",
        {"depths": [2, 2, 4, 2], "head_hidden_size": 384},
        (
            Ablation("full attention", "ours", {"mixers": "full"}),
            Ablation("no single query", "ours", {"use_sqa": False}),
            Ablation("no abstract token", "ours", {"use_abstract_token": False}),
            Ablation("no head MLP", "ours", {"head_mlp": False}),
            Ablation("score by norm", "ours", {"score": "l2"}),
            Ablation("random foreground", "ours", {"score": "random"}),
        ),
    ),
}

#: families that have ablations of their own
FAMILIES = tuple(HOSTS)


def ablations(family: str, image_size: tuple[int, int] | None = None) -> list[Candidate]:
    """A family's network, and its ablations after it, as candidates.

    Args:
        family: one of `FAMILIES`.
        image_size: (height, width) of the images; windows, and PSLT's strides, are fitted to sides below 224 pixels.
            None = the paper's.

    Raises:
        UserError: no such family, or images too small for its ablations to differ.
    """
    if family not in HOSTS:
        raise UserError(unknown("host", family, FAMILIES))
    host = HOSTS[family]
    fitted = {}
    if image_size is not None:
        side = min(image_size)
        if side < host.least_side:
            raise UserError(
                f"Host {family}: images of {image_size[0]} x {image_size[1]} pixels leave its later stages one or two "
                f"tokens a side; enlarge them to {host.least_side} x {host.least_side} or more."
            )
        if host.fit is not None and side < PAPERS_SIDE:
            fitted = host.fit(side)
    rows = (Ablation("full", "", {}), *host.ablations)
    return [Candidate(row.name, host.model, {**host.options, **fitted, **row.options}) for row in rows]
