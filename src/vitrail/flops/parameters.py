"""Parameters of a network by the papers' counting rules."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import UserError, unknown

Keep = Callable[[str], bool]


def _not_table(name: str) -> bool:
    return "relative_position" not in name


#: rule -> True for the names of the parameters that it counts
RULES: dict[str, Keep] = {
    "all": lambda name: True,
    "no_tables": _not_table,
    "pslt_table3": lambda name: _not_table(name) and not name.startswith("norm.") and name != "head.bias",
    "encoder": lambda name: name.startswith(("stem.", "stages.")),
    "with_aux": lambda name: True,
    "without_aux": lambda name: not name.startswith("aux_head."),
}


def _parts(*beginnings: str, without: str = "-") -> Keep:
    return lambda name: name.startswith(beginnings) and not name.startswith(without)


#: scope -> True for the names of the parameters in that part of a network
SCOPES: dict[str, Keep] = {
    "total": lambda name: True,
    "encoder": RULES["encoder"],
    "module": lambda name: True,
    "stem": _parts("stem."),
    # PSLT's Table 3: the blocks that lead into stages 3 and 4 are reported with the stage before
    "stage1": _parts("stages.0."),
    "stage2": _parts("stages.1.", "stages.2.downsample."),
    "stage3": _parts("stages.2.", "stages.3.downsample.", without="stages.2.downsample."),
    "stage4": _parts("stages.3.", without="stages.3.downsample."),
    "head": _parts("head."),
}


def count_parameters(model: nn.Module, rule: str = "all", scope: str = "total") -> int:
    """Learnable parameters under a paper's rule, of the whole network or a part of it.

    Raises:
        UserError: no such rule or scope.
    """
    if rule not in RULES:
        raise UserError(unknown("rule", rule, list(RULES)))
    if scope not in SCOPES:
        raise UserError(unknown("scope", scope, list(SCOPES)))
    keep, part = RULES[rule], SCOPES[scope]
    return sum(p.numel() for name, p in model.named_parameters() if keep(name) and part(name))
