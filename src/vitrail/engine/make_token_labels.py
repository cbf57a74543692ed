"""Label maps for token labelling: a teacher's class scores at every location of every training image.

The format is that of `data.datasets.token_label_maps`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import notes, open_network, pick_device
from ..config.data import DataConfig
from ..config.train import height_width
from ..data import EvalLoader, open_dataset
from ..data.datasets.base import ImageSet, Subset
from ..data.datasets.classes import check_same_classes
from ..data.datasets.division import changed_options, check_division, validation_split
from ..data.datasets.token_label_maps import INFO_FILE, MapsInfo, map_files, own_file, pack, read_info
from ..data.images import is_ignored_file
from ..data.transforms.classification import squash_transform
from ..errors import UserError
from ..utils.files import inside, saving, write_whole
from ..utils.progress import bar


@dataclass
class TokenLabelsReport:
    """Result of `make_token_labels`.

    Attributes:
        folder: of the maps.
        teacher: name of the network that made them.
        made: maps written now.
        kept: maps that existed already.
        grid: (rows, columns) of a map.
    """

    folder: str
    teacher: str
    made: int
    kept: int
    grid: tuple[int, int]


def make_token_labels(
    teacher: str,
    data: DataConfig,
    output: str | Path,
    *,
    model: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    device: str = "auto",
    overwrite: bool = False,
) -> TokenLabelsReport:
    """Write a label map for every training image; continues where an earlier call stopped.

    The teacher sees each image uncropped, resized to its input size. A score is the logit of its classifier at one
    location of its last feature map, less the mean over the classes, so that a class that is not stored (score 0)
    counts as an average one.

    Args:
        teacher: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form, or a file of
            tensors with `model`.
        data: data set, of which the training split is labelled.
        output: folder for the maps, one per training image.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        image_size: height and width of the teacher's input in pixels, one number or two; None = the teacher's. Larger
            inputs give finer maps.
        top_k: number of classes stored per location.
        batch_size: images in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        overwrite: make existing maps anew.

    Raises:
        UserError: teacher or data that cannot be used, a folder with maps of another teacher or with other files, or
            images whose names lead out of it or are the same.
    """
    if top_k < 1 or batch_size < 1:
        raise UserError(f"--top_k {top_k} and --batch_size {batch_size} must be at least 1.")
    output = Path(output)
    network = open_network(teacher, model)
    for text in notes(network):
        warnings.warn(f"{teacher}: {text}.", stacklevel=2)
    meta = meta_of(network)
    images = _labelled_images(data, meta, teacher)
    files = _files(images, output)
    size = height_width(meta.preprocess.image_size if image_size is None else image_size)
    top_k = min(top_k, len(images.classes))
    info = MapsInfo(
        teacher=meta.model,
        classes=list(meta.classes),
        licence=meta.licence,
        training_data=meta.training_data,
        top_k=top_k,
        image_size=list(size),
    )
    with saving(output):
        output.mkdir(parents=True, exist_ok=True)
        present = _present(output)
        existing = set() if overwrite else _agreeing(output, info, present)
        write_whole(output / INFO_FILE, json.dumps(dataclasses.asdict(info), indent=2))
    wanted = [i for i, file in enumerate(files) if file not in existing]
    chosen = pick_device(device)
    network = network.to(chosen).eval()
    transform = squash_transform(dataclasses.replace(meta.preprocess, image_size=size))
    grid = _check_size(network, transform, images=images, device=chosen, size=size)
    loader = EvalLoader(Subset(images, wanted), transform, batch_size, workers=data.workers)
    with bar("Labelling", len(loader)) as advance:
        for x, _, numbers in loader:
            scores, classes = top_scores(location_logits(network, x.to(chosen)), top_k)
            for number, best, which in zip(numbers.tolist(), scores.cpu().numpy(), classes.cpu().numpy(), strict=True):
                _write(output / files[wanted[number]], pack(best, which, len(images.classes)))
            advance()
    return TokenLabelsReport(
        folder=str(output), teacher=meta.model, made=len(wanted), kept=len(images) - len(wanted), grid=grid
    )


def check_learned_division(data: DataConfig, given: set[str]) -> None:
    """Refuse options of the validation split that have no effect on the training split.

    Args:
        data: classification data.
        given: names of the options that were given deliberately.

    Raises:
        UserError: naming the option.
    """
    check_division(data, "classification", given)
    if "val_split" in given and (split := validation_split(data, "classification")):
        raise UserError(
            f"--data.val_split {data.val_split} has no effect: the teacher labels the images to learn from, and "
            f"{split} is there to be measured on."
        )


def _labelled_images(data: DataConfig, meta: WeightsMeta, teacher: str) -> ImageSet:
    """The images that a teacher labels.

    Raises:
        UserError: the teacher is no classifier or one of other classes, or the data are a stream.
    """
    if meta.head is not None:
        raise UserError(f"{teacher} is a network for {meta.task}: a classifier is needed to label locations.")
    check_learned_division(data, changed_options(data))
    images = open_dataset(data, train=True, levels=meta.preprocess.levels)
    if not isinstance(images, ImageSet):
        raise UserError("Label maps need images that can be found by name, not a stream.")
    check_same_classes(meta.classes, images, teacher)
    return images


def _files(images: ImageSet, output: Path) -> list[str]:
    """The file of each image's map, relative to the folder of maps.

    Raises:
        UserError: a name leads out of the folder, or two images have one.
    """
    files: dict[str, int] = {}
    for index in range(len(images)):
        name = own_file(images.key(index))
        path = inside(output, name, f"image {images.name(index)}", writing=True)
        relative = path.relative_to(output).as_posix()  # without "./" and "//"
        if relative in files:
            other = images.name(files[relative])
            raise UserError(f"Images {other} and {images.name(index)} would have one label map, {relative}.")
        files[relative] = index
    return list(files)


def _present(output: Path) -> set[str]:
    """The map files of a folder.

    Raises:
        UserError: it holds files and no description of label maps, or a damaged one.
    """
    files = {name for name in map_files(output) if not is_ignored_file(PurePosixPath(name).name)}
    if INFO_FILE in files:
        read_info(output)
    elif files:
        raise UserError(
            f"--output {output} holds {len(files):,} file(s), such as {min(files)}, and no {INFO_FILE}: label maps are "
            "only written to an empty folder, or to one that vitrail token_labels made."
        )
    return files


def _agreeing(output: Path, info: MapsInfo, files: set[str]) -> set[str]:
    """The map files of a folder, if its description agrees with `info`."""
    if INFO_FILE in files:
        for field in dataclasses.fields(MapsInfo):
            old, new = (getattr(one, field.name) for one in (read_info(output), info))
            if old != new:
                raise UserError(
                    f"{output} holds label maps with another {field.name} ({_short(old)} there, {_short(new)} here): "
                    "choose another --output, or --overwrite."
                )
    return files


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _check_size(
    network: nn.Module, transform: Any, images: ImageSet, device: torch.device, size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of a map, from the first image."""
    try:
        x = transform(images.image(0))[None].to(device)
        rows, columns = location_logits(network, x).shape[2:]
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The teacher cannot label images of {size[0]}x{size[1]} pixels: {reason}") from error
    return rows, columns


@torch.inference_mode()
def location_logits(network: nn.Module, x: Tensor) -> Tensor:
    """Logits at each location of a classifier's last feature map: its head applied to the location alone.

    For heads that average the map and apply a linear layer, the mean over the locations is the image's logits.

    Args:
        network: any network with timm's `forward_features` and `forward_head`, convolutional or of tokens.
        x: (B, in_chans, H, W).

    Returns:
        (B, K, rows, columns).
    """
    features: Any = network.forward_features(x)  # pyright: ignore[reportCallIssue]
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError("the network's features are neither one map nor one sequence of tokens")
    if features.ndim == 3:
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        tokens = features[:, prefix:]
        rows, columns = _grid_of(network, tokens.shape[1], x.shape[2:])
        # a location takes the place of the prefix tokens, too, for heads that read those
        locations = tokens.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
    else:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        tokens = features if channels_last else features.permute(0, 2, 3, 1)
        rows, columns = tokens.shape[1:3]
        locations = tokens.flatten(0, 2)[:, None, None]
        locations = locations if channels_last else locations.permute(0, 3, 1, 2)
    logits = network.forward_head(locations)  # pyright: ignore[reportCallIssue]
    return logits.unflatten(0, (len(x), rows, columns)).permute(0, 3, 1, 2)


def _grid_of(network: nn.Module, count: int, size: Any) -> tuple[int, int]:
    """Rows and columns of `count` tokens of an image of `size`."""
    embed: Any = getattr(network, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size(tuple(size))
    else:
        rows = columns = round(count**0.5)
    if rows * columns != count:
        raise ValueError(f"{count} tokens are no grid")
    return rows, columns


def top_scores(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` highest scores (B, k, rows, columns) of (B, K, rows, columns) logits, and their classes."""
    logits = logits.float()
    return tuple((logits - logits.mean(1, keepdim=True)).topk(top_k, dim=1))  # pyright: ignore[reportReturnType]


def _write(path: Path, label_map: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, label_map, allow_pickle=False)
    with saving(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
