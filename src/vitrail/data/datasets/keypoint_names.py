"""Names of keypoints: left and right pairs for mirroring, and their counterparts among COCO's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...errors import BadOption, UserError
from ...utils.files import shortened

#: COCO's keypoints, in COCO's order
COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee"),
    *("left_ankle", "right_ankle"),
)
#: words for the two sides: left, right
SIDES = (
    ("left", "right"),
    ("l", "r"),
    ("lft", "rgt"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("gauche", "droite"),
    ("gauche", "droit"),
    ("izquierda", "derecha"),
    ("izquierdo", "derecho"),
    ("izq", "der"),
    ("esquerda", "direita"),
    ("esquerdo", "direito"),
    ("sinistra", "destra"),
    ("sinistro", "destro"),
    ("sx", "dx"),
    ("左", "右"),
)
#: words of so many letters are also seen at the beginning or end of a longer one (leftshoulder)
LONG = 4
#: letters in any script, numbers; an upper-case letter begins a word (leftShoulder, LShoulder)
_WORD = re.compile(r"[左右]|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z左右]+|[A-Z]+|\d+")


class Sided(NamedTuple):
    """One way to read a name as that of one side.

    Attributes:
        key: what the name of the other side has in common with it.
        side: 0 left, 1 right.
        sure: whether it names a side even if no other name is its counterpart.
    """

    key: tuple[object, ...]
    side: int
    sure: bool


def words_of(name: str) -> list[str]:
    """The words of a name in small letters: "L-Eye", "l_eye", "LEye" and "l eye" are l and eye."""
    return [word.lower() for word in _WORD.findall(name)]


def _readings(name: str) -> Iterator[Sided]:
    """The ways to read a name as that of one side, the surest first."""
    words = words_of(name)
    exact: list[Sided] = []
    partial: list[Sided] = []
    for place, word in enumerate(words):
        for number, pair in enumerate(SIDES):
            for side, own in enumerate(pair):
                rest = (number, *words[:place], None, *words[place + 1 :])
                if word == own:
                    exact.append(Sided(rest, side, sure=True))
                elif len(own) >= LONG and word.startswith(own):
                    partial.append(Sided((*rest, word.removeprefix(own)), side, sure=own in SIDES[0]))
                elif len(own) >= LONG and word.endswith(own):
                    partial.append(Sided((*rest, word.removesuffix(own)), side, sure=False))
        if len(word) > 1 and word[0] in "lr":  # lshoulder
            partial.append(Sided(("letter", *words[:place], word[1:], *words[place + 1 :]), int(word[0] == "r"), False))
    yield from (*exact, *partial)


def flip_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """The numbers of the keypoints that change places in a mirror, as (left, right), from their names.

    Read are "left" and "right" and their short forms, and those words of some other languages, as a word anywhere in a
    name, however words are set apart.

    Raises:
        UserError: a keypoint of one side has no counterpart, or no name tells a side.
    """
    readings = [list(_readings(name)) for name in names]
    partners: dict[int, int] = {}
    most = max((len(own) for own in readings), default=0)
    for rank in range(most):
        keys: dict[tuple[object, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for number, own in enumerate(readings):
            for reading in own[: rank + 1]:
                if number not in partners and number not in keys[reading.key][reading.side]:
                    keys[reading.key][reading.side].append(number)
        for left, right in keys.values():
            if len(left) == len(right) == 1 and left != right and not {*left, *right} & partners.keys():
                partners |= {left[0]: right[0], right[0]: left[0]}
    for number, own in enumerate(readings):
        if number not in partners and any(reading.sure for reading in own):
            raise UserError(
                f"The keypoint {shortened(names[number])} has no counterpart on the other side, so a mirror is not "
                "possible: name the pairs that change places with --keypoints.flip_pairs."
            )
    if not partners and len(names) > 1:
        raise UserError(
            f"The names of the keypoints ({', '.join(map(shortened, names[:3]))}, ...) tell no left from right, so a "
            "mirror is not possible: name the pairs that change places with --keypoints.flip_pairs ([] = none do)."
        )
    return sorted((a, b) for a, b in partners.items() if _is_left(readings[a], readings[b]))


def _is_left(own: Sequence[Sided], other: Sequence[Sided]) -> bool:
    """True if `own` is the left one of a pair."""
    theirs = {(reading.key, 1 - reading.side) for reading in other}
    return next(reading.side for reading in own if (reading.key, reading.side) in theirs) == 0


def mirrored(names: Sequence[str], pairs: Sequence[tuple[int | str, int | str]] | None = None) -> list[int]:
    """For each keypoint the number of the one that a mirror puts in its place.

    Args:
        names: of the keypoints.
        pairs: those that change places, by number (from 0) or name; None = as their names say (see `flip_pairs`).

    Raises:
        UserError: the names do not tell.
        BadOption: a pair of something else, or a keypoint in two pairs.
    """
    partners = list(range(len(names)))
    found = flip_pairs(names) if pairs is None else [(_number(a, names), _number(b, names)) for a, b in pairs]
    for a, b in found:
        if a == b or partners[a] != a or partners[b] != b:
            raise BadOption(
                f"keypoints.flip_pairs names {shortened(names[a])} twice; give every keypoint one counterpart."
            )
        partners[a], partners[b] = b, a
    return partners


def _number(keypoint: int | str, names: Sequence[str]) -> int:
    if keypoint in names:
        return list(names).index(str(keypoint))
    if isinstance(keypoint, int) and 0 <= keypoint < len(names):
        return keypoint
    raise BadOption(
        f"keypoints.flip_pairs={shortened(keypoint)} is not allowed; give names of keypoints, or numbers from 0 to "
        f"{len(names) - 1}."
    )


def mirror_of(
    names: Sequence[str], pairs: Sequence[tuple[int | str, int | str]] | None
) -> tuple[list[int] | None, str]:
    """As `mirrored`, or None and the reason where the names do not tell.

    Raises:
        BadOption: wrong pairs.
    """
    try:
        return mirrored(names, pairs), ""
    except BadOption:
        raise
    except UserError as error:
        return None, str(error)


def coco_numbers(names: Sequence[str]) -> list[int | None]:
    """The index of the COCO keypoint of each name; None = none of them.

    Two names of one keypoint are none of them.
    """
    known = {_common_form(name): number for number, name in enumerate(COCO_KEYPOINTS)}
    found = [known.get(_common_form(name)) for name in names]
    return [number if found.count(number) == 1 else None for number in found]


#: parts of the body, as COCO calls them
_PARTS = frozenset(words_of(name)[-1] for name in COCO_KEYPOINTS)


def _common_form(name: str) -> tuple[str, ...]:
    """A name in which sides have one word, in one place."""
    words: list[str] = []
    for word in words_of(name):
        words += _divided(word)
    return tuple(sorted(words))


def _divided(word: str) -> list[str]:
    """A word whose side is told apart: lshoulder, leftshoulder, links."""
    for number, side in enumerate(SIDES[0]):
        if word in {pair[number] for pair in SIDES}:
            return [side]
        for own in (side, side[0]):
            if word.startswith(own) and word.removeprefix(own) in _PARTS:
                return [side, word.removeprefix(own)]
            if word.endswith(own) and word.removesuffix(own) in _PARTS:
                return [side, word.removesuffix(own)]
    return [word]
