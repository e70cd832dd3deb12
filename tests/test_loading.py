"""Batches: every image once an epoch and to one worker, another order each epoch, the same after a resume; P x K."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunnet import data
from prunnet.config.recipe import DataConfig, TrainConfig
from prunnet.data import files
from prunnet.data.loading import balanced, loaded, share_of, shuffled
from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError, DataError
from prunnet.training.trainer import Trainer
from tests.conftest import REPOSITORY, image_folder, striped_images, tiny_net


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_no_image_goes_to_two_workers_and_all_to_one(images: int, share: int, world: int, epoch: int) -> None:
    batches = shuffled(images, share * world, seed=3, epoch=epoch)
    parts = [share_of(batches, rank, world) for rank in range(world)]
    taken = np.concatenate([part.ravel() for part in parts])
    assert len(set(taken.tolist())) == len(taken) == images // (share * world) * share * world
    assert np.array_equal(np.concatenate(parts, axis=1), batches)


def test_each_epoch_has_its_own_order_and_the_seed_decides_it() -> None:
    first, second, again, other = (shuffled(40, 8, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (0, 0), (1, 0)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@given(st.integers(0, 999), st.integers(1, 4), st.integers(2, 4))
def test_balanced_batches_hold_p_classes_of_k_images(seed: int, wanted: int, per_class: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, rng.integers(wanted, 9))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    batches = balanced(labels, wanted * per_class, per_class, seed=seed, epoch=0)
    assert len(batches) == len(labels) // (wanted * per_class)
    for batch in batches:
        groups = labels[batch].reshape(wanted, per_class)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == wanted
        for group, label in zip(batch.reshape(wanted, per_class), groups[:, 0], strict=True):
            assert len(set(group.tolist())) == min(per_class, sizes[label])  # again only where there are too few
    assert np.array_equal(batches, balanced(labels, wanted * per_class, per_class, seed=seed, epoch=0))


def test_balanced_batches_deal_classes_and_their_images_evenly() -> None:
    labels = np.repeat(np.arange(10), [4, 4, 4, 4, 4, 200, 4, 4, 4, 8])
    batches = balanced(labels, 8, 4, seed=0, epoch=0)
    visits = np.bincount(labels[batches.ravel()]) // 4
    assert visits.max() - visits.min() <= 1  # whatever their sizes
    seen = batches.ravel()[labels[batches.ravel()] == 9]
    assert set(np.bincount(seen)[np.flatnonzero(labels == 9)]) <= {len(seen) // 8, len(seen) // 8 + 1}


def test_balanced_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=10 is no multiple of train.per_class=4"):
        balanced(np.arange(99) % 5, 10, 4, seed=0, epoch=0)
    with pytest.raises(DataError, match="2 classes are fewer than"):
        balanced(np.arange(99) % 2, 12, 4, seed=0, epoch=0)


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> files.ImageFiles:
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    root = image_folder(tmp_path / "images", classes=8)
    found = data.load(DataConfig(name="imagefolder", root=str(root), image_size=16)).train
    assert isinstance(found, files.ImageFiles)
    return found


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_processes_and_threads_load_the_same_pixels_in_order(lazy: files.ImageFiles, processes: int) -> None:
    batches = shuffled(len(lazy), 5, seed=0, epoch=0)
    found = list(loaded(lazy, batches, processes))
    assert len(found) == len(batches)
    for pixels, indices in zip(found, batches, strict=True):
        assert np.array_equal(pixels.numpy(), lazy.read(indices))


@pytest.mark.parametrize("processes", [0, 2])
def test_an_unreadable_image_is_named_by_whoever_decodes_it(lazy: files.ImageFiles, processes: int) -> None:
    victim = Path(lazy.files.where) / lazy.files.name(int(lazy.rows[7]))
    victim.write_bytes(b"torn")
    with pytest.raises(DataError, match=victim.name) as caught:
        list(loaded(lazy, shuffled(len(lazy), 5, seed=0, epoch=0), processes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
@pytest.mark.parametrize("loaders", [0, 2])
def test_a_training_resumes_in_the_middle_of_an_epoch(lazy: files.ImageFiles, sampling: str, loaders: int) -> None:
    config = TrainConfig(
        capacities=(0.5,), epochs=2, batch_size=8, sampling=sampling, precision="fp32", lr=0.02, per_class=4
    )

    def trainer() -> Trainer:
        torch.manual_seed(0)
        return Trainer(tiny_net(6), lazy, config, preprocessing=lazy.preprocessing, loaders=loaders)

    whole = trainer()
    whole.run()
    parts, stopped = trainer(), 2
    for images, labels in parts._batches(0, 0):
        parts.step(images, labels)
        if parts.progress.step == stopped:
            break
    parts.run()
    for one, other in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_same_images_from_memory_and_from_files_train_the_same_network(lazy: files.ImageFiles) -> None:
    held = data.MemoryImages(lazy.read(np.arange(len(lazy))), lazy.labels, lazy.preprocessing)
    config = TrainConfig(capacities=(0.5,), epochs=1, batch_size=8, precision="fp32", lr=0.02)
    states = []
    for images in (lazy, held):
        trainer = Trainer(tiny_net(6), images, config, preprocessing=lazy.preprocessing)
        trainer.run()
        states.append(trainer.net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_striped_images_need_no_files() -> None:
    images = striped_images(Preprocessing.from_config(DataConfig(image_size=16)))
    batches = shuffled(len(images), 8, seed=0, epoch=0)
    assert np.array_equal(next(loaded(images, batches, 4)).numpy(), images.read(batches[0]))


@pytest.mark.slow
def test_two_million_rows_cost_eight_processes_little() -> None:
    """What the processes hold in all (proportional set size), beyond the same processes with an empty list."""
    script = REPOSITORY / "tests" / "list_memory.py"
    totals = [
        int(subprocess.run([sys.executable, script, rows], capture_output=True, text=True, check=True).stdout)
        for rows in ("8", "2000000")
    ]
    assert totals[1] - totals[0] < 300 * 2**20, [t / 2**20 for t in totals]
