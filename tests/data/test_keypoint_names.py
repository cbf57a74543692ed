"""Left and right in names of keypoints, and which of them are COCO's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.datasets.keypoint_names import COCO_KEYPOINTS, coco_numbers, flip_pairs, mirror_of, mirrored
from vitrail.errors import BadOption, UserError

NAMES = list(COCO_KEYPOINTS)
#: COCO's flip order, written out
PARTNERS = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
SIDES = {"left": 0, "right": 1}


def parts(name: str) -> tuple[str | None, str]:
    side, _, part = name.rpartition("_")
    return side or None, part


def styled(words: tuple[str, str], way: str) -> list[str]:
    """COCO's keypoints with other words for the sides, written in one of many ways."""
    ways = {
        "snake": lambda side, part: f"{side}_{part}",
        "behind": lambda side, part: f"{part}_{side}",
        "space": lambda side, part: f"{side} {part}",
        "dash": lambda side, part: f"{side.title()}-{part.title()}",
        "camel": lambda side, part: side + part.title(),
        "pascal": lambda side, part: side.title() + part.title(),
        "dot": lambda side, part: f"{part}.{side.title()}",
        "upper": lambda side, part: f"{side}_{part}".upper(),
        "within": lambda side, part: f"body {side} {part} 1",
        "brackets": lambda side, part: f"{part} ({side})",
    }
    made = []
    for name in NAMES:
        side, part = parts(name)
        made.append(part if side is None else ways[way](words[SIDES[side]], part))
    return made


WORDS = [("left", "right"), ("l", "r"), ("links", "rechts"), ("linke", "rechte"), ("gauche", "droite"), ("izq", "der")]
WAYS = ["snake", "behind", "space", "dash", "camel", "pascal", "dot", "upper", "within", "brackets"]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("way", WAYS)
@given(order=st.permutations(range(17)))
def test_sides_change_places_in_any_words_ways_and_order(words, way, order):
    names = styled(words, way)
    found = mirrored([names[i] for i in order])
    assert [order[place] for place in found] == [PARTNERS[i] for i in order]


@pytest.mark.parametrize("written", [str, str.upper, lambda n: n.replace("left_", "l").replace("right_", "r")])
def test_words_written_as_one(written):
    names = [written(name.replace("_", "")) if "l" not in written("left_") else written(name) for name in NAMES]
    assert mirrored(names) == PARTNERS


def test_several_pairs_of_one_part():
    names = ["front_left_paw", "back_right_paw", "tail", "back_left_paw", "front_right_paw", "ear_left", "ear_right"]
    assert flip_pairs(names) == [(0, 4), (3, 1), (5, 6)]
    assert mirrored(["左肩", "鼻", "右肩"]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["left_eye", "nose"], "'left_eye' has no counterpart"),
        (["left_eye", "right_eye", "Right Ear"], "'Right Ear' has no counterpart"),
        (["L1", "L2", "T1"], "'L1' has no counterpart"),
        (["left_eye", "left_eye_2", "right_eye"], "'left_eye_2' has no counterpart"),
        ([str(i) for i in range(17)], "tell no left from right"),
        (["copyright", "upright"], "tell no left from right"),
    ],
)
def test_half_a_pair_is_none(names, says):
    with pytest.raises(UserError, match=says):
        mirrored(names)
    partners, why = mirror_of(names, None)
    assert partners is None
    assert says.split("'")[-1] in why
    assert mirror_of(names, []) == (list(range(len(names))), "")


@given(st.permutations(range(17)))
def test_pairs_can_be_named(order):
    names = [f"k{i}" for i in order]
    pairs = [("k1", "k2"), (names.index("k3"), names.index("k4"))]
    found = mirrored(names, pairs)
    assert [found[i] for i in found] == list(range(17))
    assert names[found[names.index("k2")]] == "k1"
    assert sum(place != i for i, place in enumerate(found)) == 4


@pytest.mark.parametrize("pairs", [[("a", "a")], [("a", "b"), ("b", "c")], [(0, 3)], [(-1, 0)], [("x", "a")]])
def test_wrong_pairs_are_refused(pairs):
    with pytest.raises(BadOption, match=r"keypoints\.flip_pairs"):
        mirror_of(["a", "b", "c"], pairs)


@pytest.mark.parametrize("words", [("left", "right"), ("l", "r")])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "within"])
def test_cocos_keypoints_are_known_by_any_such_name(words, way):
    assert coco_numbers(styled(words, way)) == list(range(17))


def test_other_names_are_none_of_cocos():
    assert coco_numbers(["tail", "left_paw", "left_eye", "nose", "Nose"]) == [None, None, 1, None, None]
    assert coco_numbers(["lshoulder", "rightear", "leg", "neck"]) == [5, 4, None, None]
