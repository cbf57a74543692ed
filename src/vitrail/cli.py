"""The verbs of the command line: typed functions, their options read by jsonargparse."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from jsonargparse import ArgumentParser, Namespace

from vitrail_cli import VERBS, usage

from .allocator import keep_memory
from .config import TrainConfig
from .data.config import DataConfig
from .deploy.options import ExportOptions
from .errors import Interrupted, UserError, nearest, unknown


class Parser(ArgumentParser):
    """A parser whose errors are one sentence and end the command with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found wrong as the user's mistake, with the nearest option's name."""
        raise UserError(_one_sentence(message, [o for a in self._actions for o in a.option_strings])) from ex


def _one_sentence(message: str, options: Sequence[str]) -> str:
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip()]
    text = lines[0] if lines else "The options could not be read"
    if "unrecognized arguments" in text.lower():
        wrong = text.split(":", 1)[1].split()[0]
        close = nearest(wrong.split("=")[0], options, 2)
        return f"Unknown option {wrong}" + (f": did you mean {' or '.join(close)}?" if close else ".")
    # a value of the wrong type: jsonargparse's first line names the option, the last the reason
    return " ".join(dict.fromkeys([text, lines[-1]])) if len(lines) > 1 else text


# ---- verbs ------------------------------------------------------------------------------------------------------


def models(pattern: str = "*", as_json: bool = False) -> int:
    """List the networks whose name matches a shell pattern."""
    import fnmatch

    from .models.catalog import catalog

    entries = [entry for entry in catalog() if fnmatch.fnmatchcase(entry.name, pattern)]
    if not entries:
        raise UserError(unknown("model", pattern, [entry.name for entry in catalog()]))
    if as_json:
        return _print_json([dataclasses.asdict(entry) for entry in entries])
    table = _table("network", ">parameters", ">GMACs at 224", ">top-1 printed", "weights", "licence of the weights")
    for e in entries:
        top1 = "-" if e.top1 is None else f"{e.top1:.1f} %"
        table.add_row(e.name, f"{e.params:,}", f"{e.gmacs:.3f}", top1, e.weights, e.licence or "-")
    _print(table)
    return 0


def train(config: TrainConfig, as_json: bool = False) -> int:
    """Train what the recipe and the options say; see `TrainConfig`."""
    from .train import fit

    summary = fit(config)
    if as_json:
        return _print_json(summary)
    _print_training(summary, Path(config.output))
    return 0


def _print_training(summary: dict[str, Any], output: Path) -> None:
    """The final metrics, and what the trained network says of held-back pictures."""
    table = _table("metric", ">value", title=f"{summary['model']} in {output}")
    for name, value in summary["metrics"].items():
        if isinstance(value, (int, float)):
            table.add_row(name, f"{value:.4g}")
    _print(table)
    examples = _table("held-back picture", "truth", "prediction", ">probability", title="Predictions")
    for example in summary.get("examples", []):
        mark = "" if example["truth"] == example["prediction"] else "  wrong"
        examples.add_row(
            example["name"], example["truth"], example["prediction"] + mark, f"{100 * example['probability']:.1f} %"
        )
    _print(examples)


def evaluate(
    weights: str,
    data: DataConfig | None,
    model: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    output: str | None = None,
    runtime: str = "auto",
    as_json: bool = False,
) -> int:
    """Measure trained weights on a data set.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export.
        data: which images; None = those the run directory was trained with, its held-back part.
        model: the network an authors' file belongs to.
        batch_size: images in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        output: folder for metrics.json and confusion.png.
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        as_json: print one JSON document.
    """
    from .evaluate import evaluate as measure

    metrics = measure(weights, data, model, batch_size, device, Path(output) if output else None, runtime)
    if as_json:
        return _print_json(metrics)
    table = _table("metric", ">value", title=f"{weights} on {data.name if data else 'the held-back data of its run'}")
    for name in ("top1", "top5", "loss", "images"):
        table.add_row(name, f"{metrics[name]:.4g}")
    _print(table)
    classes = _table("class", ">accuracy", ">images")
    for row in metrics["per_class"]:
        classes.add_row(
            row["class"], "-" if row["accuracy"] is None else f"{row['accuracy']:.1f} %", str(row["images"])
        )
    _print(classes)
    return 0


def predict(
    weights: str,
    images: list[str],
    model: str | None = None,
    top_k: int = 5,
    save: str | None = None,
    batch_size: int = 16,
    device: str = "auto",
    runtime: str = "auto",
    as_json: bool = False,
) -> int:
    """Classify pictures.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export.
        images: files, folders or globs.
        model: the network an authors' file belongs to.
        top_k: classes listed a picture.
        save: folder for annotated copies of the pictures.
        batch_size: pictures in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        as_json: print one JSON document.
    """
    from .deploy.runtimes import open_any
    from .networks import pick_device, remarks
    from .predict import collect
    from .predict import predict as run
    from .progress import bar

    if top_k < 1:
        raise UserError(f"--top_k {top_k} must be at least 1.")
    paths = collect(images)
    network = open_any(weights, model, runtime)
    for remark in remarks(network):
        print(f"vitrail: {weights}: {remark}", file=sys.stderr)
    results = []
    with bar("Predicting", len(paths)) as advance:
        for result in run(network, paths, top_k, Path(save) if save else None, batch_size, pick_device(device)):
            results.append(result)
            advance()
    failed = [result for result in results if result.error]
    for result in failed:
        print(f"vitrail: skipped: {result.error}", file=sys.stderr)
    if len(failed) == len(results):
        raise UserError(f"None of the {len(results)} pictures could be read.")
    if as_json:
        return _print_json([dataclasses.asdict(result) for result in results])
    table = _table("picture", "prediction", ">probability", "then")
    for result in (r for r in results if not r.error):
        ranked = [f"{c} {100 * p:.1f} %" for c, p in zip(result.classes, result.probabilities, strict=True)]
        table.add_row(result.path, result.classes[0], f"{100 * result.probabilities[0]:.1f} %", ", ".join(ranked[1:3]))
    _print(table)
    if save:
        print(f"{len(results) - len(failed)} annotated pictures in {save}", file=sys.stderr)
    return 0


def reproduce(family: str | None = None, table: str | None = None, as_json: bool = False) -> int:
    """Print the papers' tables beside our own counts; 1 if a count is not that of a correct build.

    Args:
        family: one family; None = all.
        table: one printed table, such as "Table 4"; None = all.
        as_json: print one JSON document.
    """
    from .bench.reproduce import count_rows, verdicts
    from .bench.reproduce import reproduce as rows
    from .progress import bar

    results = []
    with bar("Counting", count_rows(family, table)) as advance:
        for result in rows(family, table):
            results.append(result)
            advance()
    found = verdicts(results)
    if as_json:
        _print_json({"totals": found, "rows": [dataclasses.asdict(result) for result in results]})
        return 1 if found["wrong"] else 0
    printed = _table("table", "row", "network", ">M printed", ">M counted", ">G printed", ">G counted", "verdict")
    for r in results:
        counted = ["-" if value is None else f"{value:.4f}" for value in (r.params, r.flops)]
        printed.add_row(
            f"{r.family} {r.table}",
            r.row,
            r.model,
            r.printed_params or "-",
            counted[0],
            r.printed_flops or "-",
            counted[1],
            r.verdict if r.verdict in ("match", "config") else f"{r.verdict}: {r.reason}",
        )
    _print(printed)
    print(", ".join(f"{number} {verdict}" for verdict, number in found.items()))
    return 1 if found["wrong"] else 0


def token_labels(
    teacher: str,
    data: DataConfig,
    output: str,
    model: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    device: str = "auto",
    overwrite: bool = False,
    as_json: bool = False,
) -> int:
    """Make label maps for `vitrail train --token_labels`.

    Args:
        teacher: a .safetensors of ours, a run directory, an authors' file with --model, or timm:MODEL.
        data: which images; their training part.
        output: folder for the maps, one a training picture.
        model: the network an authors' file belongs to.
        image_size: side, or (height, width), at which the teacher sees the pictures; None = its own.
        top_k: classes kept a place.
        batch_size: images in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        overwrite: make maps anew that are there already.
        as_json: print one JSON document.
    """
    from .token_labels import make_label_maps

    made = make_label_maps(teacher, data, Path(output), model, image_size, top_k, batch_size, device, overwrite)
    if as_json:
        return _print_json(dataclasses.asdict(made))
    rows, columns = made.grid
    print(f"{made.made:,} label maps of {rows}x{columns} places by {made.teacher} in {made.folder}, {made.kept:,} kept")
    return 0


def benchmark(
    models: list[str],
    against: list[str],
    batch_size: str = "1",
    image_size: int | tuple[int, int] = 224,
    forms: str = "eager",
    compile: bool = False,
    runtime: str = "torch",
    precision: str = "fp32",
    memory_format: str = "channels_last",
    threads: int = 1,
    rounds: int | None = None,
    training: bool = False,
    device: str = "auto",
    ceilings: bool = True,
    output: str | None = None,
    as_json: bool = False,
) -> int:
    """Time networks side by side.

    Args:
        models: names or patterns of ours, random:NAME, timm:NAME, or weights of ours; by default one a family.
        against: networks of timm.
        batch_size: images in a call; several sizes as 1,16.
        image_size: side, or height and width.
        forms: eager, fused, or both as eager,fused.
        compile: also the form that torch.compile makes.
        runtime: torch, onnxruntime, openvino, or several with commas.
        precision: fp32 or bf16.
        memory_format: channels_last or contiguous.
        threads: of each call, kept on as many cores.
        rounds: calls of each; None = 15, and 7 from a batch of 16 on.
        training: forward and backward instead of a prediction.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        ceilings: also measure what the machine can do at best.
        output: file for the JSON document.
        as_json: print one JSON document.
    """
    from .bench.benchmark import benchmark as run
    from .bench.benchmark import write
    from .bench.report import COLUMNS, cells, remarks, title
    from .bench.settings import DEFAULT, Settings, numbers
    from .progress import bar

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    settings = Settings(
        models=models or ([] if against else list(DEFAULT)),
        against=against,
        batch_size=numbers("batch_size", batch_size),
        image_size=(height, width),
        forms=forms.split(","),
        compile=compile,
        runtime=runtime.split(","),
        precision=precision,
        memory_format=memory_format,
        threads=threads,
        rounds=rounds,
        training=training,
        device=device,
        ceilings=ceilings,
    )
    settings.check()
    with bar("Measuring", settings.work()) as advance:
        document = run(settings, advance)
    for remark in remarks(document):
        print(f"vitrail: {remark}", file=sys.stderr)
    if output:
        write(document, Path(output))
    if as_json:
        return _print_json(document)
    printed = _table(*COLUMNS, title=title(document))
    for row in document["rows"]:
        printed.add_row(*cells(row))
    _print(printed)
    return 0


def export(weights: str, options: ExportOptions, data: DataConfig | None, images: list[str], as_json: bool) -> int:
    """Write a network as a file that runs without Python or PyTorch; see `ExportOptions`."""
    from .deploy.export import export as run

    made = run(weights, options, data, images)
    if as_json:
        return _print_json(dataclasses.asdict(made))
    for note in made.notes:
        print(f"vitrail: {note}", file=sys.stderr)
    axes = " x ".join(map(str, made.shape))
    _print(f"{made.network} in {made.file}: {made.megabytes:.1f} MB, input {axes}, output {', '.join(made.outputs)}")
    table = _table(
        ">batch", ">pixels", ">largest difference", ">of the largest output", title=f"Compared on {made.pictures}"
    )
    for check in made.checks:
        pixels = " x ".join(map(str, check.size))
        table.add_row(str(check.batch), pixels, f"{check.absolute:.2g}", f"{check.relative:.2g}")
    _print(table)
    print(
        f"latency with {made.threads} thread(s): PyTorch {made.torch_ms:.2f} ms, {made.format} {made.runtime_ms:.2f} ms"
    )
    if made.quantization is not None:
        q = made.quantization
        print(
            f"int8 on {q.images} held-back pictures of {q.data}: "
            f"top-1 {q.top1_int8:.2f} % (float {q.top1_float:.2f} %), the same class as float in {q.agreement:.2f} %; "
            f"{q.size_ratio:.2f} of the size, {q.latency_ratio:.2f} of the time"
        )
    return 0


# ---- reading the command line -----------------------------------------------------------------------------------

WEIGHTS = "a .safetensors, a run directory, an authors' file, timm:MODEL, or random:MODEL"


def _models_parser() -> Parser:
    parser = Parser(prog="vitrail models", description=VERBS["models"])
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, such as 'mat_*'")
    return parser


def _train_parser() -> Parser:
    parser = Parser(prog="vitrail train", description=VERBS["train"])
    parser.add_argument("--config", action="config", help="recipe in YAML; options on the command line win over it")
    parser.add_class_arguments(TrainConfig)
    return parser


def _evaluate_parser() -> Parser:
    parser = Parser(prog="vitrail evaluate", description=VERBS["evaluate"])
    parser.add_argument("weights", help=WEIGHTS + ", or a file of vitrail export")
    parser.add_class_arguments(DataConfig, "data", help="which images; by default those the run was trained with")
    parser.add_function_arguments(evaluate, skip={"weights", "data", "as_json"})
    return parser


def _predict_parser() -> Parser:
    parser = Parser(prog="vitrail predict", description=VERBS["predict"])
    parser.add_argument("weights", help=WEIGHTS + ", or a file of vitrail export")
    parser.add_argument("images", nargs="+", help="picture files, folders or globs")
    parser.add_function_arguments(predict, skip={"weights", "images", "as_json"})
    return parser


def _reproduce_parser() -> Parser:
    parser = Parser(prog="vitrail reproduce", description=VERBS["reproduce"])
    parser.add_argument("family", nargs="?", help="one family; all if none is named")
    parser.add_function_arguments(reproduce, skip={"family", "as_json"})
    return parser


def _token_labels_parser() -> Parser:
    parser = Parser(prog="vitrail token_labels", description=VERBS["token_labels"])
    parser.add_argument("teacher", help="a .safetensors, a run directory, an authors' file, or timm:MODEL")
    parser.add_class_arguments(DataConfig, "data", help="which images; their training part")
    parser.add_function_arguments(token_labels, skip={"teacher", "data", "as_json"})
    return parser


def _benchmark_parser() -> Parser:
    parser = Parser(prog="vitrail benchmark", description=VERBS["benchmark"])
    parser.add_argument("models", nargs="*", help="names or patterns of ours, timm:NAME, weights of ours")
    parser.add_argument("--against", nargs="+", default=[], help="networks of timm")
    parser.add_function_arguments(benchmark, skip={"models", "against", "as_json"})
    return parser


def _export_parser() -> Parser:
    parser = Parser(prog="vitrail export", description=VERBS["export"])
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_class_arguments(ExportOptions)
    parser.add_class_arguments(DataConfig, "data", help="pictures to calibrate, measure and compare on")
    parser.add_argument("--images", nargs="+", default=[], help="pictures to compare on: files, folders or globs")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "models": _models_parser,
    "train": _train_parser,
    "evaluate": _evaluate_parser,
    "predict": _predict_parser,
    "reproduce": _reproduce_parser,
    "token_labels": _token_labels_parser,
    "benchmark": _benchmark_parser,
    "export": _export_parser,
}


def normalise(argv: Sequence[str], switches: Sequence[str]) -> list[str]:
    """The short spellings of the interface in the form the parser reads.

    `--data NAME` becomes `--data.name NAME`, `--image_size H W` becomes `--image_size [H,W]`, and a switch without a
    value, such as `--resume`, becomes `--resume true`.
    """
    out: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--data" or token.startswith("--data="):
            token = token.replace("--data", "--data.name", 1)
        elif token == "--image_size" and len(rest) > 1 and rest[0].isdigit() and rest[1].isdigit():
            out += [token, f"[{rest.pop(0)},{rest.pop(0)}]"]
            continue
        elif (
            token.startswith("--") and token[2:] in switches and (not rest or rest[0].lower() not in ("true", "false"))
        ):
            out += [token, "true"]
            continue
        out.append(token)
    return out


def _run(argv: list[str]) -> int:
    verb, rest = argv[0], argv[1:]
    if verb not in PARSERS:
        raise UserError(unknown("verb", verb, PARSERS))
    as_json = "--json" in rest
    rest = [token for token in rest if token != "--json"]
    parser = PARSERS[verb]()
    switches = [action.dest for action in parser._actions if getattr(action, "_typehint", None) is bool]
    namespace = parser.parse_args(normalise(rest, switches))
    options = cast(Namespace, parser.instantiate_classes(cast(Namespace, namespace)))
    return _call(verb, options, as_json, any(token.startswith("--data") for token in rest))


def _call(verb: str, options: Namespace, as_json: bool, data_named: bool) -> int:
    values = {key: value for key, value in vars(options).items() if key != "config"}
    if verb == "train":
        return train(TrainConfig(**values), as_json)
    if verb in ("evaluate", "export") and not data_named:
        values["data"] = None
    if verb == "export":
        names = [f.name for f in dataclasses.fields(ExportOptions)]
        return export(options=ExportOptions(**{name: values.pop(name) for name in names}), **values, as_json=as_json)
    verbs = {
        "models": models,
        "evaluate": evaluate,
        "predict": predict,
        "reproduce": reproduce,
        "token_labels": token_labels,
        "benchmark": benchmark,
    }
    return verbs[verb](**values, as_json=as_json)


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    debug, keep = "--debug" in argv, "--keep_memory" in argv
    argv = [token for token in argv if token not in ("--debug", "--keep_memory")]
    if keep and not keep_memory():
        print("vitrail: --keep_memory changes nothing here: this system's C library is not glibc.", file=sys.stderr)
    if not argv:
        print(usage(), end="")
        return 0
    try:
        return _run(argv)
    except UserError as error:
        if debug:
            raise
        print(f"vitrail: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"vitrail: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("vitrail: interrupted.", file=sys.stderr)
        return 130


# ---- printing ---------------------------------------------------------------------------------------------------


def _table(*columns: str, title: str | None = None) -> Any:
    """A rich table; a column that begins with ">" is aligned right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _print(renderable: Any) -> None:
    from rich.console import Console

    # a file or a pipe has no width: nothing is folded there that a program may look for
    Console(width=None if sys.stdout.isatty() else 200).print(renderable)


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0
