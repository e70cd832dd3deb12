"""What each capacity finds for a few queries: the content of a run's contact sheet, from stored features."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from prunnet.data.base import ImageSet, IntArray, RetrievalTest
from prunnet.results.sheet import SIDE, Asked, Found, Sheet, encoded
from prunnet.retrieval.exact_search import Features, search
from prunnet.retrieval.protocol import Truth, both

TOP = 5
"""Gallery images that are shown of each ranking."""
COMPARED = 500
"""Queries that are drawn and ranked: of a large test not all, which would take as long as the test itself."""
_BYTES = 400_000
"""Of all JPEG files. The page holds them as base64, a third more."""
_FORMATS = ((SIDE, 85), (SIDE, 60), (64, 60), (48, 50))
"""Sides and qualities, the first that keeps to `_BYTES` is taken."""


def sheet_of(
    test: RetrievalTest,
    queries: Mapping[float, Features],
    gallery: Features,
    *,
    shown: int,
    seed: int,
    top: int = TOP,
) -> Sheet:
    """The `top` images that each capacity finds for `shown` queries.

    Queries are drawn from the seed among those that have something to find. Those come first on which capacities
    disagree most: on whether the first answer is right, then on the place of the first right answer.

    Args:
        queries: capacity -> query features [Q, d]. gallery: [G, d], which all of them search.

    Raises DataError where an image cannot be read.
    """
    truth = _medium(test.truth())
    findable = [q for q, group in enumerate(truth.relevant) if len(group)]
    drawn = np.random.default_rng([seed, 6]).permutation(np.array(findable, dtype=np.int64))[:COMPARED]
    if not len(drawn):
        return Sheet(left_out="no query has anything to find in the gallery")
    capacities = sorted(queries, reverse=True)
    some = _some(truth, drawn)
    first = np.stack([_first(some, queries[c][drawn], gallery) for c in capacities])
    chosen = drawn[_by_disagreement(first)[:shown]]
    some = _some(truth, chosen)
    rankings = {c: _rankings(some, queries[c][chosen], gallery, top) for c in capacities}
    pictures = _Pictures(test)
    asked = []
    for place, query in enumerate(chosen.tolist()):
        wanted = set(some.relevant[place].tolist())
        found = [
            tuple(
                Found(image=pictures.gallery(g), name=_name(test, test.gallery, g), hit=g in wanted)
                for g in rankings[c][place]
            )
            for c in capacities
        ]
        name = _name(test, test.queries, query)
        asked.append(Asked(image=pictures.query(query), name=name, found=tuple(found)))
    return _within_budget(asked, pictures.taken).model_copy(
        update={"capacities": tuple(capacities), "compared": len(drawn)}
    )


def _medium(truth: Truth) -> Truth:
    """Of Revisited tests the Medium protocol."""
    return truth if truth.hard is None else replace(truth, relevant=both(truth.relevant, truth.hard), hard=None)


def _some(truth: Truth, queries: IntArray) -> Truth:
    """The truth of some queries."""
    junk = None if truth.junk is None else [truth.junk[q] for q in queries]
    return replace(truth, relevant=[truth.relevant[q] for q in queries], junk=junk)


def _first(truth: Truth, queries: Features, gallery: Features) -> npt.NDArray[np.int64]:
    """[Q] places of the first right answers, 0 the best; the gallery's size where there is none."""
    hits = truth.hits(queries, gallery)
    first = np.full(len(queries), len(gallery))
    np.minimum.at(first, hits.query, hits.position)
    return first


def _by_disagreement(first: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Queries in the order of the sheet. `first` [capacities, Q]; equal ones stay in their order."""
    right = (first == 0).sum(axis=0)
    split = np.minimum(right, len(first) - right)
    spread = np.log1p(first).std(axis=0)
    return np.lexsort((-spread, -split))


def _rankings(truth: Truth, queries: Features, gallery: Features, top: int) -> list[list[int]]:
    """The first gallery indices of each query, junk left out."""
    junk: Sequence[npt.NDArray[np.integer]] = truth.junk or [np.zeros(0, np.int64)] * len(queries)
    ranks, _ = search(queries, gallery, top + max(map(len, junk)))
    return [[int(g) for g in row[~np.isin(row, bad)][:top]] for row, bad in zip(ranks, junk, strict=True)]


def _name(test: RetrievalTest, images: ImageSet, index: int) -> str:
    return test.class_name(int(images.labels[index]))


class _Pictures:
    """The images of a sheet, each taken once."""

    def __init__(self, test: RetrievalTest) -> None:
        self.test = test
        self._places: dict[tuple[bool, int], int] = {}
        self.taken: list[Image.Image] = []

    def query(self, index: int) -> int:
        """The place of a query's image among those taken."""
        return self._place(self.test.queries, index, asked=not self.test.leave_one_out)

    def gallery(self, index: int) -> int:
        return self._place(self.test.gallery, index, asked=False)

    def _place(self, images: ImageSet, index: int, *, asked: bool) -> int:
        if (asked, index) not in self._places:
            self._places[asked, index] = len(self.taken)
            pixels = images.read(np.array([index]))[0]  # as the network sees them
            picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            picture.thumbnail((SIDE, SIDE))
            self.taken.append(picture)
        return self._places[asked, index]


def _within_budget(asked: list[Asked], pictures: list[Image.Image]) -> Sheet:
    """Thumbnails as good as the budget allows; at the lowest quality, queries at the end are left out."""
    for side, quality in _FORMATS:
        files = [encoded(picture, side, quality) for picture in pictures]
        if sum(map(len, files)) <= _BYTES:
            break
    while len(asked) > 1 and sum(len(files[place]) for place in set(_used(asked))) > _BYTES:
        asked = asked[:-1]
    kept = sorted(set(_used(asked)))
    place = {old: new for new, old in enumerate(kept)}
    moved = [
        a.model_copy(
            update={
                "image": place[a.image],
                "found": tuple(tuple(f.model_copy(update={"image": place[f.image]}) for f in row) for row in a.found),
            }
        )
        for a in asked
    ]
    images = tuple(base64.b64encode(files[old]).decode() for old in kept)
    return Sheet.model_construct(queries=tuple(moved), images=images)


def _used(asked: Sequence[Asked]) -> Iterator[int]:
    for each in asked:
        yield each.image
        yield from (found.image for row in each.found for found in row)
