"""Runs, weights and models side by side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from browser_helpers import Reader, browser, check_everywhere
from vitrail.checkpoint.format import meta_of, set_meta
from vitrail.config.data import DataConfig
from vitrail.engine.evaluate import evaluate
from vitrail.errors import UserError
from vitrail.report.classified import Classified
from vitrail.report.compare import agreement, compare
from vitrail.report.spectra import spectra_part
from vitrail.report.subject import open_subject, short_names

pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_runs_on_the_same_images(run, other_run, tmp_path):
    found = compare([run, other_run], output=tmp_path / "a.html", rounds=2, examples=2)
    assert found["same_data"] is True
    for one, source in zip(found["networks"], (run, other_run), strict=True):
        assert one["metrics"] == evaluate(source)
        assert one["costs"]["eager"]["rounds"] == 2
    (pair,) = found["pairs"]
    counts = [pair[name] for name in ("both", "only_one", "only_other", "none")]
    assert sum(counts) == 9
    top1 = [one["metrics"]["top1"] for one in found["networks"]]
    assert [100 * (counts[0] + counts[i]) / 9 for i in (1, 2)] == pytest.approx(top1)
    with browser() as started:
        check_everywhere(started, tmp_path / "a.html")
        reader = Reader(started, tmp_path / "a.html", "phone")
        assert "<script>alert(1)<" in reader.page.inner_text("body")
        assert reader.trouble == []


def test_other_data_are_not_ranked(run, other_run, base, tmp_path):
    # the other run's recipe names other images
    recipe = other_run / "config.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("val_split: validation", "val_split: train"))
    try:
        found = compare([run, other_run], output=tmp_path / "a.html", rounds=0, examples=1)
    finally:
        recipe.write_text(text)
    assert found["same_data"] is False
    assert found["pairs"] == []
    page = (tmp_path / "a.html").read_text()
    assert "Measured on different data" in page
    for title in ("Agreement", "Disagreements"):
        assert title not in page
    assert ">apart<" not in page


def test_unlike_tasks_share_only_the_common_part(run, segmenter, tmp_path):
    found = compare([run, segmenter, "mat_1"], output=tmp_path / "a.html", rounds=0)
    assert found["notes"][0].startswith("The tasks differ")
    assert [one["costs"] is not None for one in found["networks"]] == [True, True, True]
    page = (tmp_path / "a.html").read_text()
    assert "Costs" in page
    assert "Curves" not in page


def test_names_have_costs_only(run, base, tmp_path):
    found = compare([run, "random:mat_1"], output=tmp_path / "a.html", rounds=0)
    assert found["networks"][1]["metrics"] == {}
    assert any("the weights are fresh" in sentence for sentence in found["notes"])
    # weights without a run know no data, unless it is named
    data = DataConfig(name="folder", root=str(base / "hostile"))
    found = compare([run, run / "best.safetensors"], data, output=tmp_path / "a.html", rounds=0)
    assert found["same_data"] is True
    assert found["pairs"][0]["p"] == 1
    assert found["networks"][0]["metrics"] == found["networks"][1]["metrics"]


def test_segmentations_beside_each_other(segmenter, base, tmp_path):
    data = DataConfig(name="ade20k", root=str(base / "masks0"))
    found = compare([segmenter, segmenter / "best.safetensors"], data, output=tmp_path / "a.html", rounds=0, examples=1)
    assert found["same_data"] is True
    page = (tmp_path / "a.html").read_text()
    assert page.count("mIoU of the image") == 1
    assert "annotated: " in page
    assert "Highest frequency, by depth" in page  # of their backbones
    assert "Last block of each stage" not in page


def test_spectra_say_which_network_has_none(segmenter, base):
    data = DataConfig(name="ade20k", root=str(base / "masks0"))
    subjects = [open_subject(str(segmenter)), open_subject(str(segmenter / "best.safetensors"))]
    for subject in subjects:
        subject.measure(data, None, "cpu")
    other = subjects[1].network
    assert other is not None
    meta = meta_of(other)
    set_meta(other, replace(meta, preprocess=replace(meta.preprocess, image_size=(32, 64))))
    page = spectra_part([("one", subjects[0]), ("other", subjects[1])])
    assert page is not None
    assert "other has no spectra: its input is not square." in page.markup
    assert spectra_part([("other", subjects[1])]) is None


def test_refusals(run, tmp_path):
    page = {"output": tmp_path / "a.html", "rounds": 0}
    (tmp_path / "a.onnx").write_bytes(b"")
    for sources, reason in (
        ([run], "2 to 12"),
        ([run, run], "named twice"),
        ([run, f"{run}/../{Path(run).name}"], "named twice"),
        ([run, "mat_9"], "mat_9"),
        ([run, "timm:resnet1"], "resnet1"),
        ([run, tmp_path / "a.onnx"], "is an exported file"),
        ([run, tmp_path], "has no config.yaml"),
    ):
        with pytest.raises(UserError, match=reason):
            compare(sources, **page)
    with pytest.raises(UserError, match="no effect"):
        compare([run, "mat_1"], DataConfig(), evaluate=False, **page)
    for other in ("mat_1", run / "best.safetensors"):
        with pytest.raises(UserError, match="--examples has no effect"):
            compare([run, other], examples=2, **page)
    assert not (tmp_path / "a.html").exists()


# ---- definitions ------------------------------------------------------------------------------------------------


def test_agreement_compares_classes_by_name():
    truth, found = np.array([0, 1, 1]), np.array([0, 1, 0])
    one = Classified(None, ["a", "b"], np.arange(3), truth, found, np.ones(3), np.ones(3))
    # the same answers, numbered the other way round
    other = Classified(None, ["b", "a"], np.arange(3), 1 - truth, 1 - found, np.ones(3), np.ones(3))
    expected = {"both": 2, "only_one": 0, "only_other": 0, "none": 1, "same": 3, "p": 1.0}
    assert agreement(one, other) == expected


def test_agreement_tests_the_images_that_only_one_has_right():
    truth = np.zeros(8, int)
    one, other = (
        Classified(None, ["a", "b"], np.arange(8), truth, np.array(found), np.ones(8), np.ones(8))
        for found in ([0] * 6 + [1] * 2, [0] + [1] * 7)
    )
    # five images only the first has right: heads five times or tails five times
    assert agreement(one, other) == {
        **{"both": 1, "only_one": 5, "only_other": 0, "none": 2, "same": 3},
        "p": pytest.approx(2 / 2**5),
    }


def test_short_names(tmp_path):
    for name in ("a/run", "b/run", "c"):
        (tmp_path / name).mkdir(parents=True)
    assert short_names([str(tmp_path / "a/run"), str(tmp_path / "c")]) == ["run", "c"]
    assert short_names([str(tmp_path / "a/run"), str(tmp_path / "b/run")]) == ["a/run", "b/run"]
    assert short_names(["mat_1", str(tmp_path / "c")]) == ["mat_1", "c"]
