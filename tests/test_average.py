"""The average of a network over its training is what is validated, saved and resumed, alike on all workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunnet import fit
from prunnet.config.recipe import Recipe, TrainConfig, parse_recipe
from prunnet.data.transforms import Augmentation
from prunnet.errors import ConfigError
from prunnet.networks.files import load_calibrated, network_sha
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.subnetworks.subnet import dense_statistics
from prunnet.training import resume
from prunnet.training.average import Average
from prunnet.training.trainer import Trainer
from tests import methods
from tests.conftest import tiny_net
from tests.test_workers import spawn

CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.05, precision="fp32", capacities=(0.5,), ema=0.9)
RECIPE = Recipe(train=CONFIG)


def fresh(net: RetrievalNet | None = None) -> Trainer:
    augmentation = Augmentation(rotate=10)
    images, preprocessing = methods.images(per_class=6), methods.PREPROCESSING
    return Trainer(net or tiny_net(), images, CONFIG, preprocessing=preprocessing, augmentation=augmentation)


def test_the_average_is_that_of_weights_scores_and_statistics() -> None:
    trainer = fresh()
    seen: list[dict[str, Tensor]] = [{k: v.double().clone() for k, v in trainer.net.state_dict().items()}]
    trainer.run(after_step=lambda t: seen.append({k: v.double().clone() for k, v in t.net.state_dict().items()}))
    expected = seen[0]
    for step, state in enumerate(seen[1:], 1):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in state.items()}
    for name, tensor in trainer.trained.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), expected[name], atol=1e-5), name
        else:
            assert torch.equal(tensor, trainer.net.state_dict()[name]), name
    assert not torch.equal(trainer.trained.backbone.conv1.score, trainer.net.backbone.conv1.score)  # type: ignore[union-attr, arg-type]


def test_tables_of_whole_numbers_and_of_infinities_are_copied() -> None:
    net = tiny_net()
    net.register_buffer("positions", torch.arange(100))
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = Average(net, 0.999)
    for step in range(1, 4):
        average.update(net, step)
    assert torch.equal(average.net.get_buffer("positions"), torch.arange(100))
    assert torch.equal(average.net.get_buffer("mask"), torch.tensor([0.0, -torch.inf]))


def test_what_is_saved_as_the_trained_network_is_the_average(tmp_path: Path) -> None:
    trainer = fresh()
    trainer.run()
    resume.save(tmp_path, trainer, RECIPE, methods.CLASSES)
    resume.export(tmp_path, RECIPE, tmp_path / "model.safetensors")
    net, _, statistics = load_calibrated(tmp_path / "model.safetensors")
    assert network_sha(net) == network_sha(trainer.trained) != network_sha(trainer.net)
    expected = dense_statistics(trainer.trained, trainer.train_set, trainer.preprocessing)
    assert statistics is not None
    assert expected is not None
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in statistics.tensors.items())


def test_fit_leaves_the_average_in_the_network() -> None:
    settings = CONFIG.model_dump(include={"epochs", "batch_size", "lr", "precision", "capacities"})
    plain, averaged = tiny_net(), tiny_net()
    fit(plain, methods.images(), preprocessing=methods.PREPROCESSING, **settings)
    fit(averaged, methods.images(), preprocessing=methods.PREPROCESSING, ema=0.9, **settings)
    by_hand = Trainer(tiny_net(), methods.images(), CONFIG, preprocessing=methods.PREPROCESSING)
    by_hand.run()
    assert network_sha(plain) == network_sha(by_hand.net)
    assert network_sha(averaged) == network_sha(by_hand.trained)


class Stopped(Exception):
    pass


def halves(rank: int, world: int, folder: str) -> None:
    """Trains to the end; then to the fourth step and, from its checkpoint, to the end. Notes both networks' hashes."""

    def stop(trainer: Trainer) -> None:
        if trainer.progress.step == 4:
            resume.save(Path(folder, "saved"), trainer, RECIPE, methods.CLASSES)
            raise Stopped

    def said(trainer: Trainer) -> str:
        parameters = {name: p.detach() for name, p in trainer.trained.named_parameters()}
        alike = "".join(str(float(p.double().sum())) for p in parameters.values())
        return f"{network_sha(trainer.net)} {network_sha(trainer.trained)} {alike}"

    whole = fresh()
    whole.run()
    with pytest.raises(Stopped):
        fresh().run(after_step=stop)
    torch.distributed.barrier()
    resumed = fresh()
    resume.restore(Path(folder, "saved"), resumed, RECIPE)
    resumed.run()
    Path(folder, f"said-{rank}").write_text(f"{said(whole)}\n{said(resumed)}")


def test_two_workers_resume_to_the_same_bits_and_average_the_same_weights(tmp_path: Path) -> None:
    spawn(halves, 2, str(tmp_path))
    of_workers = [Path(tmp_path, f"said-{rank}").read_text().split("\n") for rank in (0, 1)]
    assert all(whole == resumed for whole, resumed in of_workers)
    (_, first, alike), (_, second, other) = (whole.split() for whole, _ in of_workers)
    assert alike == other
    assert first != second  # each has statistics of its own images


@pytest.mark.parametrize("decay", ["0", "1", "1.5", "-0.1"])
def test_a_decay_lies_between_0_and_1(decay: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.ema: Input should be (greater|less) than"):
        parse_recipe({"train": {"ema": float(decay)}})
