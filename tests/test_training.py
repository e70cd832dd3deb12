"""One step is exact, two workers agree with one, and a resumed run ends with the same bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from prunnet import fit
from prunnet.config.recipe import Recipe, TrainConfig
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError
from prunnet.networks.files import network_sha
from prunnet.pruning import prunable
from prunnet.training import resume
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.masked import step_seed
from prunnet.training.trainer import Trainer, schedule
from tests import methods, reference
from tests.conftest import net_without_batchnorm, striped_images, tiny_net


class StraightThrough(torch.autograd.Function):
    """w * m forward; dL/dw = g * m and dL/ds = g * w * sign(s) * m backward, as docs/METHODS.md, section 2 has it."""

    @staticmethod
    def forward(ctx, weight: Tensor, score: Tensor, kept: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(weight, score, kept)
        return weight * kept

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def, override]
        weight, score, kept = ctx.saved_tensors
        return gradient * kept, gradient * weight * score.sign() * kept, None


def obvious_step(net: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig, step: int) -> dict[str, Tensor]:
    """Gradients of one PrunNet step, pass after pass, loop after loop."""
    layers = prunable.layers(net)
    rows: dict[str, list[Tensor]] = {f"{name}.{kind}": [] for name in layers for kind in ("weight", "score")}
    shared: dict[str, Tensor] = {}
    for capacity in (1.0, *config.capacities):
        net.zero_grad()
        masked = {}
        for name, layer in layers.items():
            kept = reference.mask(layer.score.detach(), capacity).to(layer.weight.dtype)
            masked[f"{name}.weight"] = StraightThrough.apply(layer.weight, layer.score, kept)
        F.cross_entropy(torch.func.functional_call(net, masked, (images,)), labels).backward()
        for key, parameter in net.named_parameters():
            if key in rows:
                rows[key].append(parameter.grad.clone())
            elif capacity == 1.0:
                shared[key] = parameter.grad.clone()
    generator = torch.Generator().manual_seed(step_seed(config.seed, step))
    for name in layers:
        order = torch.randperm(len(config.capacities) + 1, generator=generator).tolist()
        for kind in ("weight", "score"):
            stacked = torch.stack(rows[f"{name}.{kind}"])
            shared[f"{name}.{kind}"] = reference.integrate(
                stacked, config.projection, config.block, config.weighting, config.exponent, order
            )
    return shared


def gradients(net: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig, step: int) -> dict[str, Tensor]:
    net.zero_grad()
    make_objective(net, config, Context(Reducer(), torch.float32)).backward(images, labels, step)  # type: ignore[arg-type]
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def batch(count: int = 8, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 32, 32, generator=generator).double()
    return images, torch.randint(0, 4, (count,), generator=generator)


@pytest.mark.parametrize(("projection", "weighting"), [("last", "cosine"), ("sequential", "mean")])
def test_a_step_equals_the_obvious_one(projection: str, weighting: str) -> None:
    config = TrainConfig(capacities=(0.7, 0.3), projection=projection, weighting=weighting, precision="fp32")
    net = net_without_batchnorm()
    expected = obvious_step(net, *batch(), config, step=3)
    found = gradients(net, *batch(), config, step=3)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name


def test_every_prunable_weight_and_score_gets_a_gradient() -> None:
    images, labels = batch()
    # timm zeroes the last BatchNorm of a residual branch, which hides the branch in the very first step.
    net = tiny_net(options={"channels": [8, 8, 16, 32], "zero_init_last": False})
    found = gradients(net, images.float(), labels, TrainConfig(precision="fp32"), step=0)
    assert all(
        float(gradient.abs().max()) > 0 for name, gradient in found.items() if not name.startswith("neck.0.bias")
    )


def test_only_the_dense_pass_updates_running_statistics() -> None:
    images, labels = batch()
    with_subnetworks, dense_only = tiny_net(), tiny_net()
    dense_only.train()(images.float())
    with_subnetworks.train()
    gradients(with_subnetworks, images.float(), labels, TrainConfig(precision="fp32"), step=0)
    for (name, a), (_, b) in zip(with_subnetworks.named_buffers(), dense_only.named_buffers(), strict=True):
        assert torch.equal(a, b), name


# --- fit ---------------------------------------------------------------------------------------------------


def trainer_for(preprocessing: Preprocessing, **settings: object) -> Trainer:
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "lr": 0.05, **settings})  # type: ignore[arg-type]
    return Trainer(
        tiny_net(),
        striped_images(preprocessing),
        config,
        preprocessing=preprocessing,
        augmentation=Augmentation(rotate=10, translate=0.1),
    )


def test_fit_learns_to_tell_classes_apart_at_every_capacity(preprocessing: Preprocessing) -> None:
    images = striped_images(preprocessing, per_class=16)
    history = fit(tiny_net(), images, capacities=(0.5, 0.2), epochs=12, batch_size=16, lr=0.05, precision="fp32")
    assert len(history) == 12
    for loss in ("loss_1", "loss_0.5", "loss_0.2"):
        assert history[-1][loss] < 0.6 * history[0][loss]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(preprocessing: Preprocessing, precision: str) -> None:
    runs = [trainer_for(preprocessing, precision=precision) for _ in range(2)]
    for run in runs:
        run.run()
    assert network_sha(runs[0].net) == network_sha(runs[1].net)
    other = trainer_for(preprocessing, precision=precision, seed=1)
    other.run()
    assert network_sha(other.net) != network_sha(runs[0].net)


def test_bf16_trains_without_nan_and_about_as_well(preprocessing: Preprocessing) -> None:
    losses = {p: trainer_for(preprocessing, precision=p, epochs=8).run()[-1]["loss_1"] for p in ("fp32", "bf16")}
    assert abs(losses["bf16"] - losses["fp32"]) < 0.25


class Stopped(Exception):
    pass


def hash_after(trainer: Trainer) -> str:
    trainer.run()
    learned = {name: p.detach() for name, p in trainer.objective.learned().items()}
    return network_sha(trainer.net) + network_sha(trainer.trained) + "".join(str(p.tolist()) for p in learned.values())


@pytest.mark.parametrize("stop_at", [2, 4, 9])
@pytest.mark.parametrize(
    "case",
    [
        "prunnet",
        "none, uncertainty",
        "prunnet + odpp",
        "sfsc",
        "independent at 0.3",
        "snip",
        "adamw",
        "frozen",
        "averaged",
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(case: str, tmp_path: Path, stop_at: int) -> None:
    more = {"optimizer": "adamw", "lr": 1e-3} if case == "adamw" else {"lr": 0.05}
    config = methods.config_of(
        "prunnet" if case == "adamw" else case, methods.save_old(tmp_path / "old.safetensors"), epochs=3, **more
    )

    def fresh() -> Trainer:
        net = methods.net_for(config).float()
        augmentation, pre = Augmentation(rotate=10, translate=0.1), methods.PREPROCESSING
        return Trainer(
            net,
            methods.images(),
            config,
            preprocessing=pre,
            augmentation=augmentation,
            class_names=methods.CLASSES,
        )

    expected = hash_after(fresh())
    recipe = Recipe(train=config).with_files_seen()

    def stop(trainer: Trainer) -> None:
        if trainer.progress.step == min(stop_at, trainer.total_steps - 1):
            resume.save(tmp_path, trainer, recipe, methods.CLASSES)
            raise Stopped

    with pytest.raises(Stopped):
        fresh().run(after_step=stop)
    resumed = fresh()
    resume.restore(tmp_path, resumed, recipe)
    assert hash_after(resumed) == expected


def test_a_checkpoint_of_another_configuration_is_refused(preprocessing: Preprocessing, tmp_path: Path) -> None:
    trainer = trainer_for(preprocessing)
    resume.save(tmp_path, trainer, Recipe(train=trainer.config), ("a", "b", "c", "d"))
    with pytest.raises(CheckpointError, match="belongs to configuration"):
        resume.restore(tmp_path, trainer, Recipe())


def test_mistakes_are_named(preprocessing: Preprocessing) -> None:
    images = striped_images(preprocessing)
    with pytest.raises(DataError, match="fewer than train.batch_size=64"):
        fit(tiny_net(), images, epochs=1, batch_size=64)
    with pytest.raises(ConfigError, match="has 4 classes, the network was made for 2"):
        fit(tiny_net(classes=2), images, epochs=1, batch_size=8)
    with pytest.raises(ConfigError, match="did you mean 'train.epochs'"):
        fit(tiny_net(), images, epoch=1)
    with pytest.raises(ConfigError, match="unknown train.method 'prunet'; did you mean 'prunnet'"):
        fit(tiny_net(), images, method="prunet", batch_size=8)
    with pytest.raises(ConfigError, match="diverged"):
        fit(tiny_net(), images, batch_size=8, epochs=3, lr=1e12, precision="fp32")


def test_an_images_augmentation_does_not_depend_on_its_batch(preprocessing: Preprocessing) -> None:
    images = striped_images(preprocessing)
    augmentation = Augmentation(rotate=20, translate=0.1, scale=0.2, shear=5, flip=True)
    draws = torch.from_numpy(augmentation.draws(len(images), seed=0, epoch=1))
    pixels = torch.from_numpy(images.pixels)
    together = augmentation(preprocessing, pixels, draws)
    alone = augmentation(preprocessing, pixels[5:6], draws[5:6])
    assert torch.allclose(together[5:6], alone, atol=1e-5)
    assert not torch.allclose(together[5:6], preprocessing.normalise(pixels[5:6]), atol=0.1)


def test_schedules() -> None:
    step = TrainConfig(schedule="step", milestones=(0.5,), epochs=10)
    assert [schedule(step, s, 10) for s in (0, 49, 50, 99)] == [1.0, 1.0, 0.1, 0.1]
    cosine = TrainConfig(schedule="cosine", epochs=10, warmup_epochs=1)
    values = [schedule(cosine, s, 10) for s in range(100)]
    assert values[0] < values[5] < values[10] == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] < 0.01


def test_bf16_is_not_used_where_its_gradients_are_wrong(preprocessing: Preprocessing) -> None:
    """A strided 3x3 convolution on a map of one pixel: oneDNN's bf16 gradients are uninitialised memory there."""
    deep = tiny_net(stem="timm")  # 16 px: 8, 4, 4, 2, 1 and one stride too many
    deep.backbone.conv1.stride = (4, 4)
    images = striped_images(preprocessing)
    auto = Trainer(deep, images, TrainConfig(batch_size=8), preprocessing=preprocessing)
    assert auto.dtype == torch.float32
    with pytest.raises(ConfigError, match="map of one pixel"):
        Trainer(deep, images, TrainConfig(batch_size=8, precision="bf16"), preprocessing=preprocessing)
    sound = Trainer(tiny_net(), images, TrainConfig(batch_size=8, precision="bf16"), preprocessing=preprocessing)
    assert sound.dtype == torch.bfloat16


@pytest.mark.parametrize("case", ["prunnet", "switchable", "sfsc", "sfsc_released", "independent at 0.3"])
def test_a_step_does_not_depend_on_the_memory_format(case: str, tmp_path: Path) -> None:
    """A fused optimiser walks weight and gradient side by side in memory, whatever their strides say."""
    config = methods.config_of(case, tmp_path, lr=0.05)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        # At least eight channels at all widths: fewer are wrong in channels-last without AVX-512, and refused.
        net = methods.net_for(config, channels=(16, 16, 24, 32)).float()
        trainer = Trainer(net, methods.images(), config, preprocessing=methods.PREPROCESSING, layout=layout)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        images, labels = methods.batch()
        trainer.step(images.float().contiguous(memory_format=layout), labels)
        moved.append({name: p.detach() - before[name] for name, p in net.named_parameters()})
    for name, change in moved[0].items():
        if float(change.abs().max()) > 1e-6:
            assert float((change - moved[1][name]).norm() / change.norm()) < 0.01, name


def test_the_group_is_left_alone_with_one_worker() -> None:
    tensors = [torch.randn(3), torch.randn(2, 2)]
    assert [a is b for a, b in zip(Reducer().average(tensors), tensors, strict=True)] == [True, True]
    assert not dist.is_initialized()
    assert "RANK" not in os.environ


def test_memory_images_are_read_by_index(preprocessing: Preprocessing) -> None:
    images: MemoryImages = striped_images(preprocessing)
    assert images.read(images.labels[:3]).shape == (3, 1, 16, 16)
