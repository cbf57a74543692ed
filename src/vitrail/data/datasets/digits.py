"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8 x 8, no download."""

from __future__ import annotations

import numpy as np

from ...errors import UserError
from .base import ArraySet, ImageSet, split_off


def open_digits(train: bool, val_fraction: float = 0.2, split_seed: int = 0) -> ImageSet:
    """The digits to learn from, or those held out per class.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
    (CC BY 4.0), its test split.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("The digits come with scikit-learn: pip install 'vitrail[train]'.") from None
    values, targets = load_digits(return_X_y=True)
    grey = np.round(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    whole = ArraySet(pixels, np.asarray(targets), [str(d) for d in range(10)], "digit")
    part = split_off(whole, train, val_fraction, split_seed)
    part.notes = []  # nobody takes them for data with a validation split
    return part
