"""The benchmark's rows as cells of a table."""

from __future__ import annotations

from typing import Any

from .folder import PHASES

#: headings; ">" aligns right
COLUMNS = (
    "network",
    "form",
    ">batch",
    ">median ms",
    ">quartiles",
    ">images/s",
    ">x first row",
    ">GMAC",
    ">GMAC/s",
    ">% of roofline",
    ">peak MB",
    ">difference",
)
#: of a paper's table
TABLE_COLUMNS = (
    "row",
    "form",
    ">batch",
    ">image",
    ">median ms",
    ">time / full",
    "printed time / full",
    "printed",
    ">GMAC",
    ">peak MB",
)
#: of image files
IMAGE_COLUMNS = ("network", *(f">{name}, ms" for name in PHASES), ">images/s", ">network alone, images/s", "printed")
#: what printed speeds are called
PRINTED = {"cpu_ms": "CPU", "gpu_ms": "GPU", "fps": "images/s", "throughput_img_s": "images/s"}
UNITS = {"cpu_ms": " ms", "gpu_ms": " ms", "fps": " images/s", "throughput_img_s": " images/s"}


def columns(document: dict[str, Any]) -> tuple[str, ...]:
    """The headings for a document of `benchmark`."""
    if document["images"] is not None:
        return IMAGE_COLUMNS
    return TABLE_COLUMNS if document["settings"]["options_of"] else COLUMNS


def cells_of(document: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """One row of a document of `benchmark`, as strings for its `columns`."""
    if document["images"] is not None:
        return _image_cells(row)
    return _table_cells(row) if document["settings"]["options_of"] else cells(row)


def cells(row: dict[str, Any]) -> list[str]:
    """A network timed on random images, as strings for `COLUMNS`."""
    begin = [row["name"], _form(row), str(row["batch"])]
    end = [_number(row["peak_mb"], ".1f"), _number(row["difference"], ".1e")]
    gmac = _number(row["gmac"], ".3f")
    if row["refused"]:
        return [*begin, "not timed", "-", "-", "-", gmac, "-", "-", *end]
    low, high = row["quartiles_ms"]
    share = row["roofline_share"]
    return [
        *begin,
        _median(row),
        f"{low:.2f}-{high:.2f}",
        f"{row['images_per_second']:.1f}",
        _number(row["speedup"], ".2f"),
        gmac,
        # a backward pass is not in the count
        _number(None if row["training"] else row["gmac_per_second"], ".1f"),
        "-" if share is None else f"{100 * share:.0f}",
        *end,
    ]


def _table_cells(row: dict[str, Any]) -> list[str]:
    """A network of a paper's table, as strings for `TABLE_COLUMNS`."""
    height, width = row["image_size"]
    return [
        row["name"] + (" (full)" if row["full"] else ""),
        _form(row),
        str(row["batch"]),
        f"{height}x{width}",
        "not timed" if row["refused"] else _median(row),
        _ratio(row),
        ", ".join(f"{PRINTED[name]} {ratio:.2f}" for name, ratio in row["printed_ratio"].items()) or "-",
        _printed(row),
        _number(row["gmac"], ".3f"),
        _number(row["peak_mb"], ".1f"),
    ]


def _image_cells(row: dict[str, Any]) -> list[str]:
    """A network that predicted image files, as strings for `IMAGE_COLUMNS`."""
    return [
        row["name"] + (" (fresh weights)" if row["weights"] == "fresh" else ""),
        *(f"{row[f'{name}_ms']:.2f}" for name in PHASES),
        f"{row['images_per_second']:.2f}",
        f"{row['network_images_per_second']:.2f}",
        _printed(row),
    ]


def _form(row: dict[str, Any]) -> str:
    return row["label"] + (", training" if row["training"] else "")


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return "-"
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"


def _median(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.2f}" + ("" if row["settled"] else " (never settled)")


def _printed(row: dict[str, Any]) -> str:
    named = {"cpu_ms": "CPU ", "gpu_ms": "GPU "}
    speeds = row.get("printed", {}).items()
    return ", ".join(f"{named.get(name, '')}{digits}{UNITS[name]}" for name, digits in speeds) or "-"


def notes(document: dict[str, Any]) -> list[str]:
    """Sentences for the reader: peak rates that changed, forms that were not timed, what a detector found."""
    changed = [f"unsteady, measure again: {sentence}" for sentence in document["unsteady"]]
    rows = document["rows"]
    refused = [f"{row['name']} {row['label']} is not timed: it {row['refused']}" for row in rows if row["refused"]]
    return [*changed, *document["notes"], *refused, *filter(None, map(_found_note, rows))]


def _found_note(row: dict[str, Any]) -> str:
    if row.get("found") is None:
        return ""
    images, kind = (row["predictions"], "") if "predictions" in row else (row["batch"], "random ")
    found = f"{row['found']} objects or segments in {images} {kind}image(s)"
    return f"{row['name']} {row['label']}: {found}; its time grows with what is found"


def title(document: dict[str, Any]) -> str:
    """One line above the table: what is timed, the machine and its peak rates."""
    settings, machine = document["settings"], document["machine"]
    sizes = {row.get("size") or "x".join(map(str, row["image_size"])) for row in document["rows"]}
    size = sizes.pop() if len(sizes) == 1 else "each at its own size"
    rates = ", ".join(f"{c['name']} {max(c['start'], c['end']):.0f} {c['unit']}" for c in document["roofline"])
    where = machine["gpus"][0] if settings["device"].startswith("cuda") else machine["cpu"]
    mark = "UNSTEADY: " if document["unsteady"] else ""
    files = "" if document["images"] is None else f"{len(document['images'])} image(s), means; "
    line = f"{mark}{files}{size}, {', '.join(settings['precision'])}, {settings['threads']} thread(s) of {where}"
    return f"{line}; roofline: {rates}" if rates else line


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
