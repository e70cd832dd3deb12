"""`veri776`: vehicles seen by twenty cameras.

ROOT/name_train.txt  name_query.txt  name_test.txt   ROOT/image_train/  image_query/  image_test/
ROOT/train_label.xml  (optional; compared with the list)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from prunnet.config.recipe import DataConfig
from prunnet.data.datasets import reid
from prunnet.data.datasets.lists import Lists, whole_number
from prunnet.data.description import Reader
from prunnet.data.listing import Listing
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "vehiclereid.github.io/VeRi"
EXPECTED = {
    "train": 37_778,
    "train classes": 576,
    "query": 1_678,
    "query classes": 200,
    "gallery": 11_579,
    "gallery classes": 200,
}
SHORT = 37_746
EXAMPLE = "0001_c001_00016450_0.jpg"
_CAMERA = re.compile(r"c?([0-9]{1,18})")
LABELS = "train_label.xml"
PARTS = {"train": "train", "query": "query", "gallery": "test"}


def read(config: DataConfig) -> Listing:
    """The lists of a copy; DataError where one is missing or broken."""
    root = open_root(
        config.root, f"veri776 needs the folder with name_train.txt, from {HOME}", holds=("name_train.txt",)
    )
    lists = Lists(root, HOME)
    named = {
        part: [f"image_{word}/{below(line, where)}" for where, line in lists.lines(f"name_{word}.txt")]
        for part, word in PARTS.items()
    }
    notes = _compared(named["train"], lists) if lists.has(LABELS) else ()
    if len(named["train"]) == SHORT:
        notes = (
            *notes,
            f"veri776: name_train.txt is the one of {SHORT:,} rows; the paper counts {EXPECTED['train']:,}",
        )
    return reid.listing("veri776", root, named, EXAMPLE, EXPECTED, notes)


def _compared(train: list[str], lists: Lists) -> tuple[str, ...]:
    """Where the labels in the XML file differ from what the list and its names say."""
    text = lists.text(LABELS, encoding="gb18030")  # gb2312 and what grew out of it
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{LABELS} declares entities; valid: plain elements only")
    try:
        items = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text)).iter("Item")
        labels = {item.attrib["imageName"]: _label(item.attrib) for item in items}
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(f"{LABELS} is torn or has another form ({type(error).__name__}: {error})") from None
    names = [name.rpartition("/")[2] for name in train]
    identities, cameras = reid.parsed(names, EXAMPLE)
    said = {n: (int(i), int(c)) for n, i, c in zip(names, identities, cameras, strict=True)}
    other = [n for n in names if n in labels and said[n] != labels[n]]
    notes = []
    if only := len(set(labels) ^ set(names)):
        notes.append(
            f"veri776: name_train.txt has {len(names):,} rows, {LABELS} {len(labels):,}; {only:,} are in one only"
        )
    if other:
        notes.append(f"veri776: {len(other)} image(s) with another label in {LABELS}, such as {other[0]}")
    return tuple(notes)


def _label(item: Mapping[str, str]) -> tuple[int, int]:
    """(vehicle, camera) of an element's attributes; KeyError or ValueError where it has none."""
    camera = _CAMERA.fullmatch(item["cameraID"])
    if camera is None:
        raise ValueError(f"cameraID {item['cameraID'][:40]!r}; valid: such as c001")
    return whole_number(item["vehicleID"], "vehicleID"), int(camera[1])


DATASET = Reader("VeRi-776: vehicles seen by twenty cameras", read)
