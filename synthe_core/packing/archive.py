"""The container: a ZIP file of stored members, each aligned to 64 bytes, with one possible layout.

Any ZIP program opens it. The reader compares the layout byte for byte with what the writer gives for the same names,
sizes and checksums, so that nothing can be hidden: no compression, no second name, no gap, no overlap.

Source of the layout: PKWARE's APPNOTE 6.3.10; the padding is the field 0xD935 that Android's zipalign uses.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from synthe_core.errors import InputError, closest
from synthe_core.packing.members import COUNT, member_index, member_order, quoted, size_limit

ALIGN = 64
CHUNK = 1 << 20
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
DATE = 0x21  # 1 January 1980, ZIP's epoch
REGULAR = 0o100644 << 16
UNIX = 3 << 8
WIDE = 0xFFFFFFFF
DIRECTORY_LIMIT = COUNT * 400  # bytes


class Member(NamedTuple):
    """A member's content: `size` bytes from `offset`, with the CRC-32 of ZIP."""

    name: str
    size: int
    crc: int
    offset: int = 0


class Layout(NamedTuple):
    """The header before each member's content, the members with their offsets, and the directory at the end."""

    heads: list[bytes]
    members: list[Member]
    tail: bytes

    @property
    def size(self) -> int:
        last = self.members[-1]
        return last.offset + last.size + len(self.tail)


def layout(members: Iterable[Member]) -> Layout:
    """The layout of these members."""
    heads, placed, directory, position = [], [], b"", 0
    for name, size, crc, _ in members:
        text = name.encode("ascii")
        wide = size >= WIDE
        sizes = struct.pack("<2H2Q", 1, 16, size, size) if wide else b""
        bare = position + LOCAL.size + len(text) + len(sizes) + 6
        padding = struct.pack("<3H", 0xD935, 2 + -bare % ALIGN, ALIGN) + b"\0" * (-bare % ALIGN)
        version, stated = (45, WIDE) if wide else (20, size)
        extra = sizes + padding
        head = LOCAL.pack(b"PK\3\4", version, 0, 0, 0, DATE, crc, stated, stated, len(text), len(extra)) + text + extra
        far = position >= WIDE
        numbers = [size, size] * wide + [position] * far
        extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
        version = 45 if numbers else 20
        fields = (UNIX | version, version, 0, 0, 0, DATE, crc, stated, stated, len(text), len(extra), 0, 0, 0, REGULAR)
        directory += CENTRAL.pack(b"PK\1\2", *fields, WIDE if far else position) + text + extra
        heads.append(head)
        placed.append(Member(name, size, crc, position + len(head)))
        position += len(head) + size
    return Layout(heads, placed, directory + _end(len(placed), len(directory), position))


def _end(count: int, size: int, start: int) -> bytes:
    end = END.pack(b"PK\5\6", 0, 0, count, count, size, min(start, WIDE), 0)
    if start < WIDE:
        return end
    record = END64.pack(b"PK\6\6", END64.size - 12, UNIX | 45, 45, 0, 0, count, count, size, start)
    return record + LOCATOR.pack(b"PK\6\7", 0, start + size, 1) + end


def write(path: Path, contents: Iterable[tuple[Member, Iterable[bytes]]]) -> None:
    """Writes members of known size and checksum with their contents, piece by piece."""
    contents = list(contents)
    plan = layout(member for member, _ in contents)
    with path.open("wb") as file:
        for head, (member, pieces) in zip(plan.heads, contents, strict=True):
            file.write(head)
            written, crc = 0, 0
            for piece in pieces:
                file.write(piece)
                written, crc = written + len(piece), zlib.crc32(piece, crc)
            if (written, crc) != (member.size, member.crc):
                raise InputError(f"{member.name} changed while it was packed", "pack when nothing writes to it")
        file.write(plan.tail)


class Archive:
    """The members of a .synapse file by name. InputError for an invalid file, before any of it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.members = {member.name: member for member in self._read(file)}
        except FileNotFoundError:
            near = closest(path.name, [each.name for each in path.parent.glob("*.synapse")])
            hint = f"did you mean {path.parent / near}?" if near else "`synthe pack CHECKPOINT -o FILE` makes one"
            raise InputError(f"no such file: {path}", hint) from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}", "check its rights") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def size(self, name: str) -> int:
        return self.members[name].size

    def locate(self, name: str) -> tuple[Path, int, int]:
        """The file that contains a member, its offset there and its size."""
        return self.path, self.members[name].offset, self.members[name].size

    def pieces(self, name: str) -> Iterator[bytes]:
        """A member's content in pieces; InputError at its end if the checksum differs."""
        member, crc = self.members[name], 0
        for piece in read_range(self.path, member.offset, member.size):
            crc = zlib.crc32(piece, crc)
            yield piece
        if crc != member.crc:
            raise InputError(f"{self.path} has been tampered with or damaged, in {name}", "get another copy of it")

    def _read(self, file: BinaryIO) -> list[Member]:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != b"PK\3\4":
            raise InputError(f"{self.path} is not a .synapse file", "`synthe pack CHECKPOINT -o FILE` makes one")
        count, length, start = self._directory(file, size)
        if count > COUNT or length > DIRECTORY_LIMIT:
            raise self._refuse(f"it claims {count} members in a directory of {length} bytes")
        file.seek(start)
        members = self._entries(file.read(length), count, start)
        plan = layout(members)
        if plan.size != size:
            raise self._refuse("its members are not laid out one after another, aligned to 64 bytes")
        for head, member in zip(plan.heads, members, strict=True):
            file.seek(member.offset - len(head))
            if file.read(len(head)) != head:
                raise self._refuse(f"the header of {member.name} differs from the directory")
        file.seek(size - len(plan.tail))
        if file.read() != plan.tail:
            raise self._refuse("its directory is not as a .synapse file's is")
        return members

    def _directory(self, file: BinaryIO, size: int) -> tuple[int, int, int]:
        """The number of members, and the length and offset of their directory."""
        if size < END.size:
            raise self._refuse("it is cut short")
        file.seek(size - END.size)
        mark, disk, disk2, here, count, length, start, comment = END.unpack(file.read(END.size))
        if mark != b"PK\5\6" or comment:
            raise self._refuse("it is cut short, or something was added at its end")
        end = size - END.size
        if start == WIDE:
            if end < LOCATOR.size + END64.size:
                raise self._refuse("it is cut short")
            file.seek(end - LOCATOR.size - END64.size)
            *_, count, length, start = END64.unpack(file.read(END64.size))
            here, end = count, end - LOCATOR.size - END64.size
        if disk or disk2 or here != count or not count or start + length != end:
            raise self._refuse("its end does not say where its directory is")
        return count, length, start

    def _entries(self, directory: bytes, count: int, end: int) -> list[Member]:
        """The members in the directory, which must end before offset `end`."""
        members, position, names = [], 0, set()
        for _ in range(count):
            if len(directory) - position < CENTRAL.size:
                raise self._refuse("its directory is cut short")
            fields = CENTRAL.unpack_from(directory, position)
            (
                magic,
                version_made_by,
                _,
                flags,
                method,
                _,
                _,
                crc,
                packed,
                size,
                length,
                extra_length,
                comment,
                _,
                _,
                mode,
                start,
            ) = fields
            position += CENTRAL.size
            name_bytes, extra = (
                directory[position : position + length],
                directory[position + length : position + length + extra_length],
            )
            position += length + extra_length + comment
            if magic != b"PK\1\2" or position > len(directory):
                raise self._refuse("its directory is damaged")
            name = name_bytes.decode("ascii", "backslashreplace")
            size, packed, start = self._widen(extra, size, packed, start, name)
            if name.lower() in names:
                raise self._refuse(f"it has two members named {quoted(name)}")
            names.add(name.lower())
            self._check(name, version_made_by, flags, method, packed, size, mode)
            members.append((name, size, crc, start))
        ranges = sorted((start, start + LOCAL.size + len(name) + size, name) for name, size, _, start in members)
        for (_, before, first), (after, _, second) in itertools.pairwise(ranges):
            if after < before:
                raise self._refuse(f"the members {min(first, second)} and {max(first, second)} overlap")
        if ranges[-1][1] > end:
            raise self._refuse(f"the member {ranges[-1][2]} is longer than the file")
        if [m[0] for m in members] != sorted((m[0] for m in members), key=member_order):
            raise self._refuse("its members are not in their order")
        return layout(Member(name, size, crc) for name, size, crc, _ in members).members

    def _widen(self, extra: bytes, size: int, packed: int, start: int, name: str) -> tuple[int, int, int]:
        """Sizes and offset, from the ZIP64 field if they do not fit."""
        values = [size, packed, start]
        missing = [i for i, value in enumerate(values) if value == WIDE]
        form = struct.Struct(f"<2H{len(missing)}Q")
        if len(extra) != (form.size if missing else 0):
            raise self._refuse(f"the member {quoted(name)} has fields that a .synapse file must not have")
        if missing:
            for i, value in zip(missing, form.unpack(extra)[2:], strict=True):
                values[i] = value
        return values[0], values[1], values[2]

    def _check(self, name: str, made: int, flags: int, method: int, packed: int, size: int, mode: int) -> None:
        try:
            member_index(name)
        except InputError as error:
            raise self._refuse(error.message) from None
        kind = mode >> 28
        if made >> 8 == 3 and kind == 0o12:
            raise self._refuse(f"the member {name} is a symbolic link")
        if flags & 1:
            raise self._refuse(f"the member {name} is encrypted")
        if method or packed != size:
            raise self._refuse(f"the member {name} is compressed: {packed} bytes that claim to be {size}")
        if size > size_limit(name):
            raise self._refuse(f"the member {name} has {size} bytes, and may have {size_limit(name)}")
        if mode != REGULAR:
            raise self._refuse(f"the member {name} is not a regular file")

    def _refuse(self, reason: str) -> InputError:
        return InputError(f"{self.path} is refused: {reason}", "it is damaged or not to be trusted: get another copy")


class Tree:
    """The members of a folder with the layout of a .synapse file: an unpacked one, or a bundle of titan-synapse 0.2."""

    def __init__(self, path: Path, links: tuple[str, ...] = ()) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        for file in sorted(itertools.islice(path.rglob("*"), 2 * COUNT)):
            name = file.relative_to(path).as_posix()
            if file.is_symlink() and name not in links:
                raise InputError(f"{path} is refused: {quoted(name)} is a symbolic link", "put the file itself there")
            if file.is_file():
                self._sizes[name] = file.stat().st_size
            if len(self._sizes) > COUNT:
                raise InputError(f"{path} is refused: it has more than {COUNT:,} files", "name an unpacked file")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def locate(self, name: str) -> tuple[Path, int, int]:
        return self.path / name, 0, self._sizes[name]

    def pieces(self, name: str) -> Iterator[bytes]:
        return read_range(*self.locate(name))


def read_range(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes of a file from `offset` in pieces; fewer if the file ends."""
    with path.open("rb") as file:
        file.seek(offset)
        while size > 0 and (piece := file.read(min(CHUNK, size))):
            size -= len(piece)
            yield piece
