"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunnet.errors import ConfigError, echo
from prunnet.storage.paths import is_url, place, upload


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A temporary path of this machine to write a file to. When the block ends it is synced and renamed to `path`, or
    uploaded; when the block fails, nothing is left of it, and what was there before stays."""
    if is_url(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            upload(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path))
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | Path, what: str) -> None:
    """ConfigError where `put_in_place` could not write a file: a folder, a device or a pipe is there, or a file where a
    folder must be, or the folder takes no files. To be called before the work whose result goes there. Nothing is left
    behind. An object store is not asked.

    Args:
        what: which argument or key names it, for the message.
    """
    target = place(path)
    if is_url(target):
        return
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is there")
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "a device or a pipe is there")
        folder = target.parent
        while not os.path.lexists(folder):  # lexists: a link to nowhere is no place for a folder
            folder = folder.parent
        probe = folder / _temporary_name(target)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{what} {echo(str(path))} cannot be written ({reason})") from None


def _temporary_name(path: Path) -> str:
    """Not a name that others can guess: in a folder that they can write to, a link may lie in wait there."""
    return f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"


def write_text(path: Path, text: str) -> None:
    """A small file that is there whole or not at all."""
    with put_in_place(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are not UTF-8


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, of bytes."""
    with put_in_place(path) as temporary:
        temporary.write_bytes(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
