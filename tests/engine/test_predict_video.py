"""Predictions of the frames of videos and cameras: the same as of images, annotated videos, results in files."""

from __future__ import annotations

import csv
import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.data.video import Camera, Frame, VideoFile, VideoWriter
from vitrail.engine import predict_video as module
from vitrail.engine.predict_video import predict_video, predict_video_to_file
from vitrail.errors import Interrupted, UserError
from vitrail.factory import assemble, build_model

pytest.importorskip("av", reason="needs PyAV: the extra video")

FRAMES, RATE = 10, 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """A classifier and a segmenter whose outputs differ from frame to frame."""
    torch.manual_seed(0)
    folder, pre = tmp_path_factory.mktemp("weights"), Preprocess(image_size=(32, 32))
    classifier = build_model("mat_1", {"depths": [1, 1, 1, 1]}, 3)
    with torch.no_grad():
        classifier.get_classifier().weight.normal_(0, 3)  # type: ignore[operator]
    meta = WeightsMeta("mat_1", {"depths": [1, 1, 1, 1]}, classes=["a", "b", "c"], preprocess=pre)
    save_weights(folder / "classes.safetensors", classifier.state_dict(), meta)
    options = {"num_classes": 3, "channels": 16}
    segmenter = assemble("mat_1", "segformer", {"depths": [1, 1, 1, 1]}, options)
    settings = {"segmentation": {"short_side": 48, "max_side": 96}}
    meta = WeightsMeta(
        "mat_1",
        {"depths": [1, 1, 1, 1]},
        head="segformer",
        head_options=options,
        task="semantic_segmentation",
        classes=["road", "sky", "a name that takes a line of its own"],
        preprocess=pre,
        settings=settings,
    )
    save_weights(folder / "map.safetensors", segmenter.state_dict(), meta)
    return {"classes": folder / "classes.safetensors", "map": folder / "map.safetensors"}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Ten frames of 64 x 48 at five a second, each of another brightness."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer, rng = VideoWriter(path, (64, 48)), np.random.default_rng(1)
    for number in range(FRAMES):
        pixels = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        writer.add(Image.fromarray(pixels), number / RATE)
    writer.close()
    return path


def as_images(video: Path, folder: Path) -> list[str]:
    """The decoded frames as image files without loss."""
    names = []
    for frame in VideoFile(video).frames():
        frame.image.save(folder / f"{frame.index:03}.png")
        names.append(str(folder / f"{frame.index:03}.png"))
    return names


def test_frames_are_predicted_as_images_are(weights, video, tmp_path):
    model = vitrail.load(weights["classes"])
    images = model.predict(as_images(video, tmp_path))
    frames = model.predict(video)
    assert [one.prediction for one in frames] == [one.prediction for one in images]
    assert len({str(one.prediction) for one in frames}) > 5
    assert [one.frame for one in frames] == list(range(FRAMES))
    np.testing.assert_allclose([one.seconds for one in frames], np.arange(FRAMES) / RATE, atol=1e-4)
    assert frames[3].to_dict() == {
        "path": str(video),
        "frame": 3,
        "seconds": frames[3].seconds,
        **images[3].prediction.to_dict(),
    }
    assert frames[0].plot().width >= 64
    assert next(model.predict(video, stream=True)).frame == 0
    found = list(predict_video(weights["classes"], video, batch_size=1))
    assert [(one.frame, one.prediction.summary()) for one in found] == [
        (n, one.summary()) for n, one in enumerate(images)
    ]


@pytest.mark.parametrize(("every", "most", "numbers"), [(3, None, [0, 3, 6, 9]), (4, 2, [0, 4]), (1, 4, [0, 1, 2, 3])])
def test_some_frames(weights, video, every, most, numbers):
    found = predict_video(weights["classes"], video, every=every, max_frames=most)
    assert found.count == len(numbers)
    assert [one.frame for one in found] == numbers


@pytest.mark.parametrize("kind", ["classes", "map"])
def test_annotated_video_has_every_frame_at_its_time(weights, video, tmp_path, kind):
    found = predict_video(weights[kind], video, save=tmp_path / "seen", every=2)
    drawn = [
        one.prediction.draw(frame.image) for one, frame in zip(found, list(VideoFile(video).frames())[::2], strict=True)
    ]
    assert found.saved == str(tmp_path / "seen" / "clip.mp4")
    made = list(VideoFile(tmp_path / "seen" / "clip.mp4").frames())
    np.testing.assert_allclose([frame.seconds for frame in made], np.arange(0, FRAMES, 2) / RATE, atol=1e-4)
    for frame, expected in zip(made, drawn, strict=True):
        assert frame.image.width >= expected.width
        assert frame.image.height >= expected.height
        seen = np.asarray(frame.image)[: expected.height, : expected.width].astype(int)
        assert np.abs(seen - np.asarray(expected)).mean() < 20


def test_only_a_video_of_an_earlier_call_is_replaced(weights, video, tmp_path):
    for _ in range(2):
        list(predict_video(weights["classes"], video, save=tmp_path, max_frames=2))
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"clip\.mp4 was there before, or was changed since"):
        predict_video(weights["classes"], video, save=tmp_path)
    with pytest.raises(UserError, match=r"clip\.mp4 is read by this command, and never written over"):
        predict_video(weights["classes"], video, save=video.parent)
    results = iter(predict_video(weights["classes"], video, save=tmp_path / "other"))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "other" / "clip.mp4").exists()  # all or nothing


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_results_in_files(weights, video, tmp_path):
    found = [one.prediction.to_dict()["classes"] for one in predict_video(weights["classes"], video)]
    done = predict_video_to_file(weights["classes"], video, tmp_path / "a.csv")
    assert (done.images, done.resumed, done.failed) == (FRAMES, 0, 0)
    rows = rows_of(tmp_path / "a.csv")
    assert [row["frame"] for row in rows] == [str(number) for number in range(FRAMES)]
    assert {row["path"] for row in rows} == {str(video)}
    assert [float(row["seconds"]) for row in rows] == pytest.approx([n / RATE for n in range(FRAMES)], abs=1e-4)
    assert [row["class"] for row in rows] == [classes[0] for classes in found]
    predict_video_to_file(weights["classes"], video, tmp_path / "a.jsonl", every=5)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["path"], line["frame"], line["classes"]) for line in lines] == [
        (str(video), number, found[number]) for number in (0, 5)
    ]
    assert predict_video_to_file(weights["classes"], video, tmp_path / "a.csv").complete
    with pytest.raises(UserError, match="COCO's results are of images; take"):
        predict_video_to_file(weights["map"], video, tmp_path / "a.json")


def test_a_stopped_prediction_goes_on(weights, video, tmp_path, monkeypatch):
    predict_video_to_file(weights["classes"], video, tmp_path / "whole.csv", batch_size=2)
    predict, calls = module.Predictor.predict, []

    def stopping(self, prepared):
        calls.append(len(prepared))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, prepared)

    monkeypatch.setattr(module.Predictor, "predict", stopping)
    with pytest.raises(Interrupted, match="stopped with 4 results"):
        predict_video_to_file(weights["classes"], video, tmp_path / "a.csv", batch_size=2)
    done = predict_video_to_file(weights["classes"], video, tmp_path / "a.csv", batch_size=2)
    assert (done.images, done.resumed) == (FRAMES, 4)
    assert sum(calls) == 2 * 3 + FRAMES - 4
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


class OneCamera(Camera):
    """A camera that sees grey levels, and whose user stops after four frames."""

    def __init__(self):
        self.name, self.stem = "camera 0", "camera_0"

    def frames(self, every=1):
        for number in range(4):
            yield Frame(number, 0.1 * number, Image.new("RGB", (40, 30), (60 * number,) * 3))
        raise KeyboardInterrupt


def test_a_camera_is_stopped_by_the_user(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "open_source", lambda _: OneCamera())
    argv = ["predict", str(weights["classes"]), "--source", "0"]
    assert main([*argv, "--save", str(tmp_path / "seen")]) == 0
    captured = capsys.readouterr()
    assert "annotated video in" in captured.err
    assert "camera 0" in captured.out
    assert len(list(VideoFile(tmp_path / "seen" / "camera_0.mp4").frames())) == 4
    assert main([*argv, "--output", str(tmp_path / "a.csv"), "--max_frames", "3"]) == 0
    assert [row["frame"] for row in rows_of(tmp_path / "a.csv")] == ["0", "1", "2"]
    assert main([*argv, "--output", str(tmp_path / "b.csv")]) == 0
    assert len(rows_of(tmp_path / "b.csv")) == 4


def test_commands(weights, video, tmp_path, capsys):
    argv = ["predict", str(weights["classes"])]
    assert main([*argv, str(video), "--json", "--every", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["frame"] for one in found] == [0, 4, 8]
    assert set(found[0]) == {"path", "frame", "seconds", "classes", "probabilities", "saved"}
    assert main([*argv, "--source", str(video)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " s " in line]
    assert sum(int(row[4]) for row in rows) == FRAMES  # from, s, to, s, frames, found
    assert all(first[5] != second[5] for first, second in itertools.pairwise(rows))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("clip.mp4 a.png", "clip.mp4 is a video: predict it by a command of its own"),
        ("a.png --source clip.mp4", "--source clip.mp4 is all that is predicted: leave a.png out"),
        ("a.png --every 2", "--every is for a video or camera: name it with --source"),
        ("clip.mp4 --white 4095", "--white is for images, not for a video or camera"),
        ("clip.mp4 --output a.csv --shard 1/2", "--shard is for images, not for a video or camera"),
        ("clip.mp4 --every 0", "--every 0 must be at least 1"),
        ("clip.mp4 --max_frames 0", "--max_frames 0 must be at least 1"),
        ("clip.mp4 --save a --output a.csv", "give one of them"),
        ("none.mp4", "There is no file none.mp4"),
        ("--source http://host/a.mp4", "is an address, from which nothing is read"),
        ("", "vitrail predict needs IMAGES"),
    ],
)
def test_mistakes(weights, video, tmp_path, monkeypatch, capsys, line, says):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(video.read_bytes())
    Image.new("RGB", (40, 40)).save("a.png")
    assert main(["predict", str(weights["classes"]), *line.split()]) == 2
    assert says in capsys.readouterr().err


def test_one_process_predicts_a_video(weights, video, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for options in ({}, {"output": tmp_path / "a.csv"}):
        call = predict_video_to_file if options else predict_video
        with pytest.raises(UserError, match="A video is predicted by one process"):
            call(weights["classes"], video, **options)
    assert not list(tmp_path.iterdir())


def test_a_stop_between_two_frames_keeps_the_video(weights, tmp_path, monkeypatch):
    class Endless(OneCamera):
        def frames(self, every=1):
            for number in range(1000):
                yield Frame(number, 0.1 * number, Image.new("RGB", (40, 30)))

    monkeypatch.setattr(module, "open_source", lambda _: Endless())
    before = signal.getsignal(signal.SIGINT)
    found = predict_video(weights["classes"], "0", save=tmp_path / "seen")
    taken = []
    for result in found:
        taken.append(result.frame)
        if result.frame == 2:
            signal.raise_signal(signal.SIGINT)  # in the caller's loop
    assert taken == [0, 1, 2]
    assert len(list(VideoFile(tmp_path / "seen" / "camera_0.mp4").frames())) == 3
    assert signal.getsignal(signal.SIGINT) is before
