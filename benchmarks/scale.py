"""What a training on GLDv2 and a sweep of 100 capacities take and move: sizes are counted, rates are given.

    python -m benchmarks.scale [--ratio 5.1] [--overhead-ms 10] [--rate 1000] [--gbit 100] [--batch 512]

Counted here: the network's tensors, a features folder, a row of the table. Measured elsewhere: `--ratio` (a step of
N + 1 passes against a dense one, `benchmarks.train_step`) and `--overhead-ms` (of a unit beyond its work,
`benchmarks.sweep`). Given, and of no machine in particular: `--rate`, dense training images/s of one GPU, and `--gbit`,
the network of a node in Gbit/s. Prints the tables of docs/SCALE.md. Ends after
`--minutes 5`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import Benchmark, parser_of
from prunnet import results
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable

IMAGES, CLASSES = 1_580_470, 81_313
"""GLDv2's clean training set."""
INDEX, QUERIES = 761_757, 750
"""Its retrieval test: the gallery, and the private queries."""
SUBNETWORKS, EPOCHS, CAPACITIES = 4, 20, 100
FORWARD = 3.0
"""A training step's passes through the network, against a forward pass alone."""


def main() -> None:
    parser = parser_of(__doc__, minutes=5)
    for name, default in (("ratio", 5.1), ("overhead-ms", 10.0), ("rate", 1000.0), ("gbit", 100.0), ("batch", 512.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    given = parser.parse_args()
    with Benchmark(given.minutes) as benchmark:
        count(benchmark, given)


def count(benchmark: Benchmark, given: argparse.Namespace) -> None:
    benchmark.stage("counting the network's tensors")
    net = RetrievalNet("resnet18", CLASSES, embedding_dim=256)
    masked = sum(layer.get_parameter("weight").numel() for layer in prunable.layers(net).values())
    every = sum(p.numel() for name, p in net.named_parameters() if not name.endswith(".score"))
    moved = 4 * ((SUBNETWORKS + 1) * masked + every - masked)
    bytes_a_second = given.gbit * 1e9 / 8
    print(
        f"prunable weights {masked / 1e6:.1f} M, others {(every - masked) / 1e6:.1f} M, of these the classifier "
        f"{CLASSES * 256 / 1e6:.1f} M; a step reduces {moved / 1e6:.0f} MB\n"
    )
    print("| GPUs, batch | images | passes, ms | all-reduce, ms | hidden, ms | step, ms | efficiency | 20 epochs, h |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    found = {}
    for label, fixed in (("fixed", True), ("grows", False)):
        for gpus in (8, 64, 256):
            images = given.batch / gpus if fixed else given.batch / 8
            compute = 1000 * images * given.ratio / given.rate
            wire = 1000 * 2 * (gpus - 1) / gpus * moved / bytes_a_second
            # A pass is reduced while later ones run, so only the last one's share is always waited for.
            last = wire * 4 * masked / moved
            hidden = min(wire - last, compute * SUBNETWORKS / (SUBNETWORKS + 1))
            step = compute + wire - hidden
            hours = EPOCHS * IMAGES / (images * gpus) * step / 3.6e6
            found[f"{gpus} {label}"] = compute / step
            print(
                f"| {gpus}, {images * gpus:,.0f} | {images:g} | {compute:.0f} | {wire:.0f} | {hidden:.0f} "
                f"| {step:.0f} | {compute / step:.2f} | {hours:.1f} |"
            )
    print("\n| GPUs | 100 capacities, h | features written, GB | features read, GB | rows |")
    print("|---:|---:|---:|---:|---:|")
    features = INDEX * 256 * 4
    unit = (INDEX + QUERIES) / (FORWARD * given.rate) + given.overhead_ms / 1000
    rows = 2 * CAPACITIES - 1
    for gpus in (8, 64, 256):
        waves = -(-CAPACITIES // gpus)
        read = 2 * features * CAPACITIES
        print(f"| {gpus} | {waves * unit / 3600:.2f} | {CAPACITIES * features / 1e9:.0f} | {read / 1e9:.0f} | {rows} |")
    benchmark.found(
        prunable=masked,
        others=every - masked,
        step_megabytes=moved / 1e6,
        efficiency=found,
        gallery_features_bytes=features,
        checkpoint_bytes=4 * (2 * (every + masked)),
    )
    with benchmark.stage("writing parts of the table"):
        benchmark.found(row_bytes=bytes_of_a_row())


def bytes_of_a_row(parts: int = 100) -> float:
    """In parts of two rows, as a sweep against the dense gallery writes them: most of it is Parquet's own."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for part in range(parts):
            rows = [
                {
                    "unit_key": rng.bytes(32).hex(),
                    "config_json": "{}" * 600,
                    "map": float(rng.random()),
                    "status": "complete",
                }
                for _ in range(2)
            ]
            results.write_part(Path(folder) / f"{part // 50}", rows)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / (2 * parts)


if __name__ == "__main__":
    main()
