"""A mask keeps exactly k weights, nests, and is the same whatever the memory format or the way it is made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunnet.errors import ConfigError
from prunnet.pruning.masks import LayerMasks, keep_count, top_k_mask
from tests import reference

shapes = st.sampled_from([(7,), (5, 3), (4, 3, 3, 3), (6, 1, 3, 3), (1, 1)])
capacities = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4)


@st.composite
def score_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Scores with many ties, zeros among them, or with none; contiguous or channels-last."""
    shape = draw(shapes)
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        scores = torch.randint(-3, 4, shape, generator=generator).float()
    else:
        scores = torch.randn(shape, generator=generator)
    if len(shape) == 4 and draw(st.booleans()):
        scores = scores.to(memory_format=torch.channels_last)
    return scores


@given(score_tensors(), capacities)
def test_a_layers_masks_equal_the_slow_selection(scores: torch.Tensor, capacities: list[float]) -> None:
    if scores.dim() < 2:
        scores = scores.view(-1, 1)
    masks = LayerMasks(scores, capacities)
    for index, capacity in enumerate(capacities):
        expected = reference.mask(scores, capacity)
        assert torch.equal(masks.mask(index), expected)
        assert torch.equal(top_k_mask(scores, capacity), expected)
        assert int(expected.sum()) == keep_count(scores.numel(), capacity)


@given(score_tensors(), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_smaller_capacity_is_inside_a_larger_one(scores: torch.Tensor, a: float, b: float) -> None:
    small, large = top_k_mask(scores, min(a, b)), top_k_mask(scores, max(a, b))
    assert not bool((small & ~large).any())


@given(score_tensors(), capacities)
def test_applying_a_mask_multiplies_by_it(scores: torch.Tensor, capacities: list[float]) -> None:
    if scores.dim() < 2:
        scores = scores.view(-1, 1)
    values = torch.randn_like(scores)
    masks = LayerMasks(scores, capacities)
    for index in range(len(capacities)):
        applied = masks.apply(values, index)
        assert torch.equal(applied, values * masks.mask(index))
        assert applied.stride() == scores.stride()


def test_masks_follow_the_scores() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    masks = LayerMasks(scores, [0.5])
    assert masks.mask(0).tolist() == [[False, False, True, True]]
    masks.update(-scores.flip(1))
    assert masks.mask(0).tolist() == [[True, True, False, False]]


def test_values_in_another_memory_format_are_masked_alike() -> None:
    scores, values = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    masks = LayerMasks(scores.to(memory_format=torch.channels_last), [0.3])
    assert torch.equal(masks.apply(values, 0), values * top_k_mask(scores, 0.3))


def test_scores_too_small_for_a_threshold_are_ranked_instead() -> None:
    scores = torch.tensor([[0.0, 1e-40, 0.0, 2e-40]])
    assert LayerMasks(scores, [0.75]).mask(0).tolist() == [[True, True, False, True]]


def test_half_a_weight_is_rounded_up_and_one_always_stays() -> None:
    assert keep_count(10, 0.25) == 3
    assert keep_count(10, 0.01) == 1
    assert keep_count(10, 1.0) == 10


@pytest.mark.parametrize("capacity", [0, -0.1, 1.2, float("nan"), float("inf"), "half", True])
def test_other_capacities_are_refused(capacity: object) -> None:
    with pytest.raises(ConfigError, match="0 < capacity <= 1"):
        keep_count(10, capacity)  # type: ignore[arg-type]
