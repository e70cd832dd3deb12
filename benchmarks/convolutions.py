"""Which kinds of convolution are wrong on this processor: output and both gradients against float64.

    python -m benchmarks.convolutions
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.convolutions    # without AVX-512

1 to 16 channels, kernels 1 and 3, strides 1 and 2, dense and depthwise, contiguous and channels-last, float32 and
bfloat16, on maps of 8 x 8 pixels and of one. A line for each kernel, stride, map, layout and type that is wrong
somewhere. Wrong calls end the child processes that make them, since they damage memory. Two minutes;
ends after `--minutes 10`. Where the CPU emulates bfloat16 it is left out, unless `--emulated` is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.common import Benchmark, parser_of, precisions
from prunnet.training.convolutions import Kind, has_avx512, judge, reports

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def kinds(sizes: tuple[int, ...], kernels: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Kind]:
    """All kinds that are tested, grouped by layout and type."""
    for last, dtype, kernel, stride, size in itertools.product((False, True), dtypes, kernels, (1, 2), sizes):
        same = {
            "kernel": (kernel, kernel),
            "stride": (stride, stride),
            "padding": (kernel // 2, kernel // 2),
            "dilation": (1, 1),
            "size": (size, size),
            "channels_last": last,
            "dtype": dtype,
        }
        for one, other in itertools.product(range(1, 17), range(1, 17)):
            yield Kind(one, other, groups=1, **same)  # type: ignore[arg-type]
        for channels in range(2, 17):
            yield Kind(channels, channels, groups=channels, **same)  # type: ignore[arg-type]


def ranges(numbers: set[int]) -> str:
    """{1, 2, 3, 7} -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def main() -> None:
    parser = parser_of(__doc__, minutes=10)
    parser.add_argument("--emulated", action="store_true", help="bfloat16 also where the CPU emulates it.")
    given = parser.parse_args()
    dtypes = tuple(DTYPES[precision] for precision in (DTYPES if given.emulated else precisions()))
    with Benchmark(given.minutes) as benchmark:
        print("| kernel | stride | map | convolution | layout | type | wrong | input channels | what |")
        print("|---|---|---|---|---|---|---|---|---|")
        count = bad = 0
        for dtype in dtypes:
            asked = list(kinds(sizes=(8, 1), kernels=(1, 3), dtypes=(dtype,)))
            with benchmark.stage(f"{len(asked)} kinds of {dtype}"):
                found = reports(asked)
            print_rows(found)
            count += len(found)
            bad += sum(judge(kind, report) is not None for kind, report in found.items())
            benchmark.found(kinds=count, wrong=bad, avx512=has_avx512())


def print_rows(found: dict[Kind, list[float] | str]) -> None:
    """Rows of the table: the kinds that are wrong."""
    alike: dict[tuple[Kind, bool], dict[Kind, str | None]] = {}
    for kind, report in found.items():
        key = (replace(kind, in_channels=0, out_channels=0, groups=1), kind.groups > 1)
        alike.setdefault(key, {})[kind] = judge(kind, report)
    for (kind, depthwise), judged in alike.items():
        wrong = {one: said for one, said in judged.items() if said is not None}
        if wrong:
            what = sorted({said.split(" off by")[0] for said in wrong.values()})
            cells = (
                *(f"{pair[0]}x{pair[1]}" for pair in (kind.kernel, kind.stride, kind.size)),
                "depthwise" if depthwise else "dense",
                "channels-last" if kind.channels_last else "contiguous",
                kind.dtype,
                f"{len(wrong)} of {len(judged)}",
                ranges({one.in_channels for one in wrong}),
                ", ".join(what),
            )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
