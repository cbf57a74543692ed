"""Weights files as strangers may write them, for tests that draw: descriptions with one value changed, raw headers."""

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

#: what stands where something else is expected
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.sampled_from((10**30, -1, 0, 8193, 1e300)),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("mat_1", "hf-hub:a/b", "local-dir:/", "os:system", "\x1b[2J", "../x", "nan", "")),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)
NAMES = st.sampled_from(("pretrained", "checkpoint_path", "features_only", "depths", "in_chans", "img_size", "x"))


@st.composite
def descriptions(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """A good description with one to three of its values, at any depth, replaced, removed or added to."""
    out = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = out
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or draw(st.booleans()):
                if draw(st.integers(0, 4)) == 0 and isinstance(place, dict):
                    del place[key]
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
        if draw(st.integers(0, 3)) == 0 and isinstance(out.get("model_options"), dict):
            out["model_options"][draw(NAMES)] = draw(VALUES)
    return out


def entries(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    """The header of float32 tensors that lie one behind the other, and how many bytes they take."""
    out, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        out[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return out, end


def write_raw(path: Path, header: Any, data: bytes = b"", size: int | None = None) -> Path:
    """A .safetensors of a header that may be anything, with a length that may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


@st.composite
def raw_files(draw: st.DrawFn, shapes: dict[str, tuple[int, ...]], text: str) -> tuple[bytes, bytes, int]:
    """Header, tensors and stated length of a file of zeros in which one thing may be wrong."""
    header, end = entries(shapes)
    names = sorted(header)
    header["__metadata__"] = draw(st.one_of(st.just({"vitrail": text}), VALUES))
    name = draw(st.sampled_from(names))
    what = draw(st.sampled_from(("nothing", "dtype", "shape", "data_offsets", "gone", "other", "twice")))
    if what in ("dtype", "shape", "data_offsets"):
        given = st.sampled_from(("F64", "F16", "F8_E4M3", "I64", "BOOL", "C64", "F4", "U64"))
        sides = st.lists(st.integers(-2, 2**62), max_size=5)
        header[name][what] = draw(st.one_of(VALUES, given if what == "dtype" else sides))
    elif what == "gone":
        del header[name]
    elif what == "other":
        header[draw(st.text(max_size=5))] = draw(VALUES)
    elif what == "twice":
        header["again"] = dict(header[name])
    raw = json.dumps(header).encode()
    length = draw(st.one_of(st.just(len(raw)), st.integers(0, 2**64 - 1)))
    return raw, bytes(max(0, end + draw(st.sampled_from((0, 0, 0, -4, 4))))), length
