"""`vitrail.load`: trained weights in any form as a model that predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import open_network
from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data.images import open_image
from ..deploy.export.backends import backend_of
from ..deploy.export.runtime import open_any
from ..errors import UserError
from ..structures import Prediction
from ..utils.plain import typed
from .predict import Predictor, collect, levels_for

#: an image as `LoadedModel.predict` takes it: a file, a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) uint8
ImageLike = str | Path | Image.Image | np.ndarray
#: runtimes that `load` converts weights to
CONVERTED: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


@dataclass
class Result:
    """The prediction for one image.

    Attributes:
        image: the image, RGB.
        prediction: `ClassProbabilities`, `Detections`, `SegmentationMap`, `PanopticSegments`, `Poses` or `Embedding`.
        path: the image file; None of images and arrays.
    """

    image: Image.Image
    prediction: Prediction
    path: str | None = None

    def summary(self) -> str:
        """The prediction in a few words, such as "2 person, 1 dog"."""
        return self.prediction.summary()

    def to_dict(self) -> dict[str, Any]:
        """The image file and the prediction as plain values."""
        return {"path": self.path, **self.prediction.to_dict()}

    def plot(self) -> Image.Image:
        """A copy of the image with the prediction drawn on it."""
        return self.prediction.draw(self.image)

    def save(self, path: str | Path) -> Path:
        """Write the annotated image, in the format of the file's ending; its folder is made if missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.plot().save(path)
        return path


class LoadedModel:
    """A network with its description, as `load` gives it; attributes other than these two are the network's.

    Attributes:
        network: in evaluation mode; an exported file runs in its runtime.
        meta: classes, preprocessing, task, licence and origin of the weights.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.meta: WeightsMeta = meta_of(network)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "network":  # asked for before there is a network, as copy and pickle do
            raise AttributeError(name)
        return getattr(self.network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("network", "meta"):
            super().__setattr__(name, value)
        else:
            setattr(self.network, name, value)

    def __repr__(self) -> str:
        head = f" under {self.meta.head}" if self.meta.head else ""
        return f"LoadedModel({self.meta.model}{head}, {self.meta.task}, {len(self.meta.classes)} classes)"

    def __call__(self, images: Tensor | list[Tensor]) -> Any:
        """The network's raw output for preprocessed images (B, C, H, W), or for a detector a list of (C, H, W)."""
        return self.network(images)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top_k: int = 5,
        device: str = "auto",
        inference: InferenceConfig | None = None,
        white: float | None = None,
    ) -> Any:
        """Predict one image, or several.

        Args:
            images: a file, a Pillow image or an array; or a folder, a glob or an iterable of these.
            top_k: number of classes listed per image (classification).
            device: "auto", "cpu", "cuda", ...
            inference: inference of a network with a head; None = the defaults.
            white: white level of image files with more than 8 bits a sample; see `vitrail predict`.

        Returns:
            A `Result`; a list of them for a folder, a glob or an iterable.

        Raises:
            UserError: an image that cannot be read, or an option that is not for this task.
        """
        if top_k < 1:
            raise UserError(f"top_k={top_k} must be at least 1.")
        single = is_single(images)
        inputs = inputs_of([images] if single else images)
        files = [one for one in inputs if isinstance(one, Path)]
        levels = levels_for(self.network, files, white) if files else None
        predictor = Predictor(self.network, device, top_k=top_k, inference=inference)
        results = []
        for one in inputs:
            image = open_image(one, levels=levels) if isinstance(one, Path) else as_image(one)
            found = predictor.predict([predictor.prepare(image)])[0]
            results.append(Result(image, found, str(one) if isinstance(one, Path) else None))
        return results[0] if single else results


def load(
    weights: str | Path, model: str | None = None, runtime: RuntimeName = "auto", threads: int | None = None
) -> LoadedModel:
    """Load trained weights.

    With `runtime="openvino"` or `"onnxruntime"`, weights run in that runtime: they are exported for their image size
    and any batch, which takes some seconds, the outputs are compared with PyTorch's, and no file is left. The model
    then takes images of that size, on the processor, and has neither parameters nor gradients.

    Args:
        weights: a .safetensors of ours, a run directory (its best weights), an authors' file with `model`,
            "timm:MODEL", "random:MODEL" for fresh weights, or a file of `vitrail export`.
        model: the network an authors' file belongs to.
        runtime: "auto" = PyTorch, or the runtime of an exported file.
        threads: of another runtime than PyTorch; None = as many as PyTorch uses.

    Raises:
        UserError: no such file, a damaged one, or one that does not fit its own description; a runtime that is not
            installed, or that cannot run the network.
    """
    weights = str(weights)
    typed(RuntimeName, runtime, "runtime")
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads} must be at least 1.")
    backend = backend_of(weights)
    if backend is None and runtime in CONVERTED:
        from ..deploy.export.export import in_runtime

        network = open_network(weights, model)
        return LoadedModel(in_runtime(network, runtime, weights, threads or torch.get_num_threads()))
    if threads is not None and (backend is None or backend.runtime not in CONVERTED):
        raise UserError(f"threads={threads} has an effect in {' and '.join(CONVERTED)} only: leave it out.")
    return LoadedModel(open_any(weights, model, runtime, threads))


def is_single(images: Any) -> bool:
    """True for one image, and not a folder, a glob or an iterable of images."""
    if isinstance(images, (str, Path)):
        return Path(images).expanduser().is_file()
    return isinstance(images, (Image.Image, np.ndarray))


def inputs_of(images: Any) -> Sequence[Path | Image.Image | np.ndarray]:
    """Paths of image files, Pillow images and arrays, in the order given.

    Raises:
        UserError: a path that names no image, or something else.
    """
    inputs: list[Path | Image.Image | np.ndarray] = []
    for one in [images] if isinstance(images, (str, Path)) else images:
        if isinstance(one, (str, Path)):
            inputs += collect([str(one)])
        elif isinstance(one, (Image.Image, np.ndarray)):
            inputs.append(one)
        else:
            raise UserError(f"{type(one).__name__} is no image; give a file, a Pillow image or an array of uint8.")
    return inputs


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """An image in RGB.

    Raises:
        UserError: an array that is no 8-bit image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise UserError(
            f"an array {image.shape} of {image.dtype} is no image; give (H, W), (H, W, 3) or (H, W, 4) of uint8."
        )
    return Image.fromarray(image).convert("RGB")
