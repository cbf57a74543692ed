"""Prediction of the frames of a video or camera: results with times, an annotated video, and results in a file."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoint.description import WeightsMeta
from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data.video import Frame, FrameSource, VideoFile, VideoWriter, open_source
from ..errors import UserError
from ..structures import Prediction
from ..utils.draw import MOST_ENTRIES, with_legend
from ..utils.output_folder import OutputFolder
from ..utils.plain import to_dict
from .predict import TOP_K, Predictor, open_predictor
from .predict_to_file import Entry, FileSummary, IsDone, Target, digest_of_weights, fill, sha256_of
from .result_files import CocoResults, form_of
from .shards import shard_of

#: tasks whose drawings have a legend, which grows with the classes in the image
WITH_LEGEND = ("semantic_segmentation", "panoptic_segmentation")


@dataclass
class FrameResult:
    """The prediction for one frame.

    Attributes:
        frame: its number in the video, from 0.
        seconds: its time.
        prediction: `ClassProbabilities`, or what the network's head finds.
    """

    frame: int
    seconds: float
    prediction: Prediction


@dataclass
class VideoPredictions:
    """Results of a video's or camera's frames, computed while they are iterated over.

    Attributes:
        meta: description of the network.
        source: where the frames come from.
        results: a result for each frame.
        count: number of results; None = unknown, or until the user stops.
        saved: where the annotated video is written; complete when all results were taken.
    """

    meta: WeightsMeta
    source: FrameSource
    results: Iterator[FrameResult]
    count: int | None = None
    saved: str | None = None

    def __iter__(self) -> Iterator[FrameResult]:
        return self.results


def predict_video(
    weights: str | Path,
    source: str | Path,
    *,
    every: int = 1,
    max_frames: int | None = None,
    model: str | None = None,
    top_k: int | None = None,
    save: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    inference: InferenceConfig | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> VideoPredictions:
    """Predict the frames of a video file or of a camera with trained weights.

    Frames are read, predicted and written as they come; those of one batch are in memory. A camera goes on until
    `max_frames` or Ctrl-C, after which the annotated video is complete.

    Args:
        weights: as of `predict`.
        source: video file (.mp4, .m4v, .mov, .mkv, .webm, .avi), or the number of a camera, such as 0.
        every: predict every Nth frame of a video or camera, the first one included.
        max_frames: most frames of a video or camera that are predicted; None = all.
        model: the network a file of tensors belongs to.
        top_k: number of classes listed per frame (classification); None = 5.
        save: folder for the annotated video, an MP4 file of the source's name; only one of an earlier prediction is
            replaced.
        batch_size: frames in one forward pass (classification); None = 16, of a camera 1.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        runtime: runtime of an exported file; auto = by its ending.
        inference: inference of a network with a head; None = the defaults.
        note: called with notes for the user: frames left out, origin and licence of the weights.

    Raises:
        UserError: weights, a video or options that cannot be used, or a file in `save` that must not be replaced.
    """
    frames = open_frames(source, every, max_frames)
    predictor = open_predictor(
        weights, model, runtime, device=device, top_k=top_k, batch_size=batch_size, inference=inference, note=note
    )
    size = batch_of(frames, predictor, batch_size)
    copy = None if save is None else AnnotatedVideo(Path(save), frames)

    def results() -> Iterator[FrameResult]:
        yield from frame_results(predictor, chosen(frames, every, max_frames), size, endless=frames.endless, copy=copy)
        _note_damage(frames, note)

    count = expected(frames.count, every, max_frames)
    saved = None if copy is None else str(copy.path)
    return VideoPredictions(predictor.meta, frames, results(), count=count, saved=saved)


def open_frames(source: str | Path, every: int, max_frames: int | None) -> FrameSource:
    """The video or camera, whose frames are chosen by these options.

    Raises:
        UserError: it cannot be read, an option below 1, or this is one of several processes.
    """
    if shard_of(None).count > 1:
        raise UserError("A video is predicted by one process: call vitrail predict without torchrun.")
    for name, value in (("every", every), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1.")
    return open_source(source)


def batch_of(frames: FrameSource, predictor: Predictor, batch_size: int | None) -> int:
    """Frames in one forward pass; a camera's are predicted as they come, unless the user says otherwise."""
    return 1 if batch_size is None and frames.endless else predictor.batch_of(batch_size)


def chosen(source: FrameSource, every: int, max_frames: int | None) -> Iterator[Frame]:
    """Every Nth frame, the first one included, and of these at most `max_frames`."""
    return islice(source.frames(every), max_frames)


def expected(count: int | None, every: int, max_frames: int | None) -> int | None:
    """How many frames are predicted; None = unknown."""
    if count is None:
        return max_frames
    chosen = -(-count // every)
    return chosen if max_frames is None else min(chosen, max_frames)


def frame_results(
    predictor: Predictor, frames: Iterator[Frame], batch_size: int, endless: bool, copy: AnnotatedVideo | None = None
) -> Iterator[FrameResult]:
    """The results of frames, in their order, computed while they are iterated over.

    Args:
        predictor: of the frames.
        frames: to predict.
        batch_size: frames in one forward pass.
        endless: the user's stop is the end of the frames, and no interruption.
        copy: takes the annotated frames.
    """
    with (
        contextlib.nullcontext() if copy is None else copy.writing(),
        until_stopped() if endless else contextlib.nullcontext(lambda: False) as is_stopped,
    ):
        try:
            while not is_stopped() and (batch := list(islice(frames, batch_size))):
                found = predictor.predict([predictor.prepare(frame.image) for frame in batch])
                for frame, prediction in zip(batch, found, strict=True):
                    if copy is not None:
                        copy.add(frame, prediction, predictor.meta)
                    yield FrameResult(frame.index, frame.seconds, prediction)
        except KeyboardInterrupt:
            if not endless:
                raise


@contextlib.contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """Ctrl-C interrupts nothing meanwhile; yields a function that says whether it was pressed. The second one does."""
    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _note_damage(source: FrameSource, note: Callable[[str], None]) -> None:
    """Say where parts of a file could not be read."""
    if isinstance(source, VideoFile) and (sentence := source.damage()):
        note(sentence)


class AnnotatedVideo:
    """The annotated video of a source: an MP4 file that is there when all frames were added, or not at all.

    Args:
        folder: of the file.
        source: of the frames; never written over.

    Attributes:
        path: of the file.

    Raises:
        UserError: a file of that name is there that must not be replaced.
    """

    def __init__(self, folder: Path, source: FrameSource):
        inputs = [source.path] if isinstance(source, VideoFile) else []
        self.folder = OutputFolder(folder, "--save", inputs)
        self.name = f"{source.stem}.mp4"
        self.path = folder / self.name
        self.folder.check([self.name])
        self.fresh: Path | None = None
        self.writer: VideoWriter | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While frames are added; afterwards the file is in its folder."""
        with self.folder.adding() as self.fresh:
            try:
                yield
            finally:
                if self.writer is not None:
                    self.writer.close()

    def add(self, frame: Frame, prediction: Prediction, meta: WeightsMeta) -> None:
        """Add a frame with its prediction drawn on it; the first one decides the size of all."""
        drawn = prediction.draw(frame.image)
        if self.writer is None:
            assert self.fresh is not None
            self.writer = VideoWriter(self.fresh / self.name, _canvas(drawn, frame.image, meta))
        self.writer.add(drawn, frame.seconds)


def _canvas(drawn: Image.Image, image: Image.Image, meta: WeightsMeta) -> tuple[int, int]:
    """The size of all annotated frames: the first one's, with room for a legend of the longest names."""
    if meta.task not in WITH_LEGEND:
        return drawn.size
    longest = sorted(meta.classes, key=len, reverse=True)[:MOST_ENTRIES]
    room = with_legend(image, [(name, (0, 0, 0)) for name in longest])
    return drawn.width, max(drawn.height, room.height)


# ---- into a file ------------------------------------------------------------------------------------------------


def predict_video_to_file(
    weights: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    every: int = 1,
    max_frames: int | None = None,
    model: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    inference: InferenceConfig | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> FileSummary:
    """Predict the frames of a video or camera into a file: CSV, JSON lines or Parquet, by its ending.

    As `predict_to_file` of images, with the number and the time of each frame. A stopped prediction of a video goes on
    where it was; a camera's ends with Ctrl-C.

    Args:
        weights, source, every, max_frames, model, top_k, batch_size, device, runtime, inference, note: as of
            `predict_video`.
        output: file of the results, ending in .csv, .jsonl or .parquet.

    Raises:
        UserError: as of `predict_video` and `predict_to_file`.
        Interrupted: a video's prediction was stopped by the user; the results so far are kept.
    """
    form = form_of(Path(output))
    if form is CocoResults:
        raise UserError(f"--output {output}: COCO's results are of images; take .csv, .jsonl or .parquet for a video.")
    target = Target(Path(output), form.ending, shard_of(None))
    target.check()
    frames = open_frames(source, every, max_frames)
    predictor = open_predictor(
        weights, model, runtime, device=device, top_k=top_k, batch_size=batch_size, inference=inference, note=note
    )
    size = batch_of(frames, predictor, batch_size)
    listed = TOP_K if top_k is None else top_k
    made = form(predictor.meta, listed, of_video=True)
    of_file = isinstance(frames, VideoFile)
    settings = {
        "weights": digest_of_weights(str(weights), predictor),
        "source": frames.name,
        # what another camera run saw is never continued
        "content": sha256_of(frames.path) if of_file else time.time(),
        "form": form.ending,
        "options": {"top_k": listed, "every": every, "max_frames": max_frames, "runtime": runtime},
        "inference": to_dict(inference or InferenceConfig()),
    }
    settings = json.loads(json.dumps(settings))  # as they are read again
    names = NoNames()
    if (done := target.complete(settings, names)) is not None:
        return done

    def results(is_done: IsDone) -> Iterator[Entry]:
        waiting = (one for one in chosen(frames, every, max_frames) if not is_done(f"{frames.name}#{one.index}"))
        for one in frame_results(predictor, waiting, size, frames.endless):
            record = {**moment_of(one), **made.record(Path(frames.name), one.prediction)}
            yield f"{frames.name}#{one.frame}", None, record
        _note_damage(frames, note)

    return fill(target, settings, made, results=results, names=names)


def moment_of(result: FrameResult) -> dict[str, Any]:
    """Number and time of a frame, as plain values."""
    return {"frame": result.frame, "seconds": round(result.seconds, 6)}


class NoNames:
    """Stands for names that are known from the settings: the frames of a video."""

    left_out = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def digest(self) -> str:
        """Nothing."""
        return ""
