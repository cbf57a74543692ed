"""Classify a picture with an exported ONNX file: onnxruntime, numpy and Pillow, nothing else.

python onnxruntime_example.py FILE.onnx PICTURE
"""

import json
import sys

import numpy as np
import onnxruntime
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
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    # the description is in the file; FILE.onnx.json beside it holds the same
    about = json.loads(session.get_modelmeta().custom_metadata_map["vitrail"])
    x = read(sys.argv[2], about["preprocess"], about["input"]["preprocessing_embedded"])
    if about["input"]["shape"][0] != "batch":  # a file for a fixed batch: the same picture in every place
        x = np.repeat(x, about["input"]["shape"][0], axis=0)
    report(session.run(None, {"images": x})[0][0], about["classes"])
