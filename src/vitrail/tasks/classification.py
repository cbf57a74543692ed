"""Image classification: the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from torch import Tensor, nn

from ..checkpoint.initialize import InitReport, init_from, is_classifier
from ..config.data import TRAINING_IMAGES
from ..config.train import TrainConfig
from ..data import EvalLoader, TrainLoader, eval_transform, open_dataset, train_transform
from ..data.datasets.base import ImageSet, ImageStream
from ..data.datasets.splits import check_disjoint
from ..data.datasets.token_label_maps import TokenLabelSet
from ..data.datasets.unlabelled import UNLABELLED, WithUnlabelled
from ..data.transforms.base import PairTransform
from ..data.transforms.classification import Transform
from ..data.transforms.token_labels import TokenLabelTransform
from ..errors import UserError
from ..factory import build_model
from ..metrics.classification import ClassificationMetrics
from ..utils.draw import enlarged, with_title
from .base import Task, pins_memory, small_data_notes, split_batch
from .losses import class_target, mixed_target, token_label_loss
from .micro_batches import check_micro_batches
from .preprocess import preprocess_of
from .teacher import Distiller, TaughtBatches, WithProjection, describe_views, first_views

#: shortest side of shown training images, and the size of the letters above them, in pixels
SHOWN, TITLE = 112, 12
#: share of a mixed image's target above which a class is named
LEAST_SHARE = 0.05


class Classification(Task):
    """The task "classification": cross-entropy with label smoothing, Mixup and CutMix; top-1 decides.

    Args:
        config: the recipe; its data is opened here.

    Raises:
        UserError: unknown network, or data that cannot be used.
    """

    name = "classification"
    group = "augment"
    best_metric = "top1"
    percent = True
    head: str | None = None
    head_options: dict[str, Any] = {}  # noqa: RUF012 - empty for good
    settings: dict[str, Any] = {}  # noqa: RUF012 - its preprocessing says all
    distiller: Distiller | None = None

    def __init__(self, config: TrainConfig):
        self.config = config
        self.preprocess = preprocess_of(config)
        data = replace(config.data, unlabelled=None)
        self.train_set = open_dataset(data, train=True)
        self.preprocess.levels = self.train_set.levels
        self.eval_set = open_dataset(data, train=False, levels=self.train_set.levels)
        self.measures_training = data.measures_training
        check_measurable(self.train_set, self.eval_set)
        if isinstance(self.train_set, ImageSet) and isinstance(self.eval_set, ImageSet) and not self.measures_training:
            check_disjoint(self.train_set, self.eval_set)
        self.classes = list(self.train_set.classes)
        self.model_options = dict(config.model_options)
        cfg = timm.get_pretrained_cfg(config.model)
        if cfg is not None and cfg.fixed_input_size:
            self.model_options.setdefault("img_size", self.preprocess.image_size)
        if config.teacher is not None:
            self.distiller = Distiller(config, self.preprocess, self.train_set)
            self.teacher_digest = self.distiller.digest
        if config.data.unlabelled is not None:
            self.train_set = self._with_unlabelled(config.data.unlabelled)
        self.transform: Transform | PairTransform = train_transform(config.augment, self.preprocess)
        self.labelled: TokenLabelSet | None = None
        if config.token_labels is not None:
            grid = self._token_grid()
            self.labelled = self._label_maps(config.token_labels)
            self.transform = TokenLabelTransform(
                config.augment,
                self.preprocess,
                grid=grid,
                num_classes=len(self.classes),
                smoothing=config.smoothing,
                swap_axes=config.token_swap_axes,
            )
        self.mixer = self._mixer()

    @property
    def training_data(self) -> str:
        """Name of the training data, and of the teacher or that of its token labels."""
        data = self.config.data.title
        if self.config.data.unlabelled is not None:
            data += f" and unlabelled images of {Path(self.config.data.unlabelled).name}"
        if self.distiller is not None:
            return f"{data}; teacher {self.distiller.name}"
        return data if self.labelled is None else f"{data}; token labels of {self.labelled.info}"

    def _with_unlabelled(self, folder: str) -> WithUnlabelled:
        """The training images with those that the teacher alone labels.

        Raises:
            UserError: a stream, or images that are validation images, too.
        """
        if not isinstance(self.train_set, ImageSet):
            raise UserError("--data.unlabelled needs --data whose images can be chosen by number, not a stream.")
        joined = WithUnlabelled(self.train_set, folder, self.config.data.max_pixels)
        if isinstance(self.eval_set, ImageSet) and not self.measures_training:
            check_disjoint(joined, self.eval_set)
        return joined

    def _token_grid(self) -> tuple[int, int]:
        """(rows, columns) of the tokens; the network is told to label them and to mix them."""
        model = self.config.model
        with torch.device("meta"):
            network = build_model(model, self.model_options, len(self.classes))
        if not hasattr(network, "forward_token_labeling"):
            raise UserError(
                f"--token_labels needs a network that labels tokens, such as lvt or pale_tiny; not {model}."
            )
        for name in ("token_labeling", "mix_token"):
            if self.model_options.setdefault(name, True) is not True:
                raise UserError(f"--token_labels needs the model option {name}: true; leave it out.")
        stride = cast(Any, network).feature_info[-1]["reduction"]
        height, width = self.preprocess.image_size
        return -(-height // stride), -(-width // stride)

    def _label_maps(self, folder: str) -> TokenLabelSet:
        """The training images with their label maps."""
        augment = self.config.augment
        if augment.mixup > 0 or augment.cutmix > 0:
            raise UserError(
                "--token_labels mixes tokens instead of images: give --augment.mixup 0 and --augment.cutmix 0."
            )
        if not isinstance(self.train_set, ImageSet):
            raise UserError("--token_labels needs images that can be found by name, not a stream.")
        return TokenLabelSet(self.train_set, folder)

    def _mixer(self) -> Mixup | None:
        augment = self.config.augment
        if augment.mixup <= 0 and augment.cutmix <= 0:
            return None
        # images without a label are a class of their own until they are mixed
        more = int(self.has_unlabelled)
        return Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob,
            label_smoothing=0 if more else self.config.smoothing,
            num_classes=len(self.classes) + more,
        )

    @property
    def has_unlabelled(self) -> bool:
        """True if some of the training images have no label."""
        return isinstance(self.train_set, WithUnlabelled)

    # ---- network and data ---------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """The network with fresh weights and one output a class of the data."""
        return build_model(self.config.model, self.model_options, len(self.classes))

    def trained(self, network: nn.Module) -> nn.Module:
        """With `distill.features` the network and the projection of its features."""
        if self.distiller is None or not self.config.distill.features:
            return network
        return WithProjection(network, self.distiller.width)

    def init(self, model: nn.Module, path: str) -> InitReport:
        """Start from trained weights; the classifier stays fresh where the classes are others."""
        return init_from(model, path, self.config.model, self.classes)

    def is_head(self, name: str, model: nn.Module) -> bool:
        """True if the parameter of that name is the classifier's."""
        return is_classifier(name, model)

    def train_batches(self, rank: int = 0, world: int = 1) -> TrainLoader | TaughtBatches:
        """This process's share of the training batches: (x, y); y is classes, or what label maps say (B, K, 2 + N).

        A teacher's cached outputs stand behind these, as `kinds_of` lists them.
        """
        config = self.config
        batches = TrainLoader(
            self.train_set if self.labelled is None else self.labelled,
            self.transform,
            config.batch_size,
            config.seed,
            workers=config.data.workers,
            repeats=config.augment.repeats,
            rank=rank,
            world=world,
            pin_memory=pins_memory(config),
            prefetch=config.prefetch,
        )
        height, width = self.preprocess.image_size
        check_micro_batches(self, batches, world, (height, width))
        labels = self.distiller.labels if self.distiller else None
        if labels is None:
            return batches
        views, steps = describe_views(config, self.preprocess, batches), len(batches)
        total = config.iterations or (config.epochs or 0) * steps
        labels.check(views, first_views(batches), epochs=-(-min(total, config.max_steps or total) // steps))
        return TaughtBatches(batches, labels)

    def eval_batches(self, rank: int = 0, world: int = 1) -> EvalLoader:
        """This process's share of the validation images: (x, y, index)."""
        return EvalLoader(
            self.eval_set,
            eval_transform(self.preprocess),
            max(1, self.config.batch_size // self.config.accumulate),
            workers=self.config.data.workers,
            rank=rank,
            world=world,
            pin_memory=pins_memory(self.config),
        )

    # ---- a step -------------------------------------------------------------------------------------------------

    def mix(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mixup or CutMix of a whole batch: targets become (B, classes) probabilities, 0 where there is no label.

        Raises:
            UserError: an odd number of images, which cannot be mixed in pairs.
        """
        x, y, *taught = batch  # the teacher's cached outputs are of mixed images already
        if self.mixer is None:
            return batch
        if len(x) % 2:
            raise UserError(
                f"Mixup and CutMix pair images, but each process has {len(x)}: choose another --batch_size."
            )
        # timm mixes in place; a copy keeps the caller's batch
        if not self.has_unlabelled:
            return (*self.mixer(x.clone(), y), *taught)
        x, target = self.mixer(x.clone(), torch.where(y == UNLABELLED, len(self.classes), y))
        smoothed = target[:, :-1] * (1 - self.config.smoothing) + self.config.smoothing / len(self.classes)
        return (x, smoothed * (target[:, -1:] == 0), *taught)

    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """The image under its class, or its likeliest ones with their shares."""
        image = enlarged(image, SHOWN)
        target = batch[1][number]
        if self.has_unlabelled and bool((target == UNLABELLED) if target.ndim == 0 else (target == 0).all()):
            return with_title(image, "no label", size=TITLE)
        if target.ndim == 0:
            return with_title(image, self.classes[int(target)], size=TITLE)
        if target.ndim == 1:  # of Mixup or CutMix
            likely = target.topk(min(2, len(target)))
            shares = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
            # smoothing gives every class a little
            named = [f"{self.classes[i]} {share:.2f}" for i, share in shares if share >= LEAST_SHARE]
            return with_title(image, ", ".join(named), size=TITLE)
        return image  # every token has a label of its own

    def split(self, batch: tuple[Tensor, ...], parts: int) -> list[tuple[tuple[Tensor, ...], float]]:
        """Micro-batches, each with its share of the images."""
        return split_batch(batch, parts)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the number of images whose likeliest class is the target's likeliest.

        A network that labels tokens in training returns (logits, token logits, box) instead of logits (LVT, VOLO,
        Pale with `mix_token`); each token then has its label from the maps, or without maps its image's.
        """
        x, target, *cached = batch
        output = model(x)
        if self.distiller is not None:
            return self._taught_loss(output, target, self.distiller.outputs(x, cached))
        if isinstance(output, tuple):
            logits, tokens, box = output
            return self._token_loss(logits, tokens, box, target)
        output = output.float()
        if target.ndim == 1:
            loss = F.cross_entropy(output, target, label_smoothing=self.config.smoothing)
        else:
            loss = F.cross_entropy(output, target)  # the mixer smoothed it
            target = target.argmax(1)
        return loss, (output.detach().argmax(1) == target).sum()

    def _taught_loss(self, output: Any, target: Tensor, taught: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean over the images of (1 - weight) x the label's loss + weight x the teacher's, and that of the features.

        Without a label an image has the teacher's loss alone, and whether it is classified correctly is not known.

        Args:
            output: logits, or logits and projected features (`WithProjection`).
            target: classes, or their probabilities; see `mix`.
            taught: the teacher's outputs.
        """
        logits, features = output if isinstance(output, tuple) else (output, None)
        logits = logits.float()
        if target.ndim == 1:
            unlabelled = target == UNLABELLED
            smoothing = self.config.smoothing
            own = F.cross_entropy(logits, target, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none")
        else:
            unlabelled = (target == 0).all(1)
            own, target = F.cross_entropy(logits, target, reduction="none"), target.argmax(1)
        weight = self.config.distill.weight
        of_scores, of_features = cast(Distiller, self.distiller).loss(logits, features, taught)
        losses = torch.where(unlabelled, of_scores, (1 - weight) * own + weight * of_scores) + of_features
        correct = (logits.detach().argmax(1) == target).sum()
        return losses.mean(), torch.full_like(losses[0], float("nan")).detach() if self.has_unlabelled else correct

    def _token_loss(self, logits: Tensor, tokens: Tensor, box: Sequence[int], target: Tensor) -> tuple[Tensor, Tensor]:
        """See `token_label_loss`; the target is classes, their probabilities, or what label maps gave."""
        config = self.config
        if target.ndim == 1:
            off = config.smoothing / len(self.classes)
            target = F.one_hot(target, len(self.classes)) * (1 - config.smoothing) + off
        loss = token_label_loss(
            logits,
            tokens,
            target,
            box,
            token_weight=config.token_loss_weight,
            ground_truth=config.token_ground_truth,
        )
        mixed = mixed_target(class_target(target, config.token_ground_truth), box, tokens.shape[1])
        return loss, (logits.detach().argmax(1) == mixed.argmax(1)).sum()

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """Notes on both splits, such as what is left out."""
        notes = list(dict.fromkeys([*self.train_set.notes(), *self.eval_set.notes()]))
        notes += self.distiller.notes() if self.distiller else []
        return notes + small_data_notes(len(self.train_set), self.config.batch_size)

    def infer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return model(inputs)

    def metrics(self) -> ClassificationMetrics:
        """A fresh accumulator."""
        return ClassificationMetrics(self.classes, TRAINING_IMAGES if self.measures_training else "")

    @torch.no_grad()
    def examples(
        self, model: nn.Module, device: torch.device, count: int = 8, folder: Path | None = None
    ) -> list[dict[str, Any]]:
        """The prediction for `count` validation images spread over the set; none of a streamed set."""
        if not isinstance(self.eval_set, ImageSet):
            return []
        transform = eval_transform(self.preprocess)
        total = len(self.eval_set)
        picks = [i * total // min(count, total) for i in range(min(count, total))]
        x = torch.stack([transform(self.eval_set.image(i)) for i in picks]).to(device)
        found = predictions(model.eval()(x), self.classes, 1)
        return [
            {
                "name": self.eval_set.name(i),
                "truth": self.classes[int(self.eval_set.targets[i])],
                "prediction": top[0]["class"],
                "probability": top[0]["probability"],
            }
            for i, top in zip(picks, found, strict=True)
        ]


def check_measurable(learned: ImageSet | ImageStream, measured: ImageSet | ImageStream) -> None:
    """Refuse data from which nothing can be learned, or on which nothing can be measured.

    Raises:
        UserError: images of one class alone in either split.
    """
    if not (isinstance(learned, ImageSet) and isinstance(measured, ImageSet)):
        return  # of a stream nothing is known before it is read
    for split, doing in ((learned, "to learn from"), (measured, "to measure on")):
        found = np.unique(split.targets)
        if len(found) < 2:
            all_of = (
                f"All {len(split):,} images {doing} are of the class {split.classes[found[0]]!r}" if len(found) else ""
            )
            raise UserError(f"{all_of or f'There are no images {doing}'}: it takes images of two classes or more.")


def predictions(output: Tensor, classes: Sequence[str], top_k: int = 5) -> list[list[dict[str, Any]]]:
    """The likeliest classes of each image, best first.

    Args:
        output: (B, classes) logits.
        classes: names.
        top_k: classes listed an image, at most all.

    Returns:
        For each image a list of {"class": name, "index": int, "probability": float in [0, 1]}.
    """
    values, indices = output.float().softmax(1).topk(min(top_k, len(classes)), dim=1)
    return [
        [{"class": classes[i], "index": i, "probability": p} for i, p in zip(row_i, row_p, strict=True)]
        for row_i, row_p in zip(indices.tolist(), values.tolist(), strict=True)
    ]
