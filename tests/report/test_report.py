"""The page about a run: its numbers are those of `vitrail evaluate`, and its names are text."""

import contextlib
import io
import json
import shlex
import shutil
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from browser_helpers import Reader, browser, check_everywhere
from option_walk import TASKS, plain_run
from vitrail.checkpoint.load import notes
from vitrail.cli import main
from vitrail.cli import train as train_command
from vitrail.cli.parsing import read
from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.base import ArraySet
from vitrail.engine.trainer import fit
from vitrail.errors import UserError
from vitrail.report import classification, dense, parts
from vitrail.report.classified import Classified
from vitrail.report.report import report
from vitrail.report.run import Run, command_of, read_run
from vitrail.report.subject import open_subject
from vitrail.structures import Detections, PanopticSegments, Poses, SegmentationMap

pytestmark = pytest.mark.filterwarnings("ignore")


def printed(*argv: str):
    """The JSON document that a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*argv, "--json"]) == 0
    return json.loads(out.getvalue())


class Page(HTMLParser):
    """The cells of a page's tables by caption, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.texts, self.elements, self._row = {}, [], [], None
        self.caption = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "table":
            self.caption = dict(attrs).get("aria-label", "")
            self.tables[self.caption] = []
        elif tag == "tr":
            self.tables[self.caption].append([])
        elif tag in ("td", "th"):
            value = dict(attrs).get("data-value")
            self.tables[self.caption][-1].append("" if value is None else float(value))
            self._row = self.tables[self.caption][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._row = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._row is not None and not isinstance(self._row[-1], float):
            self._row[-1] += data


# ---- numbers ----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_evaluate(run, tmp_path):
    file = tmp_path / "a.html"
    found = printed("report", str(run), "--output", str(file), "--rounds", "1", "--examples", "2")
    metrics = printed("evaluate", str(run))
    assert metrics.pop("images_per_second") > 0
    assert found["metrics"] == metrics
    assert found["measured"]
    assert found["finished"]
    page = Page(file.read_text())
    shown = {row[0]: row[1] for row in page.tables["metrics"][1:]}
    assert shown == {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    classes = page.tables["classes"][1:]
    assert [row[2] for row in classes] == [row["accuracy"] for row in metrics["per_class"]]
    assert [row[1] if row[1] != "–" else None for row in classes] == [row["precision"] for row in metrics["per_class"]]
    assert [row[-1] for row in classes] == [3, 3, 3]
    assert found["costs"]["eager"]["rounds"] == 1
    assert file.stat().st_size < 4_000_000


def test_a_page_is_the_same_each_time(run, tmp_path):
    texts = []
    for name in ("a.html", "b.html"):
        report(run, output=tmp_path / name, rounds=0, examples=2)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]


def test_the_command_starts_the_same_run(base):
    made = [plain_run(task, base) for task in TASKS]
    made.append(replace(TrainConfig(), augment=replace(AugmentConfig(), mixup=0.5), lr=0.1, iterations=3, epochs=None))
    for config in made:
        argv = shlex.split(command_of(config))
        assert argv[:2] == ["vitrail", "train"]
        assert TrainConfig(**read(train_command.parser(), argv[2:]).values) == config


def test_without_its_data_the_page_says_so(run, base, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recipe = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(recipe.replace(str(base / "hostile"), str(tmp_path / "gone")))
    found = report(copy, output=tmp_path / "a.html", rounds=0)
    assert not found["measured"]
    assert any(sentence.startswith("Nothing could be measured") for sentence in found["notes"])
    assert found["metrics"] == read_run(run).metrics
    text = (tmp_path / "a.html").read_text()
    assert "Nothing could be measured" in text
    assert "Curves" in text
    # the data at another place
    moved = report(copy, DataConfig(name="folder", root=str(base / "hostile")), output=tmp_path / "a.html", rounds=0)
    assert moved["measured"]
    assert moved["metrics"]["top1"] == pytest.approx(found["metrics"]["top1"])


def test_an_unfinished_run(base, tmp_path):
    config = replace(plain_run("classification", base), output=str(tmp_path / "run"), epochs=4, max_steps=2)
    fit(config)
    (tmp_path / "run" / "summary.json").unlink()
    found = report(tmp_path / "run", output=tmp_path / "a.html", rounds=0)
    assert not found["finished"]
    assert found["notes"][0].startswith("The run is not finished: 1 of 4 epochs")
    assert found["measured"]
    (tmp_path / "run" / "best.safetensors").unlink()
    found = report(tmp_path / "run", output=tmp_path / "a.html", rounds=0)
    assert found["metrics"] == {}
    assert found["costs"] is None
    assert "it has saved no weights yet" in (tmp_path / "a.html").read_text()


def test_epochs_without_a_row_are_counted():
    measured: list[dict[str, float | None]] = [{"epoch": 2.0}, {"epoch": 4.0}]
    assert Run(Path("a"), TrainConfig(epochs=6, eval_every=2), measured, {}).epochs == 4
    assert Run(Path("a"), TrainConfig(), [], {}).epochs == 0


def test_stored_metrics_alone(run, tmp_path):
    found = report(run, output=tmp_path / "a.html", evaluate=False, rounds=0)
    assert not found["measured"]
    assert found["metrics"] == read_run(run).metrics
    assert "Confusion matrix" not in (tmp_path / "a.html").read_text()


def test_printed_results_stand_beside_the_own():
    subject = open_subject("random:mat_1")
    subject.metrics = {"top1": 75.0}
    page = Page(parts.reported_part(subject).markup)
    rows = {(row[0], row[3]): row for row in page.tables["printed results"][1:]}
    row = next(row for row in rows.values() if row[3] == "top-1" and row[4].startswith("76.2"))
    assert row[4] == "76.2* %"  # its caveat stands above the table
    assert "top-1 of" in "".join(page.texts)
    assert row[5] == 75.0
    assert row[6] == "–"  # not measured on ImageNet
    subject = open_subject("timm:resnet10t")
    assert parts.reported_part(subject) is None
    assert subject.network is not None
    assert notes(subject.network) == ["fresh random weights"]  # the licence of its trained weights is not theirs


def test_differences_from_printed_results_are_of_the_same_images():
    subject = open_subject("random:mat_1")
    subject.metrics = {"top1": 75.0}
    for data, difference in (
        (DataConfig("imagenet"), pytest.approx(75.0 - 76.2)),
        (DataConfig("imagenet", limit=50), "–"),
        (DataConfig("imagenet", val_split="train"), "–"),
        (DataConfig("imagenet_v2"), "–"),
    ):
        subject.evaluation = SimpleNamespace(data=data)
        rows = Page(parts.reported_part(subject).markup).tables["printed results"][1:]
        assert next(row for row in rows if row[4].startswith("76.2"))[6] == difference


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_refusals(run, tmp_path, base):
    (tmp_path / "notes.html").write_text("<html>mine</html>")
    (tmp_path / "empty").mkdir()
    page = {"output": tmp_path / "a.html", "rounds": 0}
    for call, reason in (
        (lambda: report(tmp_path / "empty", **page), "has no config.yaml"),
        (lambda: report(run / "best.safetensors", **page), "is no folder"),
        (lambda: report(run, output=tmp_path / "notes.html"), "never written over"),
        (lambda: report(run, output=tmp_path / "a.pdf"), "must end in .html"),
        (lambda: report(run, examples=65, **page), "--examples 65 is not allowed"),
        (lambda: report(run, **{**page, "rounds": -1}), "--rounds -1 is not allowed"),
        (lambda: report(run, batch_size=2, evaluate=False, **page), "--batch_size has no effect"),
        (lambda: report(run, DataConfig(name="folder", root=str(tmp_path / "gone")), **page), "gone"),
    ):
        with pytest.raises(UserError, match=reason):
            call()
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,lr\n0,x\n"),
        ("metrics.csv", "epoch,lr\n0,1,2\n"),
        ("summary.json", "[1]"),
        ("summary.json", "{"),
        ("summary.json", '{"metrics": {"per_class": "x"}}'),
        ("summary.json", '{"metrics": {"per_class": [{"class": 1}]}}'),
        ("summary.json", '{"metrics": {"top1": [1]}}'),
        ("summary.json", '{"metrics": {"calibration": [{"above": 0}], "ece": 1}}'),
        ("config.yaml", "model: [1]\n"),
    ],
)
def test_a_damaged_run_is_refused(run, tmp_path, name, content):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UserError, match=name.partition(".")[0]):
        report(tmp_path / "run", output=tmp_path / "a.html", rounds=0)


def test_of_many_classes_the_confusions_are_listed():
    count, images = 150, 600
    rng = np.random.default_rng(0)
    truth = rng.integers(0, count, images)
    found = np.where(rng.random(images) < 0.5, truth, (truth + 1) % count)
    names = [f"class {i}" for i in range(count)]
    data = ArraySet(rng.integers(0, 255, (images, 8, 8, 3), dtype=np.uint8), truth, names, "made")
    chances = np.full(images, 0.5)
    seen = Classified(data, names, np.arange(images), truth=truth, found=found, best=chances, own=chances)
    page = Page(classification.confusion_part(seen, 1).markup)
    rows = page.tables["confusions"][1:]
    assert len(rows) == classification.LISTED
    numbers = {(t, f): int(((truth == t) & (found == f)).sum()) for t, f in zip(truth, found, strict=True) if t != f}
    assert [row[2] for row in rows] == sorted(numbers.values(), reverse=True)[: len(rows)]
    assert page.elements.count("img") == len(rows)


# ---- one image --------------------------------------------------------------------------------------------------


def boxes(labels, where, scores=None):
    return Detections("ab", np.array(where, float).reshape(-1, 4), np.array(labels), scores)


def test_quality_of_boxes():
    truth = boxes([0, 1], [[0, 0, 10, 10], [20, 20, 30, 30]])
    assert dense.quality(truth, boxes([0, 1], truth.boxes, np.array([0.9, 0.6]))) == 1
    # too unsure, another class, too far away, the same object twice
    assert dense.quality(truth, boxes([0, 1], truth.boxes, np.array([0.9, 0.4]))) == pytest.approx(2 / 3)
    assert dense.quality(truth, boxes([1, 0], truth.boxes, np.array([0.9, 0.9]))) == 0
    assert dense.quality(truth, boxes([0], [[6, 0, 16, 10]], np.array([0.9]))) == 0
    assert dense.quality(truth, boxes([0, 0], [[0, 0, 10, 10]] * 2, np.array([0.9, 0.8]))) == 0.5
    assert dense.quality(boxes([], []), boxes([], [], np.array([]))) is None


def test_box_iou():
    assert dense.box_iou([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)
    assert dense.box_iou([0, 0, 1, 1], [1, 1, 2, 2]) == 0


def test_quality_of_maps_segments_and_keypoints():
    truth = SegmentationMap("ab", np.array([[0, 0, 1, 255]], dtype=np.uint8))
    found = SegmentationMap("ab", np.array([[0, 1, 1, 0]], dtype=np.uint8))
    assert dense.quality(truth, found) == pytest.approx(0.5)  # 1/2 and 1/2
    segments = [{"id": 1, "label": 0, "thing": True, "score": 1.0, "area": 2}]
    whole = PanopticSegments(["a"], np.array([[1, 1]]), segments)
    assert dense.quality(whole, whole) == 1
    assert dense.quality(whole, PanopticSegments(["a"], np.array([[0, 0]]), [])) == 0
    pose = np.array([[[0, 0, 1], [100, 0, 1], [0, 50, 0]]], float)
    assert dense.quality(Poses("abc", pose), Poses("abc", pose + np.array([9, 0, 0]))) == 1
    assert dense.quality(Poses("abc", pose), Poses("abc", pose + np.array([[0, 0, 0], [11, 0, 0], [99, 0, 0]]))) == 0.5


# ---- in the browser ---------------------------------------------------------------------------------------------


def test_page_in_the_browser(run, tmp_path):
    file = tmp_path / "a.html"
    report(run, output=file, rounds=1, examples=3)
    with browser() as started:
        check_everywhere(started, file)
        reader = Reader(started, file, "phone", "dark")
        cell = reader.page.locator("svg a[href^='#cell-']").first
        target = cell.get_attribute("href")
        assert not reader.page.locator(target).is_visible()
        cell.click()
        assert reader.page.locator(target).is_visible()
        assert reader.page.locator(f"{target} img").count() > 0
        text = reader.page.inner_text("body")
        assert "<script>alert(1)<" in text
        assert "<img src=x onerror=alert(2)>" in text
        assert "\u202e" not in text
        assert reader.trouble == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS[1:])
def test_pages_of_all_tasks(base, tmp_path, task):
    fit(replace(plain_run(task, base), epochs=2, output=str(tmp_path / "run")))
    found = printed("report", str(tmp_path / "run"), "--output", str(tmp_path / "a.html"), "--rounds", "1")
    measured = printed("evaluate", str(tmp_path / "run"))
    assert found["metrics"] == {name: value for name, value in measured.items() if not name.endswith("_per_second")}
    with browser() as started:
        check_everywhere(started, tmp_path / "a.html")


def test_page_of_a_network_with_a_head(segmenter, tmp_path):
    found = printed("report", str(segmenter), "--output", str(tmp_path / "a.html"), "--rounds", "0", "--examples", "1")
    metrics = printed("evaluate", str(segmenter))
    assert metrics.pop("images_per_second") > 0
    assert found["metrics"] == metrics
    text = (tmp_path / "a.html").read_text()
    assert "Annotations left" in text
    assert "Pixels by true and predicted class" in text
    assert "Last block of each stage" in text  # the spectra of its backbone
    assert 'alt="class activation map, ' in text
