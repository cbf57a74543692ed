"""`vitrail.load`: trained weights in any form as a model that predicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.hub import push_to_hub, write_hub_folder
from ..checkpoint.load import open_network
from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data.images import BadImage, open_image
from ..data.levels import LEVEL_SAMPLES, Levels
from ..data.video import Frame, VideoFile, is_video
from ..deploy.export.backends import backend_of
from ..deploy.export.runtime import open_any
from ..errors import UserError
from ..structures import Prediction
from ..utils.output_folder import identity
from ..utils.plain import typed
from .predict import ImageFiles, Predictor, as_levels, levels_for

T = TypeVar("T")

#: an image as `LoadedModel.predict` takes it: a file, a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) uint8
ImageLike = str | Path | Image.Image | np.ndarray
#: what happens at an image that cannot be read
OnError = Literal["raise", "warn"]
#: runtimes that `load` converts weights to
CONVERTED: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


@dataclass
class Result:
    """The prediction for one image.

    Attributes:
        prediction: `ClassProbabilities`, `Detections`, `SegmentationMap`, `PanopticSegments`, `Poses` or `Embedding`.
        path: the image file; None of images and arrays.
        given: the image itself; None of a file, which is read again where it is needed.
        levels: black and white of a file with more than 8 bits a sample.
        frame: number of a video's frame, from 0; `path` is then the video.
        seconds: its time.
    """

    prediction: Prediction
    path: str | None = None
    given: Image.Image | None = None
    levels: Levels | None = None
    frame: int | None = None
    seconds: float | None = None

    @property
    def image(self) -> Image.Image:
        """The image, RGB."""
        if self.given is not None:
            return self.given
        assert self.path is not None
        return open_image(self.path, levels=self.levels)

    def summary(self) -> str:
        """The prediction in a few words, such as "2 person, 1 dog"."""
        return self.prediction.summary()

    def to_dict(self) -> dict[str, Any]:
        """The image file and the prediction as plain values; of a frame its number and time, too."""
        moment = {} if self.frame is None else {"frame": self.frame, "seconds": self.seconds}
        return {"path": self.path, **moment, **self.prediction.to_dict()}

    def plot(self) -> Image.Image:
        """A copy of the image with the prediction drawn on it."""
        return self.prediction.draw(self.image)

    def save(self, path: str | Path) -> Path:
        """Write the annotated image, in the format of the file's ending; its folder is made if missing.

        Raises:
            UserError: the ending is of no image format, or the path is the image file itself.
        """
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise UserError(f"{path} has the ending of no image format: end it in .png or .jpg.")
        if self.path is not None and identity(path) is not None and identity(path) == identity(self.path):
            raise UserError(f"{path} is the image itself, which is never written over: choose another name.")
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

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder in the Hub's form: weights, config.json and model card (data, metrics, licence, use).

        `load` takes the folder; timm and Transformers take that of a classifier, after `import vitrail`. Only files of
        an earlier call are replaced.

        Raises:
            UserError: an exported file, or a file in the folder that must not be replaced.
        """
        return write_hub_folder(self.network, folder)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the folder of `save_pretrained` to the Hub, and return its address; a card that is there is kept.

        Args:
            repo: "org/name"; made if there is none.
            private: of a repository that is made.
            token: of the user; None = the one that `hf auth login` stored.

        Raises:
            UserError: what the Hub refuses.
        """
        return push_to_hub(self.network, repo, private=private, token=token)

    def __call__(self, images: Tensor | list[Tensor]) -> Any:
        """The network's raw output for preprocessed images (B, C, H, W), or for a detector a list of (C, H, W)."""
        return self.network(images)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        stream: bool = False,
        batch_size: int | None = None,
        top_k: int = 5,
        device: str = "auto",
        inference: InferenceConfig | None = None,
        white: float | None = None,
        on_error: OnError = "raise",
    ) -> Any:
        """Predict one image, or several.

        Args:
            images: a file, a Pillow image or an array; or a folder, a glob, a video file or an iterable of these.
            stream: return an iterator, which predicts while it is iterated over and keeps nothing: for millions of
                images, or a generator without an end.
            batch_size: images in one forward pass (classification); None = 16, and 1 of a generator with `stream`.
            top_k: number of classes listed per image (classification).
            device: "auto", "cpu", "cuda", ...
            inference: inference of a network with a head; None = the defaults.
            white: white level of image files with more than 8 bits a sample; see `vitrail predict`.
            on_error: what happens at an image that cannot be read: "raise", or "warn" and leave it out.

        Returns:
            A `Result`, or None of a single image left out; a list of them for a folder, a glob, a video (which keeps
            all its frames in memory) or an iterable; an iterator of them with `stream`.

        Raises:
            UserError: an image that cannot be read, or an option that is not for this task.
        """
        typed(OnError, on_error, "on_error")
        if top_k < 1:
            raise UserError(f"top_k={top_k} must be at least 1.")
        predictor = Predictor(self.network, device, top_k=top_k, inference=inference)
        given = [images] if is_single(images) else images
        if stream:
            inputs = iterate_inputs(given)
            files: list[Path] = []
            if isinstance(given, (str, Path)):  # the order is known: the first ones tell the levels
                files = [one for one in islice(iterate_inputs(given), LEVEL_SAMPLES) if isinstance(one, Path)]
            batch_size = batch_size or (1 if isinstance(given, Iterator) else None)
        else:
            inputs = list(iterate_inputs(given))
            files = [one for one in inputs if isinstance(one, Path)]
        levels = levels_for(self.network, files, white) if files or not stream else as_levels(self.network, white)
        opened = opened_images(inputs, levels, on_error)
        results = predicted(predictor, opened, predictor.batch_of(batch_size), levels)
        if stream:
            return results
        return next(results, None) if given is not images else list(results)


def load(
    weights: str | Path, model: str | None = None, runtime: RuntimeName = "auto", threads: int | None = None
) -> LoadedModel:
    """Load trained weights.

    With `runtime="openvino"` or `"onnxruntime"`, weights run in that runtime: they are exported for their image size
    and any batch, which takes some seconds, the outputs are compared with PyTorch's, and no file is left. The model
    then takes images of that size, on the processor, and has neither parameters nor gradients.

    Args:
        weights: a .safetensors of ours, a run directory (its best weights), "timm:NAME[.tag]", "hf-hub:org/name", a
            folder in the Hub's form, a file of tensors (authors', timm's, torchvision's) with `model`, "random:MODEL"
            for fresh weights, or a file of `vitrail export`.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
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
        return Path(images).expanduser().is_file() and not is_video(images)
    return isinstance(images, (Image.Image, np.ndarray))


#: an image before it is read: a file, a frame of a video file, or what was given
Input = Path | tuple[Path, Frame] | Image.Image | np.ndarray


def iterate_inputs(images: Any) -> Iterator[Input]:
    """Paths of image files, frames of video files, Pillow images and arrays, in the order given.

    Raises:
        UserError: a path that names no image, or something else.
    """
    for one in [images] if isinstance(images, (str, Path)) else images:
        if isinstance(one, (str, Path)) and is_video(one):
            video = VideoFile(Path(one).expanduser())
            yield from ((video.path, frame) for frame in video.frames())
            if sentence := video.damage():
                warnings.warn(sentence, stacklevel=2)
        elif isinstance(one, (str, Path)):
            yield from ImageFiles([str(one)])
        elif isinstance(one, (Image.Image, np.ndarray)):
            yield one
        else:
            raise UserError(f"{type(one).__name__} is no image; give a file, a Pillow image or an array of uint8.")


def opened_images(
    inputs: Iterable[Input], levels: Levels | None, on_error: OnError
) -> Iterator[tuple[Input, Image.Image]]:
    """The inputs, each with its image in RGB.

    Raises:
        UserError: an image cannot be read, and `on_error` is "raise".
    """
    for one in inputs:
        try:
            yield one, _image_of(one, levels)
        except BadImage as error:
            if on_error == "raise":
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)


def _image_of(one: Input, levels: Levels | None) -> Image.Image:
    if isinstance(one, tuple):
        return one[1].image
    return open_image(one, levels=levels) if isinstance(one, Path) else as_image(one)


def predicted(
    predictor: Predictor, opened: Iterable[tuple[Input, Image.Image]], batch_size: int, levels: Levels | None
) -> Iterator[Result]:
    """The results of images, computed in batches while they are iterated over."""
    for batch in batched(((one, image, predictor.prepare(image)) for one, image in opened), batch_size):
        for (one, image, _), found in zip(batch, predictor.predict([prepared for *_, prepared in batch]), strict=True):
            yield _result_of(one, found, image, levels)


def _result_of(one: Input, found: Prediction, image: Image.Image, levels: Levels | None) -> Result:
    if isinstance(one, tuple):
        path, frame = one
        return Result(found, str(path), given=image, frame=frame.index, seconds=frame.seconds)
    return Result(found, str(one), levels=levels) if isinstance(one, Path) else Result(found, given=image)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter."""
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch


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
