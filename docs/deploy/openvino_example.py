"""Classify a picture with an exported OpenVINO IR: openvino, numpy and Pillow.

python openvino_example.py FILE.xml PICTURE
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image


def read(picture: str, preprocess: dict, embedded: bool) -> np.ndarray:
    """A picture as the file's input (1, 3, H, W), as the description says."""
    image = Image.open(picture).convert("RGB")
    height, width = preprocess["image_size"]
    # the short side to size / crop_pct, then the middle
    scale = max(int(height / preprocess["crop_pct"]) / image.height, int(width / preprocess["crop_pct"]) / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling[preprocess["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32)
    if not embedded:
        mean, std = (np.asarray(preprocess[key], dtype=np.float32) for key in ("mean", "std"))
        pixels = (pixels / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def report(logits: np.ndarray, classes: list[str]) -> None:
    """The five likeliest classes."""
    odds = np.exp(logits - logits.max())
    for i in np.argsort(-odds)[:5]:
        print(f"{classes[i]}  {100 * odds[i] / odds.sum():.2f} %")


if __name__ == "__main__":
    about = json.loads(Path(sys.argv[1] + ".json").read_text(encoding="utf-8"))
    x = read(sys.argv[2], about["preprocess"], about["input"]["preprocessing_embedded"])
    # without the hint some processors compute in bfloat16: faster, and off by a hundredth
    model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    report(model(x)[0][0], about["classes"])
