"""Whether this processor computes a network's convolutions right: each kind against float64, in a process of its own.

oneDNN 3.x has kernels that are wrong for a few shapes and kinds of processor, and say nothing: on processors with
AVX2 and without AVX-512 the weight gradient of a 1x1 convolution with stride 2 and few input channels, in
channels-last float32, is junk and is written past the end of its memory (uxlfoundation/oneDNN#6035). Since such a
call can crash, hang or damage whoever makes it, a child process makes it, forked from one that has run nothing yet.

    python -m prunnet.training.convolutions < kinds.json     # what `check` starts: imports torch only, about 2 s

docs/PERFORMANCE.md ("Convolutions that are wrong") has the table that `python -m benchmarks.convolutions` prints.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = 16
"""Channels: a vector of AVX-512. Layers whose inputs or outputs are fewer take kernels' odd paths."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Relative error in the norm: about a hundred roundings."""
_PARTS = ("output", "weight gradient", "input gradient")
_CALL_SECONDS = 20
"""After which a call counts as one that never ends."""


@dataclass(frozen=True)
class Kind:
    """A convolution as a layer calls it. Sizes are (height, width)."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    """Of the input, pixels."""
    batch: int = 8
    channels_last: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        kernel, stride, size = ("x".join(map(str, pair)) for pair in (self.kernel, self.stride, self.size))
        grouped = f" in {self.groups} groups" if self.groups > 1 else ""
        layout = "channels-last" if self.channels_last else "contiguous"
        return (
            f"{kernel} with stride {stride}, {self.in_channels} to {self.out_channels} channels{grouped}, "
            f"{size} px, {layout} {self.dtype}"
        )


def reports(kinds: Sequence[Kind]) -> dict[Kind, list[float] | str]:
    """Kind -> relative errors of its output, weight gradient and input gradient; or what became of the process.

    The kinds share child processes; what comes after one that is wrong gets a new one.
    """
    if not kinds:
        return {}
    asked = json.dumps([asdict(kind) for kind in kinds])
    command = [sys.executable, "-P", "-W", "ignore", "-m", "prunnet.training.convolutions"]
    ended = subprocess.run(command, input=asked, capture_output=True, text=True, env=_environment(), check=False)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    if ended.returncode or len(found) != len(kinds):  # as where no process can be started: none of them is used
        found += ["its process could not be looked at"] * (len(kinds) - len(found))
    return dict(zip(kinds, found, strict=True))


def wrong(kinds: Iterable[Kind]) -> dict[Kind, str]:
    """The kinds that this processor computes wrong, with what is wrong with them. Looked at once a process."""
    judged = {kind: judge(kind, report) for kind, report in _reports(tuple(sorted(set(kinds), key=str))).items()}
    return {kind: said for kind, said in judged.items() if said is not None}


@cache
def _reports(kinds: tuple[Kind, ...]) -> dict[Kind, list[float] | str]:
    return reports(kinds)


def suspicious(kind: Kind) -> bool:
    """Whether a kind may be wrong here, by the documents' table: few channels in channels-last, without AVX-512."""
    return kind.channels_last and min(kind.in_channels, kind.out_channels) < SMALL and not has_avx512()


def has_avx512() -> bool:
    """Whether oneDNN uses AVX-512, as the processor and ONEDNN_MAX_CPU_ISA let it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def judge(kind: Kind, report: list[float] | str) -> str | None:
    if isinstance(report, str):
        return report
    parts = [
        f"{part} off by {error:.2g}"
        for part, error in zip(_PARTS, report, strict=True)
        if not error <= TOLERANCE[kind.dtype]
    ]
    return ", ".join(parts) or None


def _environment() -> dict[str, str]:
    """Of the child: this very code; as many threads as here, which do not spin while they wait for each other; memory
    that glibc fills with large numbers, so that a result of memory that nobody wrote is not right by chance."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    threads = str(torch.get_num_threads())
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_PERTURB_": "165",
    }


def _errors(kind: Kind) -> list[float]:
    """Relative errors of the three results over a few calls together: what is read from memory that nobody wrote is
    right now and then, and one sum alone can be near 0. Inputs are exact in bfloat16, so only sums are rounded."""
    small = kind.batch * kind.in_channels * kind.size[0] * kind.size[1] < 2**16
    rounds = [_call(kind, torch.Generator().manual_seed(seed)) for seed in range(8 if small else 2)]
    errors = (
        sum(off) / max(sum(size), 1e-30)
        for off, size in (zip(*part, strict=True) for part in zip(*rounds, strict=True))
    )
    return [error**0.5 if error == error else float("inf") for error in errors]


@torch.no_grad()
def _call(kind: Kind, generator: torch.Generator) -> list[tuple[float, float]]:
    """Of the output, the weight's and the input's gradient: squared distance from float64, and its squared size."""
    layout = torch.channels_last if kind.channels_last else torch.contiguous_format
    how: tuple[Any, ...] = (kind.stride, kind.padding, kind.dilation, False, (0, 0), kind.groups)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    images = draw(kind.batch, kind.in_channels, *kind.size)
    weight = draw(kind.out_channels, kind.in_channels // kind.groups, *kind.kernel)
    sent: list[Tensor] = []

    def run(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, w = (t.to(dtype=dtype, memory_format=layout) for t in (images, weight))
        output = torch.ops.aten.convolution(x, w, None, *how)
        sent.append(sent[0] if sent else draw(*output.shape))
        back = sent[0].to(dtype=dtype, memory_format=layout)
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(back, x, w, None, *how, [True, True, False])
        return output, of_weight, of_input

    expected, found = run(torch.float64), run(getattr(torch, kind.dtype))
    return [
        (float((a.double() - b).square().sum()), float(b.square().sum())) for a, b in zip(found, expected, strict=True)
    ]


def _serve() -> None:
    """Reads kinds, writes a line of JSON for each: in children, which get the rest of the list until one is wrong."""
    kinds = [_kind(said) for said in json.load(sys.stdin)]
    done = 0
    while done < len(kinds):
        for report in _child(kinds[done:]):
            print(json.dumps(report), flush=True)
            done += 1


def _kind(said: dict[str, Any]) -> Kind:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    return Kind(**values)


def _child(kinds: Sequence[Kind]) -> list[list[float] | str]:
    """Reports of the first kinds, up to the first that is wrong, from a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(kinds, writing)
    os.close(writing)
    said, late = b"", False
    while select.select([reading], [], [], _CALL_SECONDS)[0]:
        if not (more := os.read(reading, 65536)):
            break
        said += more
    else:
        late = True
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    found: list[list[float] | str] = [json.loads(line) for line in said.decode().splitlines()]
    if late:
        return [*found, "never ends"]
    if status and (not found or judge(kinds[len(found) - 1], found[-1]) is None):
        # Right so far as it was looked at, and the process is broken all the same.
        return [*found[:-1], "ends its process"] if len(found) == len(kinds) else [*found, "ends its process"]
    return found


def _answer(kinds: Sequence[Kind], writing: int) -> None:
    """In the child: never returns."""
    try:
        for kind in kinds:
            report = _errors(kind)
            os.write(writing, json.dumps(report).encode() + b"\n")
            if judge(kind, report) is not None:
                break
    finally:
        os._exit(0)


if __name__ == "__main__":
    _serve()
