"""Small copies of every data set in its exact layout, as dirty as real ones: BOMs, CRLF, trailing blanks, rows without
files, files without rows, grey, palette, CMYK and 16-bit images, EXIF rotation."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24


def image(label: int, number: int, kind: str = "RGB", suffix: str = ".jpg") -> bytes:
    """Stripes whose width and direction tell the label; `kind` is a Pillow mode or `rotated`."""
    rng = np.random.default_rng([label, number])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    along = rows if label % 2 else columns
    values = 128 + 90 * np.sin(2 * np.pi * (along / (3 + label % 7) + rng.random())) + rng.normal(0, 15, (SIDE, SIDE))
    grey = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if kind == "I;16":
        made = Image.fromarray((values.clip(0, 255) * 257).astype(np.uint16))
    else:
        made = grey.convert({"rotated": "RGB"}.get(kind, kind))
    out = BytesIO()
    if kind == "rotated":
        exif = made.getexif()
        exif[0x0112] = 6
        made.save(out, "JPEG", exif=exif)
    else:
        made.save(out, "PNG" if suffix == ".png" or kind in ("P", "I;16") else "JPEG")
    return out.getvalue()


KINDS = ("RGB", "L", "CMYK", "P", "I;16", "rotated")


def put(root: Path, name: str, label: int, number: int) -> None:
    """An image file; every kind comes up, whatever the suffix says."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(label, number, KINDS[number % len(KINDS)]))


def text(root: Path, name: str, lines: list[str], *, bom: bool = False, end: str = "\n") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((("\ufeff" if bom else "") + end.join(lines) + end).encode("utf-8"))


def gldv2(root: Path, classes: int = 6, per_class: int = 6) -> Path:
    """Six landmarks to train on; an index of 12, four scored queries of a test set of six."""

    def path(part: str, name: str) -> str:
        return f"{part}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"

    rows = ["landmark_id,images"]
    for label in range(classes):
        ids = [f"{label:x}a{number:x}c{label:012x}" for number in range(per_class)]
        for number, name in enumerate(ids):
            put(root, path("train", name), label, number)
        rows.append(f"{label * 17},{' '.join(ids)} ")
    rows.append("999,fffffffffffffff0")  # a row without a file
    text(root, "train_clean.csv", rows, bom=True, end="\r\n")
    index = [f"i{number:x}b{number:013x}" for number in range(12)]
    for number, name in enumerate(index):
        put(root, path("index", name), 10 + number % 3, number)
    text(root, "index.csv", ["id", *index])
    queries = [f"q{number:x}d{number:013x}" for number in range(6)]
    for number, name in enumerate(queries):
        put(root, path("test", name), 10 + number % 3, 50 + number)
    text(root, "test.csv", ["id", *queries], end="\r\n")

    def right(label: int) -> str:
        return " ".join(index[label::3])

    solution = ["id,images,Usage"]
    solution += [f"{queries[0]},{right(0)},Public", f"{queries[1]},{right(1)},Public"]
    solution += [f"{queries[2]},{right(2)},Private", f"{queries[3]},{right(0)},Private", f"{queries[4]},None,Private"]
    solution += [f"{queries[5]},None,Ignored"]
    text(root, "retrieval_solution_v2.1.csv", solution)
    return root


def revisited(root: Path, name: str = "roxford5k") -> Path:
    """Nine gallery images, three queries; the third has no easy image."""
    gallery = [f"all_souls_{number:06d}" for number in range(9)]
    queries = [f"query_{number:06d}" for number in range(3)]
    for number, image_name in enumerate(gallery):
        put(root, f"jpg/{image_name}.jpg", number % 3, number)
    for number, image_name in enumerate(queries):
        put(root, f"jpg/{image_name}.jpg", number, 20 + number)
    gnd = [
        {"bbx": [2.0, 2.5, 20.0, 21.0], "easy": [0], "hard": [3], "junk": [6]},
        {"bbx": np.array([0.0, 0.0, 23.0, 23.0]), "easy": [1, 4], "hard": [], "junk": [7]},
        {"bbx": [1, 1, 22, 22], "easy": np.array([], dtype=np.int64), "hard": [2, 5], "junk": []},
    ]
    found = {"gnd": gnd, "imlist": gallery, "qimlist": queries}
    root.mkdir(parents=True, exist_ok=True)
    (root / f"gnd_{name}.pkl").write_bytes(pickle.dumps(found, protocol=2))
    return root


def inshop(root: Path, items: int = 9) -> Path:
    """Six items to train on, three to find; the folder that the download makes."""
    rows, boxes = [], []
    for label in range(items):
        for number in range(5):
            name = f"img/WOMEN/Dresses/id_{label:08d}/0{number}_1_front.jpg"
            status = "train" if label < 6 else "query" if number < 2 else "gallery"
            rows.append(f"{name}      id_{label:08d}  {status}  ")
            boxes.append(f"{name} 1 2 003 002 020 021")
            put(root, f"Img/{name}", label, number)
    rows.append("img/WOMEN/Dresses/id_00000099/01_1_front.jpg id_00000099 train")
    header = "image_name item_id evaluation_status"
    text(root, "Eval/list_eval_partition.txt", [str(len(rows)), header, *rows], bom=True, end="\r\n")
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    text(root, "Anno/list_bbox_inshop.txt", [str(len(boxes)), header, *boxes])
    put(root, "Img/img/WOMEN/Dresses/unlisted.jpg", 0, 0)  # a file without a row
    return root


def veri776(root: Path) -> Path:
    """Five vehicles to train on, three to find, cameras in the names."""
    lists: dict[str, list[str]] = {"train": [], "query": [], "test": []}
    items = []
    for label in range(8):
        for camera in range(1, 5):
            name = f"{label + 1:04d}_c{camera:03d}_000{camera}6450_0.jpg"
            parts = ["train"] if label < 5 else ["query", "test"] if camera == 1 else ["test"]
            for part in parts:
                lists[part].append(name + " ")
                put(root, f"image_{part}/{name}", label, camera)
            if label < 5:
                kind = '" colorID="1" typeID="4" /> <!-- \u8f66 -->'
                items.append(f'<Item imageName="{name}" vehicleID="{label + 1:04d}" cameraID="c{camera:03d}{kind}')
    for part, names in lists.items():
        text(root, f"name_{part}.txt", names, end="\r\n")
    xml = ['<?xml version="1.0" encoding="gb2312"?>', "<TrainingImages>", f'<Items number="{len(items)}">']
    xml += [*items, "</Items>", "</TrainingImages>"]
    (root / "train_label.xml").write_bytes("\n".join(xml).encode("gb2312"))
    return root


def market1501(root: Path) -> Path:
    """Five people to train on, three to find, junk and distractors in the gallery."""
    for label in range(8):
        for camera in range(1, 5):
            name = f"{label + 1:04d}_c{camera}s1_00{camera}451_00.jpg"
            if label < 5:
                put(root, f"bounding_box_train/{name}", label, camera)
            else:
                put(root, f"bounding_box_test/{name}", label, camera)
                if camera == 1:
                    put(root, f"query/{name}", label, camera)
    for number in range(3):
        put(root, f"bounding_box_test/-1_c1s1_00{number}401_03.jpg", 5, number)
        put(root, f"bounding_box_test/0000_c2s1_00{number}151_01.jpg", 12, number)
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"not an image")
    return root


def sop(root: Path) -> Path:
    """Five products to train on, three to find."""
    for part, labels in (("train", range(5)), ("test", range(5, 8))):
        rows, count = ["image_id class_id super_class_id path"], 0
        for label in labels:
            for number in range(4):
                count += 1
                name = f"bicycle_final/11108512{label}_{number}.JPG"
                put(root, name, label, number)
                rows.append(f"{count} {label + 1} 1 {name}")
        text(root, f"Ebay_{part}.txt", rows, end="\r\n")
    return root


def cub200(root: Path, species: int = 8) -> Path:
    """Eight species: four to train on, four to find."""
    images, labels, classes, count = [], [], [], 0
    for label in range(species):
        folder = f"{label + 1:03d}.Bird_{label}"
        classes.append(f"{label + 1} {folder}")
        for number in range(4):
            count += 1
            name = f"{folder}/Bird_{label}_{number:04d}.jpg"
            put(root, f"images/{name}", label, number)
            images.append(f"{count} {name}")
            labels.append(f"{count} {label + 1}")
    text(root, "images.txt", images)
    text(root, "image_class_labels.txt", labels)
    text(root, "classes.txt", classes, bom=True)
    return root


def cifar100(root: Path) -> Path:
    """A hundred classes in name, four in use, in pickles like torchvision's."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, per_class in (("train", 6), ("test", 4)):
        labels = [label for label in range(4) for _ in range(per_class)]
        data = np.stack([rng.normal(60 * label + 30, 20, 3072).clip(0, 255).astype(np.uint8) for label in labels])
        found = {"data": data, "fine_labels": labels, "filenames": [f"{i}.png" for i in range(len(labels))]}
        (folder / part).write_bytes(pickle.dumps(found, protocol=2))
    names = {"fine_label_names": [f"class{label}" for label in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def omniglot(root: Path) -> Path:
    """Torchvision's two halves."""
    for half, alphabets in (("images_background", ("Greek", "Latin")), ("images_evaluation", ("Tengwar",))):
        for alphabet in alphabets:
            for character in range(3):
                for number in range(4):
                    name = f"omniglot-py/{half}/{alphabet}/character{character:02d}/{number:04d}.png"
                    path = root / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(image(character + 3 * len(alphabet), number, "1", ".png"))
    return root


def imagefolder(root: Path) -> Path:
    for label in range(8):
        for number in range(4):
            put(root, f"class{label}/{number}.png", label, number)
    return root


def grocery(root: Path) -> Path:
    """Six coarse classes, of which the first has two products; two photographs a product in each part, under the same
    file names, and a catalogue picture."""
    coarse = ["Apple", "Apple", "Avocado", "Leek", "Lime", "Milk", "Plum"]
    numbers = [sorted(set(coarse)).index(group) for group in coarse]
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"
    classes = [f"{header},Product Description Path (str)"]
    for label, (group, number) in enumerate(zip(coarse, numbers, strict=True)):
        picture = f"/iconic-images-and-descriptions/{group}/P{label}/P{label}_Iconic.jpg"
        classes.append(f"P{label},{label},{group},{number},{picture},/none.txt")
        put(root, picture.removeprefix("/"), label, 90)
    text(root, "classes.csv", classes, bom=True, end="\r\n")
    for place, part in enumerate(("train", "val", "test")):
        rows = []
        for label, (group, number) in enumerate(zip(coarse, numbers, strict=True)):
            for photo in range(2):
                name = f"{part}/{group}/P{label}/P{label}_{photo:03d}.jpg"
                put(root, name, label, 2 * place + photo)
                rows.append(f"{name}, {label}, {number}")
        text(root, f"{part}.txt", rows)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "cifar100": cifar100,
    "cub200": cub200,
    "gldv2": gldv2,
    "grocery": grocery,
    "imagefolder": imagefolder,
    "inshop": inshop,
    "market1501": market1501,
    "omniglot": omniglot,
    "roxford5k": lambda root: revisited(root, "roxford5k"),
    "rparis6k": lambda root: revisited(root, "rparis6k"),
    "sop": sop,
    "veri776": veri776,
}
