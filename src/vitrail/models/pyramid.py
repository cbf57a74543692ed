"""Four-stage backbone of every network here: timm's model contract, written once.

A network file builds `stem`, `stages` (each a `Stage`), the final `norm` and, where it is more than one linear layer,
the head. Features, classifier, parameter groups, checkpointing and registration follow here.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, List, Tuple, Union, cast  # noqa: UP035 - TorchScript reads these spellings

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, calculate_drop_path_rates, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from ..layers import HiddenHead, channels_last, check_choice
from ..layers.mix_token import Box, draw_box, mix_tokens
from ..layers.tracing import unscripted
from .checkpoints import Filter, translate_files

POOLS = ("avg", "max", "avgmax", "")


class Stage(nn.Module):
    """Down-sampling, blocks, and a norm at the end where the paper has one; (B, C, H, W) -> (B, C', H', W').

    Args:
        blocks: modules from map to map of the same shape.
        downsample: module that changes resolution and width before the blocks (None = nothing).
        norm: applied after the last block, on the main path (None = nothing).
    """

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None = None, norm: nn.Module | None = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm if norm is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage, recomputing the blocks in backward when checkpointing is on."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class Pyramid(nn.Module, ABC):
    """Stem, four stages at strides 4, 8, 16, 32, final norm, pooling, linear classifier.

    A subclass calls `super().__init__(...)`, sets `stem` and `stages`, and ends its constructor with `finish(...)`.

    Args:
        embed_dims: widths of the four stages.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the image.
        global_pool: "avg", "max", "avgmax", or "" for none.
        drop_rate: dropout before the classifier.
        reductions: strides of the stage outputs.

    Attributes:
        num_features: width of `forward_features`' map.
        head_hidden_size: width of `forward_head(..., pre_logits=True)`.
        feature_info: one dict a stage: `num_chs`, `reduction`, `module`.
    """

    #: endings of the names of parameters without weight decay, besides biases and 1-D tensors
    no_decay: tuple[str, ...] = ()

    def __init__(
        self,
        embed_dims: Sequence[int],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        reductions: Sequence[int] = (4, 8, 16, 32),
    ):
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(embed_dims, reductions, strict=True))
        ]
        self.stem: nn.Module
        self.stages: nn.Sequential
        self.norm: nn.Module
        self.head: nn.Module
        self.out_norms: nn.ModuleList | None = None

    def finish(
        self,
        norm: nn.Module | None,
        global_pool: str,
        out_norm: Callable[[int], nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Add final norm, pooling, classifier and output norms, then initialise every weight.

        Args:
            norm: on the last map, before pooling (None = nothing).
            out_norm: makes the norm of one pyramid output from its width (option `out_norms`); None = no such norms.
        """
        self.norm = norm if norm is not None else nn.Identity()
        if out_norm is not None:
            self.out_norms = nn.ModuleList(out_norm(info["num_chs"]) for info in self.feature_info)
        self.build_head(global_pool, device=device, dtype=dtype)
        self.init_weights(needs_reset=False)

    # ---- hooks of a network -----------------------------------------------------------------------------------------

    def build_head(self, global_pool: str, device: Any = None, dtype: Any = None) -> None:
        """Pooling, dropout and classifier; `HiddenHeadPyramid` keeps all three in one module."""
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = self.make_head(self.num_classes, device=device, dtype=dtype)

    def make_head(self, num_classes: int, device: Any = None, dtype: Any = None) -> nn.Module:
        """The classifier, `nn.Identity` for no classes."""
        if num_classes <= 0:
            return nn.Identity()
        return nn.Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype)

    @abstractmethod
    def init_module(self, module: nn.Module, name: str) -> None:
        """Initialise the own parameters of one module as the paper does; `name` is its dotted name."""

    # ---- forward ----------------------------------------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H/32, W/32), normalised, not pooled."""
        x = self.stem(channels_last(x))
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the map of `forward_features`; with `pre_logits` stop before the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    @unscripted
    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The stage outputs, and the final map unless `intermediates_only`.

        Args:
            indices: the last n stages if an int, all if None, else the stages listed.
            norm: apply the final norm to the last stage's output.
            stop_early: do not run stages after the last one wanted.
            output_fmt: "NCHW" or "NHWC".
        """
        return self._intermediates(
            x, indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt, intermediates_only=intermediates_only
        )

    def _intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        intermediates_only: bool,
        context: tuple[Any, ...] = (),
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """`forward_intermediates` with further arguments for every stage."""
        check_choice("output_fmt", str(getattr(output_fmt, "value", output_fmt)), ("NCHW", "NHWC"))
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(channels_last(x))
        intermediates: list[torch.Tensor] = []
        stages = list(self.stages)[: last + 1] if stop_early else list(self.stages)
        for i, stage in enumerate(stages):
            x = stage(x, *context)
            if i in take:
                intermediates.append(self._intermediate(x, i, norm))
        if output_fmt == "NHWC":
            intermediates = [x.permute(0, 2, 3, 1) for x in intermediates]
        if intermediates_only:
            return intermediates
        if len(stages) == len(self.stages):
            x = self.norm(x)
        return x, intermediates

    def _intermediate(self, x: Tensor, stage: int, norm: bool) -> Tensor:
        """The feature map of a stage from its output."""
        if self.out_norms is not None:
            return self.out_norms[stage](x)
        if norm and stage == len(self.stages) - 1:
            return self.norm(x)
        return x

    # ---- timm's contract --------------------------------------------------------------------------------------------

    @unscripted
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one wanted; returns the indices to take.

        The final norm belongs to the last stage's output, so it goes with it.
        """
        stages = len(self.stages)
        take, last = feature_take_indices(stages, indices)
        self.stages = self.stages[: last + 1]
        if prune_norm or last < stages - 1:
            self.norm = nn.Identity()
        if self.out_norms is not None:
            for i in range(len(self.out_norms)):
                if i not in take:
                    self.out_norms[i] = nn.Identity()
        if prune_head:
            self.drop_head()
        return take

    @unscripted
    def drop_head(self) -> None:
        """Leave the map of `forward_features` as the output."""
        self.reset_classifier(0, "")

    @unscripted
    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head

    @unscripted
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of `num_classes` (0 = none); `global_pool` None keeps the present pooling."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
            self.global_pool.train(self.training)
        self.num_classes = num_classes
        self.head = self.make_head(num_classes, **get_device_dtype(self)).train(self.training)
        for name, module in self.head.named_modules(prefix="head"):
            self.init_module(module, name)

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage's blocks in backward instead of keeping their activations."""
        for stage in self.stages:
            cast(Stage, stage).grad_checkpointing = enable

    @unscripted
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups in the order of the layers, for layer-wise learning-rate decay."""
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99998,)),
            (r"^(?:norm|out_norms)", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides biases and 1-D tensors."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.no_decay)} if self.no_decay else set()

    @unscripted
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise every weight and buffer.

        Args:
            needs_reset: also give every layer its framework default first, as a model on uninitialised storage
                (`to_empty`) needs.
        """
        for name, module in self.named_modules():
            if needs_reset and module is not self:
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
            self.init_module(module, name)


def drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Linear stochastic depth: 0 for the first block to `rate` for the last, as one list a stage."""
    return cast(list[list[float]], calculate_drop_path_rates(rate, list(depths), stagewise=True))


# ---- heads of more than one layer -----------------------------------------------------------------------------------


class HiddenHeadPyramid(Pyramid):
    """A pyramid whose head has a hidden layer, which a change of classifier keeps; see `layers/classifier.py`.

    A subclass sets `head_hidden_size` before `finish`. The classifier's name is "head.fc".
    """

    #: built as head_type(num_features, head_hidden_size, num_classes, global_pool, drop_rate, device=, dtype=)
    head_type: type[nn.Module] = HiddenHead

    def build_head(self, global_pool: str, device: Any = None, dtype: Any = None) -> None:
        """The head is one module with its own pooling and dropout."""
        widths = (self.num_features, self.head_hidden_size, self.num_classes)
        self.head = self.head_type(*widths, global_pool, self.drop_rate, device=device, dtype=dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the map of `forward_features`; with `pre_logits` stop before the classifier."""
        return self.head(x, pre_logits)

    @unscripted
    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return cast(HiddenHead, self.head).fc

    @unscripted
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier on the same hidden layer; `global_pool` None keeps the present pooling."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
        self.num_classes = num_classes
        cast(HiddenHead, self.head).reset(num_classes, global_pool, **get_device_dtype(self))
        self.init_module(self.get_classifier(), "head.fc")

    @unscripted
    def drop_head(self) -> None:
        """Leave the map of `forward_features` as the output, without the hidden layer."""
        self.reset_classifier(0, "")
        cast(HiddenHead, self.head).drop_hidden()
        self.head_hidden_size = self.num_features


class ClassTokenPyramid(Pyramid):
    """A `Pyramid` that classifies from a class token and, for token labelling, from every token of the last map.

    The logits are the class head's plus `aux_logit_weight` times the auxiliary head's largest over the tokens. A
    subclass ends its constructor with `finish(..., post=...)`; without `post`, the class head reads the pooled map.

    Args:
        embed_dims, num_classes, in_chans, global_pool, drop_rate, reductions: see `Pyramid`.
        token_labeling: the auxiliary head exists.
        mix_token: in training, mix samples by MixToken and return `forward_token_labeling`'s tuple.
        aux_logit_weight: of the auxiliary head in the logits.
    """

    no_decay = ("cls_token",)

    def __init__(
        self,
        embed_dims: Sequence[int],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        token_labeling: bool,
        mix_token: bool,
        aux_logit_weight: float,
        reductions: Sequence[int] = (4, 8, 16, 32),
    ):
        if mix_token and not token_labeling:
            raise ValueError("mix_token=True is not allowed with token_labeling=False; choose token_labeling=True")
        super().__init__(
            embed_dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            reductions=reductions,
        )
        self.token_labeling = token_labeling
        self.mix_token = mix_token
        self.aux_logit_weight = aux_logit_weight
        self.post: nn.Module | None = None
        self.aux_head: nn.Module | None = None

    def finish(
        self,
        norm: nn.Module | None,
        global_pool: str,
        out_norm: Callable[[int], nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
        post: nn.Module | None = None,
    ) -> None:
        """As `Pyramid.finish`, with the class-attention stage `post` (None = pool the map instead)."""
        self.post = post
        self._check_pool(global_pool)
        self.aux_head = self._make_aux_head(self.num_classes, device, dtype)
        super().finish(norm, global_pool, out_norm=out_norm, device=device, dtype=dtype)

    def _check_pool(self, global_pool: str) -> None:
        if self.post is not None:  # the class token replaces pooling
            check_choice("global_pool (with class_attention)", global_pool, ("avg", ""))

    def _make_aux_head(self, num_classes: int, device: Any = None, dtype: Any = None) -> nn.Module | None:
        return self.make_head(num_classes, device, dtype) if self.token_labeling and num_classes > 0 else None

    # ---- forward ----------------------------------------------------------------------------------------------------

    def read_out(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Inputs of the two heads from the map of `forward_features`: (B, C) and the tokens (B, H * W, C)."""
        if self.post is not None and self.global_pool.pool_type != "":
            return self.post(x)
        return self.global_pool(x), x.flatten(2).transpose(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the map of `forward_features`; with `pre_logits` stop before the heads."""
        pooled, tokens = self.read_out(x)
        pooled = self.head_drop(pooled)
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.aux_head is not None and (self.training or self.aux_logit_weight != 0.0):
            logits = logits + self.aux_logit_weight * self.aux_head(tokens).amax(dim=1)
        return logits

    @unscripted
    def forward_token_labeling(self, x: torch.Tensor, box: Box | None = None) -> tuple[Tensor, Tensor, Box]:
        """Forward for the loss of token labelling: samples mixed by MixToken after the stem, outputs of both heads.

        Args:
            x: images (B, in_chans, H, W).
            box: (top, left, bottom, right) on the last map's grid, where a sample is mixed with that of the batch in
                reversed order; None draws one, (0, 0, 0, 0) mixes nothing.

        Returns:
            Class logits (B, K), whose labels are to be mixed: 1 - area / tokens of the sample's own, the rest of its
            partner's; token logits (B, tokens, K), un-mixed; the box.

        Raises:
            ValueError: without the auxiliary head.
        """
        if self.aux_head is None:
            raise ValueError("forward_token_labeling needs the auxiliary head: token_labeling=True and num_classes > 0")
        x = self.stem(channels_last(x))
        scale = self.feature_info[-1]["reduction"] // self.feature_info[0]["reduction"]
        rows, cols = ((size + scale - 1) // scale for size in x.shape[2:])
        if box is None:
            box = draw_box(rows, cols, lam=float(torch.rand(())))  # Beta(1, 1)
        x = self.norm(self.stages(mix_tokens(x, box, scale)))
        pooled, tokens = self.read_out(x)
        token_logits = self.aux_head(tokens).transpose(1, 2).unflatten(2, (rows, cols))  # (B, K, rows, cols)
        token_logits = mix_tokens(token_logits, box).flatten(2).transpose(1, 2)
        return self.head(self.head_drop(pooled)), token_logits, box

    def forward(self, x: Tensor) -> Tensor:
        """Logits; in training with `mix_token` the tuple of `forward_token_labeling`."""
        if self.mix_token and self.training and self.aux_head is not None and not torch.jit.is_scripting():
            return self.forward_token_labeling(x)  # pyright: ignore[reportReturnType]
        return self.forward_head(self.forward_features(x))

    # ---- timm's contract --------------------------------------------------------------------------------------------

    @unscripted
    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,  # noqa: UP006, UP007
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last one wanted; class attention goes with the head or with the last stage."""
        stages = len(self.stages)
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < stages:
            self.post = None
        return take

    @unscripted
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The layer that gives the logits, with the auxiliary one where there is one."""
        return self.head if self.aux_head is None else (self.head, self.aux_head)

    @unscripted
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads of `num_classes` (0 = none); `global_pool` None keeps the present pooling."""
        if global_pool is not None:
            self._check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._make_aux_head(num_classes, **get_device_dtype(self))
        if self.aux_head is not None:
            self.aux_head.train(self.training)
            self.init_module(self.aux_head, "aux_head")


# ---- registration with timm -----------------------------------------------------------------------------------------


class FeaturePyramid(FeatureGetterNet):
    """A pyramid as `features_only` gives it: timm's wrapper, with the network's parameter groups and checkpointing."""

    @property
    def network(self) -> Pyramid:
        """The wrapped network."""
        return cast(Pyramid, self.model)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `Pyramid.set_grad_checkpointing`."""
        self.network.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """See `Pyramid.no_weight_decay`."""
        return {f"model.{name}" for name in self.network.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `Pyramid.group_matcher`."""

        def prefixed(patterns: Any) -> Any:
            if isinstance(patterns, str):
                return patterns.replace("^", r"^model\.", 1)
            return [(prefixed(pattern), order) for pattern, order in patterns]

        return {name: prefixed(patterns) for name, patterns in self.network.group_matcher(coarse).items()}


def default_cfg(**overrides: Any) -> dict[str, Any]:
    """timm's `pretrained_cfg` with the entries common to all networks here, and a network's own on top."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head",
        **overrides,
    }


#: variant -> its class and its options, of the variants that were built in this process
_BUILT: dict[str, tuple[type[Pyramid], dict[str, Any]]] = {}


def constructor_options(variant: str, options: dict[str, Any]) -> tuple[type[Pyramid], dict[str, Any]]:
    """The class of a registered model of ours, and every option that its constructor gets.

    Two models with the same answer are the same network, whichever variant they are named after.

    Args:
        variant: registered name.
        options: on top of the variant's own.
    """
    if variant not in _BUILT:
        timm.create_model(variant, device="meta")
    model_cls, own = _BUILT[variant]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model_cls).parameters.items()
        if parameter.default is not parameter.empty
    }
    return model_cls, {**defaults, **own, **options}


def build(
    model_cls: type[Pyramid],
    variant: str,
    pretrained: bool,
    options: dict[str, Any],
    overrides: dict[str, Any],
    filter_fn: Filter,
) -> nn.Module:
    """A registered model: the variant's `options`, with the caller's `overrides` on top.

    It loads the files that `filter_fn` reads, also by timm's `checkpoint_path`.
    """
    _BUILT[variant] = (model_cls, options)
    model = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": FeaturePyramid},
        **{**options, **overrides},
    )
    return translate_files(model, filter_fn)
