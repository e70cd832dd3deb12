"""Evaluating a capacity against plain inference of the same network, and the full matrix once features exist.

    python -m benchmarks.evaluation [--images 2048] [--rounds 5]

`ratio`: images/s of a subnetwork (cut and embedded, as an actor does it) over images/s of plain inference of the
network; `ratio_with_calibration` counts the re-estimation of BatchNorm on 1,024 images too. `matrix_seconds`: all
self- and cross-tests of ten capacities, 5,060 leave-one-out queries, from stored features. Ends after `--minutes 10`.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.common import Benchmark, median, parser_of
from prunnet import process
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.retrieval import compatibility_matrix
from prunnet.subnetworks.batchnorm import calibration_batches
from prunnet.subnetworks.embed import embed
from prunnet.subnetworks.subnet import subnetwork


def main() -> None:
    parser = parser_of(__doc__, minutes=10)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    process.prepare(2)
    preprocessing = Preprocessing(32, 32, 1, False, (0.5,), (0.5,))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (arguments.images, 1, 32, 32), dtype=np.uint8)
    calibration = pixels[:1024]
    images = MemoryImages(pixels, np.zeros(len(pixels), dtype=np.int64), preprocessing)
    net = RetrievalNet("resnet18", 100, in_chans=1, stem="released").eval()

    @torch.inference_mode()
    def plain() -> None:
        for start in range(0, len(pixels), 256):
            net.embed(preprocessing.normalise(torch.from_numpy(pixels[start : start + 256])))

    def cut() -> None:
        embed(subnetwork(net, 0.2), images)

    def calibrated() -> None:
        subnetwork(net, 0.2).calibrate(calibration_batches(calibration, preprocessing, 256))

    with Benchmark(arguments.minutes) as benchmark:
        with benchmark.stage("inference"):
            actions = {"plain": plain, "cut": cut, "calibrate": calibrated}
            taken = benchmark.interleaved(actions, arguments.rounds, warmup=1)
            seconds = {name: median(values) for name, values in taken.items()}
            # Both timings hold the seconds to cut a subnetwork.
            alone = median(benchmark.interleaved({"cut alone": lambda: subnetwork(net, 0.2)}, 3, warmup=1)["cut alone"])
        benchmark.found(
            ratio=seconds["plain"] / seconds["cut"],
            plain_images_per_second=arguments.images / seconds["plain"],
            capacity_images_per_second=arguments.images / seconds["cut"],
            ratio_with_calibration=seconds["plain"] / (seconds["cut"] + seconds["calibrate"] - alone),
            calibrate_seconds=seconds["calibrate"],
        )
        with benchmark.stage("matrix of ten capacities"):
            benchmark.found(matrix_seconds=seconds_of_matrix(rng))


def seconds_of_matrix(rng: np.random.Generator) -> float:
    """Of all self- and cross-tests of ten capacities."""
    features = {}
    labels = np.repeat(np.arange(253), 20)
    centres = rng.normal(size=(253, 256))
    for capacity in np.linspace(0.1, 1.0, 10):
        noisy = centres[labels] + rng.normal(size=(len(labels), 256)) * 3
        unit = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        features[float(capacity)] = (unit, unit)
    relevant = [np.setdiff1d(np.arange(20) + 20 * (q // 20), q) for q in range(len(labels))]
    junk = [np.array([q]) for q in range(len(labels))]
    started = time.perf_counter()
    matrix = compatibility_matrix(features, relevant, junk)
    seconds = time.perf_counter() - started
    assert len(matrix) == 100
    return seconds


if __name__ == "__main__":
    main()
