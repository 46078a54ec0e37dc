"""The beginning and the end of an output that may have any length."""

from __future__ import annotations


class Capture:
    """Keeps the first and the last `limit` / 2 bytes of what is pushed, however much that is."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._head, self._tail = bytearray(), bytearray()
        self.dropped = 0

    def push(self, piece: bytes) -> None:
        room = self._head_limit - len(self._head)
        self._head += piece[:room]
        self._tail += piece[room:]
        if (over := len(self._tail) - self._tail_limit) > 0:
            self.dropped += over
            del self._tail[:over]

    def text(self) -> str:
        """The output, with a note where bytes of its middle are left out."""
        note = f"\n[{self.dropped:,} bytes left out]\n".encode() if self.dropped else b""
        return bytes(self._head + note + self._tail).decode("utf-8", "replace")
