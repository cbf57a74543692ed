"""PK sampling: training batches of P identities with K images each, for metric losses."""

from __future__ import annotations

import numpy as np

from ..errors import BadOption, UserError
from .datasets.base import frozen_random
from .datasets.market1501 import ReidSet
from .loader import TrainLoader
from .transforms.base import PairTransform


class IdentityLoader(TrainLoader):
    """Training batches of P different identities with K images each (Hermans et al., 2017, section 2).

    The images of a batch lie identity by identity, and each process's share holds whole identities. In an epoch an
    identity's images come in groups of K, without repetition; one with fewer than K makes one group, in which all of
    them occur, some repeatedly. An epoch has as many batches as these groups can fill, so that it shows about as many
    images as there are; which are left out changes from epoch to epoch. As of every `TrainLoader`, order and
    augmentation are functions of the seed and the epoch.

    Args:
        dataset: images of persons with their identities.
        transform: from image and target to input and target.
        batch_size: P x K images a step over all processes together.
        images_per_identity: K, from 2.
        seed: of order and augmentation, from 0.
        workers: processes that load; 0 = this one.
        rank: number of this process.
        world: number of processes.
        accumulate: parts in which each process goes through its share; each part holds whole identities, too.
        pin_memory: put batches where a GPU can fetch them while it computes.
        prefetch: batches that each worker has ready in advance; None = 2.

    Raises:
        BadOption: a setting outside what is allowed.
        UserError: batches that cannot be divided so, that would show one identity to a process, or more identities
            than there are.
    """

    def __init__(
        self,
        dataset: ReidSet,
        transform: PairTransform,
        batch_size: int,
        images_per_identity: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        pin_memory: bool = False,
        prefetch: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            transform,
            batch_size=batch_size,
            seed=seed,
            workers=workers,
            rank=rank,
            world=world,
            pin_memory=pin_memory,
            prefetch=prefetch,
        )
        self.group = images_per_identity
        self.members = [np.flatnonzero(dataset.identities == i) for i in range(len(dataset.classes))]
        _check_groups(batch_size, images_per_identity, world * accumulate, len(self.members))
        self.batch_size = batch_size
        self.num_batches = self._fillable(batch_size // images_per_identity)
        self._used = self.num_batches * batch_size

    def _fillable(self, identities: int) -> int:
        """The most batches of so many different identities that the groups of an epoch can fill."""
        groups = np.array([max(1, len(own) // self.group) for own in self.members])
        # an identity is in a batch once, so that of its groups no more count than there are batches
        return max(n for n in range(1, groups.sum() // identities + 1) if np.minimum(groups, n).sum() >= n * identities)

    def order(self, epoch: int) -> np.ndarray:
        """(batches x P x K,) number of the image at each position of an epoch."""
        random = frozen_random(self.seed, epoch)
        identities, batches = self.batch_size // self.group, self.num_batches
        groups = np.concatenate([self._grouped(identity, random) for identity in random.permutation(len(self.members))])
        kept = np.sort(random.permutation(len(groups))[: identities * batches])
        # an identity's groups follow each other and are no more than the batches: dealt out one a batch in turn, no two
        # of them meet
        dealt = groups[kept].reshape(identities, batches, self.group)
        return dealt.transpose(1, 0, 2)[random.permutation(batches)].reshape(-1)

    def _grouped(self, identity: int, random: np.random.RandomState) -> np.ndarray:
        """(groups, K) numbers of an identity's images, shuffled; repeated where they are fewer than K."""
        shuffled = random.permutation(self.members[identity])
        return np.resize(shuffled, (max(1, len(shuffled) // self.group), self.group))[: self.num_batches]


def _check_groups(batch_size: int, group: int, parts: int, identities: int) -> None:
    """Raise unless batches can hold whole identities, two or more in each part."""
    if group < 2:
        raise BadOption(f"images_per_identity={group!r} is not allowed; images are compared: give 2 or more.")
    least = parts * group
    if batch_size % least:
        raise UserError(
            f"batch_size={batch_size} cannot be divided into whole identities: give a multiple of {least} (processes x "
            "accumulate x images_per_identity)."
        )
    if batch_size == least:
        raise UserError(
            f"batch_size={batch_size} shows one identity at a time, which leaves none to tell it from: give "
            f"{2 * least} or more (twice processes x accumulate x images_per_identity)."
        )
    if batch_size > identities * group:
        raise UserError(
            f"batch_size={batch_size} needs {batch_size // group} identities with {group} images each, but there are "
            f"{identities}: give at most {identities * group}."
        )
