"""Reproducible loaders: batches depend on seed and epoch, not on the number of processes or workers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..errors import BadOption, UserError
from .datasets.base import AnnotatedSet, ImageSet, ImageStream, TrainingStream, frozen_random
from .transforms.base import Collate, PairTransform, TrainBatch, Transform, collate_stacked

EvalBatch = tuple[Any, Any, torch.Tensor]


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Gives a block of code its own randomness and puts the surrounding one back afterwards.

    Covers the global CPU generators of `random`, numpy and torch; those of accelerators are not touched.

    Args:
        seed: of the block; None = seeded inside by `reseed`.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    try:
        if seed is not None:
            reseed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def reseed(*key: int) -> None:
    """Seeds `random`, numpy and torch on the CPU, each with numbers of its own, from non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(6)
    random.seed(words[:2].tobytes())
    np.random.seed(int(words[2]))  # noqa: NPY002
    # torch.manual_seed would seed every accelerator too, and thereby change a training run's dropout.
    torch.default_generator.manual_seed(int(words[4]) << 31 ^ int(words[5]))


class TrainLoader:
    """Shuffled, augmented batches for one process of a training run.

    The order of the images is a function of (seed, epoch) and each one's augmentation of (seed, epoch, position in
    the epoch): neither the number of workers, nor that of processes, nor where a resumed epoch starts changes them.
    For streams the order also depends on the numbers of processes and workers, between which the shards are divided.

    Args:
        dataset: what to learn from.
        transform: from an image to a float tensor (C, H, W), or from image and target to input and target.
        batch_size: images a step over all processes together; a data set smaller than that is one batch.
        seed: of order and augmentation, from 0.
        workers: processes that load; 0 = this one.
        repeats: views of each chosen image, next to each other (repeated augmentation); an epoch then shows
            1/repeats of the images and is as long as ever. Streams do not repeat.
        rank: number of this process, which yields the `rank`-th contiguous slice of every batch.
        world: number of processes.
        drop_last: leave out the last, incomplete batch; else it is shortened to a multiple of `world`.
        pin_memory: put batches where a GPU can fetch them while it computes.
        prefetch: batches that each worker has ready in advance; None = 2.
        collate: makes a batch of samples (input, target); None = `collate_stacked`.

    Raises:
        UserError: `world` does not divide `batch_size`, or there are fewer images than processes.
        BadOption: a setting outside what is allowed.
    """

    def __init__(
        self,
        dataset: ImageSet | TrainingStream | AnnotatedSet,
        transform: Transform | PairTransform,
        batch_size: int,
        seed: int,
        workers: int = 0,
        repeats: int = 1,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        pin_memory: bool = False,
        prefetch: int | None = None,
        collate: Collate | None = None,
    ) -> None:
        _check_layout(batch_size, workers, rank, world)
        if seed < 0 or repeats < 1:
            raise BadOption(f"seed={seed!r}, repeats={repeats!r} are not allowed; seed from 0, repeats from 1.")
        check_share(batch_size, world)
        if repeats > 1 and dataset.streaming:
            raise UserError("Repeated augmentation needs images that can be chosen by number, not a stream.")
        count = len(dataset)
        if count < world:
            raise UserError(f"{count} image(s) to learn from are too few for {world} processes.")
        self.dataset, self.transform, self.collate = dataset, transform, collate or collate_stacked
        self.seed, self.workers, self.repeats = seed, workers, repeats
        self.rank, self.world, self.pin_memory, self.prefetch = rank, world, pin_memory, prefetch
        self.batch_size = min(batch_size, count - count % world)
        used = count - count % (self.batch_size if drop_last else world)
        self.num_batches = -(-used // self.batch_size)
        self._used = used
        self.epoch = self.start_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Chooses the epoch of the next iterations and the batch with which they begin, without loading those before.

        Of a stream, the images before are read and thrown away.
        """
        if epoch < 0 or not 0 <= start_batch <= self.num_batches:
            raise ValueError(
                f"epoch={epoch!r}, start_batch={start_batch!r} are not allowed; an epoch has {self.num_batches} batches"
            )
        self.epoch, self.start_batch = epoch, start_batch

    def slice_of(self, batch: int) -> range:
        """Positions in the epoch that this process fills of batch number `batch`."""
        first = batch * self.batch_size
        share = min(self.batch_size, self._used - first) // self.world
        return range(first + self.rank * share, first + (self.rank + 1) * share)

    def order(self, epoch: int) -> np.ndarray:
        """(len(dataset),) number of the image at each position of an epoch."""
        shuffled = frozen_random(self.seed, epoch).permutation(len(self.dataset))
        return np.repeat(shuffled, self.repeats)[: len(shuffled)] if self.repeats > 1 else shuffled

    def __iter__(self) -> Iterator[TrainBatch]:
        if isinstance(self.dataset, TrainingStream):
            source: Any = _StreamBatches(self, self.dataset)
            batches = iter(self._load(source, None, seed=source.seed))
            for _ in range(self.start_batch):  # placeholders, see _StreamBatches
                next(batches)
            return _raise_errors(batches)
        numbers = range(self.start_batch, self.num_batches)
        return _raise_errors(iter(self._load(_TrainBatches(self), numbers)))

    def _load(self, source: Any, numbers: range | None, seed: int = 0) -> DataLoader[Any]:
        return _loader(
            source, numbers, self.workers, self.pin_memory, seed=seed, prefetch=self.prefetch if self.workers else None
        )


class EvalLoader:
    """Batches of every image exactly once over all processes, in order, with the image's number.

    Yields x (b, C, H, W) float32 in channels-last memory, y (b,) int64, index (b,) int64. Processes may have different
    numbers of batches: gather results after the loop, not within. For a stream, `index` is a distinct number a
    image, without further meaning.

    Args:
        dataset: what to measure on.
        transform: from an image to a float tensor (C, H, W), without randomness.
        batch_size: images a step over all processes together (rounded up to the same share for each).
        workers: processes that load; 0 = this one.
        rank: number of this process.
        world: number of processes.
        pin_memory: put batches where a GPU can fetch them while it computes.
        collate: makes a batch of samples (input, target); None = `collate_stacked`.
    """

    def __init__(
        self,
        dataset: ImageSet | ImageStream | AnnotatedSet,
        transform: Transform | PairTransform,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        collate: Collate | None = None,
    ) -> None:
        _check_layout(batch_size, workers, rank, world)
        self.dataset, self.transform, self.workers = dataset, transform, workers
        self.collate = collate or collate_stacked
        self.rank, self.world, self.pin_memory = rank, world, pin_memory
        self.batch_size = -(-batch_size // world)

    def __len__(self) -> int:
        """Batches of this process (of a stream: about)."""
        share = len(range(self.rank, len(self.dataset), self.world))
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        if isinstance(self.dataset, ImageStream):
            stream = _StreamEvalBatches(self, self.dataset)
            return _raise_errors(iter(_loader(stream, None, self.workers, self.pin_memory)))
        return _raise_errors(iter(_loader(_EvalBatches(self), range(len(self)), self.workers, self.pin_memory)))


class _TrainBatches(Dataset[Any]):
    """This process's slice of each batch of one epoch, by the batch's number."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader, self.epoch = loader, loader.epoch
        self.order = loader.order(loader.epoch)

    def __getitem__(self, batch: int) -> TrainBatch | UserError:
        loader, positions = self.loader, self.loader.slice_of(batch)
        try:
            with isolated_rng():
                return _batch(self._samples(loader, positions), loader)
        except UserError as error:
            return error  # workers would bury its sentence in a traceback

    def _samples(self, loader: TrainLoader, positions: range) -> Iterator[tuple[Image.Image, Any]]:
        for position in positions:
            reseed(loader.seed, self.epoch, position)
            yield loader.dataset[int(self.order[position])]  # pyright: ignore[reportIndexIssue]


class _StreamBatches(IterableDataset[Any]):
    """This process's slice of each batch of one epoch of a stream; worker w of W makes the batches w, w + W, ...

    A batch before the start is a placeholder (None): the workers then take turns as in a whole epoch, so that a
    resumed epoch sees the same images in the same batches.
    """

    def __init__(self, loader: TrainLoader, stream: TrainingStream) -> None:
        self.loader, self.stream = loader, stream
        self.epoch, self.start = loader.epoch, loader.start_batch
        self.seed = int(np.random.SeedSequence((loader.seed, loader.epoch)).generate_state(1)[0]) >> 1

    def __iter__(self) -> Iterator[TrainBatch | UserError | None]:
        loader, info = self.loader, get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        share = loader.batch_size // loader.world
        samples = self.stream.train_samples(self.seed, share, loader.rank, loader.world)
        for batch in range(first, loader.num_batches, step):
            yield self._batch(samples, loader.slice_of(batch), skip=batch < self.start)

    def _batch(
        self, samples: Iterator[tuple[Image.Image, int]], positions: range, skip: bool
    ) -> TrainBatch | UserError | None:
        try:
            with isolated_rng():
                taken = self._take(samples, positions)
                if skip:
                    for _ in taken:
                        pass
                    return None
                return _batch(taken, self.loader)
        except UserError as error:
            return error

    def _take(self, samples: Iterator[tuple[Image.Image, int]], positions: range) -> Iterator[tuple[Image.Image, int]]:
        for position in positions:
            sample = next(samples, None)
            if sample is None:
                raise UserError(
                    f"The stream ended before its {len(self.stream):,} images: correct the number of samples, or "
                    "look for shards that are missing or damaged."
                )
            reseed(self.loader.seed, self.epoch, position)
            yield sample


class _EvalBatches(Dataset[Any]):
    """This process's batches, by number."""

    def __init__(self, loader: EvalLoader) -> None:
        self.loader = loader

    def __getitem__(self, batch: int) -> EvalBatch | UserError:
        loader = self.loader
        mine = range(loader.rank, len(loader.dataset), loader.world)
        numbers = mine[batch * loader.batch_size : (batch + 1) * loader.batch_size]
        try:
            samples = (loader.dataset[i] for i in numbers)  # pyright: ignore[reportIndexIssue]
            return *_batch(samples, loader), torch.tensor(numbers)
        except UserError as error:
            return error


class _StreamEvalBatches(IterableDataset[Any]):
    """This process's batches of one pass over a stream, divided between the workers."""

    def __init__(self, loader: EvalLoader, stream: ImageStream) -> None:
        self.loader, self.stream = loader, stream

    def __iter__(self) -> Iterator[EvalBatch | UserError]:
        loader, info = self.loader, get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        samples = self.stream.eval_samples(loader.rank, loader.world)
        done = 0
        while True:
            try:
                chosen = [sample for _, sample in zip(range(loader.batch_size), samples, strict=False)]
                if not chosen:
                    return
                x, y = _batch(chosen, loader)
            except UserError as error:
                yield error
                return
            numbers = torch.arange(done, done + len(chosen))
            yield x, y, (numbers * workers + worker) * loader.world + loader.rank
            done += len(chosen)


def _batch(pairs: Iterable[tuple[Image.Image, Any]], loader: TrainLoader | EvalLoader) -> TrainBatch:
    """One batch of images and targets, through the loader's transform."""
    transform = loader.transform
    if isinstance(transform, PairTransform):
        return loader.collate([transform(image, target) for image, target in pairs])
    return loader.collate([(transform(image), torch.tensor(int(target))) for image, target in pairs])


def _loader(
    dataset: Any, batches: range | None, workers: int, pin_memory: bool, *, seed: int = 0, prefetch: int | None = None
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,  # an item of ours is a batch
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        prefetch_factor=prefetch,
        generator=torch.Generator().manual_seed(seed),  # else the global one gives a number away; shards use it
    )


def _as_is(batch: Any) -> Any:
    return batch


def _raise_errors(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def check_share(batch_size: int, world: int) -> None:
    """Raise `UserError` unless so many processes can have equal shares of a batch."""
    if batch_size % world:
        raise UserError(
            f"--batch_size {batch_size} cannot be shared by {world} processes: give a multiple of {world}, or start "
            "fewer of them."
        )


def _check_layout(batch_size: int, workers: int, rank: int, world: int) -> None:
    if batch_size < 1 or workers < 0:
        raise BadOption(f"batch_size={batch_size!r}, workers={workers!r} are not allowed; give at least 1 and 0.")
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank!r} is not allowed; there are {world} processes, counted from 0")
