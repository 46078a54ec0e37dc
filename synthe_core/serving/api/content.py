"""The bytes of a body as they came: compressed, with a byte order mark, in another encoding."""

from __future__ import annotations

import asyncio
import codecs
import zlib

from starlette.datastructures import Headers

from synthe_core.serving.api.errors import HttpError

GZIP = ("gzip", "x-gzip")
PIECE = 1 << 20  # bytes that are decompressed at a time


def compression(headers: Headers) -> str | None:
    """The compression of a body, None for a plain one. Raises 415 for one that is not known."""
    encodings = [each.strip().lower() for each in headers.get("content-encoding", "").split(",")]
    applied = [each for each in encodings if each not in ("", "identity")]
    if applied and (len(applied) > 1 or applied[0] not in GZIP):
        message = "the body's compression is not supported: send it plain or with gzip"
        raise HttpError(415, message, headers={"Accept-Encoding": "gzip"})
    return "gzip" if applied else None


async def plain(content: bytes, compressed: str | None, limit: int) -> bytes:
    """The body without compression and byte order mark. Raises 400 if it is damaged, 413 above `limit` bytes."""
    if compressed is not None:
        content = await asyncio.to_thread(_decompressed, content, limit)
    return content.removeprefix(codecs.BOM_UTF8)


def _decompressed(content: bytes, limit: int) -> bytes:
    """The contents of a gzip file of one member, of which little more than `limit` bytes are ever held."""
    member, output = zlib.decompressobj(zlib.MAX_WBITS | 16), bytearray()
    try:
        while not member.eof:
            piece = member.decompress(content, PIECE)
            output += piece
            content = member.unconsumed_tail
            if len(output) > limit:
                raise HttpError(413, f"the body is larger than {limit:,} bytes")
            if not piece and not content and not member.eof:
                raise HttpError(400, "the body ends in the middle of its gzip data")
    except zlib.error:
        raise HttpError(400, "the body is not gzip data, which its Content-Encoding says") from None
    if member.unused_data:
        raise HttpError(400, "the body goes on after its gzip data")
    return bytes(output)


def check_text(content: bytes) -> None:
    """Raises 400 if the body is no text at all."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        raise HttpError(400, message) from None
