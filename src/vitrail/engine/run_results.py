"""What a run leaves beside its weights: the drawn first batch, its summary, curves, examples and the task's report."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import ImageOps

from ..checkpoint.run_dir import BEST_EPOCH, EXAMPLES, TRAIN_BATCH, TrainerState, saving
from ..errors import UserError, printable
from ..tasks import Metrics
from ..tasks.base import to_device
from ..utils.draw import side_by_side, within
from ..utils.environment import git_commit, hardware, versions
from ..utils.plot import draw_curves
from .setup import Setup

T = TypeVar("T")
#: prints a line to the user
Say = Callable[[str], None]

#: images of the first batch that are drawn
SHOWN_IMAGES = 16


def draw_first_batch(setup: Setup, batch: Any, say: Say) -> None:
    """Write the first images of the first batch, augmented, with what is to be learned of each."""
    drawn = _tried(TRAIN_BATCH, lambda: setup.task.batch_images(to_device(batch, "cpu"), SHOWN_IMAGES), say)
    if drawn:
        sheet = side_by_side([ImageOps.expand(within(image, 320), 3, "white") for image in drawn], columns=4)
        file = BytesIO()
        sheet.save(file, "PNG")
        with saving(setup.run.path):
            setup.run.write(TRAIN_BATCH, file.getvalue())


def summary_of(
    setup: Setup, state: TrainerState, values: dict[str, Any], *, stopped_early: bool, seconds: float
) -> dict[str, Any]:
    """The content of `summary.json`, all but the examples.

    Args:
        setup: what was trained.
        state: progress of the run.
        values: metrics of the best epoch.
        stopped_early: `patience` ended the run.
        seconds: of training, over all starts of the run.
    """
    config = setup.config
    return {
        "model": config.model,
        "task": setup.task.name,
        "metrics": values,
        "measured_on": "validation images" if setup.eval_label == "val" else setup.eval_label,
        BEST_EPOCH: state.best["epoch"],
        "stopped_early": stopped_early,
        "final": state.history[-1],
        "epochs": state.epoch + 1,
        "steps": state.step,
        "parameters": sum(p.numel() for p in setup.network.parameters()),
        "seconds": round(seconds, 2),
        "processes": setup.accelerator.num_processes,
        "device": str(setup.accelerator.device),
        "precision": config.precision,
        "tf32": config.tf32,
        "compiled": config.compile,
        "hardware": hardware(),
        "versions": versions(),
        "commit": git_commit(),
        "note": setup.note,
    }


def write_results(
    setup: Setup, history: list[dict[str, Any]], metrics: Metrics, *, summary: dict[str, Any], say: Say
) -> None:
    """Draw curves, examples and report, and write `summary.json`, to which the examples are added.

    Args:
        setup: what was trained; processes but the main one only take part in the examples.
        history: a row an epoch.
        metrics: of the best epoch.
        summary: see `summary_of`.
        say: prints a line.
    """
    run = setup.run
    if not setup.is_main:
        summary["examples"] = _draw_examples(setup, None, say)
        return
    with saving(run.path):
        with run.files.adding() as (folder, kept):
            summary["examples"] = _draw_examples(setup, folder / EXAMPLES, say)
            curves, metric = folder / "curves.png", setup.task.best_metric
            _tried(curves.name, lambda: draw_curves(history, metric, curves, setup.eval_label), say)
            _tried("The report", lambda: metrics.report(folder), say)
        for name in kept:
            say(f"{run.path / name} was not written by this run and stays as it is.")
        run.write_summary(summary)


def _draw_examples(setup: Setup, folder: Path | None, say: Say) -> list[dict[str, Any]]:
    """Predictions for a few validation images, drawn into a folder; none where drawing fails."""
    network, device = setup.eval_network, setup.accelerator.device
    return _tried(EXAMPLES, lambda: setup.task.examples(network, device, 8, folder), say) or []


def _tried(name: str, draw: Callable[[], T], say: Say) -> T | None:
    """The result of `draw`; a failure that is no mistake of the user's is only reported, as the run is worth more than
    its plots."""
    try:
        return draw()
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        say(f"{name} could not be drawn: {type(error).__name__}: {printable(str(error))[:200]}")
        return None
