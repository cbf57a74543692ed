"""Results of one image: how they are drawn."""

import numpy as np
from PIL import Image

from vitrail.structures import PanopticSegments
from vitrail.utils.draw import colour_of


def test_a_class_of_segments_has_one_colour_in_every_image():
    classes = ["person", "sky", "ground"]

    def drawn(rows: dict[int, tuple[int, int]]) -> list[tuple[int, ...]]:
        """Colours in the rows of a map in which segment `number` has a class and a number of rows."""
        ids = np.repeat(list(rows), [count for _, count in rows.values()])[:, None].repeat(4, 1)
        segments = [
            {"id": n, "label": label, "thing": label == 0, "score": None, "area": 4 * count}
            for n, (label, count) in rows.items()
        ]
        image = PanopticSegments(classes, ids, segments).draw(Image.new("RGB", (4, len(ids)), "black"))
        return [image.getpixel((1, y)) for y in range(len(ids))]

    def half(index: int) -> tuple[int, ...]:
        return tuple(int(0.5 * c) for c in colour_of(index))

    mostly_sky, mostly_ground = drawn({1: (1, 5), 2: (2, 2)}), drawn({1: (2, 5), 2: (1, 2)})
    assert np.allclose(mostly_sky, [half(1)] * 5 + [half(2)] * 2, atol=1)
    assert np.allclose(mostly_ground, [half(2)] * 5 + [half(1)] * 2, atol=1)
    persons = drawn({1: (0, 3), 2: (0, 2), 3: (0, 1)})
    assert np.allclose(persons[0], half(0), atol=1)
    assert len({persons[0], persons[3], persons[5]}) == 3  # each person can be told apart
