"""Subnetworks whose layers are refitted to the dense network's outputs: exact where a slow version says what is right,
nearer to the dense network than before, and nothing but kept weights changed."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn

from prunnet.config import parse_recipe
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from prunnet.export.progressive import Nested
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.subnetworks import reconstruction, subnetwork
from prunnet.subnetworks.reconstruction import reconstruct, solved
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import (
    Calibration,
    CalibrationImages,
    Cut,
    Reconstruction,
    TrainedHeader,
    TrainedNetwork,
)
from prunnet.training.trainer import fit
from tests.conftest import striped_images

NETS: dict[str, dict[str, Any]] = {
    "resnet": {"backbone": "resnet18", "options": {"channels": [8, 8, 16, 16]}},
    "depthwise": {"backbone": "mobilenetv2_035", "options": {}},
    "transformer": {
        "backbone": "vit_tiny_patch16_224",
        "options": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    },
}
PREPROCESSING = Preprocessing.from_config(parse_recipe({"data": {"channels": 1, "image_size": 32}}).data)


def made(name: str = "resnet", granularity: str = "weight", **more: Any) -> RetrievalNet:
    arguments = {"classes": 6, "embedding_dim": 16, "in_chans": 1, "granularity": granularity, "image_size": 32}
    return RetrievalNet(**{**arguments, **NETS[name], **more})


@functools.cache
def trained(name: str, granularity: str) -> RetrievalNet:
    """A network that tells stripes apart."""
    net = made(name, granularity)
    fit(net, stripes(), (0.7,), epochs=8, batch_size=48, lr=0.05, precision="fp32", method="joint")
    return net.double()


def stripes(seed: int = 0) -> MemoryImages:
    return striped_images(PREPROCESSING, classes=6, per_class=32, seed=seed)


def images(seed: int = 0) -> Tensor:
    return PREPROCESSING.normalise(torch.from_numpy(stripes(seed).pixels)).double()


def pair(net: RetrievalNet, capacity: float, batch: Tensor) -> tuple[Subnetwork, Subnetwork]:
    """The cut, and the dense subnetwork, both calibrated."""
    return subnetwork(net, capacity).calibrate([batch]), subnetwork(net, 1.0).calibrate([batch])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["at once", "row by row", "approached"]))
def test_rows_are_solved_as_least_squares_over_the_kept_weights(seed: int, how: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs, rows = 9, 7, 40
    x = torch.randn(rows, inputs, generator=generator).double()
    y = torch.randn(rows, outputs, generator=generator).double()
    old = torch.randn(outputs, inputs, generator=generator).double()
    kept = torch.rand(outputs, inputs, generator=generator) < 0.6
    pull = 0.7
    gram, target = x.T @ x + pull * torch.eye(inputs).double(), y.T @ x + pull * old
    found = {
        "at once": lambda: solved(gram[None], target[None], kept[None], old[None])[0],
        "row by row": lambda: reconstruction._by_rows(gram, target, kept, old),
        "approached": lambda: reconstruction._approached(gram, target, kept.double(), old),
    }[how]()
    for row in range(outputs):
        chosen = kept[row].nonzero()[:, 0]
        # min |x w - y|² + pull |w - old|², as one least-squares problem
        tall = torch.cat([x[:, chosen], pull**0.5 * torch.eye(len(chosen)).double()])
        wanted = torch.cat([y[:, row], pull**0.5 * old[row, chosen]])
        slow = torch.zeros(inputs).double()
        if len(chosen):
            slow[chosen] = torch.linalg.lstsq(tall, wanted[:, None], driver="gelsd").solution[:, 0]
        assert torch.allclose(found[row], slow, atol=1e-6)


LAYERS = {
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=2, bias=False),
    "depthwise": nn.Conv2d(4, 4, (3, 5), groups=4, padding="same"),
    "two groups": nn.Conv2d(4, 6, 1, groups=2, stride=2),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "as TensorFlow pads": Conv2dSame(4, 6, 3, stride=2),
    "linear": nn.Linear(4, 6),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(3, 4, 9, 11), (3, 4, 8, 8)])
def test_what_a_layer_reads_at_a_place_gives_what_it_puts_out_there(kind: str, shape: tuple[int, ...]) -> None:
    layer = copy.deepcopy(LAYERS[kind]).double()
    given = torch.randn(shape).double()
    given = given.permute(0, 2, 3, 1) if kind == "linear" else given
    output = reconstruction._by_place(layer(given), layer)
    places = torch.randint(output.shape[1], (3, 5))
    seen = reconstruction._inputs(layer, given, places)
    weight = layer.weight.reshape(len(seen), -1, seen.shape[2])
    found = (seen @ weight.transpose(1, 2)).transpose(0, 1).flatten(1) + (0 if layer.bias is None else layer.bias)
    assert torch.allclose(found, output.gather(1, places[..., None].expand(-1, -1, output.shape[2])).flatten(0, 1))


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("resnet", "weight"),
        ("resnet", "channel"),
        ("resnet", "kernel"),
        ("depthwise", "channel"),
        ("transformer", "weight"),
    ],
)
def test_a_refitted_subnetwork_is_nearer_to_the_dense_network_and_keeps_what_it_kept(
    name: str, granularity: str
) -> None:
    net, batch, unseen = trained(name, granularity), images(), images(seed=1)
    before = copy.deepcopy(net.state_dict())
    cut, dense = pair(net, 0.3, batch)
    wanted = dense.embed(unseen)
    distance = (cut.embed(unseen) - wanted).norm()
    cut_away = {f"{name}.weight": ~mask for name, mask in cut.masks.items()}
    refitted = reconstruct(cut, dense, batch).calibrate([batch])
    assert (refitted.embed(unseen) - wanted).norm() < 0.8 * distance
    state = refitted.state()
    assert all(bool((state[weight][gone] == 0).all()) for weight, gone in cut_away.items())
    after = net.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_what_a_cut_can_still_compute_is_found_again() -> None:
    # The second half of all channels repeats the first, so all that is cut can be made from what is kept.
    net = made("resnet", "channel", channel_multiple=1).double()
    assert net.channels is not None
    groups = net.channels.graph.groups
    with torch.no_grad():
        for group, score in zip(groups, net.channels.scores, strict=True):
            half = group.units // 2
            score.copy_(torch.arange(group.units, 0, -1))
            for (layer, side), _ in group.sites.items():
                module = net.get_submodule(layer)
                for tensor in (module.weight, module.bias) if side == "norm" else (module.weight,):
                    if side != "in":
                        tensor[half:] = tensor[:half]
    batch, unseen = images(), images(seed=1)
    scores = list(net.channels.scores)
    enough = next(
        c / 100 for c in range(20, 100) if all(2 * k.sum() >= len(k) for k in net.channels.keep(scores, c / 100))
    )
    cut, dense = pair(net, enough, batch)
    lost = (cut.embed(unseen) - dense.embed(unseen)).norm()
    found = reconstruct(cut, dense, batch, ridge=1e-9).calibrate([batch])
    assert lost > 0.1
    assert (found.embed(unseen) - dense.embed(unseen)).norm() < 1e-3 * lost


def header(method: str = "prunnet") -> TrainedHeader:
    return TrainedHeader(weights_sha="x", recipe={"train": {"method": method}})


def test_a_sweep_refits_what_is_cut_and_says_so_in_the_calibration() -> None:
    sweep = parse_recipe({"sweep": {"reconstruct": True, "reconstruct_images": 200, "ridge": 0.2}}).sweep
    plain = sweep.model_copy(update={"reconstruct": False})
    given = CalibrationImages(stripes().pixels, PREPROCESSING)
    network = TrainedNetwork(copy.deepcopy(trained("resnet", "channel")).float(), header())
    cuts = {how: [network.subnetwork(Cut.of_sweep(how, c), given) for c in (1.0, 0.3)] for how in (sweep, plain)}
    batch = images(seed=2).float()
    wanted, *others = (cut.embed(batch) for how in (sweep, plain) for cut in cuts[how])
    near, dense, far = others
    assert torch.equal(wanted, dense)
    assert (near - wanted).norm() < 0.8 * (far - wanted).norm()
    (whole, refitted), (same, masked) = ([cut.calibration for cut in cuts[how]] for how in (sweep, plain))
    assert whole == same
    assert refitted != masked
    cut = Cut(0.3, reconstruction=Reconstruction(200, 0.2), calibration=Calibration(batch_size=sweep.batch_size))
    assert torch.equal(network.subnetwork(cut, given).embed(batch), near)
    assert torch.allclose(cuts[sweep][1].compact(32)(batch), near, atol=1e-5)


@pytest.mark.parametrize("method", ["independent", "regression", "switchable", "sfsc"])
def test_subnetworks_that_are_no_parts_of_a_trained_dense_network_are_refused(method: str) -> None:
    """When the recipe is read; where a trained network is swept, when it is cut."""
    with pytest.raises(ConfigError, match=f"reconstruct=true makes no sense .*{method}"):
        parse_recipe({"train": {"method": method}, "sweep": {"reconstruct": True}})
    switchable = {"backbone": "resnet18", "classes": 4, "in_chans": 1, "switch": [0.5]}
    widths = method in ("switchable", "sfsc")
    network = TrainedNetwork(SwitchableNet(**switchable) if widths else made(), header(method))
    given = CalibrationImages(stripes().pixels[:8], PREPROCESSING)
    network.subnetwork(Cut(1.0, reconstruction=Reconstruction()), given)
    with pytest.raises(ConfigError, match=f"reconstruct=true makes no sense .*{method}"):
        network.subnetwork(Cut(0.5, reconstruction=Reconstruction()), given)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="sweep.reconstruct=true makes no sense with sweep.calibrate=false"):
        parse_recipe({"sweep": {"reconstruct": True, "calibrate": False}})
    with pytest.raises(ConfigError, match=r"sweep\.ridge"):
        parse_recipe({"sweep": {"ridge": 0}})
    net, batch = trained("resnet", "weight"), images()
    cut, dense = pair(net, 0.4, batch)
    with pytest.raises(ConfigError, match="weights of their own"):
        Nested([dense, reconstruct(cut, dense, batch)])
