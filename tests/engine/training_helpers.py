"""What the tests of training runs share: augmentations, small networks, comparisons of runs."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.checkpoint.run_dir import read_log
from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.engine.trainer import fit

PLAIN = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
# everything that draws random numbers, so that a run that goes on has every chance to differ
RANDOM = AugmentConfig(mixup=0.4, cutmix=1.0, random_erasing=0.5, auto_augment="rand-m5-mstd0.5")
TINY_MAT = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
QUIET = {"capture_output": True, "text": True, "timeout": 400, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def steps_of(config) -> tuple[list[float], dict]:
    losses = []

    def on_step(step, loss):
        assert step == len(losses)
        losses.append(loss)

    return losses, fit(config, on_step)


def same_files(a, b, names):
    for name in names:
        assert (Path(a) / name).read_bytes() == (Path(b) / name).read_bytes(), name


def photos(root, names, count):
    for i, name in enumerate(names):
        for part, number in (("train", count), ("val", 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(number):
                Image.fromarray(np.full((16, 16, 3), 80 * i + k, np.uint8)).save(folder / f"{k}.png")
    return DataConfig("folder", root=str(root))


def log_of(config) -> list[float]:
    return [row["epoch"] for row in read_log(config.output)]
