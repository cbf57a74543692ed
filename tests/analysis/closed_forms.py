"""Analyses against what is known of them: cases whose answer a formula, a count or another library gives.

    python tests/analysis/closed_forms.py [WORD ...] [--json | --markdown]

prints every case that has one of the words in its name: expected, ours, tolerance, verdict. Ends with 1 if one differs.
`tests/analysis/test_closed_forms.py` runs the same cases, and docs/analysis.md shows the table.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.attention import attention, rollout
from vitrail.analysis.attention_weights import AttentionWeights
from vitrail.analysis.captured import captured
from vitrail.analysis.gradcam import gradcam
from vitrail.analysis.interactions import bias_without_interaction, estimate, relative_strength
from vitrail.analysis.receptive_field import attended_region, receptive_field
from vitrail.analysis.similarity import compared, mean_cosine
from vitrail.analysis.spectrum import frequencies, half_diagonal, log_amplitude
from vitrail.layers import unfold3x3
from vitrail.models.emsnet import ConvAttention, Propagate
from vitrail.models.pale import PaleAttention
from vitrail.models.pslt import LadderAttention, LadderBlock
from vitrail.utils.progress import bar

ZERO = math.log(1e-6)

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Case:
    """One known answer.

    Attributes:
        title: method of `vitrail explain`, and what is measured.
        expected: a number or several; 0 of a largest difference.
        tolerance: absolute.
        ours: measures it.
    """

    title: str
    expected: Numbers
    tolerance: float
    ours: Callable[[], Any]

    def __str__(self) -> str:
        return self.title

    @property
    def name(self) -> str:
        """What is measured."""
        return self.title.partition(": ")[2]


@dataclass(frozen=True)
class Outcome:
    """What a case gave."""

    case: Case
    values: list[float]

    @property
    def agrees(self) -> bool:
        """True within the tolerance."""
        expected = listed(self.case.expected)
        if len(expected) != len(self.values):
            return False
        pairs = zip(expected, self.values, strict=True)
        return all(abs(one - other) <= self.case.tolerance for one, other in pairs)

    def row(self) -> list[str]:
        """Method, name, expected, ours, tolerance, verdict."""
        case = self.case
        ours = ", ".join(map(written, self.values))
        if listed(case.expected) == [0] and self.agrees:  # rounding differs between machines
            ours = f"at most {case.tolerance:g}"
        expected = ", ".join(map(written, listed(case.expected)))
        verdict = "agrees" if self.agrees else "DIFFERS"
        return [case.title.partition(": ")[0], case.name, expected, ours, f"{case.tolerance:g}", verdict]


def listed(values: Any) -> list[float]:
    """One number or several as a list."""
    return [float(one) for one in np.atleast_1d(np.asarray(values, dtype=float))]


def written(value: float) -> str:
    """A number with at most four decimals, without zeros at its end."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, **options: Any) -> nn.Module:
    """A network with the same weights every time; its norms have statistics, as those of a trained one."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return network


# ---- spectrum --------------------------------------------------------------------------------------------------------


def diagonal(maps: Tensor) -> Tensor:
    return half_diagonal(log_amplitude(maps))


def constant() -> Tensor:
    found = diagonal(torch.full((14, 14), 0.7, dtype=torch.float64))
    return torch.stack([found[0], found[1:].min(), found[1:].max()])


def cosine() -> Tensor:
    steps = torch.arange(16, dtype=torch.float64)
    found = diagonal(torch.cos(2 * math.pi * 3 * (steps[:, None] + steps) / 16))
    return torch.stack([found[3], found[[0, 1, 2, 4, 5, 6, 7]].min(), found[[0, 1, 2, 4, 5, 6, 7]].max()])


def white_noise() -> list[float]:
    mean = diagonal(torch.randn(4096, 1, 16, 16, generator=seeded())).mean((0, 1))
    return [float((mean[1:] - mean[0]).min()), float((mean[1:] - mean[0]).max())]


def spread_tokens() -> float:
    """Largest difference from the law over several sizes, relative to the largest amplitude."""
    worst = 0.0
    for n, p in ((4, 2), (7, 4), (3, 6)):
        tokens = torch.randn(1, 1, n, n, dtype=torch.float64, generator=seeded())
        spread, side = Propagate(1, 1, p, dtype=torch.float64), n * p
        with torch.inference_mode():
            up = torch.fft.fft2(spread(tokens, side, side)[0, 0]).abs().diagonal()
        down = torch.fft.fft2(tokens[0, 0]).abs().diagonal()
        for k in range(1, side):
            law = (math.sin(math.pi * k * p / side) / math.sin(math.pi * k / side)) ** 2
            worst = max(worst, float((up[k] - down[k % n] * law).abs() / up.max()))
    return worst


def circular_convolution() -> float:
    maps, kernel = (torch.randn(1, 1, side, side, dtype=torch.float64, generator=seeded(side)) for side in (14, 3))
    out = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="circular"), kernel)
    response = F.pad(kernel, (0, 11, 0, 11))
    return float((diagonal(out) - diagonal(maps) - diagonal(response)).abs().max())


def without_mean() -> float:
    maps = torch.randn(1, 4, 16, 16, dtype=torch.float64, generator=seeded()) + 2
    return float(diagonal(maps - maps.mean((2, 3), keepdim=True))[..., 0].mean())


# ---- attention -------------------------------------------------------------------------------------------------------


@cache
def weights_of(name: str) -> dict[str, AttentionWeights]:
    """All attention of a network for one image of 224 pixels."""
    network = made(name)
    with captured(network) as found, torch.inference_mode():
        network(torch.randn(1, 3, 224, 224, generator=seeded()))
    return dict(found)


def shape_of(name: str, layer: str) -> Callable[[], list[int]]:
    return lambda: list(weights_of(name)[layer].weights.shape)


def row_sums(name: str) -> float:
    return max(float((one.weights.sum(-1) - 1).abs().max()) for one in weights_of(name).values())


def token_maps() -> list[int]:
    return [weights_of("emsnet_xxtiny")[LOCAL.format(i)].query_size[0] for i in range(4)]  # pyright: ignore


def windows() -> list[int]:
    return [weights_of("emsnet_xxtiny")[LOCAL.format(i)].weights.shape[1] for i in range(4)]


LOCAL = "stages.{}.blocks.0.mixer.dynamic.local.attn"


def uniform(module: nn.Module) -> AttentionWeights:
    """The attention of a module whose logits are all 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    network = nn.Sequential(module.eval())
    with captured(network) as found, torch.inference_mode():
        network(torch.randn(1, 8, 17, 15, generator=seeded()))
    return found["0"]


def uniform_mass(module: Callable[[], nn.Module], all_queries: bool) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        mass = uniform(module()).key_mass(all_queries)
        return [float(mass.min()), float(mass.max())]

    return measure


def windows_that_hold() -> list[int]:
    """How many 3x3 windows hold a token at even-even, even-odd and odd-odd places inside the map."""
    places = unfold3x3(torch.arange(1, 9 * 9 + 1).reshape(1, 9, 9, 1)).flatten()
    counts = places.bincount(minlength=82)[1:].reshape(9, 9)
    return [int(counts[4, 4]), int(counts[4, 3]), int(counts[3, 3])]


@cache
def mat_parts() -> dict[str, AttentionWeights]:
    layer = "stages.2.blocks.0.mixer"
    network = made("mat_1", depths=(1, 1, 1, 1))
    with captured(network, [layer]) as found, torch.inference_mode():
        network(torch.randn(1, 3, 208, 208, generator=seeded()))  # four windows, padded
    return {name.rpartition(".")[2]: one for name, one in found.items()}


def mat_rows() -> float:
    kinds = ("abstraction", "mixing", "fusion")
    return max(float((mat_parts()[kind].weights.sum(-1) - 1).abs().max()) for kind in kinds)


def mat_rollout() -> list[float]:
    paths = rollout(mat_parts())
    rows = paths.sum(2)
    return [float(rows.min()), float(rows.max()), float(paths.mean(1).sum())]


def pale_seen(mixer: str) -> Callable[[], int]:
    def measure() -> int:
        torch.manual_seed(0)
        network = nn.Sequential(PaleAttention(16, 2, mixer, pale_size=(3, 3), qkv_kernel=1).eval())
        features = torch.randn(1, 16, 12, 12, generator=seeded())
        return attended_region(network, features, layer="0", at=(5, 9)).about["seen"]

    return measure


def pale_weights() -> int:
    network = made("pale_tiny", pale_size=3, mixers="parallel", depths=(1, 1, 1, 1))
    images = torch.randn(1, 3, 48, 48, generator=seeded())
    return attention(network, images, layer="stages.0.blocks.0", at=(21, 36)).about["tokens_seen"][0]


# ---- interactions ----------------------------------------------------------------------------------------------------

PLAYERS = 16
ORDERS = list(range(PLAYERS - 1))
PAIRS = list(combinations(range(PLAYERS), 2))


def estimated(value: Callable[[Tensor], Tensor]) -> np.ndarray:
    """I of every pair at every order."""
    return estimate(value, PLAYERS, PAIRS, ORDERS, contexts=3, generator=seeded()).mean


def strength(value: Callable[[Tensor], Tensor]) -> np.ndarray:
    return relative_strength(np.abs(estimated(value)).mean(0), least=1e-9)


def additive() -> float:
    weight = torch.randn(PLAYERS, dtype=torch.float64, generator=seeded())
    return float(np.abs(estimated(lambda masks: masks.double() @ weight)).max())


def sums_over_pairs() -> list[float]:
    """Largest distance of I from w at any order, and of J from 1."""
    weight = torch.randn(PLAYERS, PLAYERS, dtype=torch.float64, generator=seeded()).triu(1)

    def value(masks: Tensor) -> Tensor:
        inside = masks.double()
        return torch.einsum("mi,ij,mj->m", inside, weight, inside)

    wanted = np.array([float(weight[pair]) for pair in PAIRS])
    return [
        float(np.abs(estimated(value) - wanted[:, None]).max()),
        float(np.abs(strength(value) - 1).max()),
    ]


def squared_count() -> list[float]:
    found = strength(lambda masks: masks.sum(1).double() ** 2)
    return [float(found.min()), float(found.max())]


def threshold() -> np.ndarray:
    return strength(lambda masks: (masks.sum(1) >= 9).double())[6:10]


def all_players() -> np.ndarray:
    return strength(lambda masks: masks.all(1).double())[12:]


# ---- Grad-CAM --------------------------------------------------------------------------------------------------------

#: network -> the layer that is drawn by default
LAST = {"emsnet_xxtiny": "stages.3", "resnet34": "layer4", "pvt_v2_b1": "stages.3", "poolformer_s12": "stages.3"}


def captum_difference(name: str) -> Callable[[], float]:
    def measure() -> float:
        from captum.attr import LayerGradCam

        network, images = made(name), torch.randn(2, 3, 64, 64, generator=seeded())
        method = LayerGradCam(network, network.get_submodule(LAST[name]))
        theirs = method.attribute(images, target=[3, 1], relu_attributions=True)[:, 0].detach().numpy()
        ours = gradcam(network, images, target=[3, 1]).arrays["map"].values
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    return measure


def emsnet_alpha() -> float:
    network = made("emsnet_xxtiny").double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=seeded())
    found = gradcam(network, images, target=2).arrays["weights"].values
    norm: Any = network.norm
    head: Any = network.get_classifier()  # pyright: ignore[reportCallIssue]
    wanted = (head.weight[2] * norm.weight / torch.sqrt(norm.running_var + norm.eps) / (2 * 2)).detach().numpy()
    return float(np.abs(found - wanted).max())


# ---- similarity ------------------------------------------------------------------------------------------------------


def pair_by_pair() -> float:
    rows = torch.randn(7, 11, dtype=torch.float64, generator=seeded())
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = [float(one @ other) for one, other in combinations(unit, 2)]
    return float(mean_cosine(rows)) - sum(cosines) / len(cosines)


def independent_rows(keys: int, deviation: float = 2, shuffled: bool = False) -> Callable[[], float]:
    """Similarity of rows that are softmax of Gaussian logits, or of the same with keys shuffled."""

    def measure() -> float:
        count = max(2, 2400 // keys)
        logits = deviation * torch.randn(count, 1, 1, 60, keys, generator=seeded(), dtype=torch.float64)
        places = torch.arange(keys).reshape(1, 1, -1)
        spots = torch.arange(60).reshape(1, 1, -1)
        one = AttentionWeights(logits.softmax(-1), None, spots, places, (1, 60), (1, keys))
        found = compared(one, "queries", seeded(1))
        assert found is not None
        return found[1 if shuffled else 0]

    return measure


# ---- receptive fields ------------------------------------------------------------------------------------------------


def ones(count: int) -> nn.Sequential:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 3, 1, 1, bias=False) for _ in range(count))).double()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    return network


def trinomial(part: str) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        images = torch.randn(1, 1, 15, 15, dtype=torch.float64, generator=seeded())
        found = receptive_field(ones(3), images, layer="2")
        return found.arrays["field"].values[7, 4:11].tolist() if part == "row" else found.about["support"]

    return measure


def strided() -> list[int]:
    """Support of the place (3, 3) behind a 7x7 convolution of stride 4 and a 3x3 one of stride 2."""
    network = nn.Sequential(nn.Conv2d(1, 1, 7, 4, 3, bias=False), nn.Conv2d(1, 1, 3, 2, 1, bias=False)).double()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    return receptive_field(network, torch.ones(1, 1, 64, 64, dtype=torch.float64), layer="1", at=(26, 26)).about[
        "support"
    ]


def ladder_reach(**options: Any) -> Callable[[], int]:
    def measure() -> int:
        torch.manual_seed(0)
        # a plain MLP: the convolution of the light one would widen each window by a token
        block = nn.Sequential(LadderBlock(24, 2, ffn="mlp", **options))
        images = torch.randn(1, 24, 28, 28, generator=seeded())
        return attended_region(block, images, layer="0", at=(10, 10)).about["seen"]

    return measure


# ---- the table -------------------------------------------------------------------------------------------------------

CASES = [
    Case(
        "spectrum: constant 0.7 on 14x14: entry 0, least and largest other",
        [math.log(137.2), ZERO, ZERO],
        1e-6,
        constant,
    ),
    Case(
        "spectrum: cosine of frequency 3 on 16x16: entry 3, least and largest other",
        [math.log(128), ZERO, ZERO],
        1e-6,
        cosine,
    ),
    Case(
        "spectrum: white noise, 4096 maps: least and largest entry less entry 0",
        [math.log(2) / 2] * 2,
        0.02,
        white_noise,
    ),
    Case("spectrum: tokens spread by p: share of the law's largest difference", 0, 1e-12, spread_tokens),
    Case("spectrum: circular convolution: difference from the kernel's spectrum", 0, 1e-4, circular_convolution),
    Case("spectrum: entry 0 of maps without their mean", ZERO, 1e-4, without_mean),
    Case(
        "spectrum: true frequency of the last entry of maps of 56, 28, 14, 7",
        [54 / 56, 26 / 28, 12 / 14, 6 / 7],
        1e-9,
        lambda: [frequencies(side, "true")[-1] for side in (56, 28, 14, 7)],
    ),
    Case(
        "attention: deit_tiny, block 1: images, windows, heads, queries, keys",
        [1, 1, 3, 197, 197],
        0,
        shape_of("deit_tiny_patch16_224", "blocks.0.attn"),
    ),
    Case(
        "attention: swin_tiny, block 1: the same",
        [1, 64, 3, 49, 49],
        0,
        shape_of("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn"),
    ),
    Case(
        "attention: pvt_v2_b1, block 1: the same",
        [1, 1, 1, 3136, 49],
        0,
        shape_of("pvt_v2_b1", "stages.0.blocks.0.attn"),
    ),
    Case(
        "attention: twins_svt_small, block 1: the same",
        [1, 64, 2, 49, 49],
        0,
        shape_of("twins_svt_small", "blocks.0.0.attn"),
    ),
    *(
        Case(f"attention: {name}: row sums less 1, largest", 0, 1e-5, lambda name=name: row_sums(name))
        for name in (
            "deit_tiny_patch16_224",
            "swin_tiny_patch4_window7_224",
            "pvt_v2_b1",
            "mobilevit_s",
            "twins_svt_small",
        )
    ),
    Case("attention: C-MHSA at 224: side of the token maps of stages 1 to 4", [14, 7, 4, 2], 0, token_maps),
    Case("attention: C-MHSA at 224: windows of stages 1 to 4", [49, 16, 4, 1], 0, windows),
    Case(
        "attention: 3x3 windows that hold a token at even-even, even-odd, odd-odd places",
        [1, 2, 4],
        0,
        windows_that_hold,
    ),
    Case(
        "attention: uniform C-MHSA on 17x15: least and largest key mass",
        [1, 1],
        1e-5,
        uniform_mass(lambda: ConvAttention(8, 2), True),
    ),
    Case(
        "attention: uniform shifted windows on 17x15: the same",
        [1, 1],
        1e-5,
        uniform_mass(lambda: LadderAttention(8, 2, shift=3), False),
    ),
    Case("attention: MAT's abstraction, mixing, fusion: row sums less 1, largest", 0, 1e-5, mat_rows),
    Case("attention: MAT's rollout: least and largest row sum, sum of column means", [1, 1, 1], 1e-5, mat_rollout),
    Case("attention: tokens with weight for a token, parallel pales, 12x12, s = 3", 63, 0, pale_weights),
    Case("interactions: additive value: largest interaction", 0, 1e-12, additive),
    Case("interactions: sum over pairs: largest distance of I from w and of J from 1", [0, 0], 1e-12, sums_over_pairs),
    Case("interactions: squared number of players: least and largest J", [1, 1], 1e-12, squared_count),
    Case("interactions: at least 9 of 16 players: J at orders 6 to 9", [0, 7.5, 7.5, 0], 1e-12, threshold),
    Case("interactions: all players: J at orders 12 to 14", [0, 0, 15], 1e-12, all_players),
    Case(
        "interactions: bias without interaction for 1, 10, 100 contexts",
        [0.80, 0.25, 0.080],
        3e-3,
        lambda: bias_without_interaction(np.ones(3), np.array([1, 10, 100])),
    ),
    *(
        Case(
            f"gradcam: {name}: difference from captum's LayerGradCam, share of its maximum",
            0,
            1e-5,
            captum_difference(name),
        )
        for name in LAST
    ),
    Case("gradcam: EMSNet: weights less those of norm and classifier, largest", 0, 1e-12, emsnet_alpha),
    Case("similarity: formula less the mean over all pairs", 0, 1e-12, pair_by_pair),
    Case("similarity: independent rows of deviation 2, 20 keys", 0.21, 0.01, independent_rows(20)),
    Case("similarity: the same, 49 keys", 0.14, 0.01, independent_rows(49)),
    Case("similarity: the same, 196 keys", 0.08, 0.01, independent_rows(196)),
    Case("similarity: the same, 196 keys, shuffled", 0.08, 0.01, independent_rows(196, shuffled=True)),
    Case(
        "similarity: independent rows of deviation 1, 4000 keys: exp(-1)",
        math.exp(-1),
        0.01,
        independent_rows(4000, 1),
    ),
    Case(
        "receptive_field: three 3x3 convolutions of ones: the centre row",
        [7, 21, 42, 49, 42, 21, 7],
        1e-9,
        trinomial("row"),
    ),
    Case("receptive_field: the same: left, top, right, bottom of the support", [4, 4, 11, 11], 0, trinomial("support")),
    Case(
        "receptive_field: 7x7 of stride 4, then 3x3 of stride 2: support of place (3, 3)",
        [17, 17, 32, 32],
        0,
        strided,
    ),
    Case("attended_region: PSLT's ladder block on 28x28: positions", 441, 0, ladder_reach()),
    Case("attended_region: the same without shift", 49, 0, ladder_reach(shifts=(0, 0, 0))),
    Case("attended_region: the same without delivery", 115, 0, ladder_reach(feature_delivery=False)),
    Case("attended_region: Pale, vanilla, 12x12, s = 3: tokens", 63, 0, pale_seen("vanilla")),
    Case("attended_region: Pale, parallel: tokens", 63, 0, pale_seen("parallel")),
    Case("attended_region: Pale, sequential (one of the two groups): tokens", 36, 0, pale_seen("sequential")),
    Case("attended_region: Pale, axial: tokens", 23, 0, pale_seen("axial")),
    Case("attended_region: Pale, cross-shaped: tokens", 63, 0, pale_seen("cross_shaped")),
]

HEADINGS = ("method", "case", "expected", "ours", "tolerance", "verdict")


def outcome(case: Case) -> Outcome:
    """Measure a case."""
    return Outcome(case, listed(case.ours()))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table as docs/analysis.md has it."""
    head = [f"| {' | '.join(HEADINGS[:5])} |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row[:5])} |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a case differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only cases with one of the words in their name")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print the table of docs/analysis.md")
    options = parser.parse_args(argv)
    chosen = [case for case in CASES if not options.words or any(word in str(case) for word in options.words)]
    if not chosen:
        parser.error(f"no case has {' or '.join(options.words)} in its name")
    found = []
    with bar("closed forms", len(chosen)) as step:
        for case in chosen:
            found.append(outcome(case))
            step()
    if options.json:
        print(json.dumps([{**dict(zip(HEADINGS, one.row(), strict=True)), "values": one.values} for one in found]))
    elif options.markdown:
        print(markdown([one.row() for one in found]))
    else:
        table = Table(*HEADINGS, box=None)
        for one in found:
            table.add_row(*one.row(), style=None if one.agrees else "red")
        Console().print(table)
        print(f"{sum(one.agrees for one in found)} of {len(found)} cases agree", file=sys.stderr)
    return 0 if all(one.agrees for one in found) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
