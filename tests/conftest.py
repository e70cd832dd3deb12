"""Shared by all tests: small networks, small data, a quiet Ray that leaves nothing in the home folder."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pytest
import torch
from hypothesis import settings

from prunnet.config.recipe import DataConfig
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet

REPOSITORY = Path(__file__).parent.parent
OMNIGLOT = REPOSITORY.parent / "shared" / "data" / "omniglot_background.zip"
GROCERY = OMNIGLOT.with_name("grocery.zip")
LITE0 = OMNIGLOT.with_name("tf_efficientnet_lite0_imagenet.safetensors")
needs_grocery = pytest.mark.skipif(not GROCERY.exists(), reason="../shared/data/grocery.zip is absent")
needs_lite0 = pytest.mark.skipif(not LITE0.exists(), reason=f"../shared/data/{LITE0.name} is absent")
needs_omniglot = pytest.mark.skipif(not OMNIGLOT.exists(), reason="../shared/data/omniglot_background.zip is absent")

# Two workers of pytest-xdist have a processor each: threads of both on two processors would wait for each other.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
settings.register_profile("prunnet", deadline=None)  # how long an example takes says nothing on a shared machine
settings.load_profile("prunnet")


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing.from_config(DataConfig(image_size=16))


@pytest.fixture
def tiny() -> RetrievalNet:
    return tiny_net()


def tiny_net(classes: int = 4, **arguments: object) -> RetrievalNet:
    """A ResNet-18 of 8 to 32 channels for grey images."""
    options = {
        "stem": "released",
        "options": {"channels": [8, 8, 16, 32]},
        "in_chans": 1,
        "embedding_dim": 16,
    }
    return RetrievalNet("resnet18", classes, **{**options, **arguments})  # type: ignore[arg-type]


def net_without_batchnorm(classes: int = 4, **arguments: object) -> RetrievalNet:
    """A small ConvNeXt (LayerNorm only) in float64, for exact comparisons."""
    options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 2}
    net = RetrievalNet(
        "convnext_tiny", classes, in_chans=1, embedding_dim=8, neck_norm="none", options=options, **arguments
    )  # type: ignore[arg-type]
    return net.double()


def striped_images(preprocessing: Preprocessing, classes: int = 4, per_class: int = 8, seed: int = 0) -> MemoryImages:
    """Images whose class can be seen: stripes of another width and direction each, with noise."""
    rng = np.random.default_rng(seed)
    side = preprocessing.resize
    rows, columns = np.mgrid[:side, :side]
    images, labels = [], []
    for label in range(classes):
        for _ in range(per_class):
            along = rows if label % 2 else columns
            wave = np.sin(2 * np.pi * (along / (3 + label) + rng.random()))
            values = 128 + 90 * wave + rng.normal(0, 20, (side, side))
            images.append(values.clip(0, 255).astype(np.uint8)[None])
            labels.append(label)
    return MemoryImages(np.stack(images), np.array(labels, dtype=np.int64), preprocessing)


def image_folder(root: Path, classes: int = 6, per_class: int = 6, side: int = 20, top: int = 1) -> Path:
    """A folder of PNG files, ROOT/top/class/image.png."""
    from PIL import Image

    pre = Preprocessing.from_config(DataConfig(image_size=side))
    images = striped_images(pre, classes, per_class)
    for index, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        folder = root / f"top{label % top}" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / f"{index}.png")
    return root
