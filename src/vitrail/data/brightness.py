"""One black and one white for all images of a set (see `levels`)."""

from __future__ import annotations

from ..errors import BadOption
from .datasets.base import AnnotatedSet, FileSet, ImageSet, ImageStream, Subset
from .images import Source, levels_of
from .levels import FULL, Levels, sentence

#: images of a set that are looked at for black and white, evenly spread
LOOKED_AT = 48


def settle_levels(
    data: ImageSet | ImageStream | AnnotatedSet, white: float | None = None, known: Levels | None = None
) -> Levels | None:
    """Decide what is black and white in all images of a part, tell it the part, and note what was found.

    Args:
        data: one part of a data set, just opened.
        white: what the user says.
        known: of the images that the network learned from, or of the other part.

    Returns:
        None if no image that was looked at has samples of more than 8 bits whose range its file does not state.

    Raises:
        BadOption: a white without such images.
    """
    inner = data.whole if isinstance(data, Subset) else data
    files = _files(inner)
    levels = known
    if white is not None:
        if not white > 0:
            raise BadOption(f"data.white={white!r} is not allowed; give the sample value that is white, above 0.")
        if files is not None and levels_of(files) is None:
            raise BadOption(
                f"data.white={white:g} changes nothing: none of the {len(files)} images looked at has samples of more "
                "than 8 bits whose range its file does not state; leave it out."
            )
        levels = (0.0, float(white))
    elif known is None and files is not None:
        levels = levels_of(files)
        if levels is not None:
            notes = data.remarks if isinstance(data, AnnotatedSet) else data.notes
            notes.append(sentence(levels, "--data.white"))
    # of a stream nothing is seen beforehand: its samples are taken to fill 16 bits, whichever image comes first
    inner.levels = FULL if levels is None and isinstance(inner, ImageStream) else levels
    return levels


def _files(data: ImageSet | ImageStream | AnnotatedSet) -> list[Source] | None:
    """Some of a part's files; None of one that is not made of files."""
    if not isinstance(data, (FileSet, AnnotatedSet)):
        return None
    count = min(LOOKED_AT, len(data))
    name = data.path if isinstance(data, AnnotatedSet) else data.name
    return [name(i * len(data) // count) for i in range(count)]
