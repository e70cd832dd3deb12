"""What is read of a layer's gradients is the same whether compiled loops, torch's pieces or a plain loop read it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunnet.pruning import compiled_loops
from prunnet.pruning.masks import LayerMasks, StoredMasks, in_memory_order, laid_out_like
from prunnet.training.gradients.rows import LayerRows, inner_products, write_sums

CAPACITIES = [0.7, 0.4, 0.05]
CUTS = [None, 0, 1, 2]


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Everything about a layer; among its scores are ties and zeros, or neither."""
    shape = draw(st.sampled_from([(3, 4), (1, 1), (2, 700), (5, 2, 3, 3), (7, 1, 3, 3), (2, 40, 5, 5)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    weight, score = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    if draw(st.booleans()):
        score = torch.randint(-2, 3, shape, generator=generator).to(dtype)
    gradients = [torch.randn(shape, generator=generator, dtype=dtype) for _ in CUTS]
    if len(shape) == 4 and draw(st.booleans()):
        like = {"memory_format": torch.channels_last}
        weight, score = weight.to(**like), score.to(**like)
        gradients = [gradient.to(**like) for gradient in gradients]
    kind = draw(st.sampled_from(["thresholds", "stored", "none"]))
    return {
        "weight": weight,
        "gradients": gradients,
        "score": score if draw(st.booleans()) else None,
        "masks": masks_of(kind, weight, score),
    }


def masks_of(kind: str, weight: torch.Tensor, score: torch.Tensor) -> LayerMasks | StoredMasks | None:
    thresholds = LayerMasks(score, CAPACITIES)
    if kind != "stored":
        return thresholds if kind == "thresholds" else None
    stored = StoredMasks(weight)
    stored.set([thresholds.mask(index) for index in range(len(CAPACITIES))])
    return stored


def rows_of(layer: dict[str, Any]) -> LayerRows:
    """As training makes them: views in memory order."""
    weight, score = in_memory_order(layer["weight"]), layer["score"]
    gradients = [in_memory_order(gradient).clone() for gradient in layer["gradients"]]
    if isinstance(layer["masks"], LayerMasks):
        for gradient, cut in zip(gradients, CUTS, strict=True):
            if cut is not None:
                layer["masks"].zero_ties(gradient, cut)
    return LayerRows(
        gradients=gradients,
        weight=weight,
        weight_grad=torch.full_like(weight, torch.nan),
        score=None if score is None else in_memory_order(score),
        score_grad=None if score is None else torch.full_like(weight, torch.nan),
        masks=layer["masks"],
        cuts=CUTS if layer["masks"] is not None else None,
    )


def plainly(layer: dict[str, Any], rows: LayerRows) -> torch.Tensor:
    """[B, K, M, n] in float64: each gradient times its mask, and that times w * sign(s)."""
    found = []
    for gradient, cut in zip(layer["gradients"], CUTS, strict=True):
        masks = layer["masks"]
        found.append(gradient if masks is None or cut is None else gradient * masks.mask(cut))
    stacked = torch.stack([in_memory_order(laid_out_like(g, layer["weight"])) for g in found], 1).double()
    if rows.score is None:
        return stacked[:, None]
    factor = rows.weight.double() * rows.score.sign()
    return torch.stack([stacked, stacked * factor[:, None]], 1)


@settings(max_examples=120)
@given(layer=layers(), threaded=st.booleans(), compiled=st.booleans())
def test_inner_products_and_sums_are_those_of_masked_gradients(
    layer: dict[str, Any], threaded: bool, compiled: bool
) -> None:
    rows = rows_of(layer)
    if not compiled:
        rows.__dict__["loops"] = None
    expected = plainly(layer, rows)
    tolerance = 1e-4 if rows.weight.dtype == torch.float32 else 1e-11
    threads = ThreadPoolExecutor(2) if threaded else None

    (grams,) = inner_products([rows], threads)
    products = expected @ expected.transpose(2, 3)
    assert torch.allclose(grams, products, rtol=tolerance, atol=tolerance * float(products.abs().max()))

    coefficients = torch.randn(len(rows.weight), rows.kinds, len(CUTS), dtype=torch.float64)
    write_sums([rows], [coefficients], threads)
    sums = torch.einsum("bkm,bkmn->bkn", coefficients, expected)
    atol = tolerance * max(1.0, float(sums.abs().max()))
    assert torch.allclose(rows.weight_grad.double(), sums[:, 0], atol=atol)
    if rows.score_grad is not None:
        assert torch.allclose(rows.score_grad.double(), sums[:, 1], atol=atol)


def test_compiled_loops_take_what_training_has_by_default_and_leave_the_rest_to_torch() -> None:
    weight = torch.randn(4, 6)
    masks = {kind: masks_of(kind, weight, weight) for kind in ("thresholds", "stored", "none")}
    gradients = [torch.randn(4, 6) for _ in CUTS]
    taken = {
        kind: LayerRows(gradients, weight, weight.clone(), masks=own, cuts=None if own is None else CUTS).loops
        for kind, own in masks.items()
    }
    assert [kind for kind, loops in taken.items() if loops is not None] == ["thresholds", "none"]
    half = [gradient.bfloat16() for gradient in gradients]
    assert LayerRows(half, weight.bfloat16(), weight.bfloat16()).loops is None


def test_a_large_layer_is_shared_and_gives_the_same_numbers_as_one_thread() -> None:
    weight = torch.randn(300, 500)
    gradients = [torch.randn(300, 500) for _ in CUTS]
    masks = LayerMasks(torch.randn(300, 500), CAPACITIES)
    found = []
    for threads in (None, ThreadPoolExecutor(3)):
        rows = LayerRows(gradients, weight, torch.empty_like(weight), masks=masks, cuts=CUTS)
        found.append(inner_products([rows], threads)[0])
    assert torch.equal(*found)


@given(
    values=st.lists(st.sampled_from([0.0, 1e-40, 1.0, 1.0000001, 2.5, float("inf")]) | st.floats(0, 1e6), min_size=1),
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_the_kth_largest_is_found_among_few_candidates(values: list[float], dtype: Any, data: st.DataObject) -> None:
    magnitudes = np.array(values, dtype)
    counts = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=4))
    integers = magnitudes.view(np.int32 if dtype == np.float32 else np.int64)
    found, slices, ranks = compiled_loops.candidates(integers, np.array(counts))
    falling = np.sort(integers)[::-1]
    for count, (start, stop), rank in zip(counts, slices, ranks, strict=True):
        assert np.sort(found[start:stop])[::-1][rank - 1] == falling[count - 1]


def test_of_many_magnitudes_few_are_candidates() -> None:
    magnitudes = np.random.default_rng(0).random(200_000, np.float32).view(np.int32)
    found, _, _ = compiled_loops.candidates(magnitudes, np.array([20_000, 100_000, 180_000]))
    assert len(found) < len(magnitudes) / 100


NOWHERE = "c.CacheImpl._locator_classes = []"
FULL = "def full(*_):\n    raise OSError(28, 'No space left on device')\nc.IndexDataCacheFile.save = full"


def select(folder: Path, trouble: str = "") -> None:
    """A process that compiles a loop, or reads it."""
    code = (
        f"import numba.core.caching as c\n{trouble}\n"
        "import numpy as np; from prunnet.pruning import compiled_loops\n"
        "compiled_loops.candidates(np.arange(9, dtype=np.int32), np.array([2])); print('selected')"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "selected\n", done.stderr


@pytest.mark.parametrize("trouble", ["", NOWHERE, FULL], ids=["kept", "nowhere", "full"])
def test_machine_code_is_kept_where_there_is_a_folder_for_it(tmp_path: Path, trouble: str) -> None:
    """Nowhere: neither the package's folder nor the user's can be written to."""
    select(tmp_path, trouble)
    assert bool(list(tmp_path.rglob("*.nbc"))) == (not trouble)


@pytest.mark.parametrize("suffix", ["nbc", "nbi"])
def test_torn_machine_code_is_made_anew(tmp_path: Path, suffix: str) -> None:
    select(tmp_path)
    (torn,) = tmp_path.rglob(f"compiled_loops.candidates*.{suffix}")
    whole = torn.stat().st_size
    os.truncate(torn, 30)
    select(tmp_path)
    assert torn.stat().st_size > whole / 2
