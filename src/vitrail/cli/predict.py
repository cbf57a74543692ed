"""`vitrail predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..config.tasks import InferenceConfig
from ..data.video import is_video
from ..engine.predict import FileResult, predict
from ..engine.predict_to_file import FileSummary, predict_to_file
from ..engine.predict_video import FrameResult, moment_of, predict_video, predict_video_to_file
from ..errors import UserError
from ..structures import ClassProbabilities
from ..utils.progress import bar
from .parsing import Call, Parser, help_of, parser_of
from .printing import JsonList, Rows, completed, new_table, print_json, say, show, taken

#: options of results in a file, and of videos and cameras
OF_FILES = ("output", "shard", "coco_images")
OF_VIDEOS = ("source", "every", "max_frames")
#: options that have no meaning for frames
OF_IMAGES = ("white", "shard", "coco_images")
#: rows of the table of a video
MAX_ROWS = 50


def parser() -> Parser:
    """Its options."""
    made = parser_of("predict")
    made.add_argument("weights", help=help_of(predict, "weights"))
    made.add_argument("images", nargs="*", help=f"{help_of(predict, 'images')}; or one video file")
    made.add_class_arguments(InferenceConfig, "inference", help=help_of(predict, "inference"))
    made.add_function_arguments(predict, skip={"weights", "images", "inference", "note"})
    for name in OF_FILES:
        made.add_argument(f"--{name}", type=str | None, help=help_of(predict_to_file, name))
    made.add_argument("--source", type=str | None, help=help_of(predict_video, "source"))
    made.add_argument("--every", type=int, default=1, help=help_of(predict_video, "every"))
    made.add_argument("--max_frames", type=int | None, help=help_of(predict_video, "max_frames"))
    return made


def run(call: Call) -> int:
    """Predict, and print the results and on standard error which images could not be read.

    Raises:
        UserError: none could, or options that do not belong together.
    """
    of_files = {name: call.values.pop(name) for name in OF_FILES}
    of_videos = {name: call.values.pop(name) for name in OF_VIDEOS}
    images = call.values["images"]
    if of_files["output"] is not None and call.values["save"] is not None:
        raise UserError("--output writes results and --save annotated images: give one of them.")
    if (source := _video_in(images, of_videos["source"])) is not None:
        return _run_video(call, {**of_videos, "source": source}, of_files["output"])
    for name in set(OF_VIDEOS) & call.typed:
        raise UserError(f"--{name} is for a video or camera: name it with --source.")
    if not images:
        raise UserError("vitrail predict needs IMAGES; vitrail help predict shows the options.")
    if of_files["output"] is not None:
        del call.values["save"]
        return _show_file(predict_to_file(**call.values, **of_files, note=say), call.as_json)
    for name in set(OF_FILES) & call.typed:
        raise UserError(f"--{name} is for results in a file: name it with --output FILE.")
    found = predict(**call.values, note=say)
    is_classifier = found.meta.head is None
    if call.as_json:
        records = JsonList()
        taken("Predicting", found, lambda result: records.add(_record(result, is_classifier)))
        return records.print()
    results = completed("Predicting", found)
    show(_classes(results) if is_classifier else _findings(results))
    if save := call.values["save"]:
        say(f"{sum(not result.error for result in results)} annotated images in {save}")
    return 0


def _video_in(images: Sequence[str], source: str | None) -> str | None:
    """The video or camera that a command line names; None = it names images.

    Raises:
        UserError: a video beside images or another video.
    """
    if source is not None and images:
        raise UserError(f"--source {source} is all that is predicted: leave {images[0]} out.")
    videos = [name for name in images if is_video(name)]
    if videos and len(images) > 1:
        raise UserError(f"{videos[0]} is a video: predict it by a command of its own.")
    return source if source is not None else next(iter(videos), None)


def _run_video(call: Call, of_videos: dict[str, Any], output: str | None) -> int:
    """Predict a video's or camera's frames, and print what is seen when.

    Raises:
        UserError: an option of images.
    """
    for name in sorted(set(OF_IMAGES) & call.typed):
        raise UserError(f"--{name} is for images, not for a video or camera.")
    options = {name: value for name, value in call.values.items() if name not in ("images", "white")}
    if output is not None:
        del options["save"]
        return _show_file(predict_video_to_file(**options, **of_videos, output=output, note=say), call.as_json)
    found = predict_video(**options, **of_videos, note=say)
    records, moments = JsonList(), Moments()
    with bar("Predicting", found.count) as advance:
        for result in found:
            if call.as_json:
                path = {"path": found.source.name, **moment_of(result)}
                records.add({**path, **result.prediction.to_dict(), "saved": found.saved})
            else:
                moments.add(result)
            advance()
    if call.as_json:
        return records.print()
    show(moments.rows(found.source.name))
    if moments.left_out:
        say(f"{moments.left_out:,} later changes are not shown: --output FILE writes every frame.")
    if found.saved is not None:
        say(f"annotated video in {found.saved}")
    return 0


class Moments:
    """What is seen when: consecutive frames with the same summary are one row.

    Attributes:
        left_out: rows beyond `MAX_ROWS`.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, FrameResult, FrameResult, int]] = []
        self.left_out = 0
        self._last: str | None = None

    def add(self, result: FrameResult) -> None:
        """Add the next frame."""
        prediction = result.prediction
        seen = prediction.classes[0] if isinstance(prediction, ClassProbabilities) else prediction.summary()
        if seen == self._last and not self.left_out:
            text, first, _, count = self.found[-1]
            self.found[-1] = text, first, result, count + 1
        elif len(self.found) < MAX_ROWS:
            self.found.append((seen, result, result, 1))
        elif seen != self._last:
            self.left_out += 1
        self._last = seen

    def rows(self, name: str) -> Rows:
        """The table."""
        rows = new_table("from", "to", ">frames", "found", title=name)
        for seen, first, last, count in self.found:
            rows.add_row(f"{first.seconds:.2f} s", f"{last.seconds:.2f} s", f"{count:,}", seen)
        return rows


def _show_file(done: FileSummary, as_json: bool) -> int:
    """Print what a prediction into a file did.

    Raises:
        UserError: no image could be read.
    """
    for error in done.errors:
        say(f"could not be read: {error}")
    if done.failed > len(done.errors):
        say(f"and {done.failed - len(done.errors):,} more images could not be read: see {done.output}.")
    if done.complete:
        say(
            f"{done.output} was complete: the same images by name, weights and options; delete it to predict them anew."
        )
    if as_json:
        print_json(asdict(done))
    else:
        rate = "-" if done.images_per_second is None else f"{done.images_per_second:.1f}"
        rows = new_table("file", "shard", ">images", ">not readable", ">resumed", ">images/s")
        rows.add_row(done.output, done.shard, f"{done.images:,}", f"{done.failed:,}", f"{done.resumed:,}", rate)
        show(rows)
    if done.left_out:
        say(f"{done.left_out:,} images are left out: the file of --coco_images does not list them.")
    if done.images and done.failed == done.images:
        raise UserError(f"None of the {done.images:,} images of {done.output} could be read.")
    return 0


def _record(result: FileResult, is_classifier: bool) -> dict[str, Any]:
    """A result as plain values."""
    empty = {"classes": [], "probabilities": []} if is_classifier else {}
    prediction = empty if result.prediction is None else result.prediction.to_dict()
    return {"path": result.path, **prediction, "error": result.error, "saved": result.saved}


def _findings(results: Sequence[FileResult]) -> Rows:
    rows = new_table("image", "found")
    for result in results:
        if result.prediction is not None:
            rows.add_row(result.path, result.prediction.summary())
    return rows


def _classes(results: Sequence[FileResult]) -> Rows:
    rows = new_table("image", "prediction", ">probability", "then")
    for result in results:
        if isinstance(found := result.prediction, ClassProbabilities):
            ranked = [f"{c} {100 * p:.1f} %" for c, p in zip(found.classes, found.probabilities, strict=True)]
            rows.add_row(result.path, found.classes[0], f"{100 * found.probabilities[0]:.1f} %", ", ".join(ranked[1:3]))
    return rows
