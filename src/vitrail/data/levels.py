"""Black and white of samples that have more than 8 bits.

The rule, for training, measuring and predicting alike. A file that states its range is taken at its word: TIFFs of 9 to
15 bits a sample, and the formats whose decoder scales to 16 bits (PNM, JPEG 2000). For other integers and for floats,
black is 0 and white is one value for all images of a set: `--data.white`, or that of the images the network learned
from, or the smallest of `WHITES` (of floats also 1) that no sample of the set exceeds. Where samples are negative, the
smallest is black and the largest white. Values outside are cut.

PNG's sBIT and TIFF's (S)MaxSampleValue are not used: by their specifications the one does not change the scale of the
samples, and the other is a statistic of the one image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: (black, white), in the samples' own values
Levels = tuple[float, float]
#: largest values of 8, 10, 12, 14 and 16 bits
WHITES = (255, 1023, 4095, 16383, 65535)
#: of samples that fill 16 bits
FULL: Levels = (0.0, 65535.0)
#: images of a set that are read for its black and white, evenly spread
LEVEL_SAMPLES = 48
#: samples that are worked on at once
BAND = 2**22

#: the warning of levels that are guessed for each image; one text, which Python shows once
GUESSED_LEVELS = (
    "Images have samples of more than 8 bits that do not fill their range, and nothing states their white: each is "
    "scaled by the smallest of 1 (floats), 255, 1023, 4095, 16383 and 65535 that its samples do not exceed. Name one "
    "white for all with data.white."
)


def sample_range(values: np.ndarray) -> Levels:
    """Smallest and largest sample; what is not finite counts as 0."""
    found = [(float(band.min()), float(band.max())) for band in map(_finite, _bands(values)) if band.size]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else (0.0, 0.0)


def guess_levels(low: float, high: float, floats: bool) -> Levels:
    """Black and white of samples that lie between `low` and `high`.

    Args:
        low: smallest sample.
        high: largest sample.
        floats: the samples are floats, whose white is often 1.
    """
    if low < 0:
        return low, high
    whites = (1, *WHITES) if floats else WHITES
    return 0.0, float(next((white for white in whites if high <= white), high))


def scale_to_8_bits(values: np.ndarray, levels: Levels) -> np.ndarray:
    """Samples as 0 (black) to 255 (white), rounded; uint8 of the same shape."""
    black, white = levels
    made = np.zeros(values.shape, dtype=np.uint8)
    if white > black:
        for band, out in zip(_bands(values), _bands(made), strict=True):
            out[...] = np.clip(np.round((_finite(band) - black) * (255 / (white - black))), 0, 255)
    return made


def levels_note(levels: Levels, option: str) -> str:
    """The note on samples whose white was not given: "samples of more than 8 bits: 4095 is taken as white ..."."""
    black, white = levels
    shown = f"{white:g} is taken as white" + (f" and {black:g} as black" if black else "")
    return f"samples of more than 8 bits: {shown}, by the largest found in the images; name another with {option}"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def _bands(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in bands of at most `BAND` samples, at least one row each."""
    rows = max(1, BAND // max(1, values[:1].size))
    return (values[top : top + rows] for top in range(0, len(values), rows))
