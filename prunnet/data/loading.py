"""Batches of a training set: in which order, which share of them a worker takes, and who decodes them.

An order is a pure function of (seed, epoch), so a stopped run resumes in the middle of an epoch with the batches that
it would have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from prunnet.data.base import ImageSet, IntArray, MemoryImages, Pixels
from prunnet.errors import ConfigError, DataError, PrunnetError

_AHEAD = 2
Then = Callable[[torch.Tensor, IntArray], torch.Tensor]


def shuffled(images: int, batch_size: int, *, seed: int, epoch: int) -> IntArray:
    """[steps, batch_size] image indices of one epoch: every image at most once, the last incomplete batch left out."""
    steps = images // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return order[: steps * batch_size].reshape(steps, batch_size)


def balanced(labels: IntArray, batch_size: int, per_class: int, *, seed: int, epoch: int) -> IntArray:
    """[steps, batch_size] image indices of one epoch of P x K batches: P distinct classes, K images of each, together.

    Every class comes up equally often, whatever its size; a class' images come up in turn, again and again where it has
    few. As many steps as `shuffled` makes.

    Raises:
        ConfigError: a batch that is no multiple of K. DataError: fewer than P classes.
    """
    if batch_size % per_class:
        raise ConfigError(f"train.batch_size={batch_size} is no multiple of train.per_class={per_class}")
    classes, wanted = len(np.unique(labels)), batch_size // per_class
    if classes < wanted:
        raise DataError(f"{classes} classes are fewer than train.batch_size / train.per_class = {wanted}")
    rng, steps = np.random.default_rng([seed, epoch, 2]), len(labels) // batch_size
    passes = -(-steps // (classes // wanted))
    # A round of all classes, cut to whole batches, holds none twice; who is cut off changes from round to round.
    rounds = [rng.permutation(classes)[: classes // wanted * wanted] for _ in range(passes)]
    chosen = np.concatenate(rounds)[: steps * wanted] if rounds else np.zeros(0, np.int64)
    return _drawn(labels, chosen, per_class, rng).reshape(steps, batch_size)


def _drawn(labels: IntArray, chosen: IntArray, per_class: int, rng: np.random.Generator) -> IntArray:
    """`per_class` images for each entry of `chosen`, flat; each class deals from its own shuffled deck."""
    by_class = rng.permutation(len(labels))
    by_class = by_class[np.argsort(labels[by_class], kind="stable")]
    ends = np.searchsorted(labels[by_class], np.arange(labels.max() + 1), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    visits = np.argsort(np.argsort(chosen, kind="stable"), kind="stable")  # place among all visits, class by class
    first_visit = np.searchsorted(np.sort(chosen), chosen, side="left")
    nth = (visits - first_visit)[:, None] * per_class + np.arange(per_class)
    sizes = (ends - starts)[chosen][:, None]
    return by_class[starts[chosen][:, None] + nth % sizes].ravel()


def share_of(batches: IntArray, rank: int, world: int) -> IntArray:
    """This worker's columns of every batch: no image goes to two workers, and together they take all."""
    share = batches.shape[1] // world
    return batches[:, rank * share : (rank + 1) * share]


class _Batches(TorchDataset):
    """An image set as torch's loader wants it: an item is a whole batch. The batches are one array: a list of a million
    small ones would be copied to every process as soon as it counts references."""

    def __init__(self, images: ImageSet, parts: IntArray, then: Then | None) -> None:
        self.images, self.parts, self.then = images, parts, then

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> torch.Tensor | PrunnetError:
        try:
            return _read(self.images.read(self.parts[step]), self.parts[step], self.then)
        except PrunnetError as error:  # torch would wrap it in a traceback
            return error


def _read(pixels: Pixels, part: IntArray, then: Then | None) -> torch.Tensor:
    found = torch.from_numpy(pixels)
    return found if then is None else then(found, part)


def loaded(images: ImageSet, batches: IntArray, processes: int = 0, then: Then | None = None) -> Iterator[torch.Tensor]:
    """Pixels [b, C, R, R], uint8, of each row of `batches`, in order.

    Args:
        processes: that decode ahead, and do what comes `then`; they are forked, so they share the set's lists. 0: no
            process; images that are files are then decoded ahead by threads.
        then: what is done to a batch's pixels, given its indices; by the processes where there are any.
    """
    if processes and not (isinstance(images, MemoryImages) and then is None):
        loader = DataLoader(
            _Batches(images, batches, then),
            batch_size=None,
            num_workers=processes,
            prefetch_factor=_AHEAD,
            multiprocessing_context="fork",
        )
        for found in loader:
            if isinstance(found, PrunnetError):
                raise found
            yield found
        return
    for pixels, part in zip(prefetched(images, batches), batches, strict=True):
        yield _read(pixels, part, then)


def prefetched(images: ImageSet, parts: Sequence[IntArray] | IntArray) -> Iterator[Pixels]:
    """Pixels of each part, in order; the next ones are decoded meanwhile, by as many threads as torch uses."""
    if isinstance(images, MemoryImages):
        yield from (images.read(part) for part in parts)
        return
    count = torch.get_num_threads()
    with ThreadPoolExecutor(count) as threads:
        waiting = deque(threads.submit(images.read, part) for part in parts[: count + 1])
        for number in range(len(parts)):
            pixels = waiting.popleft().result()
            if number + count + 1 < len(parts):
                waiting.append(threads.submit(images.read, parts[number + count + 1]))
            yield pixels
