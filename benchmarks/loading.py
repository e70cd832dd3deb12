"""Images per second from files and from a packed store, against decoding alone, for one process and two.

    python -m benchmarks.loading [--images 1280] [--side 320] [--rounds 11]

One sequential epoch each, all in one run, taking turns: `folder` reads and decodes JPEG files, `packed` the same
images from a store, `decode` the same bytes held in memory. Everything ends as 224 px pixels in batches of 64. Files
are in the page cache, so what is compared is the software, not the disk. `open_ratio` is the time to open a store of
`--many` rows and read an image against one of a hundredth; `read_us` the time to read one image's bytes. Ends
after `--minutes 15`.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.common import Benchmark, median, parser_of, speed_of
from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import packed
from prunnet.data.base import IntArray
from prunnet.data.files import Encoded, Files, ImageFiles
from prunnet.data.listing import Listing, Part
from prunnet.data.loading import loaded

BATCH = 64


@dataclass(frozen=True)
class Held:
    """Encoded images in memory: what is left is decoding."""

    encoded: tuple[bytes, ...]
    where: str = "memory"

    def __len__(self) -> int:
        return len(self.encoded)

    def name(self, row: int) -> str:
        return str(row)

    def read(self, row: int) -> bytes:
        return self.encoded[row]

    def stamp(self, rows: IntArray) -> str:
        return ""


def photographs(root: Path, count: int, side: int) -> None:
    """JPEG files with the grain of photographs, 20 to a class."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((side * 4 // 3, side))
        values = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (side, side * 4 // 3, 3))
        path = root / f"class{number // 20:05d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def epoch(images: ImageFiles, processes: int) -> Callable[[], object]:
    batches = np.arange(len(images) // BATCH * BATCH).reshape(-1, BATCH)
    return lambda: sum(int(pixels[0, 0, 0, 0]) for pixels in loaded(images, batches, processes))


def microseconds_to_read(files: Encoded) -> float:
    """Of one image's bytes, without decoding them; the best of five rounds over all."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for row in range(len(files)):
            files.read(row)
        times.append(time.perf_counter() - started)
    return 1e6 * min(times) / len(files)


def seconds_to_open(folder: Path, rows: int) -> float:
    """Of a store of `rows` tiny images, to its first image; the best of five."""
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")
    tiny = Held((out.getvalue(),) * rows)
    pool = Part(np.arange(rows), np.arange(rows) % 100)
    packed.pack(Listing("imagefolder", tiny, [f"class{c}" for c in range(100)], None, {}, pool), folder)
    times = []
    for _ in range(5):
        packed._mapped.cache_clear()
        packed._batch.cache_clear()
        started = time.perf_counter()
        store = packed.read(folder).files
        store.read(rows // 2)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = parser_of(__doc__, minutes=15)
    for name, default in (("images", 1280), ("side", 320), ("rounds", 11), ("many", 400_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with Benchmark(given.minutes) as benchmark, tempfile.TemporaryDirectory() as temporary:
        benchmark.stage(f"making {given.images} images")
        root, store = Path(temporary) / "images", Path(temporary) / "store"
        photographs(root, given.images, given.side)
        config = DataConfig(name="imagefolder", root=str(root), image_size=224, resize=256, channels=3)
        listing = data.whole(config)
        packed.pack(listing, store)
        rows = np.arange(len(listing.files))
        assert isinstance(listing.files, Files)
        held = Held(tuple(bytes(listing.files.read(int(row))) for row in rows))
        preprocessing = data.Preprocessing.from_config(config)
        sources: dict[str, Encoded] = {"folder": listing.files, "packed": packed.read(store).files, "decode": held}
        sets = {n: ImageFiles(f, rows, rows, preprocessing, crop=True) for n, f in sources.items()}
        actions = {f"{n}_{p}": epoch(s, p) for p in (1, 2) for n, s in sets.items()}
        with benchmark.stage("epochs"):
            taken = benchmark.interleaved(actions, given.rounds, warmup=1)
        rates = {name: len(rows) // BATCH * BATCH / median(seconds) for name, seconds in taken.items()}
        benchmark.found(
            folder=[round(rates[f"folder_{p}"], 1) for p in (1, 2)],
            packed=[round(rates[f"packed_{p}"], 1) for p in (1, 2)],
            decode=[round(rates[f"decode_{p}"], 1) for p in (1, 2)],
            packed_of_decode=[round(speed_of(taken, f"packed_{p}", f"decode_{p}"), 3) for p in (1, 2)],
            packed_of_folder=[round(speed_of(taken, f"packed_{p}", f"folder_{p}"), 3) for p in (1, 2)],
            arrow=pa.__version__,
        )
        with benchmark.stage("reading bytes"):
            microseconds = {name: microseconds_to_read(sources[name]) for name in ("folder", "packed")}
            benchmark.found(read_us={name: round(value, 1) for name, value in microseconds.items()})
        with benchmark.stage(f"opening stores of up to {given.many} rows"):
            few, many = (seconds_to_open(Path(temporary) / f"s{n}", n) for n in (given.many // 100, given.many))
            benchmark.found(open_seconds=many, open_ratio=many / few)


if __name__ == "__main__":
    main()
