"""Loops of k-reciprocal encoding (`prunnet.retrieval.reranking`), compiled. Sparse matrices are (starts [n + 1],
indices, values), row after row.

`lists` [n, width]: the images nearest to each image, itself first. For a test of one query at a time, `moved` holds
other lists of some images: that of `image` is `moved[slot[image]]` where `slot[image]` is not -1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunnet.machine_code import compiled

Array = Any


@compiled()
def _list(image: int, lists: Array, moved: Array, slot: Array) -> Array:
    return lists[image] if slot[image] < 0 else moved[slot[image]]


@compiled()
def _holds(near: Array, width: int, image: int) -> bool:
    for place in range(width):  # noqa: SIM110 - numba knows no `any` of a generator
        if near[place] == image:
            return True
    return False


@compiled()
def _squared(one: Array, other: Array) -> float:
    """Squared Euclidean distance of two vectors of length 1."""
    cosine = 0.0
    for at in range(len(one)):
        cosine += np.float64(one[at]) * np.float64(other[at])
    return 2.0 - 2.0 * cosine


@compiled()
def reciprocal_set(
    image: int,
    lists: Array,
    moved: Array,
    slot: Array,
    width: int,
    half: int,
    features: Array,
    scales: Array,
    own: int,
    vector: Array,
    marks: Array,
    indices: Array,
    values: Array,
) -> int:
    """Writes the expanded k-reciprocal set of an image and its weights, which sum to 1; returns their number.

    Args:
        width, half: entries of a list that count for the set, and for those that expand it.
        own, vector: the image that a query takes the place of, and the query's features; -1: none.
        marks: [n] zeros, as they are left.
    """
    count = 0
    near = _list(image, lists, moved, slot)
    for place in range(width):
        other = near[place]
        if _holds(_list(other, lists, moved, slot), width, image):
            marks[other] = 1
            indices[count] = other
            count += 1
    mutual = count
    for at in range(mutual):
        candidate = indices[at]
        theirs = _list(candidate, lists, moved, slot)
        found, common = 0, 0
        for place in range(half):
            other = theirs[place]
            if _holds(_list(other, lists, moved, slot), half, candidate):
                found += 1
                if marks[other] == 1:
                    common += 1
        if 3 * common > 2 * found:
            for place in range(half):
                other = theirs[place]
                if marks[other] == 0 and _holds(_list(other, lists, moved, slot), half, candidate):
                    marks[other] = 2
                    indices[count] = other
                    count += 1
    mine = vector if image == own else features[image]
    total = 0.0
    for at in range(count):
        other = indices[at]
        marks[other] = 0
        distance = 0.0 if other == image else _squared(mine, vector if other == own else features[other])
        values[at] = math.exp(-distance / scales[image])
        total += values[at]
    for at in range(count):
        values[at] /= total
    return count


@compiled()
def reciprocal_sets(
    first: int, lists: Array, half: int, features: Array, scales: Array, indices: Array, values: Array, counts: Array
) -> None:
    """The sets of the images from `first` on, as many as there are `counts`, a line of `indices` and `values` each."""
    marks, slot = np.zeros(len(lists), np.int8), np.full(len(lists), -1, np.int32)
    for row in range(len(counts)):
        counts[row] = reciprocal_set(
            first + row, lists, lists, slot, lists.shape[1], half, features, scales, -1, features[0], marks,
            indices[row], values[row],
        )  # fmt: skip


@compiled()
def means(first: int, lists: Array, k2: int, sets: Array, indices: Array, values: Array, counts: Array) -> None:
    """Mean over the sets of the k2 nearest images, as `reciprocal_sets` writes."""
    starts, members, weights = sets
    sums = np.zeros(len(lists))
    for row in range(len(counts)):
        count = 0
        for place in range(k2):
            image = lists[first + row, place]
            for at in range(starts[image], starts[image + 1]):
                if sums[members[at]] == 0.0:
                    indices[row, count] = members[at]
                    count += 1
                sums[members[at]] += weights[at]
        for at in range(count):
            values[row, at] = sums[indices[row, at]] / k2
            sums[indices[row, at]] = 0.0
        counts[row] = count


@compiled()
def by_column(starts: Array, indices: Array, values: Array, first: int, columns: int) -> Any:
    """The rows from `first` on of a sparse matrix, column after column, as numbers of rows from `first`."""
    ends = np.zeros(columns + 1, np.int64)
    for at in range(starts[first], starts[-1]):
        ends[indices[at] + 1] += 1
    for column in range(columns):
        ends[column + 1] += ends[column]
    places = ends[:-1].copy()
    rows, kept = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float64)
    for row in range(first, len(starts) - 1):
        for at in range(starts[row], starts[row + 1]):
            place = places[indices[at]]
            rows[place], kept[place] = row - first, values[at]
            places[indices[at]] += 1
    return ends, rows, kept


@compiled()
def overlaps(first: int, mean: Array, columns: Array, out: Array) -> None:
    """Adds to out [queries, gallery] the sums of the smaller of two weights, of the rows from `first` on."""
    starts, indices, values = mean
    ends, rows, weights = columns
    for query in range(len(out)):
        for at in range(starts[first + query], starts[first + query + 1]):
            column = indices[at]
            for place in range(ends[column], ends[column + 1]):
                out[query, rows[place]] += min(values[at], weights[place])


@compiled()
def listed_by(lists: Array) -> Any:
    """Image -> (starts, who has it in its list, at which place)."""
    starts = np.zeros(len(lists) + 1, np.int64)
    for row in range(len(lists)):
        for place in range(lists.shape[1]):
            starts[lists[row, place] + 1] += 1
    for row in range(len(lists)):
        starts[row + 1] += starts[row]
    ends = starts[:-1].copy()
    who, where = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int32)
    for row in range(len(lists)):
        for place in range(lists.shape[1]):
            image = lists[row, place]
            who[ends[image]], where[ends[image]] = row, place
            ends[image] += 1
    return starts, who, where


@compiled()
def _with_listing(flags: Array, chosen: Array, count: int, listing: Array, width: int) -> int:
    """Adds to the first `count` chosen images, whose flags are set, all that have one of them among the first `width`
    of their list; returns how many they are then."""
    starts, who, where = listing
    before = count
    for at in range(before):
        for place in range(starts[chosen[at]], starts[chosen[at] + 1]):
            if where[place] < width and not flags[who[place]]:
                flags[who[place]] = True
                chosen[count] = who[place]
                count += 1
    return count


@compiled()
def one_at_a_time(
    first: int,
    vectors: Array,
    nearest: Array,
    scales_of_queries: Array,
    similarity: Array,
    width: int,
    half: int,
    k2: int,
    lists: Array,
    similarities: Array,
    listing: Array,
    features: Array,
    scales: Array,
    sets: Array,
    columns: Array,
    out: Array,
) -> None:
    """As `overlaps`, for queries `first`, `first` + 1, …, each of which takes the place of the gallery image of its own
    number: sets and means of all that are near that image, or near the query, are made anew.

    Args:
        vectors: [queries, d]. nearest: [queries, width - 1], their gallery images, the own one left out.
        similarity: [queries, gallery].
        lists, similarities: of the gallery, [gallery, width + 1] (or of all images where they are fewer).
        listing: `listed_by(lists)`.
        sets, columns: of the gallery without any query.
    """
    size = len(lists)
    set_starts, set_indices, set_values = sets
    ends, rows, weights = columns
    capacity = min(size, width * (half + 1))
    slot, place_of = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    flags, marks = np.zeros(size, np.bool_), np.zeros(size, np.int8)
    chosen = np.empty(size, np.int32)
    of_query, of_other = np.zeros(size), np.zeros(size)
    touched, touched_too = np.empty(size, np.int32), np.empty(size, np.int32)
    changed_scales = scales.copy()
    for query in range(len(vectors)):
        own, vector = first + query, vectors[query]
        changed_scales[own] = scales_of_queries[query]
        # 1. Images whose list changes: the own image left it, or the query comes into it.
        flags[own] = True
        chosen[0], count = own, 1
        starts, who, where = listing
        for at in range(starts[own], starts[own + 1]):
            if where[at] < width and not flags[who[at]]:
                flags[who[at]] = True
                chosen[count] = who[at]
                count += 1
        for image in range(size):
            if not flags[image]:
                last, least = lists[image, width - 1], similarities[image, width - 1]
                closer = similarity[query, image]
                if closer > least or (closer == least and own < last):
                    flags[image] = True
                    chosen[count] = image
                    count += 1
        moved = np.empty((count, width), np.int32)
        for at in range(count):
            image = chosen[at]
            slot[image] = at
            moved[at, 0] = image
            if image == own:
                moved[at, 1:] = nearest[query]
                continue
            filled, inside = 1, False
            for place in range(1, lists.shape[1]):
                if filled == width:
                    break
                other = lists[image, place]
                if other == own:
                    continue
                closer, there = similarity[query, image], similarities[image, place]
                if not inside and (closer > there or (closer == there and own < other)):
                    moved[at, filled] = own
                    filled += 1
                    inside = True
                    if filled == width:
                        break
                moved[at, filled] = other
                filled += 1
            if filled < width:  # a gallery so small that every list holds all of it
                moved[at, filled] = own
        lists_changed = count
        # 2. Images whose set changes: it is made of their list, of the lists in it, and of the half lists in those.
        count = _with_listing(flags, chosen, count, listing, half)
        count = _with_listing(flags, chosen, count, listing, width)
        new_indices, new_values = np.empty((count, capacity), np.int32), np.empty((count, capacity), np.float64)
        new_counts = np.empty(count, np.int64)
        for at in range(count):
            place_of[chosen[at]] = at
            new_counts[at] = reciprocal_set(
                chosen[at], lists, moved, slot, width, half, features, changed_scales, own, vector, marks,
                new_indices[at], new_values[at],
            )  # fmt: skip
        sets_changed = count
        # 3. Images whose mean changes.
        count = _with_listing(flags, chosen, count, listing, k2)
        total = 0
        for place in range(k2):
            image = moved[0, place]
            at = place_of[image]
            begin = 0 if at >= 0 else set_starts[image]
            end = new_counts[at] if at >= 0 else set_starts[image + 1]
            for entry in range(begin, end):
                column = new_indices[at, entry] if at >= 0 else set_indices[entry]
                if of_query[column] == 0.0:
                    touched[total] = column
                    total += 1
                of_query[column] += (new_values[at, entry] if at >= 0 else set_values[entry]) / k2
        for entry in range(total):
            column = touched[entry]
            for place in range(ends[column], ends[column + 1]):
                if not flags[rows[place]]:
                    out[query, rows[place]] += min(of_query[column], weights[place])
        for each in range(count):
            other, near, seen = chosen[each], _list(chosen[each], lists, moved, slot), 0
            for place in range(k2):
                at = place_of[near[place]]
                begin = 0 if at >= 0 else set_starts[near[place]]
                end = new_counts[at] if at >= 0 else set_starts[near[place] + 1]
                for entry in range(begin, end):
                    column = new_indices[at, entry] if at >= 0 else set_indices[entry]
                    if of_query[column] > 0.0:
                        if of_other[column] == 0.0:
                            touched_too[seen] = column
                            seen += 1
                        of_other[column] += (new_values[at, entry] if at >= 0 else set_values[entry]) / k2
            for entry in range(seen):
                column = touched_too[entry]
                out[query, other] += min(of_query[column], of_other[column])
                of_other[column] = 0.0
        for entry in range(total):
            of_query[touched[entry]] = 0.0
        for at in range(lists_changed):
            slot[chosen[at]] = -1
        for at in range(sets_changed):
            place_of[chosen[at]] = -1
        for at in range(count):
            flags[chosen[at]] = False
        changed_scales[own] = scales[own]
