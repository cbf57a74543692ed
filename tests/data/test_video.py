"""Frames of video files: their order, times and turns; damaged and hostile files; written videos."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data import video
from vitrail.data.video import BadVideo, Camera, VideoFile, VideoWriter, open_source
from vitrail.errors import UserError

av = pytest.importorskip("av", reason="needs PyAV: the extra video")


def pixels_of(frames: int = 12, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A bright square of 10 pixels on noise, one step of 4 to the right each frame: (frames, H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 60, (frames, *size, 3), dtype=np.uint8)
    for number in range(frames):
        video[number, 10:20, 4 * number : 4 * number + 10] = 255
    return video


def lossless(path: Path, video: np.ndarray, rate: Fraction = Fraction(25)) -> Path:
    """A Matroska file without loss (FFV1)."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "bgr0"
        for pixels in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def written(path: Path, video: np.ndarray, rate: float = 25) -> Path:
    """A file of `VideoWriter`."""
    writer = VideoWriter(path, (video.shape[2], video.shape[1]))
    for number, pixels in enumerate(video):
        writer.add(Image.fromarray(pixels), number / rate)
    writer.close()
    return path


def test_frames_are_the_pixels_in_their_order_with_their_times(tmp_path):
    made = pixels_of()
    file = VideoFile(lossless(tmp_path / "a.mkv", made, Fraction(30000, 1001)))
    found = list(file.frames())
    assert [frame.index for frame in found] == list(range(12))
    np.testing.assert_array_equal([np.asarray(frame.image) for frame in found], made)
    np.testing.assert_allclose([frame.seconds for frame in found], np.arange(12) * 1001 / 30000, atol=6e-4)  # ms
    assert file.count == 12
    assert len(list(file.frames())) == 12  # from the first again
    assert file.damage() == ""


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_written_videos_have_every_frame_at_its_time(tmp_path, size):
    made = pixels_of(size=size)
    found = list(VideoFile(written(tmp_path / "a.mp4", made, rate=10)).frames())
    np.testing.assert_allclose([frame.seconds for frame in found], np.arange(12) / 10, atol=1e-4)
    for frame, pixels in zip(found, made, strict=True):
        assert frame.image.size == (64, 48)  # even sides
        seen = np.asarray(frame.image)[: size[0], : size[1]].astype(int)
        assert np.abs(seen - pixels).mean() < 25  # noise is lost
        assert np.abs(seen[12:18, : size[1]].mean(2) - pixels[12:18].mean(2)).max() < 90


#: the matrix of a track's header that turns by a quarter, clockwise and counter-clockwise, and by a half
TURNS = {1: (0, 1, -1, 0), 3: (0, -1, 1, 0), 2: (-1, 0, 0, -1)}


@pytest.mark.parametrize("quarters", TURNS)
def test_frames_are_turned_as_the_camera_was_held(tmp_path, quarters):
    made = pixels_of(1)
    content = bytearray(written(tmp_path / "a.mp4", made).read_bytes())
    header = content.index(b"tkhd") + 4
    place = header + 4 + 5 * 4 + 8 + 8  # version and flags, times, track, duration, reserved; layer to reserved
    a, b, c, d = (value << 16 for value in TURNS[quarters])
    assert struct.unpack_from(">9i", content, place)[::4] == (1 << 16, 1 << 16, 1 << 30)
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    (frame,) = VideoFile(tmp_path / "turned.mp4").frames()
    expected = np.rot90(made[0], -quarters)
    assert frame.image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(frame.image).astype(int) - expected).mean() < 25


def test_a_file_that_breaks_off_is_read_so_far_and_said(tmp_path):
    whole = lossless(tmp_path / "a.mkv", pixels_of()).read_bytes()
    damaged = bytearray(whole)
    middle = len(damaged) // 2
    damaged[middle : middle + 2000] = bytes(2000)
    (tmp_path / "hole.mkv").write_bytes(damaged)
    (tmp_path / "short.mkv").write_bytes(whole[:middle])
    for name in ("hole.mkv", "short.mkv"):
        file = VideoFile(tmp_path / name)
        found = list(file.frames())
        assert 3 <= len(found) < 12
        if name == "short.mkv":
            assert f"it breaks off {(11 - found[-1].index) / 25:.2f} s before its end" in file.damage()
    (tmp_path / "none.mp4").write_bytes(written(tmp_path / "b.mp4", pixels_of()).read_bytes()[:300])
    with pytest.raises(BadVideo, match=r"none\.mp4 is no readable video: "):
        VideoFile(tmp_path / "none.mp4")


@pytest.mark.parametrize("name", ["list.mp4", "list.mkv", "list.avi"])
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\n{}\n",
        "ffconcat version 1.0\nfile {}\n",
        "<MPD><BaseURL>{}</BaseURL></MPD>",
        "v=0\nc=IN IP4 {}",
    ],
)
def test_playlists_open_no_other_file(tmp_path, name, text):
    other = lossless(tmp_path / "a.mkv", pixels_of(2))
    (tmp_path / name).write_text(text.format(other))
    with pytest.raises(BadVideo, match="is no readable video"):
        VideoFile(tmp_path / name)


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadVideo, match=r"a\.txt is no video: its name must end in \.mp4, "):
        open_source(tmp_path / "a.txt")
    with pytest.raises(BadVideo, match="There is no file"):
        open_source(tmp_path / "b.mp4")
    with pytest.raises(BadVideo, match="is an address, from which nothing is read"):
        open_source("rtsp://host/a.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(BadVideo, match="has no images, only 1 other streams"):
        VideoFile(tmp_path / "sound.mkv")


def test_frames_larger_than_images_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrail.data.video.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadVideo, match=r"has frames of 64x48 pixels: at most 3,071 are read"):
        VideoFile(lossless(tmp_path / "a.mkv", pixels_of(1)))


def jpegs(size: tuple[int, int], count: int = 3) -> list:
    """Packets of Motion JPEG: each one is an image by itself."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width = size
    codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1, 25)
    frames = [av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in pixels_of(count, size)]
    return [packet for frame in (*frames, None) for packet in codec.encode(frame)]


def test_frames_that_change_their_size_are_read_up_to_there_and_refused(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for number, packet in enumerate([*jpegs((48, 64)), *jpegs((24, 48))]):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            container.mux(packet)
    frames = VideoFile(tmp_path / "a.mkv").frames()
    assert [next(frames).image.size for _ in range(3)] == [(64, 48)] * 3
    with pytest.raises(BadVideo, match=r"another size, 48x24, after 3 frames: cut it there"):
        next(frames)


class FakeCv2:
    """OpenCV with one camera of three frames."""

    COLOR_BGR2RGB = 4

    def __init__(self, made: np.ndarray):
        self.waiting, self.released = list(made), False

    def VideoCapture(self, number: int) -> FakeCv2:
        self.number = number
        return self

    def isOpened(self) -> bool:
        return self.number == 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.waiting.pop(0)[..., ::-1]) if self.waiting else (False, None)

    def cvtColor(self, pixels: np.ndarray, code: int) -> np.ndarray:
        assert code == self.COLOR_BGR2RGB
        return np.ascontiguousarray(pixels[..., ::-1])

    def release(self) -> None:
        self.released = True


def test_camera(monkeypatch):
    made = pixels_of(3)
    fake = FakeCv2(made)
    monkeypatch.setitem(__import__("sys").modules, "cv2", fake)
    source = open_source("0")
    assert isinstance(source, Camera)
    assert (source.name, source.stem, source.endless, source.count) == ("camera 0", "camera_0", True, None)
    frames = source.frames()
    for pixels in made:
        np.testing.assert_array_equal(np.asarray(next(frames).image), pixels)
    with pytest.raises(BadVideo, match="camera 0 gave no frame after 3"):
        next(frames)
    assert fake.released
    with pytest.raises(BadVideo, match="this machine has no camera 3"):
        open_source("3")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    lossless(tmp_path / "a.mkv", pixels_of(1))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r'This needs av, which is not installed: pip install -e "\.\[video\]"'):
        VideoFile(tmp_path / "a.mkv")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match="This needs cv2"):
        open_source("0")


def test_an_mp4_file_that_breaks_off_behind_its_index(tmp_path):
    written(tmp_path / "a.mp4", pixels_of(30))
    with (
        av.open(str(tmp_path / "a.mp4")) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", format="mp4", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "fast.mp4").read_bytes()
    assert VideoFile(tmp_path / "fast.mp4").count == 30
    (tmp_path / "short.mp4").write_bytes(
        content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2]
    )
    file = VideoFile(tmp_path / "short.mp4")
    assert 0 < len(list(file.frames())) < 30
    assert "is damaged: " in file.damage()


def test_some_frames_alone_are_converted(tmp_path, monkeypatch):
    made = pixels_of()
    file = VideoFile(lossless(tmp_path / "a.mkv", made))
    converted, real = [], video._upright
    monkeypatch.setattr(video, "_upright", lambda frame: (converted.append(1), real(frame))[1])
    found = list(file.frames(5))
    assert [frame.index for frame in found] == [0, 5, 10]
    assert len(converted) == 3
    np.testing.assert_array_equal(np.asarray(found[2].image), made[10])


def test_written_videos_have_their_rate_and_length(tmp_path):
    with av.open(str(written(tmp_path / "a.mp4", pixels_of(50, (48, 256))))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert float(stream.duration * stream.time_base) == pytest.approx(2)
