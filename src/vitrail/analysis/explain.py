"""Analyses of image files with trained weights, drawn on the original images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of, set_meta
from ..checkpoint.load import notes, open_network, pick_device
from ..checkpoint.sources import RANDOM
from ..data.images import BadImage, left_out_sentence, open_image
from ..data.large import LARGE_MASKS, reduced
from ..data.levels import Levels
from ..data.transforms.classification import eval_transform
from ..deploy.export.backends import backend_of
from ..engine.predict import collect, levels_for, stems_of
from ..errors import UserError, unknown
from ..tasks import DenseTask, task_of
from ..tasks.keypoints import KeypointsInference
from ..tasks.with_head import backbone_of
from ..utils.draw import side_by_side
from ..utils.output_folder import OutputFolder
from .attention import attention, points_of
from .gradcam import ONE_PLACE, gradcam, name_in_whole
from .interactions import FEW_ORDERS, PUBLISHED_ORDERS, Interactions, interactions
from .layers import layer as layer_named
from .options import check_choice
from .overlay import InputWindow, input_window, overlay
from .predictions import Comparison, compare_predictions, truth_data
from .receptive_field import attended_region, receptive_field
from .result import Analysis
from .scores import NotFound
from .similarity import Compared, similarity
from .spectrum import Drawing, Frequency, Granularity, Spectrum, spectrum

#: most maps of a layer's attentions in a row
COLUMNS = 3

#: images of a batch of methods that take all images together
BATCH = 16
#: the methods of `explain`
MethodName = Literal[
    "gradcam",
    "attention",
    "receptive_field",
    "attended_region",
    "spectrum",
    "interactions",
    "similarity",
    "predictions",
]


@dataclass
class View:
    """An image as a method sees it.

    Attributes:
        image: the original, RGB.
        window: the part of it that is the network's input.
        prepared: that input, (C, H, W).
    """

    image: Image.Image
    window: InputWindow
    prepared: Tensor


@dataclass(frozen=True)
class Method:
    """A method of `explain`.

    Attributes:
        run: the analysis, of (network, images, options by name).
        options: those of `explain` that it reads, such as "layer"; `run` gets those that were given, but "target" (the
            number of the class) for "class_name", and "at" as a pixel of the input, x and y.
        needs_training: fresh weights are refused.
        labelled: batches come with the images' true classes, and `run` gets no "target".
        together: one result of all images, of which `run` gets batches, so that not all are kept; False = one of each.
        draw: the finding on the original image; None = the result's own plot.
        head: what it does with a network with a head: looks at the whole of it, at its backbone, or refuses it.
    """

    run: Callable[..., Any]
    options: tuple[str, ...]
    needs_training: bool = False
    labelled: bool = False
    together: bool = False
    draw: Callable[[Any, View], Image.Image] | None = None
    head: Literal["whole", "backbone", "refused"] = "backbone"


@dataclass
class Explanation:
    """The analysis of one image file, or of all together.

    Attributes:
        path: the image file; None = all that could be read.
        analysis: the result; None with an error.
        error: why the image was skipped: it cannot be read, or the network finds no box of the class there.
        saved: where the drawn result was written.
    """

    path: str | None
    analysis: Analysis | None = None
    error: str | None = None
    saved: str | None = None


@dataclass
class Explanations:
    """Results of image files, computed while they are iterated over.

    Attributes:
        meta: description of the network.
        paths: the image files.
        results: one for each file; of a method that takes the images together, one of all behind those of the files
            that could not be read.
    """

    meta: WeightsMeta
    paths: list[Path]
    results: Iterator[Explanation]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Explanation]:
        return self.results


def explain(
    weights: str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    method: MethodName = "gradcam",
    layer: str | None = None,
    class_name: str | None = None,
    at: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    granularity: Granularity | None = None,
    frequency: Frequency | None = None,
    drawing: Drawing | None = None,
    budget: tuple[int, int, int, int] | None = None,
    of: Compared | None = None,
    against: Sequence[str | Path] | None = None,
    truth: str | Path | None = None,
    model: str | None = None,
    save: str | Path | None = None,
    device: str = "auto",
    white: float | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> Explanations:
    """Show what a network sees in image files.

    An image that cannot be read, or in which a detector finds no box that gradcam could speak for, gives a result with
    `error`; the others are looked at. Methods that take the images together keep a batch at a time. Of a network with a
    head most methods look at the backbone, which gets images as those of a classifier: resized, and cropped in the
    middle.

    Args:
        weights: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form, a file of
            tensors with `model`, or for methods that need no training random:MODEL.
        images: image files, folders or globs.
        method: what is shown; gradcam = where a layer speaks for a class; attention = what a token or all tokens of a
            layer attend to; attended_region = the tokens that one token sees in one layer; and of all images together:
            receptive_field = the pixels that a place of a layer depends on, spectrum = the frequencies in the maps of
            layers, interactions = how strongly pairs of patches act together, similarity = how alike the queries of the
            last blocks are. Of networks with a head: predictions = what they find, beside the truth.
        layer: name of the layer, such as stages.2 or stages.3.blocks.1; None = the method's own choice.
        class_name: class or keypoint that gradcam looks for, or true class of all images of interactions, by name or
            number; None = the likeliest of each image, or the name of its folder.
        at: column and row of a pixel of the original image, for methods that look at one place; of attention several
            pixels, too. None = the centre, and for attention all tokens.
        granularity: what spectrum measures; block (the default) = what leaves each block, residual = after every
            residual addition, operator and whitening = the parts of EMSNet's blocks.
        frequency: labels of the entries of spectrum's diagonal; index (the default) = 0 to 1 as published, true = in
            units of pi.
        drawing: what is drawn of spectrum; curves (the default) = over frequency, depth = the last entry over depth,
            maps = in two dimensions (the default for whitening).
        budget: images, pairs, contexts and orders (7 or 13) of interactions; 4 8 16 7 by default, published are
            50 200 100 13.
        of: what similarity compares; queries (the default) or heads of attention, selection = the tokens that
            neighbouring blocks of PartialFormer select.
        against: further networks of the same task and classes, for predictions.
        truth: folder of the annotated data that the images belong to, for predictions, as --data.root of training;
            None = the data of the run.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        save: folder for the drawn results; only files written there by vitrail are replaced.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        white: white level of images with more than 8 bits a sample, such as 4095; None = that of the training images,
            else chosen by the largest sample of these images.
        note: called with notes for the user: skipped files, origin and licence of the weights.

    Raises:
        UserError: weights or images that cannot be used, a layer or class that is not there, an option that the method
            does not read, or a file in `save` that must not be replaced.
    """
    check_choice("--method", method, MethodName)
    chosen = METHODS[method]
    points = points_of(at)
    own = {"granularity": granularity, "frequency": frequency, "drawing": drawing, "budget": budget, "of": of}
    given = {"layer": layer, "class_name": class_name, "at": at, "against": against, "truth": truth, **own}
    _check_options(method, {name for name, value in given.items() if value is not None}, places=len(points))
    network = _looked_at(_opened(str(weights), model, method), str(weights), method=method, layer=layer)
    meta = meta_of(network)
    options: dict[str, Any] = {name: value for name, value in {"layer": layer, **own}.items() if value is not None}
    if class_name is not None:
        options["target"] = class_number(class_name, meta.classes)
    folder = None if save is None else Path(save)
    paths = _collected(images, folder, note)
    for text in notes(network):
        note(f"{weights}: {text}")
    levels = levels_for(network, paths, white)
    output = None if folder is None else Drawings(folder, paths, method)
    target = pick_device(device, network)
    network = network.to(target).eval()
    work = _Work(network, chosen, options=options, at=points, levels=levels, weights=str(weights))
    if method == "predictions":
        networks = {str(weights): network, **_others(str(weights), against or (), target)}
        work = _Comparing(work, _comparison(networks, truth, note))
    return Explanations(meta, paths, (work.together if chosen.together else work.one_by_one)(paths, output))


def class_number(name: str, classes: Sequence[str]) -> int:
    """Number of a class, by its name or by the number itself, counted from 0.

    Raises:
        UserError: there is no such class; the nearest names are in the message.
    """
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    if name.lstrip("-").isdecimal():
        raise UserError(f"--class {name} is not allowed; give a name, or a number from 0 to {len(classes) - 1}.")
    raise UserError(unknown("class", name, classes))


def true_classes(paths: Sequence[Path], classes: Sequence[str], target: int | None) -> list[int]:
    """Number of each image's true class: `target`, or by the name of its folder.

    Raises:
        UserError: a folder that is not named as a class.
    """
    if target is not None:
        return [target] * len(paths)
    for path in paths:
        if path.absolute().parent.name not in classes:
            raise UserError(
                f"The true class of {path} is not known: its folder must be named as one of {len(classes)} classes, or "
                "all images be of the class named with --class."
            )
    return [list(classes).index(path.absolute().parent.name) for path in paths]


def _check_options(method: MethodName, given: set[str], places: int) -> None:
    """Refuse options that the method does not read, and several places for one that looks at one."""
    if places > 1 and method != "attention":
        raise UserError(f"--at is given {places} times, and --method {method} looks at one place: give one.")
    for name in sorted(given - set(METHODS[method].options)):
        *others, last = (other for other, one in METHODS.items() if name in one.options)
        takes = f"{', '.join(others)} and {last}" if others else last
        option = {"class_name": "class"}.get(name, name)
        raise UserError(f"--{option} is for --method {takes}; leave it out of --method {method}.")


def _opened(weights: str, model: str | None, method: MethodName) -> nn.Module:
    """The network of a WEIGHTS argument."""
    if backend_of(weights) is not None:
        raise UserError(
            f"{weights} is an exported file, whose layers cannot be looked into: give the weights it was exported from."
        )
    if METHODS[method].needs_training and weights.startswith(RANDOM):
        raise UserError(f"--method {method} needs trained weights: {weights} has learned nothing that could be shown.")
    return open_network(weights, model)


def _looked_at(network: nn.Module, weights: str, *, method: MethodName, layer: str | None) -> nn.Module:
    """What a method looks at of a network: all of it, or the backbone under its head, with the network's `.meta`.

    Raises:
        UserError: the method is for classifiers, or there is no such layer; before images are read.
    """
    meta, chosen = meta_of(network), METHODS[method]
    if meta.head is not None and chosen.head == "refused":
        raise UserError(f"--method {method} is for classifiers; {weights} is a network for {meta.task}.")
    if meta.head is not None and chosen.head == "backbone":
        network = set_meta(backbone_of(network), meta)
    elif layer is not None:
        name_in_whole(network, layer)
    if layer is not None and chosen.head != "whole":
        layer_named(network, layer)
    return network


def _collected(
    images: str | Path | Iterable[str | Path], folder: Path | None, note: Callable[[str], None]
) -> list[Path]:
    """The image files of patterns, without the drawings in `folder`; says which files are left out."""
    patterns = [str(one) for one in ([images] if isinstance(images, (str, Path)) else images)]
    left_out: Counter[str] = Counter()
    paths = collect(patterns, left_out, folder)
    if sentence := left_out_sentence(left_out, ", ".join(patterns[:3])):
        note(sentence)
    return paths


def _others(weights: str, against: Sequence[str | Path], device: torch.device) -> dict[str, nn.Module]:
    """The networks that one is compared with, by their WEIGHTS arguments, in evaluation mode.

    Raises:
        UserError: one is named twice, or cannot be opened.
    """
    named = [weights, *map(str, against)]
    if twice := next((one for one in named if named.count(one) > 1), None):
        raise UserError(f"{twice} is named twice: name other networks with --against.")
    return {one: _opened(one, None, "predictions").to(device).eval() for one in named[1:]}


def _comparison(networks: Mapping[str, nn.Module], truth: str | Path | None, note: Callable[[str], None]) -> Comparison:
    """Networks by their WEIGHTS arguments, and the truth that is known of images."""
    comparison = Comparison.of(networks)
    first, network = next(iter(networks.items()))
    data = truth_data(first, network, None if truth is None else str(truth))
    try:
        if data is not None:
            comparison.open_truth(data)
    except UserError as error:
        if truth is not None:
            raise
        note(f"predictions are shown without the truth, since the data of the run cannot be opened: {error}")
    return comparison


class Drawings:
    """Writer of drawn results; all names are chosen and checked before the first is written.

    Args:
        folder: of the drawings.
        paths: the images.
        method: the name of a file is STEM.METHOD.png, or METHOD.png of all images together.

    Raises:
        UserError: a file is there that must not be replaced.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], method: MethodName):
        self.folder = OutputFolder(folder, "--save", paths)
        pattern = f"{{}}.{method}.png"
        together = METHODS[method].together
        self.names = [f"{method}.png"] if together else [pattern.format(one) for one in stems_of(paths, (pattern,))]
        self.folder.check(self.names)

    def add(self, index: int, drawing: Image.Image) -> str:
        """Write the drawing of image number `index`; returns its path."""
        with self.folder.adding() as fresh:
            drawing.save(fresh / self.names[index])
        return str(self.folder.path / self.names[index])


@dataclass
class _Work:
    """A method at work with a network.

    Attributes:
        network: in evaluation mode, on its device.
        method: what is done.
        options: of the method, by name.
        at: pixels of the original images.
        levels: black and white level of the images.
        weights: the WEIGHTS argument, for the results to state.
    """

    network: nn.Module
    method: Method
    options: dict[str, Any]
    at: list[tuple[int, int]]
    levels: Levels | None
    weights: str

    def one_by_one(self, paths: Sequence[Path], output: Drawings | None) -> Iterator[Explanation]:
        """A result for each image."""
        for index, path in enumerate(paths):
            view = self._view(path)
            if isinstance(view, str):
                yield Explanation(str(path), error=view)
                continue
            try:
                analysis = self._run(view, path)
            except NotFound as error:
                yield Explanation(str(path), error=f"{path}: {error.reason}")
                continue
            yield Explanation(str(path), analysis, saved=self._save(analysis, view, index, output))

    def together(self, paths: Sequence[Path], output: Drawings | None) -> Iterator[Explanation]:
        """One result of all images, behind those that could not be read; images are read while the method goes on."""
        options = dict(self.options)
        labels: list[int] | None = None
        if self.method.labelled:
            labels = true_classes(paths, meta_of(self.network).classes, options.pop("target", None))
        if self.at:
            options["at"] = self._common_pixel(paths)
        device = next(self.network.parameters()).device
        failed: list[Explanation] = []

        def views() -> Iterator[tuple[int, View]]:
            for index, path in enumerate(paths):
                view = self._view(path)
                if isinstance(view, str):
                    failed.append(Explanation(str(path), error=view))
                else:
                    yield index, view

        read = views()
        first = next(read, None)
        if first is None:
            yield from failed
            return

        def batches() -> Iterator[Tensor | tuple[Tensor, list[int]]]:
            rest = chain([first], read)
            while batch := [(index, view.prepared) for index, view in islice(rest, BATCH)]:
                stacked = torch.stack([one for _, one in batch]).to(device)
                true = [labels[index] for index, _ in batch] if labels else []
                batch.clear()  # the next is read without it
                yield (stacked, true) if labels else stacked

        analysis = self.method.run(self.network, batches(), **options)
        skipped = {one.path for one in failed}
        read_files = [str(path) for path in paths if str(path) not in skipped]
        analysis.about |= {"weights": self.weights, "image_files": read_files}
        yield from failed
        yield Explanation(None, analysis, saved=self._save(analysis, first[1], 0, output))

    def _common_pixel(self, paths: Sequence[Path]) -> tuple[int, int]:
        """The pixel of the input that is asked for, the same for all images; they are read once more for it."""
        read = [(view.window, path) for path in paths if not isinstance(view := self._view(path), str)]
        return input_pixel(self.at[0], [window for window, _ in read], [path for _, path in read])

    def _view(self, path: Path) -> View | str:
        """The image of a file, or why it cannot be read."""
        try:
            image = open_image(path, levels=self.levels)
        except BadImage as error:
            return str(error)
        meta = meta_of(self.network)
        return whole_view(image, meta) if self.method.head == "whole" else plain_view(image, meta)

    def _run(self, view: View, path: Path) -> Analysis:
        device = next(self.network.parameters()).device
        options = dict(self.options)
        if self.at:
            pixels = [input_pixel(point, [view.window], [path]) for point in self.at]
            options["at"] = pixels if len(pixels) > 1 else pixels[0]
        analysis = self.method.run(self.network, view.prepared[None].to(device), **options)
        if "layer" in self.method.options and "layer" in analysis.about:
            self.options["layer"] = analysis.about["layer"]  # to find the default one may take a pass
        if self.weights.startswith(RANDOM) and "class_names" in analysis.about:
            analysis.about["class_names"] = None  # classes of fresh weights are chance
        analysis.about["weights"] = self.weights
        return analysis

    def _save(self, analysis: Analysis, view: View, index: int, output: Drawings | None) -> str | None:
        if output is None:
            return None
        draw = self.method.draw
        return output.add(index, analysis.plot() if draw is None else draw(analysis, view))


def plain_view(image: Image.Image, meta: WeightsMeta) -> View:
    """An image as a classifier, or a backbone alone, sees it."""
    return View(image, input_window(image.size, meta.preprocess), eval_transform(meta.preprocess)(image))


def whole_view(image: Image.Image, meta: WeightsMeta) -> View:
    """An image as a network with its head, if it has one, sees it."""
    if meta.head is None or meta.task == "semantic_segmentation":
        return plain_view(image, meta)
    return view_of_task(image, task_of(meta))


def view_of_task(image: Image.Image, task: DenseTask) -> View:
    """An image as a network for boxes or keypoints sees it: whole, or as one person that fills it."""
    inference: Any = task.inference
    if not isinstance(inference, KeypointsInference):
        smaller = reduced(image, LARGE_MASKS)
        window = InputWindow(image.size, smaller.size, left=0, top=0, width=image.width, height=image.height)
        return View(image, window, inference.prepare(smaller, {})[0])
    prepared, target = inference.crop(image, {"box": (0.0, 0.0, *image.size)})
    (across, _, left), (_, down, top) = target["back"].tolist()
    width, height = prepared.shape[2], prepared.shape[1]
    size = {"width": across * width, "height": down * height}
    return View(image, InputWindow(image.size, (width, height), left=left, top=top, **size), prepared)


class _Comparing(_Work):
    """Predictions of networks for each image.

    Args:
        work: of the first network.
        comparison: of all networks.
    """

    def __init__(self, work: _Work, comparison: Comparison):
        super().__init__(**vars(work))
        self.comparison = comparison

    def _run(self, view: View, path: Path) -> Analysis:
        return self.comparison.predictions(view.image, path)


def input_pixel(at: tuple[int, int], windows: Sequence[InputWindow], paths: Sequence[Path]) -> tuple[int, int]:
    """The pixel of the network's input at a pixel of original images.

    Raises:
        UserError: it lies outside an image or was cropped off, or is not the same for all.
    """
    found = set()
    for window, path in zip(windows, paths, strict=True):
        (x, y), (width, height) = at, window.image
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--at {x} {y} lies outside {path}, which has {width} x {height} pixels.")
        pixel = window.to_input(x, y)
        if pixel is None:
            raise UserError(
                f"--at {x} {y} is cropped off {path} before the network sees it; it sees x from {window.left:.0f} to "
                f"{window.left + window.width:.0f} and y from {window.top:.0f} to {window.top + window.height:.0f}."
            )
        found.add(pixel)
    if len(found) > 1:
        raise UserError(
            f"--at {at[0]} {at[1]} is another place of the input in images of other sizes: give images of one size."
        )
    return found.pop()


def _draw_gradcam(analysis: Any, view: View) -> Image.Image:
    """The map of one image on it."""
    about = analysis.about
    what = "" if about["score"] == "logit" else f" by the {about['score']}"
    title = f"Grad-CAM of {about['model']}, layer {about['layer']}: {analysis.captions()[0]}{what}"
    if not analysis.enlarged[0].any():
        title += ", nothing speaks for it"
    if analysis.has_one_place():
        title += f"; {ONE_PLACE}"
    return overlay(view.image, analysis.enlarged[0], view.window, title=title, label="share of the map's maximum")


def _draw_attention(analysis: Any, view: View) -> Image.Image:
    """The maps of a layer's attentions over the image, side by side."""
    told = analysis.about
    found = "" if told["class_names"] is None else f"; the network sees {told['class_names'][0]}"
    drawn = []
    for name, values in analysis.enlarged.items():
        mark = None
        if name in analysis.marks:
            x, y = view.window.to_image(*analysis.marks[name])
            mark = round(x - 0.5), round(y - 0.5)
        asked = "all tokens" if mark is None else "the marked token"
        title = f"Attention of {asked}, {told['model']}, layer {told['layer']}, {name}: {analysis.meanings[name]}"
        outline = analysis.outlines[name][0] if name in analysis.outlines else None
        options = {"title": title + found, "label": _scale(analysis.arrays[name].values), "smooth": False}
        drawn.append(overlay(view.image, values[0], view.window, **options, mark=mark, outline=outline))
    columns = len(told["at"]) if len(told["at"]) > 1 else COLUMNS
    return side_by_side(drawn, columns=columns, bottoms=True)


def _scale(values: np.ndarray) -> str:
    """What the colours of a map of attention mean: a uniform map is told from a strong one by its extremes."""
    least, most = float(np.nanmin(values)), float(np.nanmax(values))
    if least < 0:
        return f"from the least, {least:.3g}, to the most, {most:.3g}"
    return f"share of the maximum, which is {most:.3g}; the least is {least:.3g}"


def _draw_region(analysis: Any, view: View) -> Image.Image:
    """The tokens seen by the marked one, over the image."""
    region, about = analysis.arrays["region"].values, analysis.about
    (height, width), (column, row) = region.shape, about["position"]
    x, y = (
        (one + 0.5) * side / of - 0.5
        for one, side, of in zip((column, row), view.window.input, (width, height), strict=True)
    )
    place = view.window.to_image(x, y)
    title = f"{about['model']}, layer {about['layer']}: the {about['seen']} of {width} x {height} tokens that one sees"
    mark = (round(place[0] - 0.5), round(place[1] - 0.5))
    label = "red = seen, blue = not"
    return overlay(view.image, region.astype(float), view.window, title=title, label=label, smooth=False, mark=mark)


def _spectrum(network: nn.Module, images: Iterable[Tensor], layer: str | None = None, **options: Any) -> Spectrum:
    """The spectra of all blocks, or that of one layer."""
    return spectrum(network, images, layers=None if layer is None else [layer], **options)


def _interactions(
    network: nn.Module,
    images: Iterable[tuple[Tensor, Sequence[int]]],
    budget: tuple[int, int, int, int] | None = None,
) -> Interactions:
    """Interactions within a budget of images, pairs, contexts and orders."""
    if budget is None:
        return interactions(network, images)
    count, pairs, contexts, orders = budget
    if min(count, pairs, contexts) < 1:
        raise UserError(f"--budget with {min(count, pairs, contexts)} is not allowed; all four numbers are 1 or more.")
    choices = {len(shares): shares for shares in (FEW_ORDERS, PUBLISHED_ORDERS)}
    if orders not in choices:
        raise UserError(f"--budget with {orders} orders is not allowed; the last number is 7 or 13.")
    shares = choices[orders]
    return interactions(network, images, count=count, pairs=pairs, contexts=contexts, orders=shares)


METHODS: dict[str, Method] = {
    "gradcam": Method(gradcam, ("layer", "class_name"), needs_training=True, draw=_draw_gradcam, head="whole"),
    "attention": Method(attention, ("layer", "at"), draw=_draw_attention),
    "receptive_field": Method(receptive_field, ("layer", "at"), together=True),
    "attended_region": Method(attended_region, ("layer", "at"), draw=_draw_region),
    "spectrum": Method(_spectrum, ("layer", "granularity", "frequency", "drawing"), together=True),
    "interactions": Method(
        _interactions, ("class_name", "budget"), needs_training=True, labelled=True, together=True, head="refused"
    ),
    "similarity": Method(similarity, ("of",), together=True),
    "predictions": Method(compare_predictions, ("against", "truth"), needs_training=True, head="whole"),
}
