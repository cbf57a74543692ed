"""Image files, as `predict` takes them: which phase gets which seconds, and what is timed."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from dense_helpers import CASES, SHORT, weights_with
from vitrail.benchmark.folder import PHASES, Runner, rows_of_images
from vitrail.benchmark.networks import Build, Entry
from vitrail.cli import main
from vitrail.engine.predict import Predictor

QUICK = ["--rounds", "2", "--roofline", "false", "--device", "cpu"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(((48, 64), (64, 48), (40, 40))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_phases_on_a_clock_of_known_steps(images):
    """Reading, preprocessing, network and decoding lie between five readings of the clock, which step 1, 2, 3, 4."""
    steps = itertools.cycle([0.0, 1.0, 3.0, 6.0, 10.0])
    runner = Runner(Entry("mat_1", "a", Build(SHORT), (32, 32)), sorted(images.iterdir()), "cpu", lambda: next(steps))
    (row,) = rows_of_images([runner], sorted(images.iterdir()), 2, lambda: None)
    assert runner.seconds == [dict(zip(PHASES, (1.0, 2.0, 3.0, 4.0), strict=True))] * 6  # not the one of warm-up
    assert [row[f"{name}_ms"] for name in PHASES] == [1e3, 2e3, 3e3, 4e3]
    assert row["images_per_second"] == pytest.approx(1 / 10)
    assert row["network_images_per_second"] == pytest.approx(1 / 3)
    assert row["times_ms"] == [1e4] * 6
    assert row["predictions"] == 6


def test_time_between_two_passes_of_one_network_is_decoding(images):
    ticks = itertools.count()
    path = sorted(images.iterdir())[0]
    runner = Runner(Entry("mat_1", "a", Build(SHORT), (32, 32)), [path], "cpu", lambda: float(next(ticks)))
    predict = runner.predictor.predict
    runner.predictor.predict = lambda prepared: [predict(prepared), predict(prepared)][1]
    seconds, _ = runner.run(path)
    # 0 began, 1 read, 2-3 and 4-5 the network, 6 ended
    assert list(seconds.values()) == [1.0, 1.0, 2.0, 2.0]


def test_networks_take_turns_at_every_image(images, monkeypatch):
    paths = sorted(images.iterdir())
    runners = [Runner(Entry("mat_1", name, Build(SHORT), (32, 32)), paths, "cpu") for name in "ab"]
    order = []
    for runner in runners:
        monkeypatch.setattr(runner, "add", lambda path, name=runner.entry.name: order.append((name, path.name)))
        monkeypatch.setattr(runner, "row", dict)
    rows_of_images(runners, paths, 1, lambda: None)
    assert order == [(name, f"{i}.png") for i, pair in enumerate(("ab", "ba", "ab")) for name in pair]


def test_what_is_timed_is_what_predict_does(images, capsys, monkeypatch):
    """Weights of a task, image by image, at the size they were trained at."""
    (images / "broken.png").write_bytes(b"no image")
    weights = weights_with("semantic_fpn", *CASES["semantic_fpn"][:2], images.parent)
    seen = []
    original = Predictor.predict
    monkeypatch.setattr(
        Predictor,
        "predict",
        lambda self, prepared: seen.append([one.size for one in prepared]) or original(self, prepared),
    )
    assert main(["benchmark", weights, "--images", str(images), *QUICK, "--json"]) == 0
    done = capsys.readouterr()
    document = json.loads(done.out)
    (row,) = document["rows"]
    assert (row["weights"], row["image_size"], row["predictions"]) == ("its own", [96, 96], 6)
    assert row["images_per_second"] == pytest.approx(1e3 / sum(row[f"{name}_ms"] for name in PHASES))
    assert len(document["images"]) == 3
    assert "skipped: " in done.err
    assert "broken.png" in done.err
    assert seen == [[(64, 48)], *[[(64, 48)], [(48, 64)], [(40, 40)]] * 2]


def test_fresh_networks_say_so_and_a_table_s_speed_stands_beside(images, capsys):
    argv = ["--options_of", "lvt:4", "--images", str(images), "--image_size", "32"]
    assert main(["benchmark", *argv, "--rounds", "1", "--roofline", "false", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "LVT (fresh weights)" in out
    assert "45.5 images/s" in out
    assert "3 image(s), means; short side 32" in out


def test_a_folder_without_images_that_can_be_read(tmp_path, mistake):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "none of the 1 images could be read" in mistake("benchmark", "mat_1", "--images", str(tmp_path))
