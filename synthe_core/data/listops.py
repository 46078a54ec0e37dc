"""ListOps by the Long Range Arena's generator: nested lists of digits as documents, the value of each as its label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.data.documents import Piece, Source
from synthe_core.errors import InputError, unknown
from synthe_core.layers.learner import Spec

LIST_SHARE = 0.25
"""The probability that a node is a list and not a digit."""


class Operator(NamedTuple):
    """An operator's word and letter, and its value of a list of digits."""

    word: str
    letter: str
    fold: Callable[[list[int]], float]


OPERATORS = (
    Operator("[MIN", "n", min),
    Operator("[MAX", "x", max),
    Operator("[MED", "m", median),
    Operator("[SM", "s", lambda values: sum(values) % 10),
)


class ListOpsSpec(Spec):
    """The settings of `listops:KEY=VALUE,...`; the defaults are the Long Range Arena's."""

    examples: int = Field(96_000, ge=1)
    seed: int = Field(0, ge=0)
    shortest: int = Field(501, ge=4, description="tokens of an expression, at least")
    longest: int = Field(1999, ge=4, description="and at most")
    depth: int = Field(10, ge=2, le=100, description="of a tree, the digits included")
    arguments: int = Field(10, ge=2, description="of a list, at most; 2 at least")
    spelling: Literal["letters", "words"] = "letters"

    @model_validator(mode="after")
    def _lengths_can_be_reached(self) -> ListOpsSpec:
        if self.shortest > self.longest:
            raise PydanticCustomError("lengths", "`shortest` is above `longest`")
        largest = 1  # tokens of the full tree
        for _ in range(self.depth - 1):
            largest = min(2 + self.arguments * largest, self.longest + 1)
        if largest < self.shortest:
            raise PydanticCustomError(
                "lengths", "the largest tree has {largest} tokens, and `shortest` is more", {"largest": largest}
            )
        return self


class ListOps(Source):
    """Expressions as [MAX 2 9 [MIN 4 7 ] 0 ], whose value and label is 9: one is a document, in the order of a seed.

    A node is a list with probability 1/4, unless it is at the last level, and else a digit. A list has 2 to
    `arguments` nodes and one of four operators: the least, the greatest, the median rounded down, and the sum mod 10.
    Trees whose tokens are fewer than `shortest` or more than `longest` are drawn again. A digit, an operator with its
    bracket and a closing bracket are a token each. `letters` writes one character a token, so that its bytes are the
    tokens (x29n47]0]); `words` writes the words of the source, with a space between two tokens.

    Sources: Nangia & Bowman 2018, "ListOps"; Tay et al. 2021, "Long Range Arena".
    """

    def __init__(self, name: str, spec: ListOpsSpec) -> None:
        self.name = name
        self.spec = spec

    @classmethod
    def open(cls, name: str) -> ListOps | None:
        """The source that `name`, "listops" or "listops:KEY=VALUE,...", stands for; None for another name."""
        head, colon, rest = name.partition(":")
        if head != "listops" or (colon and not rest):
            return None
        settings: dict[str, str] = {}
        for part in rest.split(",") if rest else ():
            key, equals, value = (text.strip() for text in part.partition("="))
            if key not in ListOpsSpec.model_fields:
                raise unknown("setting of listops", key, list(ListOpsSpec.model_fields))
            if not equals:
                raise InputError(f"'{name}': {key} has no value", f"as listops:{key}=10")
            settings[key] = value
        try:
            return cls(name, ListOpsSpec.model_validate(settings))
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{first['loc'][0]}: " if first["loc"] else ""
            raise InputError(f"'{name}': {where}{first['msg']}", "as listops:shortest=50,longest=100") from None

    def identity(self) -> Any:
        return ["listops", self.spec.model_dump()]

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        rng = Random(f"listops {self.spec.seed}")
        for number in range(self.spec.examples):
            tokens, value = self._example(rng)
            if number >= skip:
                text = (" " if self.spec.spelling == "words" else "").join(tokens)
                yield Piece.whole(text.encode(), f"{self.name}, example {number + 1}", number, str(value))

    def _example(self, rng: Random) -> tuple[list[str], int]:
        while True:
            if (drawn := self._tree(rng)) is not None and len(drawn[0]) >= self.spec.shortest:
                return drawn

    def _tree(self, rng: Random) -> tuple[list[str], int] | None:
        """The tokens and the value of a tree in preorder; None as soon as it is longer than `longest`."""
        most, levels, longest, draw = self.spec.arguments, self.spec.depth, self.spec.longest, rng.random
        words = self.spec.spelling == "words"
        tokens: list[str] = []
        opened: list[tuple[Operator, int, list[int]]] = []  # of each open list, its nodes and the values so far
        while len(tokens) <= longest:
            if len(opened) + 1 < levels and draw() < LIST_SHARE:
                operator = OPERATORS[int(draw() * len(OPERATORS))]
                tokens.append(operator.word if words else operator.letter)
                opened.append((operator, 2 + int(draw() * (most - 1)), []))
                continue
            value = int(draw() * 10)
            tokens.append(str(value))
            while opened:
                operator, nodes, values = opened[-1]
                values.append(value)
                if len(values) < nodes:
                    break
                value = int(operator.fold(values))
                tokens.append("]")
                opened.pop()
            if not opened:
                return (tokens, value) if len(tokens) <= longest else None
        return None
