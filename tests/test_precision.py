"""Convolutions that the processor computes wrong are found in another process, and not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from prunnet.errors import ConfigError
from prunnet.networks.switchable import SwitchableNet
from prunnet.training import convolutions, precision
from prunnet.training.convolutions import Kind
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.precision import kinds_of, settle
from tests.conftest import REPOSITORY, tiny_net

CPU = torch.device("cpu")
WITHOUT_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
TINY_WIDTHS = {"options": {"channels": [4, 8, 8, 16]}, "in_chans": 1, "embedding_dim": 8, "switch": [0.3]}


def wrong_here(chosen: int) -> Any:
    """Takes the place of the child process: shortcuts that read `chosen` channels are wrong in channels-last."""

    def wrong(kinds: Any) -> dict[Kind, str]:
        return {
            kind: "weight gradient off by 0.7"
            for kind in kinds
            if kind.kernel == (1, 1) and kind.channels_last and kind.in_channels == chosen
        }

    return wrong


def test_without_avx512_few_channels_in_channels_last_are_refused_and_contiguous_ones_train() -> None:
    """Issue 15, A2: the weight gradient of a 1x1 convolution with stride 2 and 2 to 5 channels (oneDNN#6035) was
    trained on, and damaged memory. In a process of its own, as ONEDNN_MAX_CPU_ISA is read once."""
    script = f"""
import json, torch
from prunnet.errors import ConfigError
from prunnet.training.precision import settle
from prunnet.networks.switchable import SwitchableNet
from prunnet.training.convolutions import has_avx512
net = SwitchableNet("resnet18", 4, **{TINY_WIDTHS!r})
auto = settle("auto", net, torch.device("cpu"), 32)
found = {{"avx512": has_avx512(), "auto": [str(auto.dtype), str(auto.layout)]}}
try:
    settle("fp32", net, torch.device("cpu"), 32, layout=torch.channels_last)
except ConfigError as error:
    found["fp32"] = str(error)
print(json.dumps(found))
"""
    environment = {**os.environ, **WITHOUT_AVX512, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert not found["avx512"]
    assert found["auto"] == ["torch.float32", "torch.contiguous_format"]
    assert "computes a convolution wrong, 1x1 with stride 2x2" in found["fp32"]
    assert "\n" not in found["fp32"]


def test_right_convolutions_are_found_right() -> None:
    kinds = [
        Kind(2, 4, (3, 3), (2, 2), (1, 1), (1, 1), 1, (8, 8), channels_last=last, dtype=dtype)
        for last in (False, True)
        for dtype in ("float32", "bfloat16")
    ]
    reports = convolutions.reports(kinds)
    assert list(reports) == kinds
    assert convolutions.wrong(kinds) == {}
    assert all(isinstance(report, list) and report[0] > 0 for report in reports.values())  # something was rounded


def test_a_network_of_widths_is_looked_at_at_every_width() -> None:
    net = SwitchableNet("resnet18", 4, **TINY_WIDTHS)
    kinds = kinds_of(net, 32, 8, torch.float32, torch.channels_last)
    shortcuts = {(kind.in_channels, kind.out_channels) for kind in kinds if kind.kernel == (1, 1)}
    assert shortcuts == {(64, 4), (4, 8), (8, 8), (8, 16), (35, 2), (2, 4), (4, 4), (4, 9)}
    assert all(kind.channels_last for kind in kinds if kind.in_channels > 1 and kind.size[0] > 1)
    plain = kinds_of(net, 32, 8, torch.float32, torch.contiguous_format)
    assert not any(kind.channels_last for kind in plain)
    assert {kind.size for kind in kinds} == {(32, 32), (8, 8), (4, 4), (2, 2), (1, 1)}


def test_a_network_of_channels_is_looked_at_at_every_cut() -> None:
    net = tiny_net(granularity="channel", channel_multiple=4, image_size=16)
    kinds = kinds_of(net, 16, 8, torch.float32, torch.contiguous_format)
    first = {(kind.in_channels, kind.out_channels) for kind in kinds if kind.kernel == (1, 1) and kind.size == (4, 4)}
    assert first == {(8, 16), (4, 16), (8, 4), (8, 8), (8, 12), (4, 4), (4, 8), (4, 12)}


def test_what_is_wrong_is_not_used_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "has_avx512", lambda: False)
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)
    monkeypatch.setattr(convolutions, "wrong", wrong_here(8))
    net = tiny_net()
    auto = settle("auto", net, CPU, 16)
    assert (auto.dtype, auto.layout) == (torch.bfloat16, torch.contiguous_format)
    assert "bf16, channels-last is not used: this processor computes a convolution wrong, 1x1" in auto.notes[0]
    assert settle("bf16", net, CPU, 16).layout == torch.contiguous_format
    with pytest.raises(ConfigError, match=r"train.precision=fp32 .*8 to 8 channels.*valid: ONEDNN_MAX_CPU_ISA=SSE41"):
        settle("fp32", net, CPU, 16, layout=torch.channels_last)
    monkeypatch.setattr(convolutions, "wrong", wrong_here(999))
    assert settle("auto", net, CPU, 16).layout == torch.channels_last


def test_one_worker_whose_processor_is_wrong_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)

    class OtherIsWrong(Reducer):
        calls = 0

        def gather(self, tensor: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.stack([tensor, torch.tensor(float(self.calls > 1))])

    chosen = settle("auto", tiny_net(), CPU, 16, reducer=OtherIsWrong())
    assert chosen.layout == torch.contiguous_format
