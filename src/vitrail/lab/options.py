"""Options of the laboratory, and the recipe that all its runs share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..config.train import TrainConfig
from ..engine.option_rules import check
from ..errors import UserError
from ..utils.files import shortened
from ..utils.plain import from_dict, limited, to_dict
from .budget import Equal

#: options of a training run that the laboratory sets itself, or that would make its runs unlike each other
NOT_SHARED = (
    *("task", "model", "model_options", "head", "head_options", "init", "freeze"),
    *("detection", "segmentation", "keypoints", "reid", "inference"),
    *("teacher", "distill"),
    *("token_labels", "token_loss_weight", "token_ground_truth", "token_swap_axes"),
    *("output", "resume", "overwrite", "seed", "eval_every", "keep", "batch_norm", "tracker"),
)
#: options that may differ between the processes of a laboratory: they do not change what is learned
MAY_DIFFER = ("device", "checkpoint_every", "data.root", "data.workers")
#: more seeds than this are a typing error
MAX_SEEDS = 1000


@dataclass
class LabConfig:
    """What a laboratory compares.

    Attributes:
        mixers: mixers to compare, with commas between them: names, or module:Class for a class of yours; of a family's
            host, names of its ablations; "all" for all there are. Empty = identity and the mixer of each of the six
            papers; of a family's host, all.
        host: the network they are put into: "plain", or a family, whose ablations are then compared.
        host_options: options of the plain host before it is scaled, such as width, depths and stem_stride.
        mixer_options: options of the mixers, such as window_size, for those that have them.
        equal: what all candidates have as much of: parameters, multiply-adds, or milliseconds for an image on one
            thread of this processor, also where training runs on a GPU.
        budget: how much of it (parameters, multiply-adds, milliseconds); None = what the first candidate has.
        seeds: trainings of each candidate, with the seeds 0, 1, ...
    """

    mixers: list[str] = field(default_factory=list)
    host: str = "plain"
    host_options: dict[str, Any] = field(default_factory=dict)
    mixer_options: dict[str, Any] = field(default_factory=dict)
    equal: Equal = "params"
    budget: float | None = limited(None, above=0)
    seeds: int = limited(3, least=1, most=MAX_SEEDS)

    def check(self) -> None:
        """Raise `UserError` for a value outside what is allowed, or a mixer named twice."""
        from_dict(LabConfig, to_dict(self), "--")
        if not self.host.strip():
            raise UserError("--host is empty: give plain or the name of a family.")
        twice = [name for i, name in enumerate(self.mixers) if name in self.mixers[:i]]
        if twice:
            raise UserError(f"--mixers names {twice[0]!r} twice.")
        for group in ("host_options", "mixer_options"):
            if self.host != "plain" and (given := getattr(self, group)):
                raise UserError(
                    f"--{group}.{next(iter(given))} is for --host plain: with {shortened(self.host)} the ablations say "
                    "what the network is."
                )


def check_recipe(recipe: TrainConfig, typed: Collection[str] = ()) -> None:
    """Refuse a recipe that cannot be trained, or that says what the laboratory says itself.

    Args:
        recipe: of all runs.
        typed: dotted names of options that were given deliberately, also with their defaults.

    Raises:
        UserError: naming the option.
    """
    default = TrainConfig()
    if recipe.task != "classification":
        raise UserError(f"--task {recipe.task} cannot be compared: the laboratory trains classifiers.")
    for name in NOT_SHARED:
        if getattr(recipe, name) != getattr(default, name):
            raise UserError(f"{name} is not taken from a recipe: the laboratory sets it itself.")
    check(recipe, typed)


def run_config(recipe: TrainConfig, **own: Any) -> TrainConfig:
    """The recipe of one run: the shared one with the run's own network, seed and folder.

    The last epoch's weights are kept, so that no validation image has a part in the choice of the weights.
    """
    return replace(recipe, keep="last", **own)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and not name.endswith("_options"):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def shared_options(recipe: TrainConfig) -> dict[str, Any]:
    """The options of the recipe that all runs share, by dotted name."""
    names = [one.name for one in fields(recipe) if one.name not in NOT_SHARED]
    plain = to_dict(recipe)
    return flat({name: plain[name] for name in names})


def changed_option(stored: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The first option, by dotted name, that has another value; None if there is none."""
    return next((name for name in given if name not in MAY_DIFFER and stored.get(name) != given[name]), None)
