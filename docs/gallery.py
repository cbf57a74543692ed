"""Make docs/gallery.md and its drawings.

    python docs/gallery.py train --data clothing_mini    # one run a family, in runs/gallery
    python docs/gallery.py draw --data clothing_mini     # drawings of these runs, in docs/gallery
    python docs/gallery.py page                          # docs/gallery.md, from docs/gallery/*.toml

`--data` is a folder `train/<class>` and `val/<class>` of photographs. docs/gallery/<family>.toml describes the run of a
family and its drawings: what the command is given, a text for readers who do not see the drawing, and its caption. A
drawing of several commands shows their drawings side by side; those of docs/gallery/all.toml show every family, and
those of docs/gallery/dense.toml name their commands. What is said of all stands in docs/gallery/page.toml.
`--only FAMILY...` leaves the other families out, `--drawings NAME...` the other drawings. `train` leaves finished runs
alone and writes their results to docs/gallery/runs.json.

What the drawings show, the caption says: look at every drawing that was drawn anew, and write its caption again.
"""

import argparse
import json
import shlex
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image

from vitrail.checkpoint.run_dir import read_log
from vitrail.cli import main as vitrail
from vitrail.utils.draw import side_by_side

HERE = Path(__file__).parent / "gallery"
RUNS = Path("runs") / "gallery"
#: how the page's commands call the data
DATA = "clothing_mini"
#: what the page shows besides the families, by the name of its file
BESIDES = {"all": "All six", "dense": "Predictions beside the truth"}
#: largest width in pixels and largest size in bytes of a drawing
WIDEST, LARGEST = 1060, 120_000
#: qualities that are tried until a drawing is small enough
QUALITIES = (88, 80, 70, 60, 50)


def listed() -> dict[str, Any]:
    """What the TOML files say: that of the page, with "runs" by family and all "drawings"."""
    told = read("page")
    parts = {family: read(family) for family in (*told["families"], *BESIDES)}
    told["runs"] = {family: parts[family]["run"] for family in told["families"]}
    told["texts"] = {family: part.get("run", part).get("text", "").strip() for family, part in parts.items()}
    told["drawings"] = [{"family": family} | one for family, part in parts.items() for one in part["drawings"]]
    return told


def read(name: str) -> dict[str, Any]:
    """What one of the TOML files says."""
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def train_command(run: dict[str, Any]) -> str:
    """The command that trains the network of a family."""
    options = f" --model_options '{json.dumps(run['model_options'])}'" if "model_options" in run else ""
    return (
        f"vitrail train --config configs/photos.yaml --model {run['model']}{options} --data folder "
        f"--data.root {DATA} --image_size {run['image_size']} --epochs {run['epochs']} --output {RUNS / run['model']}"
    )


def explain_commands(drawing: dict[str, Any], runs: dict[str, Any]) -> list[str]:
    """The commands of a drawing, one for each drawing in it."""
    if "commands" in drawing:
        return drawing["commands"]
    families = runs if drawing["family"] == "all" else [drawing["family"]]
    return [
        f"vitrail explain {RUNS / runs[family]['model']} {drawing['images']} --method {drawing['method']}"
        f"{' ' if options else ''}{options} --save seen"
        for family in families
        for options in drawing.get("options", [""])
    ]


def path_of(drawing: dict[str, Any]) -> Path:
    """The file of a drawing, from docs/gallery."""
    return Path(drawing["family"]) / f"{drawing['name']}.webp"


def call(command: str, data: Path, save: Path | None = None) -> None:
    """Run a command of the page on the data in `data`, and write drawings to `save`."""
    words = [str(data) + word[len(DATA) :] if word.split("/")[0] == DATA else word for word in shlex.split(command)]
    if save is not None:
        words[words.index("--save") + 1] = str(save)
    print(shlex.join(words), flush=True)
    if code := vitrail(words[1:]):
        sys.exit(code)


def train(data: Path, families: list[str]) -> None:
    """Train one network a family, and note what came of it."""
    told = listed()["runs"]
    for family in families:
        if not (RUNS / told[family]["model"] / "summary.json").exists():
            call(train_command(told[family]), data)
    note = {family: results(RUNS / run["model"]) for family, run in told.items() if (RUNS / run["model"]).is_dir()}
    (HERE / "runs.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def results(run: Path) -> dict[str, float]:
    """Accuracies in percent at the epoch whose weights were kept, the number of epochs, and the time of all."""
    rows = read_log(run)
    best = max(rows, key=lambda row: row["val_top1"])
    return {
        "best_epoch": int(best["epoch"]),
        "train": round(float(best["train_accuracy"]), 1),
        "val": round(float(best["val_top1"]), 1),
        "epochs": len(rows),
        "minutes": round(float(rows[-1]["seconds"]) / 60, 1),
    }


def draw(data: Path, families: list[str], names: list[str] | None) -> None:
    """Draw the drawings of these families, or those of them with these names."""
    told = listed()
    for drawing in told["drawings"]:
        if drawing["family"] in families and (names is None or drawing["name"] in names):
            with tempfile.TemporaryDirectory() as folder:
                drawings = []
                for number, command in enumerate(explain_commands(drawing, told["runs"])):
                    call(command, data, Path(folder) / str(number))
                    drawings += [Image.open(path) for path in sorted((Path(folder) / str(number)).glob("*.png"))]
                sheet = side_by_side(drawings, columns=drawing.get("columns", 3), bottoms=True)
            print(write(sheet, HERE / path_of(drawing)), flush=True)


def write(sheet: Image.Image, path: Path) -> str:
    """Write a drawing, no wider and no larger than the limits; returns what was written."""
    if sheet.width > WIDEST:
        sheet = sheet.resize((WIDEST, round(sheet.height * WIDEST / sheet.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        sheet.save(path, quality=quality, method=6)
        if path.stat().st_size <= LARGEST:
            return f"{path}: {sheet.width} x {sheet.height}, {path.stat().st_size:,} bytes, quality {quality}"
    sys.exit(f"{path} has more than {LARGEST:,} bytes; show less in one drawing.")


def page() -> str:
    """The text of docs/gallery.md."""
    told = listed()
    parts = [told["head"].strip(), "## The runs", runs_table(told["runs"]), told["runs_note"].strip()]
    parts += ["The commands:", block([train_command(run) for run in told["runs"].values()])]
    for family, title in titles(told).items():
        parts += [f"## {title}", told["texts"][family]]
        parts += [entry(drawing, told) for drawing in told["drawings"] if drawing["family"] == family]
    parts += ["## What is left out", *(f"- `{method}`: {why.strip()}" for method, why in told["left_out"].items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def titles(told: dict[str, Any]) -> dict[str, str]:
    """Titles of the page's sections, by family."""
    return {family: run["title"] for family, run in told["runs"].items()} | BESIDES


def runs_table(runs: dict[str, Any]) -> str:
    """The results of the runs."""
    noted = json.loads((HERE / "runs.json").read_text(encoding="utf-8"))
    rows = [
        "| network | pixels | epochs | kept epoch | training top-1 | validation top-1 | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, run in runs.items():
        found, size = noted[family], run["image_size"]
        rows.append(
            f"| `{run['model']}` | {size} x {size} | {found['epochs']} | {found['best_epoch']} | {found['train']} % | "
            f"{found['val']} % | {found['minutes']} |"
        )
    return "\n".join(rows)


def entry(drawing: dict[str, Any], told: dict[str, Any]) -> str:
    """A drawing with its caption and its commands."""
    method = told["methods"].get(drawing["name"], told["methods"][drawing["method"]])
    drawn, not_shown = drawing.get("drawn", method["drawn"]), drawing.get("not_shown", method["not_shown"])
    return "\n\n".join(
        [
            f"### {titles(told)[drawing['family']]}: {drawing['title']}",
            f"![{drawing['alt']}](gallery/{path_of(drawing).as_posix()})",
            f"**Drawn:** {drawn.strip()}",
            f"**Seen:** {drawing['seen'].strip()}",
            f"**Not shown:** {not_shown.strip()}",
            block(explain_commands(drawing, told["runs"])),
        ]
    )


def block(lines: list[str]) -> str:
    """Lines as a block of code."""
    return "\n".join(f"    {line}" for line in lines)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "draw", "page"))
    parser.add_argument("--data", type=Path, default=Path(DATA))
    parser.add_argument("--only", nargs="+", metavar="FAMILY")
    parser.add_argument("--drawings", nargs="+", metavar="NAME")
    args = parser.parse_args()
    known = [*listed()["runs"], *BESIDES]
    families = args.only or known
    if unknown := set(families) - set(known):
        parser.error(f"--only {' '.join(sorted(unknown))}: choose from {', '.join(known)}")
    if args.step == "train":
        train(args.data, [family for family in families if family not in BESIDES])
    elif args.step == "draw":
        draw(args.data, families, args.drawings)
    else:
        HERE.with_suffix(".md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
