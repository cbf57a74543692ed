"""Small networks of the three tasks, as weights files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_helpers import photograph
from PIL import Image

from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.demo import site
from vitrail.deploy.export.export import write_file
from vitrail.factory import assemble, build_model

MODEL = "emsnet_xxtiny"
#: names of classes, as a stranger may choose them
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a\u202eb", "d&amp;'\"`"]
OWN = Preprocess(image_size=(64, 64), mean=(0.4, 0.45, 0.5), std=(0.25, 0.2, 0.3))


def spread(layer: torch.nn.Module, gain: float) -> None:
    """Give a last layer outputs that differ from class to class and place to place, as those of trained networks do."""
    with torch.no_grad():
        layer.weight.normal_(0, gain)  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """A weights file of each task."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    classifier = build_model(MODEL, {}, 10)
    spread(classifier.get_classifier(), 0.8)  # type: ignore[operator]
    made["classification"] = classifier, WeightsMeta(MODEL, classes=[f"class {i}" for i in range(10)], preprocess=OWN)
    options = {
        "num_classes": 4,
        "channels": 16,
        "min_size": [96],
        "max_size": 160,
        "score_thresh": 0.3,
        "init": "xavier",
    }
    detector = assemble(MODEL, "retinanet", None, options)
    spread(detector.head.classification_head.cls_logits, 2.0)  # type: ignore[union-attr]
    spread(detector.head.regression_head.bbox_reg, 0.5)  # type: ignore[union-attr]
    meta = WeightsMeta(MODEL, head="retinanet", head_options=options, task="detection", classes=HOSTILE, preprocess=OWN)
    made["detection"] = detector, meta
    options = {"num_classes": 5, "channels": 16}
    segmenter = assemble(MODEL, "segformer", None, options)
    settings = {"segmentation": {"short_side": 64, "max_side": 160}}
    meta = WeightsMeta(
        MODEL,
        head="segformer",
        head_options=options,
        task="semantic_segmentation",
        classes=["sky", "road", "tree", "car", "other"],
        preprocess=replace(OWN, interpolation="bilinear"),
        settings=settings,
    )
    made["semantic_segmentation"] = segmenter, meta
    files = {}
    for task, (network, meta) in made.items():
        files[task] = folder / f"{task}.safetensors"
        save_weights(files[task], network.state_dict(), meta)
    return files


@pytest.fixture(scope="session")
def exports() -> dict[str, tuple[bytes, Any]]:
    """What `write_file` wrote and returned, by the weights: an export takes seconds."""
    return {}


@pytest.fixture
def exported_once(exports, monkeypatch) -> None:
    """Networks are exported at the first call in a session."""

    def write(network: Any, options: Any, source: str, shapes: Any) -> Any:
        path = Path(options.output)
        if source not in exports:
            written = write_file(network, options, source, shapes)
            exports[source] = path.read_bytes(), written
        path.write_bytes(exports[source][0])
        return exports[source][1]

    monkeypatch.setattr(site, "write_file", write)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> list[Path]:
    """Ten image files: PNG and JPEG of several sizes, grey, indexed, turned by the camera, very slender."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photographs")
    sizes = [
        (64, 64),
        (90, 61),
        (200, 150),
        (33, 47),
        (301, 222),
        (120, 160),
        (640, 480),
        (64, 80),
        (75, 50),
        (300, 20),
    ]
    files = []
    for i, (width, height) in enumerate(sizes):
        image = photograph(rng, width, height)
        file = folder / f"{i}.{'jpg' if i in (2, 5, 6) else 'png'}"
        if i == 5:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned by 90 degrees
            image.save(file, quality=90, exif=exif)
        elif i == 7:
            image.convert("L").save(file)
        elif i == 8:
            image.convert("P").save(file)
        else:
            image.save(file, **({"quality": 90} if file.suffix == ".jpg" else {}))
        files.append(file)
    return files
