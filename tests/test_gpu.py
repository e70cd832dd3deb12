"""On a GPU every method computes what it computes on a CPU, and a training, its cuts and its costs work there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunnet.config.recipe import TrainConfig
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.export.latency import measure
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.old_network import OldNetwork
from prunnet.training.trainer import Trainer
from tests import methods
from tests.conftest import striped_images, tiny_net

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def gradients_on(device: str, case: str, old: Path) -> dict[str, torch.Tensor]:
    """All gradients of one step of a case in float64, brought back to the CPU."""
    config = methods.config_of(case, old)
    net = methods.net_for(config).to(device)
    known = None
    if config.old:
        known = OldNetwork(
            config.old,
            preprocessing=methods.PREPROCESSING,
            class_names=methods.CLASSES,
            embedding_dim=8,
            device=device,
        )
    context = Context(Reducer(), torch.float32, methods.images(), methods.PREPROCESSING, known, 10)
    torch.manual_seed(0)
    images, labels = methods.batch()
    objective = make_objective(net, config, context)
    found = methods.gradients(objective, net, (images.to(device), labels.to(device)))
    return {name: gradient.cpu() for name, gradient in found.items()}


@pytest.mark.parametrize("case", methods.CASES)
def test_a_step_on_a_gpu_has_the_gradients_of_a_step_on_the_cpu(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which an old network in float32 would use
    old = methods.save_old(tmp_path / "old.safetensors")
    here, there = gradients_on("cpu", case, old), gradients_on("cuda", case, old)
    assert here.keys() == there.keys()
    tolerance = 1e-3 if methods.config_of(case, old).old else 1e-6
    for name, gradient in here.items():
        apart = (gradient - there[name]).abs().max().item()
        assert apart <= tolerance * gradient.abs().max().item(), name


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_training_in_bf16_learns_and_its_cuts_agree_with_the_cpu(
    granularity: str, preprocessing: Preprocessing
) -> None:
    images = striped_images(preprocessing, per_class=16)
    net = tiny_net(granularity=granularity, channel_multiple=2, image_size=16)
    config = TrainConfig(capacities=(0.5,), epochs=12, batch_size=16, lr=0.05, granularity=granularity)
    trainer = Trainer(net, images, config, preprocessing=preprocessing, augmentation=Augmentation(), device="cuda")
    assert trainer.dtype == torch.bfloat16
    history = trainer.run()
    assert history[-1]["loss_1"] < 0.5 * history[0]["loss_1"], history
    cut = subnetwork(trainer.net, 0.5).calibrate(calibration_loader(images, count=32))
    pixels = preprocessing.normalise(torch.from_numpy(images.pixels[:8]))
    on_gpu = cut.embed(pixels.cuda()).cpu()
    on_cpu = cut.to("cpu").embed(pixels)
    assert torch.allclose(on_gpu, on_cpu, atol=2e-3)
    assert torch.allclose(cut.compact(16)(pixels), on_cpu, atol=1e-4)


def test_costs_are_measured_on_the_gpu(preprocessing: Preprocessing) -> None:
    cuts = [subnetwork(tiny_net().cuda(), capacity) for capacity in (1.0, 0.5)]
    for cost in measure(cuts, preprocessing, runtime="eager", threads=1):
        assert cost.device == torch.cuda.get_device_name()
        assert cost.latency_ms_b1 > 0
        assert cost.peak_bytes > 0
