"""`vitrail explain`: methods on image files, drawn on the originals."""

import contextlib
import dataclasses
import json
import typing
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitrail
from vitrail.analysis.explain import METHODS, MethodName, _scale, class_number, explain, input_pixel, true_classes
from vitrail.analysis.overlay import input_window
from vitrail.analysis.scores import NotFound
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.data.transforms.classification import eval_transform
from vitrail.errors import UserError

SMALL = {"depths": [1, 1, 1, 1]}
CLASSES = ["cat", "dog", "[bold]"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A small classifier's weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = timm.create_model("mat_1", num_classes=3, **SMALL)
    preprocess = Preprocess((64, 64), crop_pct=0.9)
    save_weights(path, network.state_dict(), WeightsMeta("mat_1", SMALL, classes=CLASSES, preprocess=preprocess))
    return str(path)


@pytest.fixture
def images(tmp_path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.png", (60, 90)), ("b.jpg", (131, 80))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def test_methods_are_the_choices():
    assert set(METHODS) == set(typing.get_args(MethodName))


def test_drawings_of_files_and_what_cannot_be_read(weights, images, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["explain", weights, str(images), "--save", str(out)]
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [Path(one["path"]).name for one in told] == ["a.png", "b.jpg", "broken.png"]
    assert told[2]["error"]
    assert told[2]["saved"] is None
    assert "skipped" in captured.err
    assert told[0]["about"]["layer"] == "stages.3"
    assert told[0]["about"]["model"] == "mat_1"
    assert told[0]["about"]["weights"] == weights
    assert {path.name for path in out.glob("*.png")} == {"a.gradcam.png", "b.gradcam.png"}
    drawn = Image.open(out / "a.gradcam.png")
    assert drawn.width > 90
    assert drawn.height > 60
    assert main(argv) == 0  # its own drawings are replaced
    captured = capsys.readouterr()
    assert "stages.3 speaks for " in captured.out
    assert any(name in captured.out for name in CLASSES)
    assert "2 drawings" in captured.err
    Image.new("RGB", (3, 3)).save(out / "a.gradcam.png")
    assert main(argv) == 2
    assert "never written over" in capsys.readouterr().err


def test_the_class_and_the_layer_asked_for(weights, images):
    found = explain(weights, images / "a.png", class_name="dog", layer="stages.1", device="cpu", note=str)
    (one,) = list(found)
    assert one.analysis.about["classes"] == [1]
    assert one.analysis.about["layer"] == "stages.1"
    assert one.analysis.arrays["map"].values.shape == (1, 8, 8)


def test_names_and_numbers_of_classes():
    assert class_number("dog", CLASSES) == 1
    assert class_number("2", CLASSES) == 2
    assert class_number("0", ["3", "0"]) == 1  # a name counts before a number
    with pytest.raises(UserError, match="did you mean dog"):
        class_number("dgo", CLASSES)
    for wrong in ("3", "-1"):
        with pytest.raises(UserError, match="from 0 to 2"):
            class_number(wrong, CLASSES)


def test_true_classes_by_folder_or_name():
    paths = [Path("x/dog/1.png"), Path("cat/2.png")]
    assert true_classes(paths, CLASSES, None) == [1, 0]
    assert true_classes(paths, CLASSES, 2) == [2, 2]
    with pytest.raises(UserError, match=r"true class of y/1\.png is not known"):
        true_classes([Path("y/1.png")], CLASSES, None)


def test_a_pixel_of_the_original_in_the_input():
    wide, same = (input_window(size, Preprocess((32, 32), crop_pct=1.0)) for size in ((100, 50), (32, 32)))
    assert input_pixel((74, 49), [wide], [Path("a")]) == (31, 31)
    with pytest.raises(UserError, match="lies outside a, which has 100 x 50"):
        input_pixel((100, 0), [wide], [Path("a")])
    with pytest.raises(UserError, match=r"cropped off a .* x from 25 to 75"):
        input_pixel((10, 10), [wide], [Path("a")])
    with pytest.raises(UserError, match="other sizes"):
        input_pixel((30, 30), [wide, same], [Path("a"), Path("b")])


def test_mistakes(mistake, weights, images, tmp_path):
    image = str(images / "a.png")
    assert "needs trained weights" in mistake("explain", "random:mat_1", image)
    assert "exported file" in mistake("explain", "a.onnx", image)
    layer = ("explain", weights, image, "--layer")
    assert "did you mean stages.3" in mistake(*layer, "stage.3")
    assert "its blocks are stages.0.blocks.0 to stages.3.blocks.0." in mistake(*layer, "classifier")
    assert "gives no map" in mistake(*layer, "head")
    assert "did you mean dog" in mistake("explain", weights, image, "--class", "dogg")
    assert "--method" in mistake("explain", weights, image, "--method", "gradcan")
    assert "--at is for --method attention" in mistake("explain", weights, image, "--at", "3", "4")
    at = ("explain", weights, image, "--method", "attended_region", "--at")
    assert "which has 90 x 60 pixels" in mistake(*at, "90", "4")
    assert "cropped off" in mistake(*at, "1", "4")
    assert "--class is for --method gradcam and interactions" in mistake(*at, "45", "30", "--class", "dog")


def test_images_none_of_which_can_be_read(weights, images, capsys):
    for method in set(METHODS) - {"predictions"}:
        own = ["--class", "cat"] if method == "interactions" else []
        assert main(["explain", weights, str(images / "broken.png"), "--method", method, *own]) == 2
        assert "None of the 1 images" in capsys.readouterr().err


def test_regions_are_drawn_on_each_image(weights, images, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["explain", weights, str(images), "--method", "attended_region", "--at", "40", "30", "--save", str(out)]
    assert main([*argv, "--layer", "stages.1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.glob("*.png")} == {"a.attended_region.png", "b.attended_region.png"}
    # 40 of 90 columns, through a resize to 71 rows and a crop of 64 x 64, in a map of 8 x 8
    assert told[0]["about"]["position"] == [3, 4]
    assert told[0]["region"]["axes"] == ["y", "x"]


@pytest.mark.parametrize("at", [(), ("--at", "40", "30")])
def test_attention_is_drawn_on_each_image(weights, images, tmp_path, capsys, at):
    out = tmp_path / "out"
    argv = ["explain", weights, str(images / "a.png"), "--method", "attention", *at, "--save", str(out)]
    assert main([*argv, "--layer", "stages.2.blocks.0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any(key.endswith("rollout") for key in told[0])
    drawn = Image.open(out / "a.attention.png")
    assert drawn.width > 90 * 3  # a map beside the other
    assert drawn.height > 60 * 2  # six maps in two rows


def test_the_scale_of_a_map_tells_a_uniform_one_from_others():
    assert _scale(np.array([[0.25, 0.25]])) == "share of the maximum, which is 0.25; the least is 0.25"
    assert _scale(np.array([[0.5, np.nan, 2.0]])) == "share of the maximum, which is 2; the least is 0.5"
    assert _scale(np.array([[-1.5, 2.0]])) == "from the least, -1.5, to the most, 2"


def test_four_queries_in_one_figure(weights, images, tmp_path, mistake, capsys):
    argv = ["explain", weights, str(images / "a.png"), "--method", "attention", "--layer", "stages.2.blocks.0"]
    four = ["--at", "40", "30", "--at", "20", "20", "--at=[60,40]", "--at", "[50,50]"]
    assert main([*argv, *four, "--save", str(tmp_path / "out"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert len(told["about"]["at"]) == 4
    assert told["about"]["class_names"][0].split(" (")[0] in CLASSES
    drawn = Image.open(tmp_path / "out" / "a.attention.png")
    assert drawn.width == 4 * 320  # a column for each place
    at = ("explain", weights, str(images / "a.png"), "--method")
    assert "looks at one place" in mistake(*at, "attended_region", *four)
    assert "--at 10000 3 lies outside" in mistake(*at, "attention", *four, "--at", "10000", "3")
    for wrong in (["3"], ["-3", "4"], ["3", "x"]):
        assert "--at needs 2 whole numbers" in mistake(*at, "attention", "--at", *wrong)
    assert "--budget needs 4 whole numbers" in mistake(*at, "interactions", "--budget", "4", "8")


def test_interactions_of_images_in_folders_of_their_class(weights, mistake, tmp_path, capsys):
    network, rng = vitrail.load(weights), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = network.predict(image).prediction.classes[0]
    (tmp_path / found).mkdir()
    image.save(tmp_path / found / "a.png")
    assert main(["explain", weights, str(tmp_path / found), "--method", "interactions", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told[0]["about"]["images"] == 1
    argv = ["explain", weights, str(tmp_path / found), "--method", "interactions", "--budget", "9", "2", "1"]
    assert main([*argv, "13"]) == 0
    assert "1 image, 2 pairs, 1 context, 13 orders" in " ".join(capsys.readouterr().out.split())
    assert "7 or 13" in mistake(*argv, "8")
    assert "--budget with 0 is not allowed" in mistake(*argv[:5], "--budget", "9", "0", "1", "7")


def test_one_place_of_images_of_several_sizes(weights, images, capsys):
    argv = ["explain", weights, str(images), "--method", "receptive_field"]
    assert main([*argv, "--at", "40", "30"]) == 2
    assert "images of one size" in capsys.readouterr().err
    assert main(argv) == 0
    assert "support" not in capsys.readouterr().err


def test_methods_that_take_the_images_together(weights, images, tmp_path, capsys):
    argv = ["explain", weights, str(images), "--method", "spectrum", "--save", str(tmp_path / "out")]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["path"] is None for one in told] == [False, True]
    assert told[1]["about"]["images"] == 2
    assert Path(told[1]["saved"]).name == "spectrum.png"
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "2 images" in captured.out
    assert "1 drawing" in captured.err


@pytest.mark.parametrize("method", ["spectrum", "receptive_field", "similarity"])
def test_many_images_stream(weights, images, monkeypatch, method):
    from vitrail.analysis import explain as room

    rng = np.random.default_rng(1)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(images / f"c{i}.png")
    whole = list(explain(weights, images, method=method, note=str))
    monkeypatch.setattr(room, "BATCH", 2)
    streamed = list(explain(weights, images, method=method, note=str))
    assert [one.error is None for one in streamed] == [False, True]
    assert streamed[1].analysis.about["images"] == 6
    assert streamed[1].analysis.about["weights"] == weights
    names = ["a.png", "b.jpg", "c0.png", "c1.png", "c2.png", "c3.png"]
    assert [Path(one).name for one in streamed[1].analysis.about["image_files"]] == names
    assert streamed[1].analysis.summary() == whole[1].analysis.summary()
    for name, array in whole[1].analysis.arrays.items():
        np.testing.assert_allclose(streamed[1].analysis.arrays[name].values, array.values, atol=1e-4)


def test_no_more_than_a_batch_of_images_is_kept(weights, images, monkeypatch):
    from vitrail.analysis import explain as room

    for i in range(7):
        Image.new("RGB", (70, 70), (20 * i, 0, 0)).save(images / f"c{i}.png")
    alive, most = weakref.WeakSet(), []
    prepared = room.eval_transform

    def counted(preprocess):
        def transform(image):
            found = prepared(preprocess)(image)
            alive.add(found)
            most.append(len(alive))
            return found

        return transform

    monkeypatch.setattr(room, "BATCH", 2)
    monkeypatch.setattr(room, "eval_transform", counted)
    for method in (name for name, one in METHODS.items() if name != "predictions"):
        options = {"class_name": "cat"} if method == "interactions" else {}
        with contextlib.suppress(UserError):  # none may be classified correctly
            for _ in explain(weights, images, method=method, note=str, **options):
                pass
        assert len(most) >= 9
        assert max(most) <= 4  # of a batch, the first for its window, and one that is just read
        most.clear()


def test_a_class_that_is_not_found_in_one_image(weights, images, tmp_path, monkeypatch, capsys):
    real = METHODS["gradcam"]

    def found_in_the_first_alone(network, batch, **options):
        if calls:
            raise NotFound(0, "no box of class dog")
        calls.append(1)
        return real.run(network, batch, **options)

    calls: list[int] = []
    monkeypatch.setitem(METHODS, "gradcam", dataclasses.replace(real, run=found_in_the_first_alone))
    argv = ["explain", weights, str(images / "a.png"), str(images / "b.jpg"), "--class", "dog"]
    assert main([*argv, "--save", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert first["error"] is None
    assert second["saved"] is None
    assert f"skipped: {images / 'b.jpg'}: the network finds no box of class dog there" in captured.err
    assert main(argv) == 2
    assert "None of the 2 images could be explained" in capsys.readouterr().err


def test_fresh_weights_name_no_class(weights, images):
    for name, told in (("random:emsnet_xxtiny", False), (weights, True)):
        (one,) = explain(name, images / "a.png", method="attention", note=str)
        assert (one.analysis.about["class_names"] is not None) == told


def test_similarity_of_heads(weights, images, mistake, capsys):
    argv = ["explain", weights, str(images / "a.png"), "--method", "similarity"]
    assert main([*argv, "--of", "heads", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["about"]["of"] == "heads"
    assert "selects no tokens" in mistake(*argv, "--of", "selection")
    assert "--of" in mistake(*argv, "--of", "head")
    assert "--of is for --method similarity" in mistake("explain", weights, str(images / "a.png"), "--of", "heads")


def test_spectra_of_residuals_as_maps(weights, images, mistake, tmp_path, capsys):
    argv = ["explain", weights, str(images / "a.png"), "--method", "spectrum"]
    own = ["--granularity", "residual", "--frequency", "true", "--drawing", "maps", "--save", str(tmp_path / "out")]
    assert main([*argv, *own, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["about"].items() >= {"granularity": "residual", "frequency": "true", "drawing": "maps"}.items()
    assert "stages.3.blocks.0 mixer" in told["relative"]["coords"]["layer"]
    assert Image.open(told["saved"]).width > 900  # a row of six maps
    assert "EMSNet" in mistake(*argv, "--granularity", "operator")
    assert "--drawing is for --method spectrum" in mistake("explain", weights, str(images), "--drawing", "maps")


def test_of_a_network_with_a_head_the_backbone_is_looked_at(tmp_path, images):
    from vitrail.factory import assemble

    path = tmp_path / "s.safetensors"
    network = assemble("mat_1", "semantic_fpn", SMALL, {"num_classes": 2})
    meta = WeightsMeta("mat_1", SMALL, head="semantic_fpn", head_options={"num_classes": 2}, classes=["a", "b"])
    meta.task, meta.preprocess = "semantic_segmentation", Preprocess((64, 64))
    save_weights(path, network.state_dict(), meta)
    alone = timm.create_model("mat_1", num_classes=2, **SMALL).eval()
    own = alone.state_dict()
    body = {key.removeprefix("backbone.network."): value for key, value in network.state_dict().items()}
    alone.load_state_dict({key: body.get(key, value) for key, value in own.items()})
    prepared = eval_transform(meta.preprocess)(Image.open(images / "a.png").convert("RGB"))[None]
    from vitrail.analysis.spectrum import spectrum

    (found,) = explain(path, images / "a.png", method="spectrum", note=str)
    expected = spectrum(alone, prepared).arrays["log_amplitude"]
    assert found.analysis.arrays["log_amplitude"].coords == expected.coords
    np.testing.assert_allclose(found.analysis.arrays["log_amplitude"].values, expected.values, atol=1e-4)
    for method in ("attention", "attended_region", "receptive_field", "similarity"):
        (found,) = explain(path, images / "a.png", method=method, note=str)
        assert found.analysis.about["model"] == "mat_1"
