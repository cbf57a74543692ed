"""Progress of a run: a live bar on a terminal, and one line per epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import printable


class Progress:
    """Progress of a run, on standard error.

    Args:
        total: optimiser steps of the whole run.
        done: steps done before this session.
        quiet: print nothing (in processes other than the first).
        measured: name of the evaluated images in the lines.
    """

    def __init__(self, total: int, done: int, quiet: bool = False, measured: str = "val"):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        live = self.console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not live)
        self._task = self._bar.add_task("starting", total=total, completed=done)
        self._last, self._images, self._rate = time.perf_counter(), 0, 0.0
        self.measured = measured

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(printable(text), markup=False, emoji=False)

    def step(self, steps: int, images: int, epoch: int, epochs: int, loss: float, accuracy: float | None) -> None:
        """Count `steps` optimiser steps over `images` images.

        Args:
            steps: steps since the last call.
            images: images in these steps.
            epoch: current epoch, from 1.
            epochs: epochs of the run.
            loss: mean loss of the epoch so far.
            accuracy: training accuracy of the epoch so far in %; None if the task has none.
        """
        self._images += images
        now = time.perf_counter()
        if now - self._last > 0.5 or not self._rate:
            self._rate, self._last, self._images = self._images / max(now - self._last, 1e-9), now, 0
        right = "" if accuracy is None else f"train {accuracy:.1f} %  "
        text = f"epoch {epoch}/{epochs}  loss {loss:.4f}  {right}{self._rate:.1f} images/s"
        self._bar.update(self._task, advance=steps, description=text)

    def epoch(self, row: dict[str, Any], epochs: int, metric: str, percent: bool, best: bool) -> None:
        """Print the line of a finished epoch.

        Args:
            row: the epoch's row of metrics.csv.
            epochs: epochs of the run.
            metric: name of the metric that selects the best epoch.
            percent: True if the metric is in %.
            best: True if this epoch is the best so far.
        """
        value = row[f"val_{metric}"]
        parts = [
            f"epoch {row['epoch']}/{epochs}",
            f"loss {row['train_loss']:.4f}",
            f"train {row['train_accuracy']:.2f} %" if "train_accuracy" in row else "",
            f"{self.measured} loss {row['val_loss']:.4f}" if "val_loss" in row else "",
            f"{self.measured} {metric} {value:.2f} %" if percent else f"{self.measured} {metric} {value:.4f}",
            f"lr {row['lr']:.2e}",
            f"{row['images_per_second']:.0f} images/s",
            f"{row['seconds']:.1f} s",
            "best" if best else "",
        ]
        self.say("  ".join(part for part in parts if part))


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, if that is a terminal; yields a function that advances it by one.

    Args:
        label: text before the bar.
        total: number of steps; None if unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
        task = live.add_task(label, total=total)
        yield lambda: live.advance(task)
