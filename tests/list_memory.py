"""Prints the proportional set size, in bytes, of this process and eight that load from a list of so many rows."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import psutil
import pyarrow as pa

from prunnet.data.files import Files, ImageFiles
from prunnet.data.loading import loaded, shuffled
from prunnet.data.sources.folders import Folder
from prunnet.data.transforms import Preprocessing
from tests.layouts import image


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train/0/1/2").mkdir(parents=True)
        names = pa.array((f"train/0/1/2/{row % 8:016x}.jpg" for row in range(rows)), type=pa.large_string(), size=rows)
        for row in range(8):
            (Path(folder) / names[row].as_py()).write_bytes(image(row, 0))
        pre = Preprocessing(16, 16, 3, False, (0.5,) * 3, (0.5,) * 3)
        listed = ImageFiles(Files(Folder(folder), names), np.arange(rows), np.arange(rows) % 8, pre, crop=False)
        batches = shuffled(rows, 8, seed=0, epoch=0)
        if len(batches) < 200:  # the empty list, again and again
            batches = np.resize(batches, (200, 8))
        for taken, _ in enumerate(loaded(listed, batches, 8)):
            if taken == 150:
                me = psutil.Process()
                everyone = [me, *me.children(recursive=True)]
                assert len(everyone) >= 9
                print(sum(process.memory_full_info().pss for process in everyone))
                break


if __name__ == "__main__":
    main(int(sys.argv[1]))
