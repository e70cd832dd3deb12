"""Two workers with half batches agree with one with the whole, for every method and variant, in one process group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.data.transforms import Augmentation
from prunnet.pruning import prunable
from prunnet.storage import hashing
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.trainer import Trainer
from tests.conftest import striped_images, tiny_net
from tests.methods import (
    CASES,
    CLASSES,
    PREPROCESSING,
    batch,
    config_of,
    gradients,
    images,
    net_for,
    objective_of,
    save_old,
)


def spawn(worker: Callable[..., None], world: int, *arguments: object) -> None:
    """Runs `worker(rank, world, *arguments)` in `world` processes that share a gloo group."""
    mp.start_processes(_in_group, args=(world, worker, arguments), nprocs=world, start_method="spawn")


def _in_group(rank: int, world: int, worker: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    folder = arguments[0]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    worker(rank, world, *arguments)
    dist.destroy_process_group()


def gradients_of(case: str, old: Path, rank: int, world: int) -> dict[str, Tensor]:
    """One step's gradients on this worker's share of the batch; SNIP's scores where the case asks for them."""
    config = config_of(case, old)
    net = net_for(config)
    inputs, labels = batch()
    share = slice(rank * len(inputs) // world, (rank + 1) * len(inputs) // world)
    if config.score_init == "snip":
        trainer = Trainer(net.float(), images(), config, preprocessing=PREPROCESSING, class_names=CLASSES)
        return {name: score.detach() for name, score in prunable.scores(trainer.net).items()}
    return gradients(objective_of(config, net, Reducer()), net, (inputs[share], labels[share]))


def every_case(rank: int, world: int, folder: str) -> None:
    found = {case: gradients_of(case, Path(folder, "old.safetensors"), rank, world) for case in CASES}
    torch.save(found, f"{folder}/gradients-{rank}.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two workers found, for all cases."""
    folder = tmp_path_factory.mktemp("workers")
    save_old(folder / "old.safetensors")
    spawn(every_case, 2, str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_workers_with_half_batches_equal_one_with_the_whole(case: str, together: Path) -> None:
    whole = gradients_of(case, together / "old.safetensors", 0, 1)
    # Prototypes, old embeddings and SNIP's images are float32, whose sums depend on their order.
    config = config_of(case, together)
    rtol, atol = (1e-9, 1e-11) if config.old is None and config.score_init != "snip" else (1e-4, 1e-6)
    for rank in (0, 1):
        found = torch.load(together / f"gradients-{rank}.pt")[case]
        assert set(found) == set(whole)
        for name, gradient in whole.items():
            assert torch.allclose(found[name], gradient, rtol=rtol, atol=atol), (rank, name)


def parameter_hash(trainer: Trainer) -> str:
    averaged = {f"averaged {name}": p for name, p in trainer.trained.named_parameters()}
    found = {**trainer.learned(), **averaged}
    return hashing.of_arrays({name: p.detach().contiguous().numpy() for name, p in found.items()})


def some_steps(rank: int, world: int, folder: str) -> None:
    images = striped_images(PREPROCESSING, per_class=12)
    config = TrainConfig(epochs=2, batch_size=16, lr=0.05, precision="fp32", weighting="uncertainty", ema=0.9)
    augmentation = Augmentation(rotate=10)
    trainer = Trainer(tiny_net(pooling="gem"), images, config, preprocessing=PREPROCESSING, augmentation=augmentation)
    hashes: list[str] = []
    trainer.run(after_step=lambda trainer: hashes.append(parameter_hash(trainer)))
    Path(folder, f"hashes-{rank}").write_text("\n".join(hashes))


def test_replicas_stay_equal_through_real_steps(tmp_path: Path) -> None:
    spawn(some_steps, 2, str(tmp_path))
    first, second = (Path(tmp_path, f"hashes-{rank}").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 6  # three batches an epoch, and each step changed something
