"""What a weights file says of itself is checked, value by value, before anything is built from it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_weights import descriptions
from vitrail.checkpoint.description import MAX_NAME, MAX_TEXT, WeightsMeta, meta_from, parse_meta
from vitrail.config.data import Preprocess
from vitrail.errors import UserError
from vitrail.utils.plain import to_dict

CLASSIFIER = to_dict(WeightsMeta("mat_1", {"depths": [1, 1, 1, 1]}, classes=["a", "b", "c"]))
DETECTOR = to_dict(
    WeightsMeta(
        "mat_1",
        head="retinanet",
        head_options={"num_classes": 2, "min_size": [480, 800], "max_size": 1333, "image_mean": [0.5, 0.5, 0.5]},
        task="detection",
        classes=["a", "b"],
        settings={"detection": {"short_sides": [480, 800], "max_side": 1333}},
    )
)
PANOPTIC = {**DETECTOR, "task": "panoptic_segmentation", "head_options": {"num_things": 1, "num_stuff": 1}}
GREY = {
    **CLASSIFIER,
    "model_options": {"in_chans": 1},
    "preprocess": {"image_size": [28, 28], "mean": [0.5], "std": [0.25], "in_chans": 1},
}


def changed(good, place, value):
    """A copy with the value at a dotted place replaced, or removed for `...`."""
    out = json.loads(json.dumps(good))
    *way, last = place.split(".")
    inner = out
    for name in way:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return out


@pytest.mark.parametrize(
    "good", [CLASSIFIER, DETECTOR, PANOPTIC, GREY], ids=["classifier", "detector", "panoptic", "grey"]
)
def test_what_the_library_writes_comes_back(good):
    meta = parse_meta(json.dumps(good), "w.safetensors")
    assert to_dict(meta) == {**to_dict(WeightsMeta("mat_1")), **good, "preprocess": to_dict(meta.preprocess)}
    assert meta == meta_from(to_dict(meta))


def test_what_is_missing_has_its_default_and_what_a_later_version_says_is_left_out():
    later = {"model": "mat_1", "classes": ["a"], "colour": "blue", "preprocess": {"crop_pct": 1.0, "gamma": 2.2}}
    assert meta_from(later) == WeightsMeta("mat_1", classes=["a"], preprocess=Preprocess(crop_pct=1.0))


WRONG = [
    # types
    ("model", ..., "model is missing"),
    ("model", 5, "model must be a text, not 5"),
    ("model", None, "model must be a text"),
    ("model", ["mat_1"], "model must be a text"),
    ("model_options", [1], "model_options must be options by name"),
    ("model_options", None, "model_options must be options by name"),
    ("classes", {"a": 1}, r"classes must be a list \(a text each\)"),
    ("classes", 3, "classes must be a list"),
    ("classes", "abc", "classes must be a list"),
    ("classes", None, "classes must be a list"),
    ("classes", [1, 2, 3], "classes must be a text, not 1"),
    ("classes", ["a", None, "c"], "classes must be a text, not None"),
    ("classes", [], "names no classes"),
    ("head", 1, "head must be a text or null"),
    ("task", None, "task must be a text"),
    ("licence", ["MIT"], "licence must be a text or null"),
    ("note", 5, "note must be a text"),
    ("metrics", [1], "metrics must be options by name"),
    ("settings", "x", "settings must be options by name"),
    ("preprocess", "abc", "preprocess must hold options by name"),
    ("preprocess", None, "preprocess must hold options by name"),
    ("preprocess.image_size", None, "preprocess.image_size must be a list of 2"),
    ("preprocess.image_size", 224, "preprocess.image_size must be a list of 2"),
    ("preprocess.image_size", [224], "preprocess.image_size must be a list of 2"),
    ("preprocess.image_size", [224.0, 224.0], "preprocess.image_size must be a whole number"),
    ("preprocess.image_size", [True, True], "preprocess.image_size must be a whole number"),
    ("preprocess.mean", "abc", "preprocess.mean must be a list"),
    ("preprocess.mean", [0.5, "x", 0.5], "preprocess.mean must be a number"),
    ("preprocess.crop_pct", "x", "preprocess.crop_pct must be a number"),
    # ranges
    ("preprocess.image_size", [0, 224], "image_size"),
    ("preprocess.image_size", [-224, -224], "image_size"),
    ("preprocess.image_size", [100000, 100000], r"image_size=\(100000, 100000\) is not allowed"),
    ("preprocess.image_size", [8192, 8192], "image_size"),
    ("preprocess.image_size", [8193, 1], "image_size"),
    ("preprocess.mean", [0.5, 0.5], "mean"),
    ("preprocess.mean", [float("nan")] * 3, "mean must be a number"),
    ("preprocess.mean", [1e300] * 3, "mean"),
    ("preprocess.std", [0.2, 0.2, 0.0], "std"),
    ("preprocess.std", [0.2, 0.2, -0.2], "std"),
    ("preprocess.std", [1e-300] * 3, "std"),
    ("preprocess.std", [0.2] * 4, "std"),
    ("preprocess.crop_pct", 0, "crop_pct"),
    ("preprocess.crop_pct", 1.01, "crop_pct"),
    ("preprocess.crop_pct", float("inf"), "crop_pct"),
    ("preprocess.interpolation", "cubic", "interpolation='cubic' is not allowed; choose one of"),
    ("preprocess.in_chans", 1, "preprocess.in_chans=1 does not fit the network's model_options.in_chans=3"),
    ("preprocess.in_chans", 4, "in_chans=4 is not allowed"),
    ("model_options", {"in_chans": 4}, "in_chans=3 does not fit"),
    ("model_options", {"in_chans": 10**9}, "in_chans=3 does not fit"),
    ("model_options", {"in_chans": "3"}, "in_chans=3 does not fit"),
    ("preprocess.crop_pct", 1e-9, "crop_pct=1e-09 is not allowed; give a share from 0.1 to 1"),
    ("preprocess.crop_pct", 0.09, "crop_pct=0.09 is not allowed"),
    # how much
    ("classes", ["a", "b", "c" * (MAX_NAME + 1)], "A class's name has 1,001 characters"),
    ("classes", ["a", "b", "caf\udce9"], r"The name of class .* is no text in UTF-8"),
    ("classes", ["a", "b", "\ud83d"], r"The name of class .* is no text in UTF-8"),
    ("note", "x" * 20_001, "note has 20,001 characters"),
    ("model", "m" * 201, "model has 201 characters"),
    ("model_options", {"a": [0] * 3000}, "model_options is nested too deeply or too long"),
    ("model_options", {"a": [[[[[[[0]]]]]]]}, "model_options is nested too deeply or too long"),
    ("model_options", {"a": "x" * 5000}, "model_options holds a text of 5,000 characters"),
    # what no description says
    ("model_options", {"features_only": True}, "features_only"),
    ("model_options", {"device": "cuda:7"}, "device"),
    ("task", "detection", "the task 'detection' needs a head"),
    ("settings", {"output": "/etc"}, "settings.'output' is no group"),
    ("settings", {"data": {"root": "pipe:x"}}, "settings.'data' is no group"),
    ("settings", {"detection": {"max_sid": 5}}, "Unknown option 'settings.detection.max_sid'"),
    ("settings", {"detection": {"max_side": "5"}}, "settings.detection.max_side must be a whole number"),
    ("settings", {"detection": {"max_side": 10**6}}, "settings.detection.max_side 1000000 must be"),
    ("settings", {"segmentation": {"short_side": 10**6}}, "settings.segmentation.short_side 1000000 must be"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG, ids=[f"{p}={str(v)[:20]}" for p, v, _ in WRONG])
def test_each_wrong_value_is_named(place, value, sentence):
    text = json.dumps(changed(CLASSIFIER, place, value))
    with pytest.raises(UserError, match=sentence) as error:
        parse_meta(text, "w.safetensors")
    assert str(error.value).startswith("The description in w.safetensors cannot be used: ")
    assert len(str(error.value)) < 600


HEADED = [
    ("head_options.num_classes", 3, "names 2 classes, but head_options has num_classes=3"),
    ("head_options.num_classes", ..., "names 2 classes, but head_options has no number of classes"),
    ("head_options.num_classes", "2", "head_options.num_classes must be a whole number"),
    ("classes", ["a"], "names 1 classes, but head_options has num_classes=2"),
    ("head_options.max_size", 10**9, "head_options.min_size and max_size"),
    ("head_options.min_size", [800, 10**9], "head_options.min_size and max_size"),
    ("head_options.min_size", "800", "head_options.min_size must be"),
    ("head_options.image_size", [9000, 9000], "head_options.image_size"),
    ("head_options.image_mean", "abc", r"head_options\.image_mean must be a list"),
    ("head_options.image_mean", [0.5, 0.5], "mean=.* is not allowed"),
    ("head_options.image_std", [0.0, 0.0, 0.0], "std=.* is not allowed"),
    ("head_options.image_size", 300, "head_options.image_size must be"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), HEADED, ids=[f"{p}={str(v)[:20]}" for p, v, _ in HEADED])
def test_a_heads_wrong_values_are_named(place, value, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_meta(json.dumps(changed(DETECTOR, place, value)), "w.safetensors")


def test_a_heads_options_of_another_version_are_refused():
    """Before, the head for keypoints counted them in another option."""
    other = {**DETECTOR, "head": "simple_baseline", "task": "keypoints", "head_options": {"num_joints": 2}}
    with pytest.raises(UserError, match="another version of vitrail: train the network again"):
        parse_meta(json.dumps(other), "w.safetensors")


def test_things_and_stuff_add_up():
    with pytest.raises(UserError, match="names 2 classes, but head_options has num_things=1 and num_stuff=2"):
        meta_from(changed(PANOPTIC, "head_options.num_stuff", 2))


@pytest.mark.parametrize("text", ["[]", "null", "5", '"mat_1"', "", "{", "[" * 100_000 + "]" * 100_000, "NaN", "\x00"])
def test_what_is_no_description(text):
    with pytest.raises(UserError, match=r"The description in w\.safetensors cannot be used"):
        parse_meta(text, "w.safetensors")


def test_a_description_too_long_is_not_read():
    with pytest.raises(UserError, match="has 8,388,609 characters"):
        parse_meta(" " * (MAX_TEXT + 1), "w.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.one_of(descriptions(CLASSIFIER), descriptions(DETECTOR)))
def test_any_change_gives_a_description_or_one_sentence(values):
    text = json.dumps(values)
    try:
        meta = parse_meta(text, "w.safetensors")
    except UserError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert meta_from(json.loads(json.dumps(to_dict(meta)))) == meta
    assert sentence.isprintable()
    assert len(sentence) < 1500
