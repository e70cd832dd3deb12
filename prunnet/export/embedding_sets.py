"""Embeddings of a folder of images, stamped with what made them, and retrieval between two such sets.

Two sets compare where one space made both: subnetworks of one network, whatever their capacity, precision or format; or
where one network was trained to match the other's embeddings. All else is refused: the similarities would be
meaningless.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prunnet.config.choices import EMBEDDINGS
from prunnet.data.base import IntArray
from prunnet.data.files import Files, ImageFiles, unreadable
from prunnet.data.sources.decode import decoded, suffixes
from prunnet.data.sources.names import climbs
from prunnet.data.sources.roots import Root, open_root
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError, DataWarning
from prunnet.networks.headers import EmbeddingsHeader, Identity, check
from prunnet.redact import shown
from prunnet.results.contact_sheet import Tile, drawn
from prunnet.results.spreadsheet import plain_cell
from prunnet.retrieval.exact_search import Features, search
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import place
from prunnet.storage.tensor_files import load_tensors, save_tensors
from prunnet.subnetworks.embed import Embedder
from prunnet.subnetworks.embed import embed as embed_images

FORMAT = "prunnet-embeddings"
_WANTED = "wanted: the images that were embedded"


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of named images."""

    embeddings: Features
    """[n, d], L2-normalised."""
    names: tuple[str, ...]
    """Paths below `root`."""
    root: str
    """The folder of the images as it was given."""
    identity: Identity
    """Of the network that made them (`prunnet.export.formats.identity`)."""

    def save(self, folder: str | Path) -> Path:
        """Writes the set into a folder; returns the file."""
        path = place(folder) / EMBEDDINGS
        header = {"names": list(self.names), "root": shown(self.root), "identity": self.identity.to_json()}
        save_tensors(path, {"embeddings": torch.from_numpy(np.array(self.embeddings))}, FORMAT, header)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingSet:
        """What `save` wrote; CheckpointError for anything else."""
        path = place(folder)
        file = path / EMBEDDINGS if path.is_dir() else path
        tensors, header = load_tensors(file, FORMAT)
        said = check(EmbeddingsHeader, header, file)
        shape = (len(said.names), said.identity.embedding_dim)
        found = tensors.get("embeddings")
        if found is None or tuple(found.shape) != shape or found.dtype != torch.float32:
            raise CheckpointError(f"{str(file)!r} does not hold the {shape[0]} x {shape[1]} numbers that it names")
        return cls(found.numpy(), tuple(said.names), said.root, said.identity)


def embed_folder(
    embedder: Embedder,
    images: str | Path,
    preprocessing: Preprocessing,
    identity: Identity,
    *,
    batch_size: int = 64,
    skip_unreadable: bool = False,
    note: Callable[[str], None] = lambda said: warnings.warn(said, DataWarning, stacklevel=3),
) -> tuple[EmbeddingSet, dict[str, str]]:
    """(embeddings of all images below a folder or in a .zip, in the order of their names; those left out, with the
    reason).

    `note` is given what was passed over. Raises DataError where there is no image, or one that cannot be read (unless
    they are to be skipped).
    """
    root = open_root(str(images), "wanted: images, at any depth")
    found = root.walk()
    names = found.images
    if not names:
        why = "".join(f"; {said}" for said in found.notes())
        raise DataError(f"{str(images)!r} holds no image; valid: files that end in {' '.join(sorted(suffixes()))}{why}")
    for said in found.notes():
        note(said)
    files = Files.of(root, names)
    rows: IntArray = np.arange(len(names))
    left_out = unreadable(files, rows) if skip_unreadable else {}
    rows = np.array([row for row in rows if row not in left_out], dtype=np.int64)
    if not len(rows):
        raise DataError(f"none of the {len(names)} images in {str(images)!r} can be read")
    chosen = ImageFiles(files, rows, np.zeros(len(rows), np.int64), preprocessing, crop=True)
    made = embed_images(embedder, chosen, batch_size)
    kept = tuple(names[row] for row in rows)
    return EmbeddingSet(made, kept, str(images), identity), {names[row]: why for row, why in left_out.items()}


def check_same_space(query: Identity, gallery: Identity) -> None:
    """ConfigError, with what differs, where embeddings of two identities do not compare."""
    one, other = query.weights_sha, gallery.weights_sha
    if query.embedding_dim != gallery.embedding_dim:
        lengths = f"{query.embedding_dim} and {gallery.embedding_dim}"
        raise ConfigError(f"embeddings of length {lengths} do not compare")
    if one != other and other not in query.matches and one not in gallery.matches:
        raise ConfigError(
            f"query embeddings are of network {one[:12]}, gallery embeddings of {other[:12]}; neither was trained to "
            "match the other; valid: subnetworks of one network, or of one trained with train.old set to the other"
        )
    if one == other and query.preprocessing != gallery.preprocessing:
        mine, theirs = query.preprocessing, gallery.preprocessing
        differs = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
        raise ConfigError(f"one network, but its images were made differently: {', '.join(differs)}")


@dataclass(frozen=True)
class Answer:
    """One gallery image for a query."""

    query: str
    rank: int
    """1 is the best."""
    gallery: str
    similarity: float
    """Cosine."""


def query(queries: EmbeddingSet, gallery: EmbeddingSet, top: int = 10) -> list[Answer]:
    """The `top` gallery images of each query, best first. Raises ConfigError where the sets do not compare."""
    check_same_space(queries.identity, gallery.identity)
    ranks, similarity = search(queries.embeddings, gallery.embeddings, top)
    return [
        Answer(name, rank + 1, gallery.names[index], float(value))
        for name, indices, values in zip(queries.names, ranks, similarity, strict=True)
        for rank, (index, value) in enumerate(zip(indices, values, strict=True))
    ]


def write_csv(answers: Sequence[Answer], path: str | Path, *, raw: bool = False) -> None:
    """query, rank, gallery, similarity; a line an answer. Names that a spreadsheet would run are made plain
    (`prunnet.results.spreadsheet`), unless `raw`."""
    name: Callable[[str], str | None] = str if raw else plain_cell
    odd = "backslashreplace"  # names that are not UTF-8
    with put_in_place(place(path)) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=odd) as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "gallery", "similarity"])
        writer.writerows([name(a.query), a.rank, name(a.gallery), f"{a.similarity:.6f}"] for a in answers)


def contact_sheet(
    queries: EmbeddingSet, gallery: EmbeddingSet, answers: Sequence[Answer], *, rows: int = 20, side: int = 96
) -> Image.Image:
    """A picture: a query a row, its answers beside it, their similarity below; the first `rows` queries.

    Raises DataError where the images are no longer where they were embedded from.
    """
    shown = list(dict.fromkeys(answer.query for answer in answers))[:rows]
    columns = max(answer.rank for answer in answers)
    sources = {"query": open_root(queries.root, _WANTED), "gallery": open_root(gallery.root, _WANTED)}
    lines = []
    for name in shown:
        line: list[Tile | None] = [Tile(_image(sources["query"], name, side), Path(name).name), *[None] * columns]
        for answer in (a for a in answers if a.query == name):
            line[answer.rank] = Tile(_image(sources["gallery"], answer.gallery, side), f"{answer.similarity:.3f}")
        lines.append(line)
    return drawn(lines, side, apart=[1])


def _image(root: Root, name: str, side: int) -> Image.Image:
    try:
        if climbs(name):  # names come from a file
            raise OSError("leads out of the folder")
        image = decoded(root.read(name), name).convert("RGB")
    except (OSError, KeyError, UnicodeEncodeError):
        raise DataError(f"image {name!r} is no longer in {root.path!r}, so no sheet of it can be made") from None
    image.thumbnail((side, side))
    return image
