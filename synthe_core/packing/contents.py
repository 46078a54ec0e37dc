"""What goes into a file: bytes at hand, or a stretch of a file on disk that is copied a piece at a time."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.packing.archive import Member, read_stretch, write
from synthe_core.packing.members import limit, order
from synthe_core.storage.atomic import new_file
from synthe_core.storage.manifest import FileDigest


class Bytes(NamedTuple):
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def pieces(self) -> Iterator[bytes]:
        yield self.content


class Stretch(NamedTuple):
    """`size` bytes of the file `path` from `offset`."""

    path: Path
    offset: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Stretch:
        return cls(path, 0, path.stat().st_size)

    def pieces(self) -> Iterator[bytes]:
        return read_stretch(*self)


Content = Bytes | Stretch


def measure(content: Content) -> tuple[FileDigest, int]:
    """SHA-256 and size for the manifest, and the CRC-32 for the archive, in one pass."""
    digest, crc = hashlib.sha256(), 0
    for piece in content.pieces():
        digest.update(piece)
        crc = zlib.crc32(piece, crc)
    return FileDigest(bytes=content.size, sha256=digest.hexdigest()), crc


def write_archive(path: Path, contents: Mapping[str, Content], sums: Mapping[str, int] | None = None) -> None:
    """Writes a .synapse file whole or not at all; memory does not grow with what is in it.

    sums: CRC-32 of contents that have been measured already.
    """
    members = []
    for name in sorted(contents, key=order):
        content = contents[name]
        if content.size > limit(name):
            raise InputError(f"{name} has {content.size} bytes, and may have {limit(name)}", "make it smaller")
        crc = (sums or {}).get(name)
        members.append((Member(name, content.size, measure(content)[1] if crc is None else crc), content.pieces()))
    with new_file(path) as partial:
        write(partial, members)
