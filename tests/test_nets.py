"""The dense network is timm's; a subnetwork is a mask over it, with statistics and an identity of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import prunnet
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.networks.files import load_network, save_network
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.macs import layer_macs
from prunnet.pruning.masks import keep_count
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from tests.conftest import striped_images, tiny_net

BACKBONES = ("resnet18", "mobilenetv2_100", "convnext_atto", "vit_tiny_patch16_224")


def images(count: int = 4, channels: int = 1, side: int = 32) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
def test_at_capacity_one_features_equal_timms(name: str) -> None:
    options = {"img_size": 64} if name.startswith("vit") else {}
    net = RetrievalNet(name, classes=3, options=options).eval()
    plain = timm.create_model(name, num_classes=0, **options).eval()
    plain.load_state_dict({k: v for k, v in net.backbone.state_dict().items() if not k.endswith("score")})
    batch = images(2, 3, 64)
    with torch.inference_mode():
        assert torch.allclose(net.backbone(batch), plain(batch), atol=1e-6)
        expected = torch.nn.functional.normalize(net.neck(plain(batch)))
        assert torch.allclose(subnetwork(net, 1.0).embed(batch), expected, atol=1e-6)


def test_the_released_stem_has_no_max_pool() -> None:
    with_pool, without = RetrievalNet("resnet18", 2), RetrievalNet("resnet18", 2, stem="released")
    batch = images(1, 3, 32)
    assert with_pool.eval().backbone.forward_features(batch).shape[-1] == 1
    assert without.eval().backbone.forward_features(batch).shape[-1] == 2


def test_every_convolution_and_linear_of_the_backbone_has_a_score_and_nothing_else() -> None:
    net = RetrievalNet("convnext_atto", 3)
    scored = prunable.layers(net)
    assert all(name.startswith("backbone.") for name in scored)
    wanted = {n for n, m in net.backbone.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
    assert {name.removeprefix("backbone.") for name in scored} == wanted


@pytest.mark.parametrize("init", prunable.SCORE_INITS)
def test_score_inits_are_seeded_and_differ(init: str) -> None:
    a, b, other = (tiny_net(score_init=init, seed=seed) for seed in (0, 0, 1))
    scores = [torch.cat([m.score.flatten() for m in prunable.layers(net).values()]) for net in (a, b, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_subnetworks_keep_exactly_k_nest_and_differ(tiny: RetrievalNet) -> None:
    cuts = [subnetwork(tiny, c) for c in (1.0, 0.5, 0.1)]
    for cut in cuts:
        assert all(int(m.sum()) == keep_count(m.numel(), cut.capacity) for m in cut.masks.values())
    for small, large in ((cuts[1], cuts[0]), (cuts[2], cuts[1])):
        assert all(not bool((small.masks[n] & ~large.masks[n]).any()) for n in small.masks)
    features = [cut.embed(images()) for cut in cuts]
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    assert not torch.allclose(features[1], features[2], atol=1e-3)


def test_making_a_subnetwork_changes_nothing_in_the_network(tiny: RetrievalNet, preprocessing: Preprocessing) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    cut = subnetwork(tiny, 0.3).calibrate(calibration_loader(striped_images(preprocessing), batch_size=16))
    cut.embed(images(side=16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


def test_calibration_sets_statistics_to_the_batches_average(tiny: RetrievalNet) -> None:
    batches = [images(8, side=16), images(8, side=16) * 2 + 1]
    cut = subnetwork(tiny, 1.0).calibrate(batches)
    first = [tiny.backbone.conv1(batch).mean((0, 2, 3)) for batch in batches]
    assert torch.allclose(cut._tensors["backbone.bn1.running_mean"], (first[0] + first[1]) / 2, atol=1e-5)
    assert cut.calibration is not None
    assert subnetwork(tiny, 1.0).calibrate(batches[:1]).calibration != cut.calibration
    with pytest.raises(ConfigError, match="no images"):
        subnetwork(tiny, 0.5).calibrate([])


def test_calibration_rescues_a_sparse_subnetworks_statistics(tiny: RetrievalNet) -> None:
    batch = images(64, side=16)
    tiny.train()
    for _ in range(30):
        tiny(batch)
    cut = subnetwork(tiny, 0.1)
    off = (cut.embed(batch).mean(0)).norm()
    on = (cut.calibrate([batch]).embed(batch).mean(0)).norm()
    assert on < 0.5 < off  # without it all embeddings point the same way


def test_random_masks_keep_as_many_weights_but_others(tiny: RetrievalNet) -> None:
    learned, random = subnetwork(tiny, 0.3), subnetwork(tiny, 0.3, random_masks=0)
    for name, mask in learned.masks.items():
        assert int(mask.sum()) == int(random.masks[name].sum())
    assert learned.mask_sha != random.mask_sha
    assert random.mask_sha == subnetwork(tiny, 0.3, random_masks=0).mask_sha


def test_a_saved_subnetwork_gives_the_same_bits(
    tiny: RetrievalNet, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    cut = subnetwork(tiny, 0.35).calibrate([images(8, side=16)])
    cut.save(tmp_path / "edge.safetensors", preprocessing)
    loaded = Subnetwork.load(tmp_path / "edge.safetensors")
    assert torch.equal(loaded.embed(images(side=16)), cut.embed(images(side=16)))
    assert (loaded.capacity, loaded.weights_sha, loaded.calibration) == (
        0.35,
        cut.weights_sha,
        cut.calibration,
    )
    assert loaded.mask_sha == cut.mask_sha


def test_a_saved_network_round_trips(tiny: RetrievalNet, preprocessing: Preprocessing, tmp_path: Path) -> None:
    save_network(tmp_path / "m.safetensors", tiny, preprocessing, epoch=3)
    loaded, header = load_network(tmp_path / "m.safetensors")
    assert header["epoch"] == 3
    for (a, x), (b, y) in zip(tiny.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert a == b
        assert torch.equal(x, y)


def test_wrong_files_are_refused_in_one_line(tiny: RetrievalNet, preprocessing: Preprocessing, tmp_path: Path) -> None:
    whole = tmp_path / "m.safetensors"
    save_network(whole, tiny, preprocessing)
    torn, text, pickled, flipped = (tmp_path / name for name in ("torn", "text", "pickled", "flipped"))
    torn.write_bytes(whole.read_bytes()[:-100])
    text.write_text("not a network")
    torch.save({"a": 1}, pickled)
    data = bytearray(whole.read_bytes())
    data[-5] ^= 1
    flipped.write_bytes(data)
    for path, says in (
        (torn, "not a whole"),
        (text, "not a whole"),
        (pickled, "not a whole"),
        (flipped, "hash"),
    ):
        with pytest.raises(CheckpointError, match=says) as caught:
            load_network(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="not a prunnet-subnetwork file"):
        Subnetwork.load(whole)
    with pytest.raises(CheckpointError, match="is not a file"):
        load_network(tmp_path / "absent")


def test_macs_agree_with_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = RetrievalNet("resnet18", 3, in_chans=1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.embed(torch.zeros(1, 1, 64, 64))
    assert sum(layer_macs(net, 64).values()) * 2 == counter.get_total_flops()


def test_cost_falls_with_capacity(tiny: RetrievalNet) -> None:
    dense, half = subnetwork(tiny, 1.0).cost(32), subnetwork(tiny, 0.5).cost(32)
    assert dense.macs == dense.macs_dense == dense.macs_dense_equivalent
    assert dense.params_kept == dense.params_total
    prunable_weights = prunable.total_weights(tiny)
    assert abs(dense.params_kept - half.params_kept - prunable_weights / 2) < len(prunable.layers(tiny))
    assert half.macs < 0.6 * dense.macs < half.macs_dense_equivalent


def test_dead_channels_shrink_the_dense_equivalent(tiny: RetrievalNet) -> None:
    cut = subnetwork(tiny, 1.0)
    name = "backbone.layer1.0.conv1"
    cut.masks[name] = cut.masks[name].clone()
    cut.masks[name][:4] = False  # half of the output channels
    saved = cut.cost(32).macs_dense - cut.cost(32).macs_dense_equivalent
    assert saved == layer_macs(tiny, 32)[name] // 2


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet19'; did you mean 'resnet1"):
        RetrievalNet("resnet19")
    with pytest.raises(ConfigError, match="does not take options"):
        RetrievalNet("resnet18", options={"wings": 2})
    with pytest.raises(ConfigError, match="checkpoint_path"):
        RetrievalNet("resnet18", options={"checkpoint_path": "evil.pth"})
    with pytest.raises(ConfigError, match="at least 2 classes"):
        RetrievalNet("resnet18", classes=1)
    with pytest.raises(ConfigError, match="does not have"):
        RetrievalNet("convnext_atto", 3, stem="released")
    with pytest.raises(ConfigError, match="did you mean 'magnitude'"):
        tiny_net(score_init="magnitud")
    for capacity in (0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="0 < capacity <= 1"):
            prunnet.subnetwork(tiny_net(), capacity)


def test_embeddings_are_unit_vectors(tiny: RetrievalNet) -> None:
    lengths = subnetwork(tiny, 0.5).embed(images()).norm(dim=1).numpy()
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
