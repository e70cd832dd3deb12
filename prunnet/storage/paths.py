"""Folders and files that may lie on an object store: `s3://…`, `gs://…`, or anything else that fsspec knows.

A URL behaves like a path (universal_pathlib). What needs a real file, such as safetensors and memory maps, gets a copy
that is made once a machine (`local`). An object store has no rename: a file is put there whole, by one request.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from prunnet.errors import ConfigError, one_line
from prunnet.redact import is_masked, shown

__all__ = [
    "at_once",
    "cache",
    "is_url",
    "local",
    "lock_file",
    "place",
    "private_folder",
    "read_file",
    "remove",
    "shown",
    "upload",
]


def is_url(where: str | Path) -> bool:
    """Whether it is on an object store; `file://` is not."""
    text = str(where)
    return "://" in text and not text.startswith("file://")


def at_once(path: str, flags: int) -> int:
    """An opener (of `open`) that does not wait for who writes to a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path) -> bytes:
    """The bytes of a file. OSError where it is no plain file: reading a pipe could take for ever."""
    if is_url(path):
        return path.read_bytes()
    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        return file.read()


def place(where: str | Path) -> Path:
    """A path of this machine, or one of an object store that behaves alike.

    Raises ConfigError for a URL whose file system is not installed, or one of a kept recipe, whose user and password
    were not kept.
    """
    if not isinstance(where, str):
        return where
    if not is_url(where):
        return Path(where.removeprefix("file://")).expanduser()
    if is_masked(where):
        raise ConfigError(
            f"{where!r} stands for a URL whose credentials were not kept; give the URL again, such as --set "
            "data.root='https://$NAME:$PASSWORD@…' with variables of the environment"
        )
    try:
        from upath import UPath

        # Others write there, too: a list that is kept would miss their files.
        found = UPath(where, use_listings_cache=False)
        _ = found.fs
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{where!r} cannot be used ({one_line(error)[:150]}); s3:// needs pip install 'prunnet[s3]'"
        ) from None
    return cast(Path, found)


def remove(where: Path) -> None:
    """A file or a whole folder, if it is there. A symbolic link is removed, and not what it names."""
    if is_url(where):
        remote = cast(Any, where)
        if remote.fs.exists(remote.path):
            remote.fs.rm(remote.path, recursive=True)
    elif where.is_dir() and not where.is_symlink():
        shutil.rmtree(where, ignore_errors=True)
    else:
        where.unlink(missing_ok=True)


def upload(source: Path, target: Path) -> None:
    """A file to an object store, whole."""
    remote = cast(Any, target)
    remote.fs.put_file(str(source), remote.path)


def local(where: str | Path) -> Path:
    """The file or folder itself, or this machine's copy of it, made when it is asked for the first time and again when
    the original changes. What does not exist is returned as it is."""
    path = place(where)
    if not is_url(path):
        return path
    remote = cast(Any, path)
    files = _listed(remote)
    if not files:
        return path
    stamp = hashlib.sha256(repr([shown(str(path)), files]).encode()).hexdigest()[:32]
    name_here = shown(path.name)
    target = cache() / stamp / name_here
    if not target.exists():
        temporary = Path(tempfile.mkdtemp(dir=cache()))
        try:
            for name, _ in files:
                below = temporary / name_here / name if name else temporary / name_here
                _made(below.parent)
                remote.fs.get_file(f"{remote.path.rstrip('/')}/{name}" if name else remote.path, str(below))
            _rename(temporary, target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _listed(remote: Any) -> list[tuple[str, str]]:
    """(name below, what changes with its content) of a file ("") or of all files of a folder; nothing if it is not
    there."""
    try:
        found = remote.fs.find(remote.path, detail=True)
    except FileNotFoundError:
        return []
    stamps = []
    for name, info in sorted(found.items()):
        below = name.removeprefix(remote.path.rstrip("/")).lstrip("/")
        changes = [info.get(key) for key in ("ETag", "etag", "size", "LastModified", "mtime")]
        stamps.append((below, repr(changes)))
    return stamps


def cache() -> Path:
    """This machine's folder of copies: PRUNNET_CACHE, or this user's own in the folder for temporary files."""
    given = os.environ.get("PRUNNET_CACHE")
    return _made(Path(given)) if given else private_folder("cache")


def private_folder(name: str) -> Path:
    """A folder below the one for temporary files that only this user can look into, made if it is not there.

    Raises ConfigError where somebody else has put something in its place: whoever can write there could have a file of
    this user overwritten, or replace what is read from it.
    """
    folder = Path(tempfile.gettempdir()) / f"prunnet-{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{str(folder)!r} is not a folder of this user's; remove it, or set TMPDIR to another place")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """The descriptor of a file to lock, made if it is not there. OSError where it is a symbolic link, which somebody
    may have put there to have another file opened, or cannot be written."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        os.utime(descriptor)  # it is opened for reading, since a file system can become read-only under a job
        yield descriptor
    finally:
        os.close(descriptor)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster: its copy is as good
            raise
