"""Augmentations by name: each image's draw is its own, whatever its batch, worker, loader or the step of a resume."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunnet import data
from prunnet.config.augmentations import AUGMENTATIONS
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.data.augment import Transforms, augmentation_of
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import ConfigError
from prunnet.experiments.stages import make_trainer
from prunnet.networks.files import network_sha
from prunnet.training import resume
from prunnet.training.trainer import Trainer
from tests.conftest import REPOSITORY, image_folder

STRONG: dict[str, dict[str, object]] = {
    "random_crop": {"padding": 4},
    "affine": {"degrees": 40, "translate": 0.2, "scale": [0.7, 1.3], "shear": 10},
    "colour_jitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2},
}
"""Parameters under which an augmentation shows, where it does not by `p: 1` or by default."""
CHAIN = [
    {"random_resized_crop": {"scale": [0.4, 1]}},
    "horizontal_flip",
    {"colour_jitter": {"brightness": 0.4, "contrast": 0.4, "p": 0.8}},
    {"rand_augment": {"operations": 1}},
    {"random_erasing": {"p": 0.5}},
]


def strong(name: str) -> dict[str, object]:
    return {"p": 1.0} if name not in STRONG and "p" in AUGMENTATIONS[name].model_fields else STRONG.get(name, {})


def transforms(augment: object, image_size: int = 16) -> Transforms:
    made = augmentation_of(DataConfig.model_validate({"image_size": image_size, "augment": augment}))
    assert isinstance(made, Transforms)
    return made


def pixels(channels: int, side: int = 20, count: int = 6) -> Tensor:
    rng = np.random.default_rng(channels)
    rows, columns = np.mgrid[:side, :side]
    waves = [128 + 100 * np.sin((i + 1) * rows / 5 + c + columns / 9) for i in range(count) for c in range(channels)]
    noisy = np.stack(waves).reshape(count, channels, side, side) + rng.normal(0, 10, (count, channels, side, side))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_is_a_function_of_the_image_and_its_seed(name: str, channels: int) -> None:
    chain, given = transforms([{name: strong(name)}]), pixels(channels)
    before, state = given.clone(), torch.get_rng_state()
    seeds = chain.seeds(6, seed=0, epoch=3)
    together = chain(given, seeds)
    assert together.dtype == torch.uint8
    assert together.shape == (6, channels, 16, 16)
    assert torch.equal(given, before)
    assert torch.equal(torch.get_rng_state(), state)
    order = [4, 0, 5, 2]
    torch.rand(7)
    assert torch.equal(transforms([{name: strong(name)}])(given[order], seeds[order]), together[order])
    plain = transforms([])(given, seeds)
    if (name, channels) != ("grey", 1):
        assert not torch.equal(together, plain)
    if name not in ("grey", "horizontal_flip", "vertical_flip"):  # by `p: 1` they draw nothing but the crop
        again = chain(given[:1].expand(6, -1, -1, -1), seeds)
        assert any(not torch.equal(again[0], other) for other in again[1:])
    elsewhere = chain.seeds(6, seed=0, epoch=4)
    assert not np.array_equal(elsewhere, seeds)


def test_the_documents_name_each_with_its_parameters() -> None:
    section = (REPOSITORY / "docs" / "DATA.md").read_text().split("## Augmentation")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("- `") and "`:" in line]
    found = {
        name: set(re.findall(r"`(\w+)`", said))
        for names, _, said in (line.partition(":") for line in lines)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert found == {name: set(kind.model_fields) for name, kind in AUGMENTATIONS.items()}


def test_without_a_list_all_stays_as_it_was() -> None:
    assert augmentation_of(DataConfig()) == Augmentation.from_config(DataConfig())
    plain = DataConfig(rotate=3.0, flip=True)
    assert augmentation_of(plain) == Augmentation(3.0, 0.08, 0.15, 8.0, True)


def test_two_ways_to_say_the_same_are_one_training_and_none_is_another() -> None:
    def hash_of(augment: object) -> str:
        return parse_recipe({"data": {"augment": augment}}).training_hash()

    same = (["horizontal_flip"], [{"horizontal_flip": {"p": 0.5}}], [{"horizontal_flip": None}])
    assert len(set(map(hash_of, same))) == 1
    assert hash_of(None) == Recipe().training_hash()
    others = (None, [], ["grey"], ["grey", "horizontal_flip"], ["horizontal_flip", "grey"])
    assert len(set(map(hash_of, others))) == 5
    recipe = parse_recipe({"data": {"augment": CHAIN}})
    assert parse_recipe(recipe.model_dump(mode="json")).training_hash() == recipe.training_hash()


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ("horizontal_flip", "is no list"),
        ({"horizontal_flip": {}}, "is no list"),
        ([{"horizontal_flip": {}, "grey": {}}], "is no augmentation"),
        (["colour_jiter"], "did you mean 'colour_jitter'"),
        ([{"colour_jitter": {"brightnes": 0.4}}], "parameter of colour_jitter 'brightnes'; did you mean 'brightness'"),
        ([{"horizontal_flip": {"p": 2}}], "horizontal_flip.p: Input should be less than or equal to 1 (given: 2)"),
        ([{"random_resized_crop": {"scale": [1.0, 0.4]}}], "random_resized_crop.scale: valid: [smallest, largest]"),
        ([{"gaussian_blur": {"kernel": 4}}], "gaussian_blur.kernel: valid: an odd number (given: 4)"),
        ([{"grey": 0.1}], "grey: 0.1; valid: parameters p"),
        ([{"rand_augment": {"fill": "black"}}], "rand_augment.fill"),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(augment: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({"data": {"augment": augment}})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_is_checked_without_torch() -> None:
    source = (
        "import sys; from prunnet.config.recipe import parse_recipe; "
        "parse_recipe({'data': {'augment': ['rand_augment', {'grey': {'p': 0.5}}]}}); "
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


# --- in a training ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = image_folder(tmp_path_factory.mktemp("data") / "images", classes=6, per_class=8, side=24)
    section = {"name": "imagefolder", "root": str(root), "image_size": 16, "resize": 20}
    return parse_recipe(
        {
            "data": {**section, "validation_fraction": 0, "test": ["class0", "class1"], "augment": CHAIN},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "embedding_dim": 16, "stem": "released"},
            "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "capacities": [0.5]},
        }
    )


def batches(trainer: Trainer, epoch: int = 1, start: int = 0) -> list[Tensor]:
    return [images for images, _ in trainer._batches(epoch, start)]


def test_batches_do_not_depend_on_loaders_threads_workers_or_where_the_run_began(recipe: Recipe) -> None:
    trainer = make_trainer(recipe, data.load_for(recipe))
    whole = batches(trainer)
    assert len(whole) == 4
    assert whole[0].shape == (8, 1, 16, 16)
    assert not torch.equal(whole[0], batches(trainer, epoch=0)[0])
    assert all(torch.equal(a, b) for a, b in zip(batches(trainer, start=1), whole[1:], strict=True))
    trainer.loaders = 2
    assert all(torch.equal(a, b) for a, b in zip(batches(trainer), whole, strict=True))
    trainer.loaders, trainer.reducer.world, halves = 0, 2, []
    for rank in (0, 1):
        trainer.reducer.rank = rank
        halves.append(batches(trainer))
    assert all(torch.equal(torch.cat(parts), b) for *parts, b in zip(*halves, whole, strict=True))


def test_images_are_normalised_as_the_network_expects_them(recipe: Recipe) -> None:
    """No augmentation and no margin: what is trained on is what is tested on."""
    section = recipe.data.model_copy(update={"augment": (), "resize": None})
    trainer = make_trainer(recipe.model_copy(update={"data": section}), data.load(section))
    ((indices, *_), (first, *_)) = trainer._order(1), batches(trainer)
    read = torch.from_numpy(trainer.train_set.read(indices))
    assert torch.equal(first, Preprocessing.from_config(section).normalise(read))


class Stopped(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    dataset = data.load_for(recipe)

    def stop(trainer: Trainer) -> None:
        if trainer.progress.step == 4:
            resume.save(tmp_path, trainer, recipe, dataset.class_names)
            raise Stopped

    whole = make_trainer(recipe, dataset)
    whole.run()
    with pytest.raises(Stopped):
        make_trainer(recipe, dataset).run(after_step=stop)
    resumed = make_trainer(recipe, dataset)
    resume.restore(tmp_path, resumed, recipe)
    resumed.run()
    assert network_sha(resumed.net) == network_sha(whole.net)
