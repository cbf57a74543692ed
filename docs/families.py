"""Write docs/families/<family>.md: idea, drawings, variants, recipes, and where each equation is computed.

    python docs/families.py [FAMILY...]

Idea and equations are written by hand in docs/families/notes/. Variants come from the catalog, recipes from configs/,
and the places of the equations from the comments and docstrings of the networks' files.
"""

import ast
import csv
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import Any

from vitrail.models.catalog import TOP1_CAVEATS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "families"
GALLERY = ROOT / "docs" / "gallery"
MODELS = ROOT / "src" / "vitrail" / "models"
TITLES = {
    "pslt": "PSLT",
    "lvt": "LVT",
    "pale": "Pale Transformer",
    "emsnet": "EMSNet",
    "mat": "MAT",
    "partialformer": "PartialFormer",
}
_THESIS = (
    "*Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition*, Vo, PhD thesis, "
    "University of Ulsan 2023"
)
PAPERS = {
    "pslt": "*PSLT: A Light-weight Vision Transformer with Ladder Self-Attention and Progressive Shift*, Wu, Zheng, "
    "Lu, Tian, TPAMI 2023",
    "lvt": "*Lite Vision Transformer with Enhanced Self-Attention*, Yang, Wang, Zhang, Zhang, Wei, Lin, Yuille, CVPR "
    "2022",
    "pale": "*Pale Transformer: A General Vision Transformer Backbone with Pale-Shaped Attention*, Wu, Wu, Tan, Guo, "
    "AAAI 2022",
    "emsnet": f"{_THESIS}, chapter 3",
    "mat": f"{_THESIS}, chapter 4",
    "partialformer": "*Efficient Vision Transformers with Partial Attention*, Vo, Nguyen, Priadana, Jo, ECCV 2024; "
    f"{_THESIS}, chapter 5",
}
#: equations in a comment: "Eq. 3.2, 3.3", "Eq. 5.5-5.7"
NUMBER = r"\d+(?:\.\d+)?"
EQUATIONS = re.compile(rf"Eq\.\s+({NUMBER}(?:\s*(?:-|, (?:and )?|, )\s*{NUMBER})*)")


def numbers_of(text: str) -> list[str]:
    """The equations that a text names, ranges written out: "Eq. 5.5-5.7" -> 5.5, 5.6, 5.7."""
    found = []
    for listed in EQUATIONS.findall(text):
        for part in re.split(r",\s*(?:and\s+)?", listed):
            first, _, last = (number.strip() for number in part.partition("-"))
            chapter, _, start = first.rpartition(".")
            end = int(last.rpartition(".")[2]) if last else int(start)
            found += [f"{chapter}.{n}" if chapter else str(n) for n in range(int(start), end + 1)]
    return found


def definitions(tree: ast.Module) -> list[tuple[int, int, str]]:
    """First line, last line and dotted name of every class and function, outer ones first.

    The network itself, the class that initialises the others, only lists options; it is left out.
    """
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not _is_network(child):
                name = f"{prefix}{child.name}"
                found.append((child.lineno, child.end_lineno or child.lineno, name))
                visit(child, f"{name}.")

    visit(tree, "")
    return found


def _is_network(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(isinstance(inner, ast.FunctionDef) and inner.name == "init_module" for inner in node.body)


def places(source: str) -> dict[str, list[str]]:
    """Equation -> names of the classes and functions whose comments or docstrings name it.

    A class is left out where one of its methods is named.
    """
    inner = definitions(ast.parse(source))
    found: dict[str, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING):
            continue
        around = [name for first, last, name in inner if first <= token.start[0] <= last]
        for number in numbers_of(token.string):
            if around and around[-1] not in found.setdefault(number, []):
                found[number].append(around[-1])
    return {
        number: [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
        for number, names in found.items()
    }


def equations(table: str) -> list[tuple[str, list[str], str]]:
    """Rows of a note's table: its label, the equations of it, and what they say."""
    rows = re.findall(rf"^\| ({NUMBER}(?:-{NUMBER})?) \| (.*) \|$", table, re.M)
    return [(label, numbers_of(f"Eq. {label}"), says) for label, says in rows]


def walk(family: str, table: str) -> list[str]:
    """The table of equations with the names that compute them."""
    where = places((MODELS / f"{family}.py").read_text(encoding="utf-8"))
    lines = ["| Eq. | what it says | in the file |", "|---|---|---|"]
    for label, numbers, says in equations(table):
        names = list(dict.fromkeys(name for number in numbers for name in where.get(number, [])))
        lines.append(f"| {label} | {says} | {', '.join(f'`{name}`' for name in names) or '-'} |")
    return lines


def variants(family: str) -> list[str]:
    """The family's rows of the catalog."""
    lines = ["| network | parameters, M | multiply-adds, G | reported top-1, % | weights |", "|---|---:|---:|---:|---|"]
    with open(MODELS / "catalog.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == family]
    for row in rows:
        counts = f"{int(row['params']) / 1e6:.2f} | {float(row['gmacs']):.2f}"
        weights = row["weights"] + (f" ({row['licence']})" if row["licence"] else "")
        lines.append(f"| `{row['name']}` | {counts} | {row['top1'] or '-'} | {weights} |")
    return lines


def recipes(family: str) -> list[str]:
    """The family's recipes with the first sentence of each."""
    lines = ["| recipe | for |", "|---|---|"]
    for path in sorted((ROOT / "configs" / family).glob("*.yaml")):
        head = " ".join(line.lstrip("# ").rstrip() for line in _head(path))
        lines.append(f"| [{path.stem}](../../configs/{family}/{path.name}) | {head.partition(' Expected:')[0]} |")
    return lines


def _head(path: Path) -> list[str]:
    """The comment that opens a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def drawings(family: str) -> list[str]:
    """The gallery's drawings of the family's attention with what one sees, where it has some."""
    described = GALLERY / f"{family}.toml"
    if not described.exists():
        return []
    told = tomllib.loads(described.read_text(encoding="utf-8"))
    lines = ["", "## Its attention", ""]
    for drawing in told["drawings"]:
        if drawing["method"] == "attention":
            image = f"../gallery/{family}/{drawing['name']}.webp"
            lines += [
                f"![{drawing['alt']}]({image})",
                "",
                f"{_sentence(drawing['title'])} {drawing['seen'].strip()}",
                "",
            ]
    drawn = f"Drawn by `vitrail explain` from a run of `{told['run']['model']}` on 400 photographs."
    return [*lines, f"{drawn} The other methods, and what they do not show: [gallery](../gallery.md#{_anchor(told)})."]


def _sentence(title: str) -> str:
    return f"{title[:1].upper()}{title[1:]}."


def _anchor(told: dict[str, Any]) -> str:
    return told["run"]["title"].lower().replace(" ", "-")


def page(family: str) -> str:
    """One family's page."""
    note = (PAGES / "notes" / f"{family}.md").read_text(encoding="utf-8").strip()
    idea, table, *beside = note.split("\n\n", 2)
    lines = [
        f"# {TITLES[family]}",
        "",
        f"{PAPERS[family]}.",
        "",
        idea,
        *drawings(family),
        "",
        "## Variants",
        "",
        *variants(family),
        "",
        "Multiply-adds of one 224x224 image, as executed here; top-1 as the paper reports it for ImageNet-1K. We have "
        "not trained on ImageNet." + caveats(family),
        "",
        "```python",
        "import vitrail",
        "",
        f'model = vitrail.create_model("{_names(family)[0]}", num_classes=10)',
        "```",
        "",
        "Options: [The networks](../networks.md), [reference](../api/models.md). Reported and counted numbers row by "
        f"row, and where paper and build differ: [{TITLES[family]}, paper and build](../papers/{family}.md).",
        "",
        "## Recipes",
        "",
        *recipes(family),
        "",
        "Each recipe opens with expected result, hardware and command, and marks every value with its source.",
        "",
        "## The file by equation",
        "",
        f"[models/{family}.py](../../src/vitrail/models/{family}.py) reads from top to bottom as the paper does. The "
        "equations stand beside the lines that compute them, at:",
        "",
        *walk(family, table),
        "",
        *(line for text in beside for line in (text, "")),
        "Written by `python docs/families.py`.",
        "",
    ]
    return "\n".join(lines)


def caveats(family: str) -> str:
    """A sentence for each of the family's networks whose reported accuracy is uncertain."""
    told = {name: TOP1_CAVEATS[name] for name in _names(family) if name in TOP1_CAVEATS}
    return "".join(f" `{name}`: {caveat}." for name, caveat in told.items())


def _names(family: str) -> list[str]:
    return re.findall(r"^\| `(\w+)`", "\n".join(variants(family)), re.M)


def main() -> None:
    """Write the pages named, or all."""
    for family in sys.argv[1:] or TITLES:
        (PAGES / f"{family}.md").write_text(page(family), encoding="utf-8")


if __name__ == "__main__":
    main()
