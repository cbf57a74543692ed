"""Multi-order interactions: how much pairs of image patches mean together, by how much context is visible.

Protocol of Deng et al., "Discovering and Explaining the Representation Bottleneck of DNNs" (ICLR 2022), which Vo's
dissertation (2023, Figure 3.7, Eq. 3.13, 3.14) follows. The published budget, 50 images, 200 pairs, 100 contexts and 13
orders, is 52 million forward passes; the defaults here fit a CPU, and every result states its budget, standard error
and bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadOption, UserError
from ..utils.plot import rendered
from ..utils.progress import bar
from .layers import evaluating
from .options import check_choice, check_count
from .result import Analysis, NamedArray, about, with_error

PairChoice = Literal["neighbours", "any"]

#: shares of the players outside the pair that are visible: every published order, and every second of them
PUBLISHED_ORDERS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
FEW_ORDERS = PUBLISHED_ORDERS[::2]
#: neighbours lie at most so many patches apart in each direction
REACH = 2

#: the value v(S) in float64 of sets of players: masks (M, players) -> (M,)
Value = Callable[[Tensor], Tensor]


# ---- definitions ---------------------------------------------------------------------------------------------------


def order_of(share: float, players: int) -> int:
    """m = floor(share (players - 2)): the number of visible players outside the pair, exact for decimal shares."""
    return math.floor(Fraction(str(share)) * (players - 2))


def log_odds(logits: Tensor, label: int) -> Tensor:
    """v = z_y - logsumexp of the other logits = ln p / (1 - p); (M, classes) -> (M,) in float64."""
    logits = logits.double()
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.logsumexp(1)


def draw_pairs(side: int, count: int, choice: PairChoice, generator: torch.Generator) -> list[tuple[int, int]]:
    """Different unordered pairs of the players of a side x side grid.

    "neighbours": the first is uniform, the second uniform among those at most two patches away in each direction.

    Raises:
        BadOption: there are fewer such pairs.
    """
    reach = REACH if choice == "neighbours" else side
    rows = [range(max(0, at - reach), min(side, at + reach + 1)) for at in range(side)]
    existing = (sum(map(len, rows)) ** 2 - side**2) // 2
    if count > existing:
        raise BadOption(f"pairs={count} is not allowed; a grid of {side} x {side} patches has {existing} such pairs.")
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        first = int(torch.randint(side**2, (1,), generator=generator))
        near = [r * side + c for r in rows[first // side] for c in rows[first % side]]
        second = near[int(torch.randint(len(near), (1,), generator=generator))]
        if first != second:
            pairs[(min(first, second), max(first, second))] = None
    return list(pairs)


def draw_contexts(players: int, pair: tuple[int, int], orders: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random sets of players outside a pair, without replacement: masks (len(orders), players), orders[i] in row i."""
    noise = torch.rand(len(orders), players, generator=generator)
    noise[:, list(pair)] = 2  # never among the first players - 2
    return noise.argsort(1).argsort(1) < torch.tensor(orders)[:, None]


def contexts_of(order: int, players: int, contexts: int) -> int:
    """Contexts worth drawing at an order: with none or all of the other players there is a single one."""
    return 1 if order in (0, players - 2) else contexts


@dataclass
class Estimate:
    """Interactions of one image, each (pairs, orders).

    Attributes:
        mean: over contexts, with sign.
        variance: over contexts, of a single one; NaN where only one of several was drawn.
        largest: absolute value v of all sets, the scale of rounding errors.
    """

    mean: np.ndarray
    variance: np.ndarray
    largest: float


def estimate(
    value: Value,
    players: int,
    pairs: Sequence[tuple[int, int]],
    orders: Sequence[int],
    contexts: int,
    generator: torch.Generator,
    step: Callable[[], None] = lambda: None,
) -> Estimate:
    """I^(m)(i, j): mean over contexts S of m players of v(S + ij) - v(S + i) - v(S + j) + v(S).

    Args:
        value: v of sets of players.
        players: number of players.
        pairs: the pairs.
        orders: m of each order.
        contexts: sets S for each pair and order.
        generator: draws the sets.
        step: called after each pair.
    """
    drawn = [contexts_of(order, players, contexts) for order in orders]
    spread_orders = [order for order, count in zip(orders, drawn, strict=True) for _ in range(count)]
    mean, variance = np.zeros((len(pairs), len(orders))), np.zeros((len(pairs), len(orders)))
    largest = 0.0
    for row, (i, j) in enumerate(pairs):
        without = draw_contexts(players, (i, j), spread_orders, generator)
        members = without[:, None].repeat(1, 4, 1)  # S + ij, S + i, S + j, S
        members[:, :2, i] = True
        members[:, [0, 2], j] = True
        values = value(members.flatten(0, 1))
        largest = max(largest, float(values.abs().max()))
        both, first, second, neither = values.unflatten(0, (-1, 4)).unbind(1)
        for column, one in enumerate((both - first - second + neither).split(drawn)):
            mean[row, column] = one.mean()
            exact = orders[column] in (0, players - 2)
            variance[row, column] = 0 if exact else one.var() if len(one) > 1 else np.nan
        step()
    return Estimate(mean, variance, largest)


def bias_without_interaction(variance: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """What |mean of T contexts| reads on average where there is no interaction: s sqrt(2 / (pi T))."""
    return np.sqrt(2 * variance / (math.pi * contexts))


def corrected(mean: np.ndarray, variance: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """|I| without what the spread over T contexts adds: sqrt(max(0, I^2 - s^2 / T))."""
    return np.sqrt(np.maximum(0, mean**2 - variance / contexts))


def relative_strength(interaction: np.ndarray, least: float = 0.0) -> np.ndarray:
    """J: interaction (..., orders) over its mean over the orders; NaN where that is not above `least`."""
    mean = interaction.mean(-1, keepdims=True)
    return np.divide(interaction, mean, out=np.full_like(interaction, np.nan), where=mean > least)


def _jackknife(per_image: np.ndarray, least: float) -> np.ndarray:
    """Standard error over images of the ratio J, each image left out once; NaN for a single image."""
    count = len(per_image)
    if count < 2:
        return np.full(per_image.shape[1], np.nan)
    without = np.stack([relative_strength(np.delete(per_image, i, 0).mean(0), least) for i in range(count)])
    return np.sqrt((count - 1) * without.var(0))


# ---- the analysis --------------------------------------------------------------------------------------------------


def interactions(
    network: nn.Module,
    images: Tensor | Iterable[tuple[Tensor, Sequence[int]]],
    labels: Tensor | Sequence[int] | None = None,
    *,
    count: int = 4,
    pairs: int = 8,
    contexts: int = 16,
    orders: Sequence[float] = FEW_ORDERS,
    pair_choice: PairChoice = "neighbours",
    grid: int = 16,
    batch_size: int = 64,
    seed: int = 0,
    trained: bool = True,
) -> Interactions:
    """Interaction strength of pairs of patches at several orders (shares of the other patches that are visible).

    Patches outside a set are 0 after normalisation, the mean of the data. The value of a set is the log odds of the
    image's true class.

    Args:
        network: a classifier of this library or timm's.
        images: preprocessed images (B, C, H, W); or batches of them, each with its labels, of which no more than
            `count` images are kept.
        labels: true classes of the images; of batches None.
        count: images used at most: of those that the network classifies correctly, spread over the classes (published:
            50).
        pairs: pairs of patches in an image (published: 200).
        contexts: sets of visible patches for each pair and order (published: 100).
        orders: visible shares from 0 to 1 (published: `PUBLISHED_ORDERS`).
        pair_choice: "neighbours", at most two patches apart in each direction (published), or "any".
        grid: patches along a side of the image.
        batch_size: images in one forward pass.
        seed: of pairs and contexts; an image has the same ones in every network.
        trained: False says that the weights are random, which have no interactions to speak of.

    Raises:
        UserError: untrained weights, no image that is classified correctly, labels that do not fit, a network that is
            no classifier, a wrong option.
    """
    if not trained:
        raise UserError("interactions need trained weights: those of a random network say nothing about images.")
    for name, value in (("count", count), ("pairs", pairs), ("contexts", contexts), ("batch_size", batch_size)):
        check_count(name, value)
    check_choice("pair_choice", pair_choice, PairChoice)
    players = grid**2
    batches = _labelled(images, labels, batch_size)
    first = next(batches, None)
    if first is None:
        raise UserError("interactions need at least one image.")
    known = _orders(orders, grid, first[0])
    with torch.inference_mode(), evaluating(network):
        kept = _kept(network, chain([first], batches), count)
        true, chosen = kept.labels, list(kept.images)
        found = []
        with bar("interactions", len(chosen) * pairs) as step:
            for index in chosen:
                generator = torch.Generator().manual_seed(seed + index)
                value = _value_of(network, kept.images[index], true[index], grid=grid, batch_size=batch_size)
                drawn = draw_pairs(grid, pairs, pair_choice, generator)
                found.append(estimate(value, players, drawn, known, contexts=contexts, generator=generator, step=step))
    sets = np.array([contexts_of(order, players, contexts) for order in known])
    stated = about(
        network,
        first[0],
        pairs=pairs,
        contexts=contexts,
        orders=len(known),
        forward_passes=int(4 * len(chosen) * pairs * sets.sum()),
        players=players,
        pair_choice=pair_choice,
        seed=seed,
        image_indices=chosen,
        labels=[true[index] for index in chosen],
        correct=f"{kept.correct} of {len(true)} images",
    )
    stated["images"] = len(chosen)
    rounding = torch.finfo(first[0].dtype).eps * 16 * max(one.largest for one in found)
    return _result(found, known, sets, stated, rounding=rounding)


def _orders(shares: Sequence[float], grid: int, images: Tensor) -> list[int]:
    """The orders m, rising, each once."""
    check_count("grid", grid, 2)
    if images.ndim != 4 or grid > min(images.shape[2:]):
        raise BadOption(f"grid={grid} is not allowed; images {tuple(images.shape)} have fewer pixels along a side.")
    if not shares or any(not 0 <= share <= 1 for share in shares):
        raise BadOption(f"orders={tuple(shares)!r} is not allowed; give visible shares from 0 to 1.")
    return sorted({order_of(share, grid**2) for share in shares})


def _labelled(
    images: Tensor | Iterable[tuple[Tensor, Sequence[int]]], labels: Tensor | Sequence[int] | None, batch_size: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches of at most `batch_size` images with the true class of each."""
    given: Iterable[tuple[Tensor, Any]] = [(images, labels)] if isinstance(images, Tensor) else images
    for some, classes in given:
        true = [] if classes is None else torch.as_tensor(classes).tolist()
        if len(true) != len(some):
            raise UserError(f"{len(some)} images have {len(true)} labels: interactions need the true class of each.")
        starts = range(0, len(true), batch_size)
        yield from zip(some.split(batch_size), (true[start : start + batch_size] for start in starts), strict=False)


@dataclass
class _Kept:
    """The images that are measured.

    Attributes:
        images: by their number among all, rising.
        labels: true classes of all images.
        correct: how many of all are classified correctly.
    """

    images: dict[int, Tensor]
    labels: list[int]
    correct: int


def _kept(network: nn.Module, batches: Iterable[tuple[Tensor, list[int]]], count: int) -> _Kept:
    """At most `count` images whose likeliest class is the true one, spread over the classes.

    A later image never brings back one that was dropped for others, so no more have to be kept.
    """
    images: dict[int, Tensor] = {}
    labels: list[int] = []
    correct = 0
    for some, true in batches:
        right = _classified_correctly(network, some, true)
        correct += len(right)
        images |= {len(labels) + i: some[i].clone() for i in right}
        labels += true
        if images:
            images = {index: images[index] for index in spread_over_classes(list(images), labels, count)}
    if not images:
        raise UserError(
            f"The network classifies none of the {len(labels)} images correctly: interactions are measured on those."
        )
    return _Kept(images, labels, correct)


def _classified_correctly(network: nn.Module, images: Tensor, labels: list[int]) -> list[int]:
    """Indices of the images whose likeliest class is the true one."""
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise UserError("interactions need a classifier: a network of logits (B, 2 or more classes).")
    if not all(0 <= label < logits.shape[1] for label in labels):
        raise UserError(f"Labels must be from 0 to {logits.shape[1] - 1}: the network has {logits.shape[1]} classes.")
    return [i for i, found in enumerate(logits.argmax(1).tolist()) if found == labels[i]]


def spread_over_classes(indices: Sequence[int], labels: Sequence[int], count: int) -> list[int]:
    """At most `count` of the images, one of each class in turn, in the order given."""
    classes: dict[int, list[int]] = {}
    for index in indices:
        classes.setdefault(labels[index], []).append(index)
    turns = max(map(len, classes.values()))
    in_turn = [found[turn] for turn in range(turns) for found in classes.values() if turn < len(found)]
    return sorted(in_turn[:count])


def _value_of(network: nn.Module, image: Tensor, label: int, grid: int, batch_size: int) -> Value:
    """v of one image: the log odds of its class where patches outside the set are 0."""

    def value(masks: Tensor) -> Tensor:
        found = []
        for chunk in masks.split(batch_size):
            cells = chunk.unflatten(1, (1, grid, grid)).to(image)
            logits = network(image * F.interpolate(cells, size=image.shape[-2:], mode="nearest"))
            found.append(log_odds(logits, label).cpu())
        return torch.cat(found)

    return value


def _result(
    found: Sequence[Estimate], orders: list[int], sets: np.ndarray, stated: dict[str, Any], rounding: float
) -> Interactions:
    mean = np.stack([one.mean for one in found])  # (images, pairs, orders)
    variance = np.stack([one.variance for one in found])
    per_image = np.abs(mean).mean(1)
    strength = relative_strength(per_image.mean(0), rounding)
    if np.isnan(strength).all():
        stated = stated | {"strength": "undefined: no interaction at any order"}

    def error(values: np.ndarray) -> np.ndarray:
        return values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.full(len(orders), np.nan)

    without_spread = corrected(mean, variance, sets).mean(1)
    lines = {
        "interaction": per_image.mean(0),
        "interaction_error": error(per_image),
        "corrected": without_spread.mean(0),
        "corrected_error": error(without_spread),
        "bias": bias_without_interaction(variance, sets).mean((0, 1)),
        "strength": strength,
        "strength_error": _jackknife(per_image, rounding),
    }
    arrays = {name: NamedArray(line, ("order",), {"order": list(orders)}) for name, line in lines.items()}
    axes, coords = ("image", "pair", "order"), {"image": stated["image_indices"], "order": list(orders)}
    arrays["pair_interaction"] = NamedArray(mean, axes, coords)
    arrays["pair_variance"] = NamedArray(variance, axes, coords)
    return Interactions(stated, arrays)


@dataclass
class Interactions(Analysis):
    """Interaction strength over orders.

    Attributes:
        arrays: over "order" (the number m of visible players outside the pair): "interaction", the mean over pairs and
            images of |I^(m)|; "corrected", the same without what the spread over contexts adds; "bias", what
            "interaction" would read on average where there is none; "strength" J, "interaction" over its mean over the
            orders, NaN if that is 0; their standard errors over images under "..._error" (of J by the jackknife). The
            signed "pair_interaction" and its variance over contexts "pair_variance" (image, pair, order).
    """

    def shares(self) -> np.ndarray:
        """m / n of each order."""
        return np.array(self.arrays["strength"].coords["order"]) / self.about["players"]

    def summary(self) -> str:
        """The finding in one sentence."""
        mean, bias = self.arrays["interaction"].values.mean(), self.arrays["bias"].values.mean()
        strength = self.arrays["strength"].values
        if np.isnan(strength).all():
            return f"No interaction at any order in {self.about['model']} ({self.budget()}): its strength is undefined."
        best = int(strength.argmax())
        return (
            f"Interactions of {self.about['model']} are strongest at order {self.shares()[best]:.2f} n "
            f"(J = {with_error(strength[best], self.arrays['strength_error'].values[best])}); mean |I| is {mean:.3g}, "
            f"and without any interaction would read {bias:.2g} ({self.budget()}; {self.about['correct']} are "
            "classified correctly)."
        )

    def budget(self) -> str:
        """Images, pairs, contexts, orders and forward passes."""
        counts = {name: self.about[name] for name in ("images", "pairs", "contexts", "orders")}
        told = [f"{count} {name if count != 1 else name.removesuffix('s')}" for name, count in counts.items()]
        return f"{', '.join(told)}: {self.about['forward_passes']:,} passes"

    def plot(self) -> Image.Image:
        """Relative strength and mean |I| over orders."""
        return plot_interactions([self])


def plot_interactions(results: Sequence[Interactions]) -> Image.Image:
    """Relative strength and mean |I| over orders, a line a network.

    Dashed is |I| without what the spread over contexts adds, dotted the bias.

    Args:
        results: of one network or several, with the same budget but for the images.

    Raises:
        UserError: other pairs, contexts, orders or players: the bias depends on them.
    """
    for name in ("contexts", "orders", "pairs", "pair_choice", "players"):
        values = list(dict.fromkeys(one.about[name] for one in results))
        if len(values) > 1:
            raise UserError(f"Interactions with {name} {values[0]} and {values[1]} cannot be compared: measure alike.")

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for number, one in enumerate(results):
            x, color, values = one.shares(), f"C{number}", {name: a.values for name, a in one.arrays.items()}
            style = {"color": color, "marker": "o", "ms": 3, "capsize": 2}
            for axis, name in ((left, "strength"), (right, "interaction")):
                label = one.about["model"] if axis is left else None
                # a standard error of one image does not exist
                axis.errorbar(x, values[name], np.nan_to_num(values[f"{name}_error"]), label=label, **style)
            right.plot(x, values["corrected"], color=color, ls="--", lw=1)
            right.plot(x, values["bias"], color=color, ls=":", lw=1)
        left.set(ylabel="interaction strength J", title="relative to the mean over orders")
        right.set(ylabel="mean |I|", title="dashed: corrected for spread, dotted: bias")
        for axis in (left, right):
            axis.set(xlabel="order / n", xlim=(-0.02, 1.02))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.secondary_xaxis("top", functions=(_complement, _complement)).set_xlabel("masked share", fontsize=8)
        figure.suptitle(results[0].budget() if len(results) == 1 else f"{len(results)} networks")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=4)

    return rendered(10, 4.6, draw)


def _complement(share: Any) -> Any:
    return 1 - share
