"""Redundancy of attention: how alike the rows of queries or heads are, and how blocks agree in what they select.

PartialFormer's Fig. 5.2 compares queries. A row is compared as the direction of its weights; the mean cosine of all
pairs of n different rows with unit vectors u is (|sum u|^2 - n) / (n (n - 1)).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..models.partialformer import PartialAttention
from ..utils.plot import rendered
from ..utils.progress import bar
from .attention_weights import AttentionWeights
from .captured import attention_modules, captured
from .layers import batches_of, block_of, blocks_of, evaluating, number_of_batches
from .options import check_choice, check_count
from .result import Analysis, NamedArray, about

#: what is compared
Compared = Literal["queries", "heads", "selection"]


@dataclass
class Similarity(Analysis):
    """Similarity of attention in the layers of a network.

    Attributes:
        arrays: "similarity" (layer, image), "shuffled" (layer, image) with every row's keys shuffled, and "keys"
            (layer,), the most keys a row has; of the selection "agreement" (layer, image), each block with the one
            before it.
    """

    @property
    def measured(self) -> str:
        """Name of the array that was asked for."""
        return "agreement" if self.about["of"] == "selection" else "similarity"

    def statistics(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean over images and its standard error, of each layer; no error of a single image."""
        values = self.arrays[name].values
        count = values.shape[1]
        error = values.std(1, ddof=1) / count**0.5 if count > 1 else np.full(len(values), np.nan)
        return values.mean(1), error

    def summary(self) -> str:
        """The mean of each layer, with its baseline."""
        mean, error = self.statistics(self.measured)
        base = self.statistics("shuffled")[0] if "shuffled" in self.arrays else None
        parts = []
        for i, layer in enumerate(self.arrays[self.measured].coords["layer"]):
            spread = "" if np.isnan(error[i]) else f" ± {error[i]:.3f}"
            chance = "" if base is None else f" (keys shuffled {base[i]:.3f}, {self.arrays['keys'].values[i]:.0f} keys)"
            parts.append(f"{layer} {mean[i]:.3f}{spread}{chance}")
        what = {"queries": "similarity between queries", "heads": "similarity between heads"}
        return f"{self.about['model']}, {what.get(self.about['of'], 'agreement of the selection')}: {'; '.join(parts)}."

    def plot(self) -> Image.Image:
        """The means over the layers, with standard errors and the baseline."""

        def draw(figure: Any) -> None:
            axis = figure.subplots()
            for number, (kind, places) in enumerate(kinds.items()):
                at, color = [blocks.index(block_of(layers[place])) for place in places], f"C{number % 10}"
                for name, style in ((self.measured, "o-"), ("shuffled", "x--")):
                    if name in self.arrays:
                        mean, error = (np.nan_to_num(found[places]) for found in self.statistics(name))
                        label = None if name == "shuffled" else self._label(kind, places)
                        axis.errorbar(at, mean, error, fmt=style, color=color, capsize=3, label=label)
            if "shuffled" in self.arrays:
                axis.plot([], [], "x--", color="black", label="every row's keys shuffled")
            axis.set_xticks(range(len(blocks)), blocks, rotation=90 if len(blocks) > 6 else 0, fontsize=7)
            low = min(0.0, *(float(np.nanmin(self.arrays[name].values)) for name in self.arrays if name != "keys"))
            axis.set(ylim=(low, 1.02), ylabel=f"{self.measured}, {self.about['of']}", title=self.about["model"])
            axis.grid(alpha=0.3)
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)

        layers = self.arrays[self.measured].coords["layer"]
        kinds, blocks = _kinds(layers), list(dict.fromkeys(block_of(layer) for layer in layers))
        return rendered(max(8, 4 + 0.45 * len(blocks)), 4, draw)

    def _label(self, kind: str, places: list[int]) -> str:
        """A kind of attention and the keys of its rows, from the first of these layers to the last."""
        if "keys" not in self.arrays:
            return kind or self.measured
        keys = dict.fromkeys(f"{self.arrays['keys'].values[place]:.0f}" for place in places)
        return f"{kind or self.measured} (keys: {', '.join(keys)})"


def _kinds(layers: Sequence[str]) -> dict[str, list[int]]:
    """Places of the attentions of one kind, by what follows the block in their names, such as attn.rows."""
    kinds: dict[str, list[int]] = {}
    for place, name in enumerate(layers):
        kinds.setdefault(name[len(block_of(name)) :].lstrip("."), []).append(place)
    return kinds


def similarity(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    of: Compared = "queries",
    blocks: int = 4,
    seed: int = 0,
) -> Similarity:
    """How alike attention is between queries or between heads, or how blocks agree in their selection.

    Independent rows have a positive cosine too, and the more so the fewer keys there are: figures of different numbers
    of keys are comparable only with the baseline, the same rows with each one's keys shuffled.

    Args:
        network: of this library or timm's, with attention; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W), or batches of them; one at a time goes through the network, and only numbers
            are kept of it.
        of: "queries" = pairs of queries of a head, mean over heads and windows; "heads" = pairs of heads of a query,
            mean over queries; "selection" = share of the tokens a PartialFormer block selects that the block before it
            selected too, within a stage.
        blocks: so many last blocks are looked at; "selection" looks at all.
        seed: of the shuffles.

    Raises:
        UserError: a network without attention in these blocks, or without a selection.
    """
    check_choice("of", of, Compared)
    check_count("blocks", blocks)
    check_count("seed", seed, least=0)
    selecting = [name for name, module in network.named_modules() if isinstance(module, PartialAttention)]
    if of == "selection" and not selecting:
        raise UserError(f"of=selection is for PartialFormer; {type(network).__name__} selects no tokens.")
    names = selecting if of == "selection" else _attending(network, blocks)
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, tuple[float, ...]]] = []
    stated: dict[str, Any] = {}
    with evaluating(network), torch.inference_mode(), bar("similarity", number_of_batches(images, 1)) as step:
        for image in batches_of(images, 1):
            stated = stated or about(network, image, of=of, seed=seed)
            with captured(network, names) as weights:
                network(image)
            if of == "selection":
                found.append(_agreements(weights))
            else:
                rows = {
                    key: compared(one, of, generator, every=any(key.startswith(f"{name}.") for name in selecting))
                    for key, one in weights.items()
                }
                found.append({key: one for key, one in rows.items() if one is not None})
            step()
    if not found:
        raise UserError("similarity needs at least one image.")
    layers = list(found[0])
    if not layers:
        raise UserError(f"No layer of the last {blocks} blocks has two {of} to compare.")
    values = np.array([[one[layer] for one in found] for layer in layers])  # (layer, image, numbers)
    axes, coords = ("layer", "image"), {"layer": layers}
    if of == "selection":
        arrays = {"agreement": NamedArray(values[..., 0], axes, coords)}
    else:
        arrays = {
            "similarity": NamedArray(values[..., 0], axes, coords),
            "shuffled": NamedArray(values[..., 1], axes, coords),
            "keys": NamedArray(values[:, 0, 2], ("layer",), coords),
        }
    result = Similarity(stated | {"images": len(found)}, arrays)
    result.about["standard_error"] = [None if np.isnan(e) else float(e) for e in result.statistics(result.measured)[1]]
    return result


def mean_cosine(rows: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean cosine of all pairs of different rows: (..., rows, n) -> (...); NaN where there are less than two.

    Args:
        rows: of any length above 0.
        real: (..., rows) boolean; the others do not count.
    """
    unit = nn.functional.normalize(rows, dim=-1)
    if real is None:
        count = torch.full(rows.shape[:-2], float(rows.shape[-2]), dtype=rows.dtype)
    else:
        unit = unit * real[..., None]
        count = real.sum(-1).to(rows.dtype)
    squared = unit.sum(-2).square().sum(-1)
    return (squared - count) / torch.where(count > 1, count * (count - 1), torch.nan)


def compared(
    one: AttentionWeights, of: Literal["queries", "heads"], generator: torch.Generator, every: bool = False
) -> tuple[float, float, float] | None:
    """Similarity, the same with shuffled keys, and the number of keys; None where there is nothing to compare.

    Padding and class tokens are left out, both as queries and as keys.

    Args:
        one: weights of one image or more.
        of: what is compared.
        generator: of the shuffles.
        every: tokens that lie on no map count too: PartialFormer's abstract tokens.
    """
    weights = one.weights.double().cpu()
    images, windows, heads, queries, keys = weights.shape
    real_queries = _real(one.query_positions, every, (images, windows, queries))
    real_keys = _real(one.key_positions, every, (images, windows, keys))
    weights = weights * real_keys[:, :, None, None]
    shuffled = _shuffled(weights, real_keys, generator)
    means = []
    for rows in (weights, shuffled):
        if of == "queries":
            cosines = mean_cosine(rows, real_queries[:, :, None].expand(images, windows, heads, queries))
        else:
            cosines = mean_cosine(rows.transpose(2, 3)) if heads > 1 else rows.new_full((1,), torch.nan)
            if heads > 1:
                cosines = cosines[real_queries]
        means.append(float(cosines.nanmean()))
    return None if np.isnan(means[0]) else (means[0], means[1], float(real_keys.sum(2).max()))


def _real(positions: Tensor | None, every: bool, shape: tuple[int, int, int]) -> Tensor:
    """Mask (images, windows, tokens) of the tokens that count."""
    if positions is None or every or not (positions >= 0).any():
        return torch.ones(shape, dtype=torch.bool)
    return (positions >= 0).cpu().expand(shape)


def _shuffled(weights: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """The weights with the keys of every row shuffled: those that count, to the first places.

    Args:
        weights: (images, windows, heads, queries, keys), zero at keys that do not count.
        real: (images, windows, keys), the keys that count.
        generator: of the shuffles.
    """
    order = torch.rand(weights.shape, generator=generator, dtype=weights.dtype) + 2 * (~real)[:, :, None, None]
    return weights.gather(-1, order.argsort(-1))


def _attending(network: nn.Module, blocks: int) -> list[str]:
    """Attention modules of the last blocks."""
    last = blocks_of(network)[-blocks:]
    known = attention_modules(network)
    names = [name for name in known if any(f"{name}.".startswith(f"{block}.") for block in last)]
    if known and not names:
        raise UserError(f"The last {blocks} blocks of {type(network).__name__} have no attention.")
    return names


def _agreements(weights: dict[str, AttentionWeights]) -> dict[str, tuple[float, ...]]:
    """Share of the tokens that a block and the one before it both select, by the block's attention."""
    found = {}
    before: set[int] = set()
    stage = ""
    for key, one in weights.items():
        if not key.endswith(".mixed"):
            continue
        assert one.key_positions is not None
        chosen = set(one.key_positions.flatten().tolist()) - {-1}
        name = key.removesuffix(".mixed")
        own = name.partition(".blocks.")[0]
        if own == stage:
            found[name] = (len(chosen & before) / len(chosen),)
        before, stage = chosen, own
    return found
