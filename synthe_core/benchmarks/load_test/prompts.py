"""What a load generator asks: slices of a text, each drawn from a seed of its own."""

from __future__ import annotations

import random
from pathlib import Path

from synthe_core.errors import InputError

COMMON = """
    the of and to in is that for it as was with be by on not he this are or his from at which but have an had they
    you were their one all we can her has there been if more when will would who so no said what up its about into
    than them time only other new some could these two may then do first any my now such like our over man me even
    most made after also did many before must through years where much your way well down should because each just
    those people how too little state good very make world still own see men work long get here between both life
    being under never day same another know while last might us great old year off come since against go came right
    used take three river harbour lamp winter paper orchard copper thread morning stone window garden letter bridge
"""
WORDS = COMMON.split()
LENGTH = 200_000  # characters of the text that is made where none is given


class Prompts:
    """Slices of about `tokens` tokens, `characters` of text each on average; the same seed gives the same ones."""

    def __init__(self, text: str, tokens: int, seed: int) -> None:
        self.text, self.tokens, self.seed, self.characters = text, tokens, seed, 4.0

    def slice(self, *key: int, length: int | None = None) -> str:
        """Begins at a word; a text that is too short goes round."""
        length = length or max(1, round(self.tokens * self.characters))
        start = random.Random(f"{self.seed}/{key}").randrange(len(self.text))
        start = max(self.text.find(" ", start) + 1, 0)
        text = self.text[start : start + length]
        while len(text) < length:
            text += " " + self.text[: length - len(text)]
        return text[:length]


def text_of(data: Path | None, seed: int) -> str:
    """The text of a file; without one, words in a random order."""
    if data is None:
        drawn = random.Random(seed)
        words = drawn.choices(WORDS, [1 / (rank + 3) for rank in range(len(WORDS))], k=LENGTH // 5)
        return " ".join(word + "." if drawn.random() < 0.08 else word for word in words)
    try:
        text = data.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {data}", "a text, of which prompts are slices") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{data} cannot be read as text: {error}", "UTF-8, please") from None
    if not text.strip():
        raise InputError(f"{data} has no text", "prompts are slices of it")
    return " ".join(text.split())
