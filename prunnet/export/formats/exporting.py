"""Writing a subnetwork in any format, and opening it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunnet.config.granularities import GRANULARITIES
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, PrunnetError, one_line
from prunnet.export.formats.by_suffix import FORMATS, check_format
from prunnet.export.formats.exported import Exported
from prunnet.networks.headers import Identity
from prunnet.storage.paths import local, place
from prunnet.subnetworks.subnet import Subnetwork


def identity(
    cut: Subnetwork, preprocessing: Preprocessing, matches: Sequence[str] = (), precision: str = "fp32"
) -> Identity:
    """What determines the embeddings of a subnetwork.

    `matches`: hashes of the networks whose embeddings it was trained to match (`TrainedHeader.matches`).
    """
    return Identity(
        weights_sha=cut.weights_sha,
        matches=list(matches),
        capacity=cut.capacity,
        capacity_unit=GRANULARITIES[cut.net.granularity].unit,
        granularity=cut.net.granularity,
        mask_sha=cut.mask_sha,
        calibration=cut.calibration,
        backbone=cut.net.spec["backbone"],
        in_chans=cut.net.spec["in_chans"],
        embedding_dim=cut.net.spec["embedding_dim"],
        preprocessing=preprocessing.to_json(),
        precision=precision,
    )


def export(cut: Subnetwork, path: str | Path, said: Identity) -> None:
    """Writes the subnetwork in the format that the suffix of `path` names, in the precision of its identity `said`.

    Raises ConfigError for another suffix, or a precision that the format does not have.
    """
    check_format(path, said.precision)
    FORMATS[Path(path).suffix.lower()].write(cut, place(path), said)


def open_export(path: str | Path, *, trust_code: bool = False) -> Exported:
    """What `export` wrote; CheckpointError, by name and in one line, for a file that is truncated, damaged or
    foreign.

    Args:
        trust_code: open files of formats that can run code, too, such as .pt2. torch.export.load unpickles and
            evaluates what is in it, before anything of it can be checked: its maker can run any code with the rights of
            this process.
    """
    path = Path(local(path))
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is not a file")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise CheckpointError(f"{str(path)!r} is no export; valid: {', '.join(FORMATS)}")
    if FORMATS[suffix].trust_code and not trust_code:
        raise CheckpointError(
            f"{str(path)!r} is not opened: loading a {suffix} program can run any code that its maker put into it; use "
            "an export as .onnx or .safetensors, or, if you trust the maker, --trust-code (trust_code=True)"
        )
    try:
        opened = FORMATS[suffix].read(path)
        _ = opened.preprocessing, opened.embedding_dim
    except PrunnetError:
        raise
    except Exception as error:  # libraries raise errors of any kind for foreign files
        raise CheckpointError(f"{str(path)!r} is not an export of prunnet's ({one_line(error)[:200]})") from None
    return opened
