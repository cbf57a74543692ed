"""Re-identification: the same person found again in pictures of other cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..config import InferenceConfig, TrainConfig
from ..data.base import JointTransform
from ..data.config import Preprocess
from ..data.identity_loader import IdentityLoader
from ..data.loader import EvalLoader
from ..data.market1501 import PersonSet, open_people
from ..data.parts import check_disjoint
from ..data.person_transforms import PersonAugmentation, PersonView
from ..data.transforms import whole_transform
from ..drawing import draw_ranking
from ..errors import UserError
from ..metrics.retrieval import Gallery, ranking, retrieval, similarity
from .base import joined_features, process_count
from .headed import HeadedTask, Look, spread

#: queries whose rankings are drawn, and pictures in each
DRAWN, RANKED = 8, 10


@dataclass
class Embedding:
    """Where a network puts a picture: pictures of one person lie in one direction.

    Attributes:
        values: (D,) float.
    """

    values: np.ndarray

    def record(self) -> dict[str, Any]:
        """embedding: its numbers."""
        return {"embedding": self.values.tolist()}

    def sentence(self) -> str:
        """Its length and norm."""
        return f"embedding of {len(self.values)} numbers, norm {np.linalg.norm(self.values):.4g}"

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture itself; rankings are drawn by `ReidMetrics.report`, which knows the gallery."""
        return image.copy()

    def save(self, folder: Path, stem: str) -> None:
        """The numbers as a .npy file."""
        np.save(folder / f"{stem}.npy", self.values)


@dataclass
class Person:
    """Who is in a picture.

    Attributes:
        pid: identity; -1 = junk, 0 = distractor.
        camera: that took it.
    """

    pid: int
    camera: int

    def record(self) -> dict[str, Any]:
        """identity and camera."""
        return {"identity": self.pid, "camera": self.camera}

    def sentence(self) -> str:
        """Both in words."""
        return f"identity {self.pid}, camera {self.camera}"

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture itself."""
        return image.copy()

    def save(self, folder: Path, stem: str) -> None:
        """Nothing: the record says all."""


class ReidInference:
    """How a trained network is used.

    Args:
        preprocess: how a picture becomes the network's input; the whole picture is pressed into it.
        options: of measuring and predicting; `flip` takes the mean of the embeddings of the picture and its mirror
            image.

    Raises:
        UserError: an option that is for other tasks.
    """

    saves = ("{}.npy",)

    def __init__(self, preprocess: Preprocess, options: InferenceConfig):
        options.check("reid")
        self.preprocess, self.flip = preprocess, options.flip

    def batches(self, data: PersonSet, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """(B, C, H, W) inputs, (B, 3) of pid, camera and whether it is a query, and the pictures' numbers (B,)."""
        return EvalLoader(data, PersonView(self.preprocess), batch_size, workers, rank, world)

    def infer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Embeddings (B, D) float32."""
        found = model(inputs).float()
        return (found + model(inputs.flip(3)).float()) / 2 if self.flip else found

    def metrics(self, data: PersonSet) -> ReidMetrics:
        """Market-1501's figures."""
        return ReidMetrics(data)

    @torch.no_grad()
    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Embedding]:
        """The embeddings of pictures of any sizes."""
        view = whole_transform(self.preprocess)
        inputs = torch.stack([view(image) for image in images]).to(device)
        return [Embedding(values) for values in self.infer(model.eval(), inputs).cpu().numpy()]

    def truth(self, target: dict[str, Any]) -> Person:
        """Who is in the picture."""
        return Person(target["pid"], target["camera"])


class ReidMetrics:
    """The embeddings of queries and gallery, and Market-1501's figures of them.

    Args:
        data: the pictures, from which rankings are drawn.
    """

    def __init__(self, data: PersonSet):
        self.data = data
        self.parts: list[dict[str, Tensor]] = []

    def update(self, output: Tensor, batch: Sequence[Tensor]) -> None:
        """Take in the embeddings (B, D) of one batch of `ReidInference.batches`."""
        pids, cameras, queries = batch[1].cpu().unbind(1)
        labels = {"pids": pids, "cameras": cameras, "queries": queries, "numbers": batch[2].cpu()}
        self.parts.append({"features": output.detach().float().cpu(), **labels})

    def state(self) -> dict[str, Tensor]:
        """features (N, D), and pids, cameras, queries (1 of a query) and numbers (N,), in the order of the numbers."""
        if not self.parts:
            return {"numbers": torch.empty(0, dtype=torch.int64)}
        whole = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        order = whole["numbers"].argsort()
        return {name: values[order] for name, values in whole.items()}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace what was taken in by that of all processes, some of which may have had no picture."""
        self.parts = [state for state in states if len(state["numbers"])]

    def compute(self) -> dict[str, Any]:
        """mAP, rank1, rank5 and rank10 in [0, 1], queries that count, those skipped, and the number of images."""
        queries, gallery, _ = self._sides()
        return {**retrieval(queries, gallery), "images": len(queries) + len(gallery)}

    def report(self, folder: Path) -> None:
        """Write `ranking_1.jpg` and so on: a few queries, each before the pictures of the gallery most like it.

        Junk, and pictures of the query's identity by its own camera, are left out, as they are of the figures; who is
        right has a green frame, who is not a red one, and each the cosine with the query.
        """
        queries, gallery, numbers = self._sides()
        chosen = spread(len(queries), DRAWN)
        asked = Gallery(queries.features[chosen], queries.ids[chosen], queries.cameras[chosen])
        scores = similarity(asked, gallery)
        for i, query in enumerate(chosen):
            ranked = ranking(asked, gallery, i, scores[i])[:RANKED]
            cells = [
                (
                    self.data.image(numbers[len(queries) + j]),
                    f"{scores[i, j]:.2f}",
                    bool(gallery.ids[j] == asked.ids[i]),
                )
                for j in ranked
            ]
            draw_ranking(self.data.image(numbers[query]), cells).save(folder / f"ranking_{i + 1}.jpg", quality=90)

    def _sides(self) -> tuple[Gallery, Gallery, list[int]]:
        """Queries, gallery, and the numbers of the pictures of the one and then the other."""
        state = {name: values.cpu().numpy() for name, values in self.state().items()}
        if not len(state["numbers"]):
            raise UserError("There are no held-back pictures to measure on.")
        asked = state["queries"] == 1
        sides = [
            Gallery(state["features"][side], state["pids"][side], state["cameras"][side]) for side in (asked, ~asked)
        ]
        return sides[0], sides[1], [*state["numbers"][asked].tolist(), *state["numbers"][~asked].tolist()]


def triplet_loss(features: Tensor, identities: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., 2017, Eq. 5) with a hinge.

    For every picture the farthest of its own identity must be nearer, by the margin, than the nearest of another one.

    Args:
        features: (B, D) float.
        identities: (B,) int64, two or more different ones.
        margin: in the units of the features' Euclidean distance.

    Returns:
        The mean over the B pictures.
    """
    # by matrix products, near pictures would lose their digits
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = identities[:, None] == identities
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, float("inf")).amin(1)
    return F.relu(margin + farthest - nearest).mean()


class Reid(HeadedTask):
    """The task "reid": classes of identities and a triplet loss (Luo et al., CVPRW 2019); mAP decides.

    Its classes are the identities to learn. Those to measure on are other people, compared by their embeddings alone.
    """

    name = "reid"
    group = "reid"
    best_metric = "mAP"
    source = "market1501", "pictures whose names say identity and camera"
    heads = ("bnneck",)
    usual_size = (256, 128)
    one_size = True

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        super().__init__(config, classes)
        if classes is None:
            learned, measured = cast(PersonSet, self.train_set), cast(PersonSet, self.eval_set)
            check_disjoint(learned, measured)
            asked = {crop.pid for crop in measured.crops[: measured.num_queries]}
            known = asked & {crop.pid for crop in learned.crops}
            if known:
                measured.remarks.append(
                    f"{len(known):,} of the {len(asked):,} people who are asked for are learned, too: the metrics are "
                    "not of people who are new to the network"
                )

    def open(self, train: bool) -> PersonSet:
        """One part of a data set; that to measure on gets the classes that are learned, of which it shows none."""
        people = open_people(self.config.data, train)
        if not train:
            people.classes = list(self.classes)
        return people

    def usual_options(self) -> dict[str, Any]:
        """The number of identities."""
        return {"num_ids": len(self.classes)}

    def build_inference(self) -> ReidInference:
        """How the network is used on the held-back part."""
        return ReidInference(self.preprocess, self.config.inference)

    def transform(self) -> JointTransform:
        """The recipe's changes of a training picture."""
        return PersonAugmentation(self.config.reid, self.preprocess)

    def train_batches(self, rank: int = 0, world: int = 1) -> IdentityLoader:
        """This process's share of batches with several pictures of each identity.

        Raises:
            UserError: parts of batches, of which the triplet loss would see one at a time.
        """
        config = self.config
        if config.accumulate > 1 and config.reid.triplet_weight:
            raise UserError(
                f"--accumulate {config.accumulate}: the triplet loss compares all images of a batch, and a part has "
                "only some; give a smaller --batch_size with --accumulate 1, or --reid.triplet_weight 0."
            )
        return IdentityLoader(
            cast(PersonSet, self.train_set),
            self.transform(),
            config.batch_size,
            config.reid.images_per_identity,
            config.seed,
            config.data.workers,
            rank,
            world,
            config.accumulate,
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the identities and triplet loss, and how many identities are right.

        The triplets are those of all processes' images. Each process knows their gradient by its own images, and the
        mean over processes that follows is to be their sum.
        """
        images, identities = batch
        feature, logits = model(images)
        classes = F.cross_entropy(logits.float(), identities, label_smoothing=self.config.smoothing)
        features, everyone = joined_features(feature.float()), joined_features(identities)
        triplets = triplet_loss(features, everyone, self.config.reid.margin)
        triplets = triplets + (process_count() - 1) * (triplets - triplets.detach())
        return classes + self.config.reid.triplet_weight * triplets, (logits.argmax(1) == identities).sum()

    def looks(self, model: nn.Module, device: torch.device, count: int) -> Iterator[Look]:
        """None: an embedding says something beside a whole gallery only, see `ReidMetrics.report`."""
        return iter(())
