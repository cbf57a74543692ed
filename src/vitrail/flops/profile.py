"""Parameters and multiply-adds of a network, module by module."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from .counting import Counts, count, rule_of


@dataclass
class ModuleProfile:
    """One module with all that is inside it.

    Attributes:
        name: dotted name; "" = the network.
        kind: its class.
        params: learnable parameters.
        macs: multiply-adds of one image under the profile's rule.
    """

    name: str
    kind: str
    params: int
    macs: int


@dataclass
class Profile:
    """The result of `profile`.

    Attributes:
        params, macs: of the whole network; macs under `rule`.
        rule: the counting rule.
        input_size: (C, H, W) of the image.
        counts: amounts by category, of the whole network.
        by_module: every module with all that is inside it, by its dotted name, outer ones first.
    """

    params: int
    macs: int
    rule: str
    input_size: tuple[int, ...]
    counts: Counts
    by_module: dict[str, ModuleProfile] = field(repr=False)

    def tree(self, depth: int = 2) -> str:
        """The modules down to a depth, one a line, indented."""
        lines = []
        for name, module in self.by_module.items():
            level = name.count(".") + 1 if name else 0
            if level <= depth and (module.macs or module.params):
                label = "  " * level + (name.rsplit(".", 1)[-1] or module.kind)
                lines.append(f"{label:<40} {module.params / 1e6:>10.4f} M {module.macs / 1e6:>12.3f} MMAC")
        return "\n".join(lines)


def profile(model: nn.Module, input_size: tuple[int, ...] = (3, 224, 224), rule: str = "executed") -> Profile:
    """Count parameters and multiply-adds for one image, without computing anything.

    Args:
        model: any network of ours or of timm.
        input_size: (C, H, W).
        rule: "executed" = what runs; or a counting rule of the papers, see `flops.counting.RULES`.

    Raises:
        UserError: no such rule.
    """
    chosen = rule_of(rule)
    twin = copy.deepcopy(model).to("meta").eval()
    own = count(twin, input_size, chosen.as_written)
    macs = {name: counts.weighted(chosen.backbone) for name, counts in own.items()}
    by_module = {}
    for name, module in twin.named_modules():
        inside = f"{name}." if name else ""
        total = sum(amount for other, amount in macs.items() if other == name or other.startswith(inside))
        by_module[name] = ModuleProfile(name, type(module).__name__, sum(p.numel() for p in module.parameters()), total)
    network = by_module[""]
    return Profile(
        params=network.params,
        macs=network.macs,
        rule=rule,
        input_size=tuple(input_size),
        counts=sum(own.values(), Counts()),
        by_module=by_module,
    )
