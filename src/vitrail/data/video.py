"""Videos and cameras: their frames as upright RGB images with times, and annotated videos."""

from __future__ import annotations

import contextlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..utils.extras import require
from .images import MAX_PIXELS, MAX_SIDE

#: endings of video files -> FFmpeg's reader. The content does not choose it: some readers, such as those of playlists,
#: open other files and addresses.
READERS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
#: encoders of annotated videos, the first that PyAV has, with their options
ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "libopenh264": {}, "mpeg4": {"qmin": "2", "qmax": "5"}}
#: parts of a second in which annotated videos count: whole frames of 24, 25, 30, 50, 60 and 29.97 a second
TICKS = 60_000


class BadVideo(UserError):
    """A video or camera that cannot be used; the sentence names it and the reason."""


@dataclass
class Frame:
    """One frame of a video or camera.

    Attributes:
        index: its number, from 0.
        seconds: since the first frame's time stamp of 0, or since the camera was opened.
        image: upright, RGB.
    """

    index: int
    seconds: float
    image: Image.Image


class FrameSource(ABC):
    """Where frames come from.

    Attributes:
        name: what results call it.
        stem: of files that are written about it.
        count: number of frames; None = unknown, or without end.
        endless: a camera, which is stopped by the user.
    """

    name: str
    stem: str
    count: int | None = None
    endless = False

    @abstractmethod
    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Every Nth frame, the first one included.

        Raises:
            BadVideo: no frame, or none beyond those before, can be read.
        """


def is_video(path: str | Path) -> bool:
    """True if a file's ending is that of a video."""
    return Path(path).suffix.lower() in READERS


def open_source(source: str | Path) -> FrameSource:
    """A video file, or a camera by its number.

    Raises:
        BadVideo: neither, or one that cannot be read.
        UserError: a package is missing.
    """
    text = str(source)
    if text.isascii() and text.isdigit():
        return Camera(int(text))
    if "://" in text:
        raise BadVideo(f"{text} is an address, from which nothing is read: name a file, or a camera by its number.")
    return VideoFile(Path(text).expanduser())


class VideoFile(FrameSource):
    """A video file, read by PyAV.

    Packets that cannot be decoded are left out, as players do.

    Args:
        path: its ending says how it is read (`READERS`).

    Attributes:
        path: of the file.
        damaged: packets left out in the last iteration.
        lacking: seconds between its last frame and its end as the file states it, where that is long.

    Raises:
        BadVideo: no file, no video, or frames larger than images may be.
        UserError: PyAV is missing.
    """

    def __init__(self, path: Path):
        self.path, self.name, self.stem = path, str(path), path.stem
        self.damaged, self.lacking = 0, 0.0
        if not is_video(path):
            raise BadVideo(f"{path} is no video: its name must end in {', '.join(READERS)}.")
        if not path.is_file():
            raise BadVideo(f"There is no file {path}.")
        self.av = require("av", "video")
        with self._opened() as (container, stream):
            self._check_size(stream.codec_context)
            self.count = self._count(container, stream)

    def _count(self, container: Any, stream: Any) -> int | None:
        """The number of frames as the file states it, or by its length and rate."""
        rate = stream.average_rate or stream.guessed_rate
        if stream.frames or rate is None:
            return stream.frames or None
        length = stated_length(stream)
        if length is None and container.duration is not None:
            length = container.duration / self.av.time_base
        return None if length is None else round(length * float(rate)) or None

    def _check_size(self, one: Any) -> None:
        """Refuse frames larger than images may be."""
        if one.width * one.height > MAX_PIXELS or max(one.width, one.height) > MAX_SIDE:
            raise BadVideo(
                f"{self.path} has frames of {one.width}x{one.height} pixels: at most {MAX_PIXELS:,} are read."
            )

    def damage(self) -> str:
        """A sentence if parts of the file could not be read in the last iteration; else empty."""
        found = []
        if self.damaged:
            found.append(f"{self.damaged:,} parts of it could not be read and were left out")
        if self.lacking:
            found.append(f"it breaks off {self.lacking:.2f} s before its end")
        return f"{self.name} is damaged: {', and '.join(found)}." if found else ""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its stream of images."""
        with open(self.path, "rb") as file:
            try:
                container = self.av.open(
                    file,
                    format=READERS[self.path.suffix.lower()],
                    options={"protocol_whitelist": ""},  # nothing but this open file is read
                    metadata_errors="replace",
                )
            except (self.av.FFmpegError, ValueError) as error:
                raise BadVideo(f"{self.path} is no readable video: {_reason(error)}.") from error
            with container:
                stream = container.streams.best("video")  # the first one may be a cover
                if stream is None:
                    raise BadVideo(f"{self.path} has no images, only {len(container.streams)} other streams.")
                stream.thread_type = "AUTO"
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                yield container, stream

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Every Nth frame; its time is its time stamp."""
        self.damaged, self.lacking, index, size, seconds = 0, 0.0, 0, None, 0.0
        with self._opened() as (container, stream):
            step = 1 / float(stream.average_rate or 25)
            for packet in self._packets(container, stream):
                try:
                    decoded = packet.decode()
                except self.av.FFmpegError:
                    self.damaged += 1
                    continue
                for frame in decoded:
                    self._check_size(frame)
                    if size not in (None, (frame.width, frame.height)):
                        raise BadVideo(
                            f"{self.path} has frames of another size, {frame.width}x{frame.height}, after {index:,} "
                            "frames: cut it there."
                        )
                    size = frame.width, frame.height
                    seconds = index * step if frame.time is None else float(frame.time)
                    if index % every == 0:
                        yield Frame(index, seconds, _upright(frame))
                    index += 1
            length = stated_length(stream)
            missing = 0.0 if length is None else length - seconds - step
            self.lacking = missing if missing > max(3 * step, 0.02 * (length or 0)) else 0.0
        if not index:
            raise BadVideo(f"{self.path} has no frame that can be read.")

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """The packets, up to where the file breaks off."""
        try:
            yield from container.demux(stream)
        except self.av.FFmpegError:
            self.damaged += 1


def stated_length(stream: Any) -> float | None:
    """Seconds of a stream as its file states them; None where it does not. (Matroska has a tag for it.)"""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return None if tag is None else 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])


def _upright(frame: Any) -> Image.Image:
    """A decoded frame as RGB, turned as its display matrix says (by a multiple of 90 degrees)."""
    image = frame.to_image()
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    transposed = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(transposed[turns]) if turns else image


def _reason(error: Exception) -> str:
    """What FFmpeg says, without its number and file."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")


class Camera(FrameSource):
    """A camera of this machine, read by OpenCV.

    Args:
        number: 0 is the first one.

    Raises:
        BadVideo: there is none of this number.
        UserError: OpenCV is missing.
    """

    endless = True

    def __init__(self, number: int):
        self.name, self.stem = f"camera {number}", f"camera_{number}"
        self.cv2 = require("cv2", "video")
        self.device = self.cv2.VideoCapture(number)
        if not self.device.isOpened():
            raise BadVideo(f"--source {number}: this machine has no camera {number} that can be opened.")

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """What the camera sees, until it ends or the user stops; frames that come during the work are lost."""
        started, index = time.monotonic(), 0
        try:
            while True:
                read, pixels = self.device.read()
                if not read:
                    raise BadVideo(f"{self.name} gave no frame after {index}.")
                if index % every == 0:
                    image = Image.fromarray(self.cv2.cvtColor(pixels, self.cv2.COLOR_BGR2RGB))
                    yield Frame(index, time.monotonic() - started, image)
                index += 1
        finally:
            self.device.release()


class VideoWriter:
    """Writer of an MP4 file (H.264, or MPEG-4 where there is no encoder of it).

    Args:
        path: of a new file.
        size: width and height; an odd side gets one more pixel, as H.264 asks. Larger images lose what is beyond.
    """

    def __init__(self, path: Path, size: tuple[int, int]):
        av = require("av", "video")
        self.size = size[0] + size[0] % 2, size[1] + size[1] % 2
        self.container = av.open(str(path), "w", format="mp4")
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        self.stream = self.container.add_stream(encoder, rate=Fraction(30), options=dict(ENCODERS[encoder]))
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, TICKS)
        self.frame_of = av.VideoFrame.from_image
        self.waiting: Any = None  # its duration is known with the next frame
        self.duration = TICKS // 25

    def add(self, image: Image.Image, seconds: float) -> None:
        """Add an image at a time, which must not be before the last one's."""
        canvas = Image.new("RGB", self.size, "white")
        canvas.paste(image, (0, 0))
        frame = self.frame_of(canvas)
        frame.pts, frame.time_base = round(seconds * TICKS), Fraction(1, TICKS)
        if self.waiting is not None:
            frame.pts = max(frame.pts, self.waiting.pts + 1)
            self.duration = frame.pts - self.waiting.pts
        self._encode_waiting()
        self.waiting = frame

    def _encode_waiting(self) -> None:
        if self.waiting is not None:
            self._write(self.stream.encode(self.waiting))

    def _write(self, packets: Any) -> None:
        """Write encoded frames; encoders guess the last one's duration."""
        for packet in packets:
            if packet.pts == self.waiting.pts:
                packet.duration = round(self.duration * Fraction(1, TICKS) / packet.time_base)
            self.container.mux(packet)

    def close(self) -> None:
        """Finish the file; the last frame is shown as long as the one before it."""
        self._encode_waiting()
        self._write(self.stream.encode(None))
        self.container.close()
