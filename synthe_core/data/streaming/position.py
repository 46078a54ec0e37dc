"""Where a token of a streamed source is, so that reading continues with it."""

from __future__ import annotations

from typing import Any, NamedTuple

from synthe_core.errors import InputError


def damaged_place() -> InputError:
    """The error for a position or cursor that no stream has given."""
    return InputError("the place in the training text is damaged", "resume from another checkpoint of the run")


class Position(NamedTuple):
    """The position of a token.

    epoch:  how often the whole source was read before.
    pieces: pieces of the source before the token's, rows for example.
    bytes:  of text in them.
    tokens: tokens of its piece before it.
    place:  of the piece, for a `PieceReader`; None: the beginning of the source.
    """

    epoch: int = 0
    pieces: int = 0
    bytes: int = 0
    tokens: int = 0
    place: Any = None

    def is_at(self, other: Position) -> bool:
        """Whether both are of the same token; a library may write one place in several ways."""
        return self[:4] == other[:4]

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, value: Any) -> Position:
        """The position that `to_json` gave. InputError if it is none."""
        if not isinstance(value, dict) or value.keys() != set(cls._fields):
            raise damaged_place()
        counts = [value[name] for name in cls._fields if name != "place"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise damaged_place()
        return cls(**value)
