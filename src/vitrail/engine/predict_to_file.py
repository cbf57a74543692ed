"""Prediction of any number of images into a file, or by several processes into parts of it; resumed if stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data.images import left_out_sentence
from ..data.levels import LEVEL_SAMPLES
from ..deploy.export.backends import backend_of
from ..errors import Interrupted, UserError
from ..utils.files import exists, read_json, saving, write_whole
from ..utils.plain import from_dict, to_dict
from ..utils.progress import bar
from ..version import __version__
from .journal import Journal
from .predict import TOP_K, ImageFiles, Predictor, levels_for, open_predictor, patterns_of, predict_files
from .result_files import CocoResults, ResultFile, form_of
from .shards import Shard, local_device, shard_of

#: behind the file's name: its description, and the results so far
ABOUT, JOURNAL = ".about.json", ".partial"
#: images that could not be read and are named
MAX_NAMED_ERRORS = 20


#: the description's key that says who wrote it
KEY = "vitrail_predictions"


@dataclass
class FileSummary:
    """What a prediction into a file did.

    Attributes:
        output: the file, or the part of this process.
        shard: its share, such as "2/8".
        images: images in the file.
        resumed: of them those whose results were there already.
        left_out: images that were not predicted, as the file of `coco_images` does not list them.
        seconds: of reading and predicting the others; 0 if there were none.
        images_per_second: of these; None if there were none.
        failed: images that could not be read.
        errors: why, of the first ones.
        complete: the file was complete before: the same images by name, weights and settings.
    """

    output: str
    shard: str
    images: int
    resumed: int
    left_out: int
    seconds: float
    images_per_second: float | None
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    complete: bool = False


def predict_to_file(
    weights: str | Path,
    images: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    model: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    white: float | None = None,
    shard: str | None = None,
    coco_images: str | None = None,
    inference: InferenceConfig | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> FileSummary:
    """Predict image files into one file: CSV, JSON lines, Parquet or COCO's results, by its ending.

    Results are appended to FILE.partial as they come, and FILE is made of them at the end, with FILE.about.json beside
    it, which says how. A call that was stopped goes on where it was. Of a folder, whatever its size, the results of one
    batch and the names of one folder are in memory. An image that cannot be read has a result with `error`.

    Under torchrun, and with `shard`, each process predicts its share into its part, such as
    results-00002-of-00008.csv; together the parts hold every image once.

    Args:
        weights: as of `predict`.
        images: image files, folders or globs.
        output: file of the results, ending in .csv, .jsonl, .parquet or .json (COCO's results).
        model: the network an authors' file belongs to.
        top_k: number of classes listed per image (classification); None = 5.
        batch_size: images in one forward pass, fewer if they are large (classification); None = 16.
        device: "auto", "cpu", "cuda", "cuda:1", ...; "auto" under torchrun is a GPU for each process.
        runtime: runtime of an exported file; auto = by its ending.
        white: white level of images with more than 8 bits a sample, such as 4095; None = that of the training images,
            else chosen by the largest sample of the first ones.
        shard: share of the images that this process predicts, and the number of shares, such as 2/8.
        coco_images: COCO file whose ids of images and categories are used, such as image_info_test-dev2017.json; other
            images are left out. Only with COCO's results.
        inference: inference of a network with a head; None = the defaults.
        note: called with notes for the user: skipped files, origin and licence of the weights.

    Raises:
        UserError: weights, images or options that cannot be used, a file that vitrail did not write, or the beginning
            of a prediction with other settings.
        Interrupted: stopped by the user; the results so far are kept.
    """
    share = shard_of(shard)
    form = form_of(Path(output))
    if coco_images is not None and form is not CocoResults:
        raise UserError(f"--coco_images is for --output FILE{CocoResults.ending}, not {output}.")
    target = Target(Path(output), form.ending, share)
    target.check()
    files = ImageFiles(patterns_of(images))
    next(iter(files))  # nothing there is said before anything long starts
    predictor = open_predictor(
        weights,
        model,
        runtime,
        device=local_device(device),
        top_k=top_k,
        batch_size=batch_size,
        inference=inference,
        note=note,
    )
    listed = TOP_K if top_k is None else top_k
    made = CocoResults(predictor.meta, listed, coco_images) if form is CocoResults else form(predictor.meta, listed)
    settings = {
        "weights": digest_of_weights(str(weights), predictor),
        "images": files.patterns,
        "shard": str(share),
        "form": form.ending,
        "options": {"top_k": listed, "white": white, "coco_images": coco_images, "runtime": runtime},
        "inference": to_dict(inference or InferenceConfig()),
    }
    settings = json.loads(json.dumps(settings))  # as they are read again
    if (done := target.complete(settings, ShareOfImages(files, share, made))) is not None:
        return done
    levels = levels_for(predictor.network, list(islice(files, LEVEL_SAMPLES)), white)
    names = ShareOfImages(files, share, made)

    def results(is_done: IsDone) -> Iterator[Entry]:
        waiting = (path for path in names if not is_done(str(path)))
        for one in predict_files(predictor, waiting, predictor.batch_of(batch_size), copies=None, levels=levels):
            found = one.prediction
            yield one.path, one.error, None if found is None else made.record(Path(one.path), found)
        if sentence := left_out_sentence(files.left_out, ", ".join(files.patterns[:3])):
            note(sentence)

    return fill(target, settings, made, results=results, names=names)


#: whether the result of a name is there already; a result: its name, why there is none, plain values
IsDone = Callable[[str], bool]
Entry = tuple[str, str | None, Any]


class Names(Protocol):
    """What was iterated over."""

    left_out: int

    def __iter__(self) -> Iterator[Any]:
        """Every name."""
        ...

    def digest(self) -> str:
        """A digest of the names so far."""
        ...


def fill(
    target: Target,
    settings: dict[str, Any],
    made: ResultFile,
    results: Callable[[IsDone], Iterator[Entry]],
    names: Names,
) -> FileSummary:
    """Append results to the journal as they come, and make the file of them.

    Args:
        target: the file.
        settings: on which the results depend.
        made: the file's form.
        results: gives the results whose names are not done yet.
        names: of all results, known when these were taken.

    Raises:
        UserError: a journal with other settings.
        Interrupted: stopped by the user; the results so far are kept.
    """
    journal = Journal(target.journal, settings)
    try:
        started, resumed = time.perf_counter(), journal.count
        with bar("Predicting", None) as advance:
            for name, error, record in results(journal.__contains__):
                journal.add(name, error, record)
                advance()
        seconds, new = time.perf_counter() - started, journal.count - resumed
        done = FileSummary(
            output=str(target.file),
            shard=str(target.share),
            images=journal.count,
            resumed=resumed,
            left_out=names.left_out,
            seconds=round(seconds, 3) if new else 0.0,
            images_per_second=round(new / seconds, 2) if new else None,
        )
        return target.finish(journal, made, {"settings": settings, "names": names.digest()}, done)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped with {journal.count:,} results in {target.journal}: the same command goes on from there."
        ) from None
    finally:
        journal.close()


class ShareOfImages:
    """The images of one share that belong into its file, and what was seen of them while they are iterated over.

    Attributes:
        left_out: images of the share that do not belong into the file.
    """

    def __init__(self, files: ImageFiles, share: Shard, form: ResultFile):
        self.files, self.share, self.form = files, share, form
        self.left_out = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Iterator[Path]:
        folder = self.files.folder
        for path in self.files:
            if not self.share.takes(str(path if folder is None else path.relative_to(folder))):
                continue
            if not self.form.admits(path):
                self.left_out += 1
                continue
            self._digest.update(os.fsencode(path) + b"\0")
            yield path

    def digest(self) -> str:
        """A digest of the names so far, in their order."""
        return self._digest.hexdigest()


class Target:
    """The file of one process, its description beside it, and the results so far.

    Args:
        output: as the user named it.
        ending: of its form.
        share: of this process.

    Attributes:
        file: that is made.
        about: its description: settings, network, digests; as long as its digest is the file's, the file is ours.
        journal: the results so far.
    """

    def __init__(self, output: Path, ending: str, share: Shard):
        self.share = share
        stem, ending = output.name[: -len(ending)], output.name[-len(ending) :]
        self.file = output.with_name(share.name_of(stem) + ending)
        self.about = self.file.with_name(self.file.name + ABOUT)
        self.journal = self.file.with_name(self.file.name + JOURNAL)
        self.described: dict[str, Any] = {}

    def check(self) -> None:
        """Read the description of an earlier call.

        Raises:
            UserError: a missing folder, or a file that vitrail did not write.
        """
        if not self.file.parent.is_dir():
            raise UserError(f"--output {self.file}: there is no folder {self.file.parent}.")
        if exists(self.about, "--output"):
            content = read_json(self.about) if self.about.is_file() and not self.about.is_symlink() else None
            if not isinstance(content, dict) or KEY not in content:
                raise UserError(f"{self.about} was not written by vitrail: choose another --output.")
            self.described = content
        if not exists(self.file, "--output"):
            self.described = {}
            return
        regular = self.file.is_file() and not self.file.is_symlink()
        if not regular or sha256_of(self.file) not in (self.described.get("sha256"), self.described.get("replaced")):
            raise UserError(
                f"--output {self.file} was not written by vitrail, or was changed since, and is never written over: "
                "choose another name."
            )

    def complete(self, settings: dict[str, Any], names: Names) -> FileSummary | None:
        """The summary of an earlier call with the same settings and images by name; None = there is none."""
        if self.described.get("settings") != settings or exists(self.journal, "--output"):
            return None
        for _ in names:  # which makes their digest
            pass
        if self.described.get("names") != names.digest():
            return None
        known = self.described.get("summary")
        if not isinstance(known, dict):
            return None
        summary = {**known, "resumed": known.get("images"), "seconds": 0.0, "images_per_second": None}
        return from_dict(FileSummary, {**summary, "complete": True}, f"{self.about}: ")

    def finish(
        self, journal: Journal, form: ResultFile, described: dict[str, Any], summary: FileSummary
    ) -> FileSummary:
        """Make the file of the journal, and its description; the journal is deleted.

        Args:
            journal: all results.
            form: of the file.
            described: settings and digest of the names.
            summary: what was done; failed images are counted here.
        """
        fresh = self.file.with_name(f".{self.file.name}.new")
        with saving(self.file, "free some space and repeat the command, which goes on from here."):
            fresh.unlink(missing_ok=True)
            try:
                form.write(_counted(journal, summary), fresh)
                about = {
                    KEY: __version__,
                    **described,
                    "network": to_dict(form.meta),
                    "summary": asdict(summary),
                    "sha256": sha256_of(fresh),
                    "replaced": self.described.get("sha256"),
                }
                write_whole(self.about, json.dumps(about, indent=2))
                os.replace(fresh, self.file)
            finally:
                fresh.unlink(missing_ok=True)
            journal.close()
            self.journal.unlink()
        return summary


def _counted(journal: Journal, summary: FileSummary) -> Iterator[dict[str, Any]]:
    """The results, those that failed counted."""
    for one in journal:
        if one["error"]:
            summary.failed += 1
            summary.errors += [one["error"]] if len(summary.errors) < MAX_NAMED_ERRORS else []
        yield one


def digest_of_weights(weights: str, predictor: Predictor) -> str:
    """A digest of the network's tensors, or of an exported file and what belongs to it."""
    digest = hashlib.sha256()
    if (backend := backend_of(weights)) is not None:
        for file in backend.files(Path(weights)):
            digest.update(sha256_of(file).encode() if file.is_file() else b"-")
        return digest.hexdigest()
    for name, tensor in predictor.network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
