"""The contents of members: bytes in memory, or a range of a file that is copied piece by piece."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.packing.archive import Member, read_range, write
from synthe_core.packing.members import member_order, size_limit
from synthe_core.storage.atomic import new_file
from synthe_core.storage.manifest import FileDigest


class Bytes(NamedTuple):
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def pieces(self) -> Iterator[bytes]:
        yield self.content


class FileRange(NamedTuple):
    """`size` bytes of the file `path` from `offset`."""

    path: Path
    offset: int
    size: int

    @classmethod
    def of(cls, path: Path) -> FileRange:
        return cls(path, 0, path.stat().st_size)

    def pieces(self) -> Iterator[bytes]:
        return read_range(*self)


Content = Bytes | FileRange


def digest_and_crc(content: Content) -> tuple[FileDigest, int]:
    """Size and SHA-256 for the manifest and the CRC-32 for the archive, in one pass."""
    digest, crc = hashlib.sha256(), 0
    for piece in content.pieces():
        digest.update(piece)
        crc = zlib.crc32(piece, crc)
    return FileDigest(bytes=content.size, sha256=digest.hexdigest()), crc


def write_archive(
    path: Path, contents: Mapping[str, Content], sums: Mapping[str, int] | None = None, *, claimed: bool = False
) -> None:
    """Writes a .synapse file atomically, in constant memory.

    sums: CRC-32 of contents, as far as it is known. claimed: whether the caller has claimed the path.
    """
    members = []
    for name in sorted(contents, key=member_order):
        content = contents[name]
        if content.size > size_limit(name):
            raise InputError(f"{name} has {content.size} bytes, and may have {size_limit(name)}", "make it smaller")
        crc = (sums or {}).get(name)
        members.append(
            (Member(name, content.size, digest_and_crc(content)[1] if crc is None else crc), content.pieces())
        )
    with new_file(path, claimed=claimed) as partial:
        write(partial, members)
