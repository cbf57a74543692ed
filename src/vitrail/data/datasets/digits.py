"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8 x 8, no download."""

from __future__ import annotations

import numpy as np

from ...config.data import DataConfig
from ...errors import UserError
from ...utils.extras import how_to_install
from .base import ArraySet, ImageSet, split_off


def open_digits(data: DataConfig, train: bool) -> ImageSet:
    """The training digits, or the validation digits, which are held out per class.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
    (CC BY 4.0), its test split.

    Raises:
        UserError: a root is given, or scikit-learn is not installed.
    """
    if data.root is not None:
        raise UserError(f"The digits are embedded and read no folder: leave out data.root={data.root!r}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"The digits come with scikit-learn: {how_to_install('train')}.") from None
    values, targets = load_digits(return_X_y=True)
    grey = np.round(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    digits = ArraySet(pixels, np.asarray(targets), [str(d) for d in range(10)], "digit")
    split = split_off(digits, train, data.val_fraction, data.split_seed)
    split.remarks = []  # nobody takes them for data with a validation split
    return split
