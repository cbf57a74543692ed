"""Classify an image with an exported OpenVINO IR: openvino, numpy and Pillow.

python openvino_example.py FILE.xml IMAGE
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image, ImageOps


def decode(path: str, levels: list | None = None) -> Image.Image:
    """An upright RGB image: turned by its EXIF data, on white where it is transparent, the first frame.

    Samples of more than 8 bits are scaled from `levels`, the black and white levels of the training images.
    """
    image = Image.open(path)
    if "16" in str([tile[3] for tile in image.tile]) and image.mode in ("RGB", "RGBA"):
        raise SystemExit(f"{path} has colours of 16 bits, of which Pillow keeps 8: save it with 8 bits a sample.")
    bits = max(image.tag_v2.get(258, (8,))) if image.format == "TIFF" else 8
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
        if 8 < bits < 16:  # the file states its bits
            levels = (0, 2**bits - 1)
        if levels is None:
            whites = (*((1,) if image.mode == "F" else ()), 255, 1023, 4095, 16383, 65535, samples.max())
            levels = (0, min(w for w in whites if w >= samples.max()))
            levels = (samples.min(), samples.max()) if samples.min() < 0 else levels
        black, white = levels
        scaled = np.round((samples - black) * (255 / (white - black))) if white > black else samples * 0
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read(path: str, preprocess: dict, embedded: bool) -> np.ndarray:
    """An image as the file's input (1, C, H, W), preprocessed as the metadata say."""
    image = decode(path, preprocess.get("levels"))
    height, width = preprocess["image_size"]
    # the ends of a very slender image, which the centre crop does not contain, are cut off first
    most = max(16, round(4 * max(height / width, width / height) * min(image.size)))
    if max(image.size) > most:
        image = centre_crop(image, min(image.width, most), min(image.height, most), rounding=int)
    # resize the short side to size / crop_pct, then crop the centre
    high, wide = int(height / preprocess["crop_pct"]), int(width / preprocess["crop_pct"])
    if high == wide:  # a square: the long side is rounded down
        short = min(image.size)
        size = tuple(wide if side == short else int(wide * side / short) for side in image.size)
    else:
        ratio = min(image.height / high, image.width / wide)
        size = (round(image.width / ratio), round(image.height / ratio))
    image = image.resize(size, Image.Resampling[preprocess["interpolation"].upper()])
    image = centre_crop(image, width, height)
    grey = preprocess["in_chans"] == 1
    pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32).reshape(height, width, -1)
    if not embedded:
        mean, std = (np.asarray(preprocess[key], dtype=np.float32) for key in ("mean", "std"))
        mean, std = (mean.mean(), std.mean()) if grey else (mean, std)
        pixels = (pixels / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def centre_crop(image: Image.Image, width: int, height: int, rounding=round) -> Image.Image:
    """The centre of an image; `rounding` applies to the left and top edges."""
    left, top = rounding((image.width - width) / 2), rounding((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def report(logits: np.ndarray, classes: list[str]) -> None:
    """Print the five most likely classes."""
    odds = np.exp(logits - logits.max())
    for i in np.argsort(-odds)[:5]:
        print(f"{ascii(classes[i])[1:-1]}  {100 * odds[i] / odds.sum():.2f} %")


if __name__ == "__main__":
    about = json.loads(Path(sys.argv[1] + ".json").read_text(encoding="utf-8"))
    x = read(sys.argv[2], about["preprocess"], about["input"]["preprocessing_embedded"])
    if about["input"]["shape"][0] != "batch":  # a file for a fixed batch: repeat the image
        x = np.repeat(x, about["input"]["shape"][0], axis=0)
    core = openvino.Core()
    model = core.read_model(sys.argv[1])
    model.reshape(x.shape)  # a graph for one size is faster than one for all
    # without the hint some processors compute in bfloat16: faster, but less exact
    model = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    report(model(x)[0][0], about["classes"])
