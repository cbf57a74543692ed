"""`engine.predict.predict`: image files of any number, with what could not be read, from one function."""

import numpy as np
import pytest
from PIL import Image

import vitrail
from dense_helpers import CASES, weights_with
from vitrail.engine.predict import predict
from vitrail.errors import UserError


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "c"):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    return tmp_path


def test_a_folder_of_images(photos, tmp_path):
    told = []
    found = predict("random:emsnet_xxtiny", [str(photos)], top_k=2, save=tmp_path / "drawn", note=told.append)
    assert len(found) == 3
    assert found.meta.model == "emsnet_xxtiny"
    results = {result.path: result for result in found}
    assert set(results) == {str(photos / f"{name}.png") for name in "abc"}
    assert "b.png" in (results[str(photos / "b.png")].error or "")
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.png")) == ["a.png", "c.png"]
    assert any("1 .txt" in text for text in told)
    assert any("random weights" in text for text in told)


def test_the_same_as_a_loaded_network(photos, tmp_path):
    weights = weights_with("bnneck", *CASES["bnneck"][:2], tmp_path)
    (result,) = predict(weights, [str(photos / "a.png")])
    assert result.prediction is not None
    again = vitrail.load(weights).predict(photos / "a.png")
    assert result.prediction.to_dict() == again.prediction.to_dict()


def test_what_should_be_known_is_a_warning(photos):
    with pytest.warns(UserWarning, match="random weights"):
        predict("random:emsnet_xxtiny", [str(photos / "a.png")])


@pytest.mark.parametrize("option", ["top_k", "batch_size"])
def test_options_of_classifiers(photos, tmp_path, option):
    with pytest.raises(UserError, match=f"--{option} is for classification"):
        predict(weights_with("bnneck", *CASES["bnneck"][:2], tmp_path), [str(photos)], **{option: 2}, note=str)
