"""The network of a case, loaded from a file as its users load it, and how far its outputs are from the stored ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from cases import Case
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.models.volo import VOLO

#: largest difference allowed: of logits, and of features relative to the stored standard deviation of their stage
TOLERANCE = 1e-4
FORMS = ("eager", "compiled")

#: which logits a stored entry holds
LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits_first8": lambda x: x.flatten()[:8],
    "logits_last4": lambda x: x.flatten()[-4:],
    "logits_last_row_first8": lambda x: x[-1, :8],
    "logits_mean": lambda x: x.mean(),
    "logits_std": lambda x: x.std(),
}


@dataclass(frozen=True)
class Difference:
    """The largest differences of one run.

    Attributes:
        logits: absolute; None where the network has no classifier.
        features: of mean, deviation and first values, in standard deviations of the stage.
        where: the stage of the largest.
    """

    logits: float | None
    features: float
    where: str

    def within(self, tolerance: float) -> bool:
        return max(self.logits or 0.0, self.features) <= tolerance


def write(path: Path, content: dict[str, Any]) -> Path:
    """A checkpoint file: .safetensors holds tensors only, anything else is what `torch.save` writes."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def network(case: Case, folder: Path, suffix: str = ".pth", **options: Any) -> nn.Module:
    """The case's network with the reference's weights, read from a file below `folder`, in evaluation mode.

    Args:
        suffix: ".pth" for the form in which authors publish weights, ".safetensors" for the bare state dict.
        options: on top of the case's.
    """
    content = case.weights() if suffix == ".safetensors" else case.wrap(case.weights())
    path = write(folder / f"weights{suffix}", content)
    try:
        return timm.create_model(case.model, checkpoint_path=path, **{**case.options, **options}).eval()
    finally:
        path.unlink()


def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The logits (None without a classifier) and the maps under the names of the stored files."""
    if not hasattr(model, "forward_intermediates"):  # timm's wrapper of features_only
        return None, {f"stage{i + 1}": fmap for i, fmap in enumerate(model(x))}
    stem = model.stem(x)
    last, maps = model.forward_intermediates(x)
    features = {"stem": stem, **{f"stage{i + 1}": fmap for i, fmap in enumerate(maps)}}
    if isinstance(model, VOLO):  # before the positions are added
        features["downsample"] = model.stages[1].downsample.conv1(maps[0])
    if getattr(model, "post", None) is not None:  # class attention: (B, 1 + N, C), the class token first
        token, tokens = model.post(last)
        features["final_norm"] = torch.cat([token[:, None], tokens], 1)
    else:
        features["final_norm"] = last.permute(0, 2, 3, 1)
    return model.forward_head(last), features


def compiled(model: nn.Module) -> Callable[[Tensor], tuple[Tensor | None, dict[str, Tensor]]]:
    """`outputs` of a network, compiled by inductor for one size."""
    torch.compiler.reset()
    return torch.compile(lambda x: outputs(model, x), dynamic=False, fullgraph=True)


def stats(value: Tensor) -> Tensor:
    """Mean, unbiased standard deviation, first four values."""
    return torch.stack([value.mean(), value.std(), *value.contiguous().flatten()[:4]])


def flat(stored: list[Any]) -> Tensor:
    """Stored statistics as six numbers, whichever way the first values are nested."""
    mean, std, *first = stored
    return torch.tensor([mean, std, *(first[0] if isinstance(first[0], list) else first)])


def apart(ours: Tensor, stored: Any) -> float:
    """The largest absolute difference; infinite for what is no number."""
    return (ours - torch.as_tensor(stored)).abs().max().nan_to_num(nan=math.inf).item()


def difference(case: Case, logits: Tensor | None, features: dict[str, Tensor]) -> Difference:
    """How far outputs are from the stored ones.

    Raises:
        AssertionError: a shape differs, or something stored is not compared.
    """
    golden = dict(case.golden)
    del golden["input"]
    golden.pop("min_score_gap", None)  # of the reference: how far its choice of tokens is from a tie
    shapes = golden.pop("feature_shapes", {})
    for i, stored in enumerate(golden.pop("outputs", ())):  # LVT's encoder: as feature_stats, with shapes
        assert stored["stats"] == golden["feature_stats"][f"stage{i + 1}"]
        shapes[f"stage{i + 1}"] = stored["shape"]
    for name, shape in shapes.items():
        assert list(features[name].shape) == shape, f"{case}: {name} is {tuple(features[name].shape)}, not {shape}"

    furthest = {}
    for name, stored in golden.pop("feature_stats").items():
        wanted = flat(stored)
        furthest[name] = apart(stats(features[name]), wanted) / wanted[1].item()
    where = max(furthest, key=lambda name: furthest[name])

    if logits is None:
        assert not golden, f"{case}: {list(golden)} are stored, but the network gives no logits"
        return Difference(None, furthest[where], where)
    expected = [case.input[1], case.options.get("num_classes", 1000)]
    assert list(logits.shape) == golden.pop("logits_shape", expected)
    return Difference(max(apart(LOGITS[k](logits), stored) for k, stored in golden.items()), furthest[where], where)


def measure(case: Case, folder: Path, form: str) -> Difference:
    """Build the case's network from a file below `folder`, run it in a form of `FORMS`, compare."""
    model = network(case, folder)
    run = compiled(model) if form == "compiled" else partial(outputs, model)
    with torch.inference_mode():
        return difference(case, *run(case.image()))
