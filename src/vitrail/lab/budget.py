"""Networks of one budget: the widths that come nearest to a number of parameters, multiply-adds or milliseconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..benchmark.machine import pinned_threads
from ..benchmark.speed import TimedForm, default_rounds, measure
from ..errors import UserError, unknown
from ..flops.parameters import count_parameters
from ..flops.profile import profile
from .candidates import Candidate

Equal = Literal["params", "macs", "latency"]
UNITS: dict[Equal, str] = {"params": "parameters", "macs": "multiply-adds", "latency": "ms"}
#: largest relative difference from the budget that counts as reached; a measured time is never exact
TOLERANCES: dict[Equal, float] = {"params": 0.03, "macs": 0.03, "latency": 0.10}

GRAIN = 4  # widths change by multiples of it: others are slow on most machines
WIDEST_STEP = 192  # a stage whose width cannot grow by this or less is not scaled
WIDEST = 64.0  # times the candidate's own width
HALVINGS = 12  # of the interval of widths, a factor of 4096

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Scaled:
    """A candidate at a budget.

    Attributes:
        candidate: with the widths that come nearest.
        equal: what the budget is of.
        budget, reached: in parameters, multiply-adds of one image, or ms of one batch.
        error: reached / budget - 1.
        within: the error is at most the tolerance; False has to be told to whoever reads the comparison.
        note: one sentence: what was reached, and where it is not within the tolerance, why.
        batch: images whose time was measured; 1 for the counts.
    """

    candidate: Candidate
    equal: Equal
    budget: float
    reached: float
    error: float
    within: bool
    note: str
    batch: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


# ---- costs ----------------------------------------------------------------------------------------------------------


def cost(
    candidate: Candidate,
    equal: Equal,
    image_size: tuple[int, int],
    num_classes: int,
    batch: int = 1,
    rounds: int | None = None,
) -> float:
    """Trainable parameters, multiply-adds of one image as executed, or the median ms of one batch on this processor.

    Args:
        image_size: (height, width); no matter for parameters.
        batch: images in a timed call; no matter for the counts.
        rounds: timed calls; None = the default of `vitrail benchmark`.

    Raises:
        UserError: the network cannot be built or counted.
    """
    _check(equal)
    if equal == "latency":
        return latencies([candidate], image_size, num_classes, batch=batch, rounds=rounds)[0]
    network = on_meta(candidate, num_classes)
    if equal == "params":
        return float(count_parameters(network))
    try:
        return float(profile(network, (channels(candidate), *image_size), "executed").macs)
    except Exception as error:  # a user's own mixer may need values, which nothing has on the meta device
        raise UserError(
            f"The multiply-adds of {candidate.name} cannot be counted without computing them: {error}. Compare by "
            "parameters or latency."
        ) from error


def latencies(
    candidates: Sequence[Candidate],
    image_size: tuple[int, int],
    num_classes: int,
    batch: int = 1,
    rounds: int | None = None,
) -> list[float]:
    """Median ms of one batch for each candidate: evaluation mode, fp32, one thread of this processor, in turns.

    Times of one call can be compared with each other; those of another call, or another machine, hardly.
    """
    forms = [_timed(candidate, image_size, num_classes, batch) for candidate in candidates]
    with pinned_threads(1):  # as the latency of the results
        timings = measure(forms, rounds or default_rounds(batch))
    return [1000 * timing.median for timing in timings]


def _timed(candidate: Candidate, image_size: tuple[int, int], num_classes: int, batch: int) -> TimedForm:
    with torch.random.fork_rng(devices=[]):
        network = candidate.build(num_classes).eval().to(memory_format=torch.channels_last)
        x = torch.randn(batch, channels(candidate), *image_size).contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return network(x)

    return TimedForm(candidate.name, call, batch=batch)


def channels(candidate: Candidate) -> int:
    """Channels of a candidate's images."""
    return int(candidate.model_options.get("in_chans", 3))


def on_meta(candidate: Candidate, num_classes: int) -> nn.Module:
    """The network without weights, in evaluation mode; with weights where a user's own mixer needs them."""
    try:
        with torch.device("meta"):
            return candidate.build(num_classes).eval()
    except UserError:
        with torch.random.fork_rng(devices=[]):
            return candidate.build(num_classes).eval()


# ---- widths ---------------------------------------------------------------------------------------------------------


def widths(candidate: Candidate) -> Widths:
    """Channels of the four stages."""
    network: Any = on_meta(candidate, 1)
    return tuple(int(info["num_chs"]) for info in getattr(network, "feature_info", ()))


def with_widths(candidate: Candidate, dims: Sequence[int]) -> Candidate:
    """The candidate with other widths, everything else as it is."""
    options = {name: value for name, value in candidate.model_options.items() if name != "width"}
    return replace(candidate, model_options={**options, "embed_dims": list(dims)})


def width_steps(candidate: Candidate) -> Widths:
    """By how much the width of each stage can change: the least multiple of `GRAIN` by which it can grow.

    It follows from what divides a width: heads, branches, slices.

    Raises:
        UserError: the network has no such option, or a stage can grow by no step.
    """
    base = widths(candidate)
    shallow = replace(candidate, model_options={**candidate.model_options, "depths": [1] * len(base)})
    if not base or not _builds(with_widths(shallow, base)):
        raise UserError(
            f"Candidate {candidate.name}: {candidate.model} has no option embed_dims, so it cannot be scaled to a "
            "budget; take one of vitrail's networks."
        )
    steps = []
    for i in range(len(base)):
        for step in range(GRAIN, WIDEST_STEP + 1, GRAIN):
            if _builds(with_widths(shallow, (*base[:i], base[i] + step, *base[i + 1 :]))):
                steps.append(step)
                break
        else:
            raise UserError(f"Candidate {candidate.name}: no width but {base[i]} is possible in stage {i + 1}.")
    return tuple(steps)


def _builds(candidate: Candidate) -> bool:
    try:
        on_meta(candidate, 1)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class _Grid:
    """The widths that a candidate can have: each stage's own, and that by a whole number of steps more or less."""

    base: Widths
    steps: Widths

    def at(self, factor: float, rounding: Callable[[float], int] = round) -> Widths:
        """Widths of `factor` times the candidate's own, each rounded to one that is possible."""
        return tuple(
            b + max(rounding((factor - 1) * b / s), -((b - 1) // s)) * s
            for b, s in zip(self.base, self.steps, strict=True)
        )

    def around(self, factor: float) -> list[Widths]:
        """All widths that are less than a step from `factor` times the candidate's own in every stage."""
        both = zip(self.at(factor, math.floor), self.at(factor, math.ceil), strict=True)
        return list(itertools.product(*(sorted(set(pair)) for pair in both)))

    def steps_between(self, a: Widths, b: Widths) -> int:
        """How many steps of single stages lead from one to the other."""
        return sum(abs(x - y) // s for x, y, s in zip(a, b, self.steps, strict=True))


# ---- the nearest width ----------------------------------------------------------------------------------------------


def scaled(
    candidate: Candidate,
    *,
    equal: Equal,
    budget: float,
    image_size: tuple[int, int],
    num_classes: int,
    tolerance: float | None = None,
    batch: int = 1,
    rounds: int | None = None,
) -> Scaled:
    """The candidate with the widths that come nearest to a budget; nothing else of it changes.

    The four widths keep their proportions to less than one step of `width_steps` each; among all such widths at the
    crossing of the budget the nearest is taken. Measured times are noisy: there, widths rounded in proportion are
    searched, and those on both sides of the budget are measured once more in turns.

    Args:
        equal: what the budget is of: trainable "params"; "macs", multiply-adds of one image as executed; or "latency",
            the median ms of a batch on this processor.
        budget: in these units.
        image_size: (height, width).
        num_classes: the classifier counts, too.
        tolerance: relative error up to which the budget counts as reached; None = `TOLERANCES`.
        batch, rounds: of measured times, see `cost`.

    Raises:
        UserError: an impossible budget, or a network whose width cannot be changed.
    """
    _check(equal, budget)
    tolerance = TOLERANCES[equal] if tolerance is None else tolerance
    grid = _Grid(widths(candidate), width_steps(candidate))

    @cache
    def cost_at(dims: Widths) -> float:
        return cost(
            with_widths(candidate, dims), equal, image_size, num_classes=num_classes, batch=batch, rounds=rounds
        )

    low, high = _crossing(grid, cost_at, budget)
    if equal == "latency":
        choice = [with_widths(candidate, dims) for dims in dict.fromkeys((grid.at(low), grid.at(high)))]
        times = latencies(choice, image_size, num_classes, batch=batch, rounds=rounds)
        pairs = zip(times, choice, strict=True)
        reached, found = min(pairs, key=lambda pair: abs(pair[0] - budget))
    else:
        dims = min(grid.around((low + high) / 2), key=lambda dims: abs(cost_at(dims) - budget))
        reached, found = cost_at(dims), with_widths(candidate, dims)
    error = reached / budget - 1
    note = _note(found, grid, equal, reached=reached, error=error, within=abs(error) <= tolerance)
    return Scaled(found, equal, budget, reached, error=error, within=abs(error) <= tolerance, note=note, batch=batch)


def _crossing(grid: _Grid, cost_at: Callable[[Widths], float], budget: float) -> tuple[float, float]:
    """Two factors of the width, below and above the budget, whose rounded widths are at most one step apart.

    Both are the same where the budget lies outside of what is possible.
    """
    low = high = 1.0
    while cost_at(grid.at(high)) < budget:
        if high >= WIDEST:
            return high, high
        low, high = high, 2 * high
    while cost_at(grid.at(low)) >= budget:
        if grid.at(low) == grid.at(0.0):
            return low, low
        low, high = low / 2, low
    for _ in range(HALVINGS):
        if grid.steps_between(grid.at(low), grid.at(high)) <= 1:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if cost_at(grid.at(middle)) < budget else (low, middle)
    return low, high


def _note(candidate: Candidate, grid: _Grid, equal: Equal, *, reached: float, error: float, within: bool) -> str:
    """One sentence on what was reached."""
    dims = tuple(candidate.model_options["embed_dims"])
    amount = f"{reached:.3g}" if equal == "latency" else f"{reached:,.0f}"
    text = (
        f"{candidate.name}: {amount} {UNITS[equal]} with widths {', '.join(map(str, dims))}, {error:+.1%} of the budget"
    )
    if within:
        return f"{text}."
    if dims == grid.at(0.0) and error > 0:
        return f"{text}: no narrower network of this kind is possible."
    return f"{text}: its widths change in steps of {', '.join(map(str, grid.steps))} only."


def _check(equal: str, budget: float = 1.0) -> None:
    if equal not in get_args(Equal):
        raise UserError(unknown("budget", str(equal), get_args(Equal)))
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise UserError(f"budget={budget!r} is not allowed; give a number above 0.")
