"""Where a data set lies: a folder on a disk, or a prefix in a bucket. Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from eegvision.vocab import InputError

_OBJECT_STORES = ("s3", "gs", "gcs")  # which have no folders; the bucket is part of the path


@dataclass(frozen=True)
class Place:
    """A file or folder, by absolute path or by an address of any filesystem PyArrow knows, such as `s3://bucket/eeg`.

    Options of the filesystem follow a question mark (`?endpoint_override=host:9000&scheme=http`). Keys and
    passwords belong into the environment, never into an address, which is printed and tracked.
    """

    address: str

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.address).netloc:
            raise InputError(
                "an address must not hold keys or passwords: it is printed and tracked; remove what stands before "
                f"the @ of {urlsplit(self.address).netloc.rpartition('@')[2]!r} and set them in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )

    def __truediv__(self, name: str) -> Place:
        if self.is_local:
            return Place(os.path.join(self.address, name))  # noqa: PTH118  (an address, not always a path)
        parts = urlsplit(self.address)
        return Place(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))

    def __str__(self) -> str:
        return self.address

    @property
    def is_local(self) -> bool:
        return "://" not in self.address

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> str:
        """The path within `filesystem`."""
        return self.address if self.is_local else _resolved(self.address)[1]

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return pyarrow.fs.LocalFileSystem() if self.is_local else _resolved(self.address)[0]

    def exists(self) -> bool:
        """Say whether there is a file, or a folder with something in it."""
        found = self.filesystem.get_file_info(self.path)
        return found.type != pyarrow.fs.FileType.NotFound

    def read(self) -> bytes:
        """Return the content of a file; raises OSError."""
        with self.filesystem.open_input_stream(self.path) as file:
            return file.read()

    def files(self) -> list[str]:
        """List all files under this folder by their paths relative to it; none if there is no folder."""
        selector = pyarrow.fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = [info.path for info in self.filesystem.get_file_info(selector) if info.is_file]
        return sorted(path.removeprefix(f"{self.path.rstrip('/')}/") for path in found)

    def write(self, content: bytes) -> None:
        """Make a file, or replace it."""
        with self.writing() as file:
            file.write(content)

    @contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        """Give a local file to write into; when the block ends well it is put in place, else it is thrown away."""
        if not self.is_local:
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                if urlsplit(self.address).scheme not in _OBJECT_STORES:
                    self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
                with self.filesystem.open_output_stream(self.path) as out:
                    shutil.copyfileobj(file, out, 8 << 20)
            return
        path = Path(self.address)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def remove(self) -> None:
        """Remove a file, or a folder with all that is in it; it may be gone already."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == pyarrow.fs.FileType.File:
            self.filesystem.delete_file(self.path)

    def parquet(self) -> pq.ParquetFile:
        """Open a Parquet file, its pages' checksums compared when they are read; its footer is read once a process."""
        footer = _footer(self.address, self._version())
        where: dict[str, Any] = {} if self.is_local else {"filesystem": self.filesystem, "pre_buffer": True}
        return pq.ParquetFile(self.path, metadata=footer, page_checksum_verification=True, **where)

    def _version(self) -> tuple[Any, ...]:
        info = self.filesystem.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(f"there is no file {self}")
        return info.size, info.mtime_ns


def place(where: Place | Path | str) -> Place:
    """Return the place of a path or address; paths are made absolute.

    Raises:
        InputError: PyArrow knows no filesystem of that kind.
    """
    if isinstance(where, Place):
        return where
    if str(where).startswith("file://"):
        return place(urlsplit(str(where)).path)
    if "://" in str(where):
        found = Place(str(where))
        _resolved(found.address)
        return found
    return Place(str(Path(where).expanduser().absolute()))


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _resolved(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    parts = urlsplit(address)
    filesystem = _filesystem(parts.scheme, parts.netloc, parts.query)
    if parts.scheme in _OBJECT_STORES:
        return filesystem, f"{parts.netloc}/{parts.path.lstrip('/')}".rstrip("/")
    return filesystem, parts.path


@cache
def _filesystem(scheme: str, netloc: str, query: str) -> pyarrow.fs.FileSystem:
    address = urlunsplit((scheme, netloc, "/", query, ""))
    try:
        return pyarrow.fs.FileSystem.from_uri(address)[0]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{address} cannot be opened ({error}); give a path, or an address such as s3://bucket/eeg"
        ) from error


@lru_cache(maxsize=4096)
def _footer(address: str, version: tuple[Any, ...]) -> pq.FileMetaData:  # noqa: ARG001  (a replaced file is read anew)
    where = Place(address)
    return pq.read_metadata(where.path, filesystem=None if where.is_local else where.filesystem)
