"""Person re-identification: the task and its inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..config.data import Preprocess
from ..config.tasks import InferenceConfig
from ..config.train import TrainConfig
from ..data.datasets.base import AnnotatedSet
from ..data.datasets.market1501 import ReidSet, open_market1501
from ..data.datasets.splits import check_disjoint
from ..data.identity_loader import IdentityLoader
from ..data.loader import EvalLoader
from ..data.transforms.base import PairTransform
from ..data.transforms.classification import squash_transform
from ..data.transforms.reid import PersonAugmentation, PersonView
from ..errors import UserError
from ..metrics.retrieval import ReidMetrics
from ..structures import Embedding, Person
from ..utils.draw import with_title
from .base import Inference, all_gathered, pins_memory, process_count
from .losses import triplet_loss
from .with_head import DenseTask


class ReidInference(Inference):
    """Inference with a trained network.

    Args:
        preprocess: size and normalisation of the input, to which images are squashed.
        options: of measuring and predicting; `flip` takes the mean of the embeddings of the image and its mirror
            image.

    Raises:
        UserError: an option that is for other tasks.
    """

    saves = ("{}.npy",)

    def __init__(self, preprocess: Preprocess, options: InferenceConfig):
        options.check("reid")
        self.preprocess, self.flip = preprocess, options.flip

    def batches(self, data: ReidSet, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """(B, C, H, W) inputs, (B, 3) of pid, camera and whether it is a query, and the images' numbers (B,)."""
        return EvalLoader(
            data, PersonView(self.preprocess), batch_size=batch_size, workers=workers, rank=rank, world=world
        )

    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> Tensor:
        """(B, C, H, W) images, squashed."""
        view = squash_transform(self.preprocess)
        return torch.stack([view(image) for image in images]).to(device)

    def infer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Embeddings (B, D) float32."""
        found = model(inputs).float()
        return (found + model(inputs.flip(3)).float()) / 2 if self.flip else found

    def metrics(self, data: ReidSet) -> ReidMetrics:
        """Market-1501's metrics."""
        return ReidMetrics(data)

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Embedding]:
        """The embeddings of images of any sizes."""
        found = self.infer(model.eval(), self.inputs(images, device))
        return [Embedding(values) for values in found.cpu().numpy()]

    def ground_truth(self, target: dict[str, Any]) -> Person:
        """Identity and camera of an image."""
        return Person(target["pid"], target["camera"])


class Reid(DenseTask):
    """The task "reid": classes of identities and a triplet loss (Luo et al., CVPRW 2019); mAP decides.

    Its classes are the training identities. The validation split shows other persons, compared by embeddings alone.
    """

    name = "reid"
    group = "reid"
    best_metric = "mAP"
    source = "market1501", "images whose names say identity and camera"
    heads = ("bnneck",)
    default_size = (256, 128)
    one_size = True

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        super().__init__(config, classes)
        if classes is None:
            learned, measured = cast(ReidSet, self.train_set), cast(ReidSet, self.eval_set)
            check_disjoint(learned, measured)
            asked = {crop.pid for crop in measured.crops[: measured.num_queries]}
            known = asked & {crop.pid for crop in learned.crops}
            if known:
                measured.remarks.append(
                    f"{len(known):,} of the {len(asked):,} persons of the queries are learned, too: the metrics are "
                    "not of persons that are new to the network"
                )

    def open(self, train: bool) -> ReidSet:
        """One split of a data set; the validation split has the training classes, of which it shows none."""
        images = open_market1501(self.config.data, train)
        if not train:
            images.classes = list(self.classes)
        return images

    def default_head_options(self) -> dict[str, Any]:
        """The number of identities."""
        return {"num_ids": len(self.classes)}

    def build_inference(self) -> ReidInference:
        """The inference of the validation split."""
        return ReidInference(self.preprocess, self.config.inference)

    def transform(self) -> PairTransform:
        """The recipe's augmentation of training images."""
        return PersonAugmentation(self.config.reid, self.preprocess)

    def train_batches(self, rank: int = 0, world: int = 1) -> IdentityLoader:
        """This process's share of batches with several images of each identity.

        Raises:
            UserError: micro-batches, of which the triplet loss would see one at a time.
        """
        config = self.config
        if config.accumulate > 1 and config.reid.triplet_weight:
            raise UserError(
                f"--accumulate {config.accumulate}: the triplet loss compares all images of a batch, and a part has "
                "only some; give a smaller --batch_size with --accumulate 1, or --reid.triplet_weight 0."
            )
        return IdentityLoader(
            cast(ReidSet, self.train_set),
            self.transform(),
            batch_size=config.batch_size,
            images_per_identity=config.reid.images_per_identity,
            seed=config.seed,
            workers=config.data.workers,
            rank=rank,
            world=world,
            accumulate=config.accumulate,
            pin_memory=pins_memory(config),
            prefetch=config.prefetch,
        )

    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """The person under the identity."""
        return with_title(image, str(self.classes[int(batch[1][number])]), size=12)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the identities and triplet loss, and how many identities are right.

        The triplets are those of all processes' images. Each process knows their gradient by its own images, and the
        mean over processes that follows is to be their sum.
        """
        images, identities = batch
        feature, logits = model(images)
        classes = F.cross_entropy(logits.float(), identities, label_smoothing=self.config.smoothing)
        features, everyone = all_gathered(feature.float()), all_gathered(identities)
        triplets = triplet_loss(features, everyone, self.config.reid.margin)
        triplets = triplets + (process_count() - 1) * (triplets - triplets.detach())
        return classes + self.config.reid.triplet_weight * triplets, (logits.argmax(1) == identities).sum()

    def samples_by_image(self, data: AnnotatedSet) -> list[list[int]]:
        """None: an embedding means something in a gallery only, see `ReidMetrics.report`."""
        return []
