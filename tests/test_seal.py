"""A file that carries a hash of itself is refused when a bit of it has changed, and older files are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunnet.errors import CheckpointError
from prunnet.networks.files import load_training, save_training
from prunnet.storage import hashing
from prunnet.storage.tensor_files import read_header

STATE = {"net.weight": torch.arange(12.0).view(3, 4), "optimizer.step": torch.tensor(7)}
HEADER = {"step": 3, "training_hash": "0123", "history": [{"loss": 1.5}]}


def test_a_training_checkpoint_with_one_flipped_bit_is_never_trained_on(tmp_path: Path) -> None:
    """Issue 15, number 4: a flipped bit of state.safetensors, in its data or its header, was trained on in silence."""
    save_training(tmp_path, STATE, HEADER)
    file = tmp_path / "state.safetensors"
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.safetensors") as caught:
            load_training(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_header_is_refused_without_a_look_at_the_tensors(tmp_path: Path) -> None:
    """Issue 15, number 6: the header says which training a network is of, and is read alone."""
    save_training(tmp_path, STATE, HEADER)
    file = tmp_path / "state.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"0123", b"0133"))
    with pytest.raises(CheckpointError, match="its header does not have the hash that it carries"):
        read_header(file)
    file.write_bytes(whole[:-1] + b"\xff")
    assert read_header(file)["step"] == 3
    with pytest.raises(CheckpointError, match="its tensors do not have the hash that it carries"):
        load_training(tmp_path)


def test_a_checkpoint_of_before_there_were_hashes_is_read(tmp_path: Path) -> None:
    said = hashing.canonical_json({"kind": "prunnet-training", **HEADER})
    save_file(STATE, tmp_path / "state.safetensors", metadata={"prunnet": said})
    tensors, header = load_training(tmp_path)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert header["step"] == 3
